"""What the commands print and write: JSON with the warnings, and files beside those that they read."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..results.checksums import with_checksum
from ..results.display import visible
from ..results.files import check_destination
from ..results.records import strict_json, to_json

_SOURCES = {
    "logits": "the logits before calibration",
    "labels": "the file of --labels",
    "class_names": "the file of --class-names",
    "unlabelled": "the file of --unlabelled",
    "features": "the file of --features",
    "train": "the file of --train",
    "labelled": "the file of --labelled",
    "test": "the file of --test",
    "pretrained": "the file of --pretrained",
    "held_out_features": "the file of --held-out-features",
    "test_features": "the file of --test-features",
    "seen": "the file of --seen",
    "gamma": "the file of --gamma",
}
"""What commands read, by argument."""


def check_output(args: argparse.Namespace, suffixes: Sequence[str]) -> None:
    """Refuse an output that cannot be written, or that would replace a file that the command reads."""
    check_destination(args.output, suffixes)
    for name, what in _SOURCES.items():
        source = getattr(args, name, None)
        if source is not None and args.output.exists() and os.path.exists(source) and args.output.samefile(source):
            raise ValueError(f"-o {args.output} would replace {what}; choose another name")


def say_written(path: Path | None) -> None:
    if path is not None:
        print(f"wrote {visible(str(path), and_lines=True)}")


def json_of(record: Mapping[str, Any], sentences: list[str], *, signed: bool = False) -> str:
    """Return a record as JSON, with the sentences of the warnings; `signed` adds a checksum, for who reads it again."""
    whole = strict_json({**record, "warnings": sentences, "finecal": __version__})
    return to_json(with_checksum(whole) if signed else whole)
