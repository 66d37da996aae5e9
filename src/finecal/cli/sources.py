"""What the commands are given: logits, labels, gamma and the seen classes."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..gamma.file import GammaFile, read_gamma
from ..logits.file import LogitsFile, read_logits
from .seen import read_seen_mask


def read_gamma_for(args: argparse.Namespace, content: LogitsFile) -> tuple[LogitsFile, GammaFile, Tensor]:
    """Read gamma, and return the logits with class names, where either file has some, and the seen mask."""
    given = None if args.seen is None else mask_of_seen(args, content)
    source = read_gamma(args.gamma)
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
    names = source.class_names
    if names is None:
        return content, source, mask
    if content.class_names is None:
        return replace(content, class_names=names), source, mask
    for column, (expected, found) in enumerate(zip(names, content.class_names, strict=True)):
        if found != expected:
            raise ValueError(
                f"the classes of LOGITS are others than those of {args.gamma}: column {column} is {found!r}, and was "
                f"{expected!r} there; estimate gamma for this model, or give the names in the order of its columns"
            )
    return content, source, mask


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


def read_unlabelled(path: Path, content: LogitsFile) -> Tensor:
    logits = _uncalibrated(path, read_logits(path, with_labels=False)).logits
    if logits.shape[1] != content.logits.shape[1]:
        raise ValueError(
            f"{path} has logits of {logits.shape[1]} classes, LOGITS of {content.logits.shape[1]}; give logits of the "
            "same model"
        )
    return logits


def labels_of(args: argparse.Namespace, content: LogitsFile) -> Tensor:
    if content.labels is None:
        raise ValueError(f"{args.logits} has no labels; save them under the key 'labels', or give --labels FILE")
    return content.labels
