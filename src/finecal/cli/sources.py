"""What the commands are given: logits, labels, gamma and the seen classes."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..calibrators.additive_bias import AdditiveBias
from ..calibrators.file import load
from ..calibrators.prototypes import Prototypes
from ..gamma.file import GAMMA_HINT, GammaFile, read_gamma
from ..inputs.features import check_features
from ..inputs.warning import error_context
from ..logits.file import LogitsFile, read_array, read_logits
from .seen import read_seen_mask


class Given(NamedTuple):
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


def read_gamma_for(args: argparse.Namespace, content: LogitsFile) -> Given:
    """Read what --gamma, --seen and --features give, and check that it is for these logits."""
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
    return Given(content, source, mask, _with_features(args, content, prototypes))


def _read_gamma(gamma: str) -> tuple[GammaFile, Prototypes | None]:
    if not gamma:
        raise ValueError(f"--gamma is empty; {GAMMA_HINT}")
    try:
        return _gamma_of(gamma)
    except FileNotFoundError:
        raise FileNotFoundError(f"--gamma {gamma} is neither a number nor a file that exists; {GAMMA_HINT}") from None


def _gamma_of(gamma: str) -> tuple[GammaFile, Prototypes | None]:
    if Path(gamma).suffix.lower() != ".safetensors":
        return read_gamma(gamma), None
    calibrator = load(gamma)
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
        if args.features is not None:
            raise ValueError(f"--features is for prototypes, and --gamma {args.gamma} has none; leave it out")
        return None
    if args.features is None:
        raise ValueError(
            f"{args.gamma} holds prototypes, which need --features FILE: what the model's final linear layer takes for "
            "the samples of LOGITS"
        )
    features = read_features(args.features, content.logits)
    width = prototypes.center.shape[0]
    if features.shape[1] != width:
        raise ValueError(
            f"{args.features} has {features.shape[1]} features per sample, {args.gamma} is for {width}; give what the "
            "same layer of the same model takes"
        )
    return prototypes, features


def read_features(path: Path, logits: Tensor) -> Tensor:
    features = read_array(path, "features")
    with error_context(path, ValueError):
        return check_features(features, logits.shape[0], logits.device)


def mask_of_seen(args: argparse.Namespace, content: LogitsFile) -> Tensor:
    if args.seen == "labels":
        raise ValueError(
            "--seen labels tells the seen classes from the fine-tuning data, which LOGITS are not here; give them in a "
            "file, or --gamma with what finecal estimate -o wrote"
        )
    return read_seen_mask(args.seen, content)


def read_source(args: argparse.Namespace, with_labels: bool = True) -> LogitsFile:
    content = read_logits(args.logits, labels=args.labels, class_names=args.class_names, with_labels=with_labels)
    return _uncalibrated(args.logits, content)


def _uncalibrated(path: Path, content: LogitsFile) -> LogitsFile:
    if content.gamma != 0:
        raise ValueError(f"{path} already has gamma = {content.gamma:.6g} added; give the logits before calibration")
    return content


def read_beside(path: Path, content: LogitsFile, with_labels: bool = True) -> LogitsFile:
    """Read logits of other samples, which have to be of the same model as those of LOGITS."""
    other = _uncalibrated(path, read_logits(path, with_labels=with_labels))
    if other.logits.shape[1] != content.logits.shape[1]:
        raise ValueError(
            f"{path} has logits of {other.logits.shape[1]} classes, LOGITS of {content.logits.shape[1]}; give logits "
            "of the same model"
        )
    for column, (expected, found) in enumerate(zip(content.class_names or (), other.class_names or (), strict=False)):
        if found != expected:
            raise ValueError(
                f"the classes of {path} are others than those of LOGITS: column {column} is {found!r}, and "
                f"{expected!r} there; give logits of the same model"
            )
    return other


def read_unlabelled(path: Path, content: LogitsFile) -> LogitsFile:
    return read_beside(path, content, with_labels=False)


def labels_of(args: argparse.Namespace, content: LogitsFile) -> Tensor:
    return labels_in(content, args.logits, ", or give --labels FILE")


def labels_in(content: LogitsFile, path: Path, other_way: str = "") -> Tensor:
    if content.labels is None:
        raise ValueError(f"{path} has no labels; save them under the key 'labels'{other_way}")
    return content.labels
