"""What the commands are given: files of samples, gamma and the seen classes."""

import argparse
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._calibrators.additive_bias import AdditiveBias
from .._calibrators.file import load
from .._calibrators.prototypes import Prototypes
from .._core.arrays import as_tensor
from .._core.checks import check_features, check_mask
from .._core.files import read_lines
from .._core.logits_file import LogitsFile, check_uncalibrated, read_array, read_class_names, read_logits
from .._core.samples import Samples
from .._core.seen_mask import check_complete_sample, seen_mask_from_indices, seen_mask_from_labels, seen_mask_from_names
from .._core.warning import error_context
from .._estimators.estimate import GAMMA_HINT, GammaFile, read_gamma

FILES = ("train", "held_out", "labelled", "unlabelled", "test")
"""The options that take samples, by their names in Python."""
_INTEGER_MASK = "a mask has booleans; save mask.astype(bool), or write class indices into a text file"


# --- files of samples -------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """Samples by option, the classes that are seen, and the names of all if there are any."""

    samples: dict[str, Samples]
    seen_mask: Tensor
    class_names: tuple[str, ...] | None


def paths_of(args: argparse.Namespace, name: str) -> list[Path]:
    """Return the files that an option of samples is given: none, one, or logits and labels."""
    given = getattr(args, name, None)
    return [] if given is None else given if isinstance(given, list) else [given]


def read_samples(args: argparse.Namespace, with_labels: Collection[str]) -> Given:
    """Read the files of all options that are given, of one model; those named in `with_labels` must have labels."""
    contents = {name: _read(name, paths, name in with_labels) for name in FILES if (paths := paths_of(args, name))}
    (first, content), *others = contents.items()
    names = content.class_names
    for name, other in others:
        _check_same_classes((paths_of(args, name)[0], paths_of(args, first)[0]), other, content)
        names = names or other.class_names
    if args.class_names is not None:
        names = read_class_names(args.class_names, content.logits.shape[1])
    samples = {name: Samples.of_file(other, paths_of(args, name)[0]) for name, other in contents.items()}
    source = contents.get("train", contents.get("held_out", content))
    return Given(samples, read_seen_mask(args.seen, replace(source, class_names=names)), names)


def _read(name: str, paths: Sequence[Path], needs_labels: bool) -> LogitsFile:
    option = option_of(name)
    if len(paths) > 2:
        raise ValueError(f"{option} takes one file, or two with the logits and the labels; {len(paths)} are given")
    path, labels = paths[0], paths[1] if len(paths) == 2 else None
    content = read_logits(path, labels=labels, with_labels=name != "unlabelled")
    if needs_labels and content.labels is None:
        raise ValueError(f"{path} has no labels; save them under the key 'labels', or give {option} {path} LABELS")
    return content


def option_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_same_classes(paths: tuple[Path, Path], other: LogitsFile, first: LogitsFile) -> None:
    if other.logits.shape[1] != first.logits.shape[1]:
        raise ValueError(
            f"{paths[0]} has logits of {other.logits.shape[1]} classes, {paths[1]} of {first.logits.shape[1]}; give "
            "logits of the same model"
        )
    for column, (expected, found) in enumerate(zip(first.class_names or (), other.class_names or (), strict=False)):
        if found != expected:
            raise ValueError(
                f"the classes of {paths[0]} are others than those of {paths[1]}: column {column} is {found!r}, and "
                f"{expected!r} there; give logits of the same model"
            )


def read_logits_of(args: argparse.Namespace) -> LogitsFile:
    """Read LOGITS, with labels and class names from files of their own if these are given."""
    content = read_logits(args.logits, labels=args.labels, class_names=args.class_names)
    check_uncalibrated(content, args.logits)
    return content


def labels_of(args: argparse.Namespace, content: LogitsFile) -> Tensor:
    if content.labels is None:
        raise ValueError(f"{args.logits} has no labels; save them under the key 'labels', or give --labels FILE")
    return content.labels


# --- gamma ------------------------------------------------------------------------------------------------------------


class Calibrated(NamedTuple):
    """Logits, with class names where either file has some; what --gamma and --seen tell; prototypes with features."""

    content: LogitsFile
    source: GammaFile
    seen_mask: Tensor
    prototypes: tuple[Prototypes, Tensor] | None

    def with_prototypes(self) -> Tensor | None:
        """Return the logits with gamma and prototypes; None if there are no prototypes."""
        if self.prototypes is None:
            return None
        prototypes, features = self.prototypes
        calibrated: Tensor = prototypes(self.content.logits, features)
        return calibrated


def read_gamma_for(args: argparse.Namespace, content: LogitsFile) -> Calibrated:
    """Read what --gamma and --seen give, and check that it is for these logits."""
    given = None if args.seen is None else mask_of_seen(args, content)
    source, prototypes = _read_gamma(args.gamma)
    num_classes = content.logits.shape[1]
    if source.seen_mask is not None and len(source.seen_mask) != num_classes:
        raise ValueError(
            f"{args.gamma} is for {len(source.seen_mask)} classes, {args.logits} has {num_classes}; estimate gamma for "
            "this model"
        )
    mask = source.seen_mask if given is None else given
    if mask is None:
        raise ValueError(
            f"--gamma {args.gamma} does not tell the seen classes; give --seen too, or as --gamma what finecal "
            "estimate -o wrote"
        )
    if source.seen_mask is not None and not torch.equal(mask, source.seen_mask):
        example = int((mask != source.seen_mask).nonzero()[0])
        raise ValueError(
            f"--seen {args.seen} and {args.gamma} disagree, first on class {example}; leave --seen out, or estimate "
            "gamma for these classes"
        )
    names, own_names = source.class_names, content.class_names
    for column, (expected, found) in enumerate(zip(names or (), own_names or (), strict=False)):
        if found != expected:
            raise ValueError(
                f"the classes of LOGITS are others than those of {args.gamma}: column {column} is {found!r}, and was "
                f"{expected!r} there; estimate gamma for this model, or give the names in the order of its columns"
            )
    content = replace(content, class_names=own_names or names)
    return Calibrated(content, source, mask, _with_features(args, content, prototypes))


