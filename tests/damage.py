"""A small file of every kind that finecal reads, to be damaged, and what reading it says."""

from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import finecal
from finecal._cli.sources import read_seen_mask
from finecal._core.files import npz_bytes, read_lines, read_npz, with_checksum
from finecal._core.logits_file import LogitsFile, read_logits, write_logits
from finecal._core.results import strict_json, to_json
from finecal._estimators.estimate import gamma_record, read_gamma

NAMES = ("ant", "bée", "cat", "#dog")
MASK = torch.tensor([True, False, True, False])
LABELS = torch.tensor([0, 2, 1])
LOGITS = torch.tensor([[1.5, -2.0, 0.25, 3.0], [0.0, 1.0, -float("inf"), 2.0], [7.0, 6.0, 5.0, 4.5]])
CONTENT = LogitsFile(LOGITS, LABELS, NAMES, 0.5)
ESTIMATE = finecal.GammaEstimate(1 / 3, "by hand", "7 guesses", 7, 0.25, (-1.0, 0.5), (), 0.75)
RECORD = strict_json(gamma_record(ESTIMATE, MASK, NAMES))


class Kind(NamedTuple):
    """How a file is written and read; whether it carries a checksum; a word that its refusals begin with."""

    file: str
    write: object
    read: object
    is_checked: bool


def _logits(path):
    content = read_logits(path)
    labels = None if content.labels is None else content.labels.tolist()
    return content.logits.dtype, content.logits.tolist(), labels, content.class_names, content.gamma


def _gamma(path):
    found = read_gamma(str(path))
    mask = None if found.seen_mask is None else found.seen_mask.tolist()
    return found.gamma, mask, found.class_names, found.estimate


def _calibrator(path):
    loaded = finecal.load(path)
    return repr([loaded, loaded[1].estimate, loaded.class_names, loaded(LOGITS).tolist()])


def _seen(path):
    return read_seen_mask(str(path), LogitsFile(LOGITS, None, NAMES)).tolist()


def _arrays(path):
    return {name: (array.dtype.str, array.tolist()) for name, array in read_npz(path, "delete it").items()}


def _write_torch(path, **options):
    torch.save({"logits": LOGITS, "labels": LABELS, "class_names": list(NAMES), "gamma": 0.5}, path, **options)


def _write_calibrator(path):
    parts = nn.Sequential(finecal.Temperature(2.0), finecal.AdditiveBias(MASK, ESTIMATE))
    finecal.save(parts, path, class_names=NAMES)


KINDS = {
    ".npz": Kind("a.npz", lambda path: write_logits(path, CONTENT), _logits, True),
    ".npz, compressed": Kind(
        "a.npz",
        lambda path: np.savez_compressed(path, logits=LOGITS, labels=LABELS, class_names=NAMES, gamma=0.5),
        _logits,
        True,
    ),
    ".npz of a fold": Kind(
        "a.npz", lambda path: path.write_bytes(npz_bytes({"logits": LOGITS.numpy(), "seed": 3})), _arrays, True
    ),
    ".pt": Kind("a.pt", _write_torch, _logits, True),
    ".pt before torch 1.6": Kind(
        "a.pt", lambda path: _write_torch(path, _use_new_zipfile_serialization=False), _logits, False
    ),
    ".safetensors": Kind("a.safetensors", lambda path: write_logits(path, CONTENT), _logits, True),
    ".safetensors of others": Kind(
        "a.safetensors", lambda path: save_file({"logits": LOGITS, "labels": LABELS}, path), _logits, False
    ),
    ".npy": Kind("a.npy", lambda path: write_logits(path, CONTENT), _logits, False),
    "gamma.json": Kind("a.json", lambda path: path.write_text(to_json(with_checksum(RECORD))), _gamma, True),
    "gamma.json by hand": Kind("a.json", lambda path: path.write_text(to_json(RECORD)), _gamma, False),
    "calibrator": Kind("a.safetensors", _write_calibrator, _calibrator, True),
    "seen classes": Kind("a.txt", lambda path: path.write_text("# seen\nant\n#dog\n"), _seen, False),
    "class names": Kind("a.txt", lambda path: path.write_text("# all\nant\nbée\n"), read_lines, False),
}


def outcome(kind, path):
    """Return what a file is read as, or the sentence that refuses it; any other exception is a mistake of finecal."""
    try:
        return kind.read(path)
    except (ValueError, OSError) as error:
        sentence = str(error)
    assert sentence.startswith(str(path)), sentence
    assert "\n" not in sentence, sentence
    return Refusal(sentence)


class Refusal(str):
    """A sentence in place of a content."""
