"""Files of logits: `.npz`, `.npy`, `.pt` and `.safetensors`, and predictions as `.csv`."""

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from .arrays import as_tensor, to_numpy
from .checks import as_logits, check_labels, check_scores, gamma_as_float
from .files import (
    CHECKSUM,
    ZIP_STARTS,
    PathLike,
    Unreadable,
    check_archive,
    check_checksum,
    check_destination,
    check_source,
    explain_errors,
    map_npy,
    npy_bytes,
    npz_bytes,
    read_members,
    shape_words,
    text_lines,
    with_checksum,
    write_atomically,
    write_text,
)
from .groups import check_groups, numbers_of
from .results import import_safetensors, parse_json, read_tensors, refuse_misnamed
from .warning import error_context

_ARRAYS = ("logits", "labels", "groups", "features", "pretrained_logits", "pretrained_features")
_KEYS = (*_ARRAYS, "class_names", "gamma")
_IN_METADATA = ("class_names", "gamma")
"""Of a `.safetensors`, where these are JSON."""


@dataclass(frozen=True, eq=False)
class LogitsFile:
    """The arrays of `Samples`, the names of the C classes if known, and the `gamma` already added to absent logits."""

    logits: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    gamma: float = 0.0
    groups: Tensor | None = None
    features: Tensor | None = None
    pretrained_logits: Tensor | None = None
    pretrained_features: Tensor | None = None


def write_logits(path: PathLike, content: LogitsFile) -> None:
    """Write logits, with what is known of them, as `.npz`, `.safetensors` or `.npy` (the logits alone)."""
    path = Path(path)
    check_destination(path, LOGITS_SUFFIXES)
    write_atomically(path, _ENCODERS[path.suffix.lower()](content))


def write_predictions(path: PathLike, classes: Tensor, class_names: Sequence[str] | None = None) -> None:
    """Write class indices `(N,)`: a `.npy`, or a `.csv` with a row per sample and the names where they are known."""
    path = Path(path)
    check_destination(path, PREDICTION_SUFFIXES)
    if path.suffix.lower() == ".npy":
        write_atomically(path, npy_bytes(classes.numpy()))
        return
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["sample", "class"] if class_names is None else ["sample", "class", "name"])
    for sample, index in enumerate(classes.tolist()):
        rows.writerow([sample, index] if class_names is None else [sample, index, class_names[index]])
    write_text(path, text.getvalue())


def read_logits(
    path: PathLike, *, labels: PathLike | None = None, class_names: PathLike | None = None, with_labels: bool = True
) -> LogitsFile:
    """Read and check logits, by suffix `.npz`, `.npy`, `.pt` or `.safetensors`, on the CPU.

    `path` has ``logits``, and perhaps the other arrays of `Samples`, ``class_names`` and ``gamma``, under these keys;
    or the logits alone. `labels`, a file of the same kinds, wins over labels in `path`, which only `with_labels` reads.
    `class_names` is a text file with one name per line. OSError, ValueError and ImportError name file and remedy.
    """
    path = Path(path)
    content = _read_arrays(path, "logits")
    with error_context(path, ValueError):
        logits = as_logits(_entry(content, "logits")).detach()
        check_scores(logits, logits.amax(1))
        num_samples, num_classes = logits.shape
        names = _names(content["class_names"], num_classes) if "class_names" in content else None
        gamma = gamma_as_float(content.get("gamma", 0.0))
        groups = numbers_of(check_groups(content.get("groups"), num_samples))
        given = {name: content.get(name) for name in _ARRAYS[3:]}
        others = {name: None if array is None else as_tensor(array, name) for name, array in given.items()}
    if class_names is not None:
        names = read_class_names(class_names, num_classes)

    if labels is not None:
        path = Path(labels)
        classes = read_array(path, "labels")
    elif with_labels and "labels" in content:
        classes = content["labels"]
    else:
        return LogitsFile(logits, None, names, gamma, groups, **others)
    with error_context(path, ValueError):
        checked = check_labels(classes, num_samples, num_classes, logits.device)
    return LogitsFile(logits, checked, names, gamma, groups, **others)


def check_uncalibrated(content: LogitsFile, path: PathLike) -> None:
    """Refuse logits that gamma has been added to."""
    if content.gamma != 0:
        raise ValueError(f"{path} already has gamma = {content.gamma:.6g} added; give the logits before calibration")