def _read_gamma(gamma: str) -> tuple[GammaFile, Prototypes | None]:
    if not gamma:
        raise ValueError(f"--gamma is empty; {GAMMA_HINT}")
    try:
        if Path(gamma).suffix.lower() != ".safetensors":
            return read_gamma(gamma), None
        calibrator = load(gamma)
    except FileNotFoundError:
        raise FileNotFoundError(f"--gamma {gamma} is neither a number nor a file that exists; {GAMMA_HINT}") from None
    if not isinstance(calibrator, (AdditiveBias, Prototypes)):
        raise ValueError(
            f"{gamma} holds a {type(calibrator).__name__}; give an AdditiveBias or Prototypes, as finecal estimate -o "
            "writes them"
        )
    names: tuple[str, ...] | None = vars(calibrator)["class_names"]
    source = GammaFile(float(calibrator.gamma), calibrator.seen_mask, calibrator.estimate, names)
    return source, calibrator if isinstance(calibrator, Prototypes) else None


def _with_features(
    args: argparse.Namespace, content: LogitsFile, prototypes: Prototypes | None
) -> tuple[Prototypes, Tensor] | None:
    if prototypes is None:
        return None
    if content.features is None:
        raise ValueError(
            f"{args.gamma} holds prototypes, which need features: save what the model's final linear layer takes in "
            f"{args.logits}, under the key 'features'"
        )
    with error_context(args.logits, ValueError):
        features = check_features(content.features, content.logits.shape[0], content.logits.device)
    width = prototypes.center.shape[0]
    if features.shape[1] != width:
        raise ValueError(
            f"{args.logits} has {features.shape[1]} features per sample, {args.gamma} is for {width}; save what the "
            "same layer of the same model takes"
        )
    return prototypes, features


def mask_of_seen(args: argparse.Namespace, content: LogitsFile) -> Tensor:
    if args.seen == "labels":
        raise ValueError(
            "--seen labels tells the seen classes from the fine-tuning data, which LOGITS are not here; give them in a "
            "file, or --gamma with what finecal estimate -o wrote"
        )
    return read_seen_mask(args.seen, content)


# --- the seen classes -------------------------------------------------------------------------------------------------


def read_seen_mask(spec: str, content: LogitsFile) -> Tensor:
    """Return the seen classes `(C,)` bool that `spec` stands for, with the errors of `read_logits`.

    It is ``labels``, for the classes that occur among those of `content`; a `.npy` file with a mask; or a text file of
    class names, one per line, or indices, separated by lines, blanks or commas; see `read_lines` for comments. Numbers
    are names if one of them is a class name.
    """
    num_classes = content.logits.shape[1]
    if spec == "labels":
        with error_context("seen classes from 'labels'", ValueError):
            if content.labels is None:
                raise ValueError("the logits have none; give the labels too, or the seen classes")
            check_complete_sample(content.labels)
            return seen_mask_from_labels(content.labels, num_classes)
    path = Path(spec)
    if path.suffix.lower() == ".npy":
        array = np.array(read_array(path, "seen_mask"))  # no longer the file, which Windows keeps while it is mapped
        with error_context(path, ValueError):
            return _mask_from_array(array, num_classes)
    lines = read_lines(path, content.class_names or ())
    with error_context(path, ValueError):
        return _mask_from_lines(lines, num_classes, content.class_names)


def _mask_from_array(array: object, num_classes: int) -> Tensor:
    mask = as_tensor(array, "seen_mask")
    if mask.dtype != torch.bool:
        if bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(_INTEGER_MASK)
        dtype = str(mask.dtype).removeprefix("torch.")
        raise ValueError(f"dtype is {dtype}, but a mask has booleans; write class indices into a text file")
    return check_mask(mask, num_classes, mask.device)


def _mask_from_lines(lines: list[str], num_classes: int, class_names: Sequence[str] | None) -> Tensor:
    fields = [re.findall(r"[^\s,]+", line) for line in lines]
    words = [line for line, tokens in zip(lines, fields, strict=True) if not all(map(_is_index, tokens))]
    entries = lines if words else [token for tokens in fields for token in tokens]
    if not entries:
        raise ValueError("there is no class in it; name at least one seen class")
    repeated = [entry for entry, count in Counter(entries).items() if count > 1]
    if repeated:
        if len(entries) == num_classes and set(entries) <= {"0", "1"}:
            raise ValueError(_INTEGER_MASK)
        # A list of labels must not pass for a list of classes.
        raise ValueError(f"{repeated[0]!r} comes more than once; name each seen class once")
    if not words and not set(entries) & set(class_names or ()):
        return seen_mask_from_indices(torch.tensor([int(entry) for entry in entries]), num_classes)
    if class_names is None:
        raise ValueError(
            f"{words[0]!r} is no class index, and the class names are not known; give these too, one per line in a "
            "text file (--class-names)"
        )
    return torch.from_numpy(seen_mask_from_names(entries, class_names))


def _is_index(token: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,18}", token) is not None
