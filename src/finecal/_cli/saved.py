"""What ``finecal fold`` and ``finecal restore`` share: options, data, and directories of Hugging Face."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from .._core.arrays import check_device, check_seed
from .._core.files import check_new
from ..integrations._saved_model import SavedModel, SavedTimm, is_of_timm
from .data import Columns, Dataset, read_arrays, read_dataset


def check_running(args: argparse.Namespace) -> None:
    """Refuse an output that exists, and numbers and a device that cannot be; `args.device` becomes a device."""
    check_new(args.out)
    check_seed(args.seed)
    for name in ("batch_size", "max_samples", "max_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; pass a positive number")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    device = check_device(default if args.device is None else args.device)
    try:
        torch.empty(0, device=device)
    except Exception as error:  # AssertionError or RuntimeError, by the kind of device
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {args.device} is not at hand ({reason}); leave it out, or pass cpu") from error
    args.device = device


def is_onnx(path: Path | None) -> bool:
    """Whether a model is a file of ONNX, by its name."""
    return path is not None and path.suffix.lower() == ".onnx"


def check_directory(path: Path, out: Path) -> None:
    """Refuse what is no directory, and an output inside of it."""
    if not path.is_dir():
        kind = "no directory" if path.exists() else "not there"
        raise FileNotFoundError(f"{path} is {kind}; give a directory that save_pretrained has written")
    if path.resolve() in out.resolve().parents:
        raise ValueError(f"{out} would be a part of {path}, which is copied; choose a name outside of it")


def refuse_options(options: Mapping[str, object], about: str) -> None:
    """Refuse options that are given, and are about something else."""
    for flag, value in options.items():
        if value:
            raise ValueError(f"{flag} is about {about}; leave it out")


def read_data(
    args: argparse.Namespace, first: Path, labelled: Path | None, unlabelled: Path | None
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Read labelled samples, others, and unlabelled ones, all of one kind."""
    columns = Columns(args.text_column, args.label_column)
    read = read_arrays if is_onnx(args.model) else read_dataset
    data = read(first, columns)
    others = (
        None if labelled is None else read(labelled, columns),
        None if unlabelled is None else read(unlabelled, columns, with_labels=False),
    )
    for samples in others:
        if samples is not None and samples.kind != data.kind:
            raise ValueError(f"{samples.path} has {samples.kind}, {first} has {data.kind}; give data of one kind")
    if data.kind == "images" and (args.text_column or args.label_column):
        raise ValueError(f"--text-column and --label-column are for tables, and {first} is a folder; leave them out")
    return data, *others


def open_directory(args: argparse.Namespace, path: Path, base: str | None = None) -> SavedModel:
    """Load a model that `save_pretrained` of transformers or PEFT has written, or timm."""
    if is_of_timm(path):
        elsewhere = {"--base": base, "--max-length": args.max_length, "--trust-remote-code": args.trust_remote_code}
        refuse_options(elsewhere, f"directories of Hugging Face, and {path} was saved by timm")
        return SavedTimm(path, device=args.device)
    try:
        from ..integrations._saved_transformers import SavedTransformer
    except ImportError as error:
        raise ImportError(
            f"{args.parser.prog} needs transformers ({error}): pip install 'finecal[transformers]'"
        ) from error
    return SavedTransformer(
        path, base, device=args.device, max_length=args.max_length, trust_remote_code=args.trust_remote_code
    )


def check_kind(saved: SavedModel, data: Dataset, option: str) -> None:
    """Refuse texts for a model of images, and images for one of texts."""
    if saved.kind != data.kind:
        raise ValueError(f"{saved.path} takes {saved.kind}; give {_NEEDED[saved.kind]} as {option}")


_NEEDED = {
    "images": "a folder of images",
    "texts": "a table of texts, .csv or .jsonl",
    "words": "a .jsonl with a list of words and a list of their tags on each line, 'tokens' and 'ner_tags',",
}