def read_class_names(path: PathLike, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes from a text file with one per line."""
    lines = text_lines(Path(path))
    names = [line for line in lines if not line.startswith("#")]
    comments = [line for line in lines if line.startswith("#")]
    # The file alone does not tell a name from a comment: where the count is wrong, say what was left out.
    hint = ""
    if comments:
        hint = f" (lines that start with # are comments, as {comments[0]!r:.60}: keep such names with the logits)"
    with error_context(path, ValueError):
        return _names(names, num_classes, hint)


def _names(value: object, num_classes: int, hint: str = "") -> tuple[str, ...]:
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "U" or value.ndim != 1:
            raise ValueError(f"class_names have dtype {value.dtype} and shape {value.shape}; save a list of texts")
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"class_names are of type {type(value).__name__}; save a list of texts")
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"class_names hold a value of type {type(name).__name__}; save a list of texts")
    if len(value) != num_classes:
        raise ValueError(
            f"there are {len(value)} class names for logits of {num_classes} classes; give one per column, in order"
            f"{hint}"
        )
    return tuple(value)


def read_array(path: Path, key: str) -> Any:
    """Return the array under `key`, or the only one of a file without keys."""
    content = _read_arrays(path, key)
    with error_context(path, ValueError):
        return _entry(content, key)


def _read_arrays(path: Path, only: str) -> Mapping[str, Any]:
    """Return what a file holds by key, None for what is not asked for; `only` is the key of an array without one."""
    check_source(path)
    suffix = path.suffix.lower()
    if suffix not in _READABLE:
        ending = f"the unknown suffix {path.suffix!r}" if suffix else "no suffix"
        raise ValueError(f"{path} has {ending}; save it as {' or '.join(_READABLE)}")
    decode, hint = _READABLE[suffix]
    with explain_errors(path, suffix, f"save it again: {hint}"), warnings.catch_warnings():
        # Torch warns of pickle protocols before it refuses the pickle.
        warnings.simplefilter("ignore")
        content = decode(path, only)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; save it again: {hint}")
    with error_context(path, ValueError):
        refuse_misnamed(content, (*_KEYS, only))
    return content


def _entry(content: Mapping[str, Any], key: str) -> Any:
    if key not in content:
        found = ", ".join(map(repr, list(content)[:5])) or "there are none"
        raise ValueError(f"no {key!r} among its arrays ({found}); save the {key} under this name")
    return content[key]


def _decode_numpy(path: Path, only: str) -> Any:
    with open(path, "rb") as file:
        is_archive = file.read(len(ZIP_STARTS[0])) in ZIP_STARTS
    return read_members(path, (*_KEYS, only)) if is_archive else {only: map_npy(path)}


def _decode_torch(path: Path, only: str) -> Any:
    if is_zipfile(path):
        check_archive(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    content = {only: loaded} if isinstance(loaded, Tensor) else loaded
    if isinstance(content, dict):
        for key in (*_KEYS, only):
            _check_storage(content.get(key), key)
    return content


def _check_storage(value: object, key: str) -> None:
    """Refuse a tensor that claims more than the file holds: one number, expanded, would be computed on for ever."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return
    if value.is_meta or value.is_nested or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise Unreadable(f"claims {shape_words(value.shape)} entries in {key!r}, which are not in it")


def _decode_safetensors(path: Path, only: str) -> Any:
    tensors, metadata = read_tensors(path, (*_KEYS, only))
    if CHECKSUM in metadata:
        check_checksum(metadata, {key: tensor for key, tensor in tensors.items() if tensor is not None})
    refuse_misnamed(metadata, (*_IN_METADATA, CHECKSUM))
    return tensors | {key: parse_json(metadata[key]) for key in _IN_METADATA if key in metadata}


def _encode_npy(content: LogitsFile) -> bytes:
    return npy_bytes(to_numpy(content.logits))


def _encode_npz(content: LogitsFile) -> bytes:
    arrays: dict[str, Any] = {key: to_numpy(tensor) for key, tensor in _tensors(content).items()}
    if content.class_names is not None:
        arrays["class_names"] = np.array(content.class_names)
    if content.gamma != 0:
        arrays["gamma"] = np.float64(content.gamma)
    return npz_bytes(arrays)


def _encode_safetensors(content: LogitsFile) -> bytes:
    metadata = {} if content.class_names is None else {"class_names": json.dumps(content.class_names)}
    if content.gamma != 0:
        metadata["gamma"] = json.dumps(content.gamma)
    tensors = _tensors(content)
    data: bytes = import_safetensors().torch.save(tensors, with_checksum(metadata, tensors))
    return data


def _tensors(content: LogitsFile) -> dict[str, Tensor]:
    tensors = {name: getattr(content, name) for name in _ARRAYS}
    return {key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}


_READABLE: dict[str, tuple[Callable[[Path, str], Any], str]] = {
    ".npz": (_decode_numpy, "numpy.savez(file, logits=logits, labels=labels)"),
    ".npy": (_decode_numpy, "numpy.save(file, array)"),
    ".pt": (_decode_torch, "torch.save({'logits': tensor, 'labels': tensor}, file)"),
    ".safetensors": (_decode_safetensors, "safetensors.torch.save_file({'logits': tensor}, file)"),
}
"""How to decode a file, and how to write one."""


# Without .pt, which is a pickle.
_ENCODERS = {".npz": _encode_npz, ".npy": _encode_npy, ".safetensors": _encode_safetensors}
LOGITS_SUFFIXES = tuple(_ENCODERS)
PREDICTION_SUFFIXES = (".csv", ".npy")
PAGE_SUFFIXES = (".html",)
