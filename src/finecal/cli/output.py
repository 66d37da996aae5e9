"""What the commands print: JSON with the warnings, and the files that they wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._version import __version__
from ..results.records import to_json


def say_written(path: Path | None) -> None:
    if path is not None:
        print(f"wrote {path}")


def json_of(record: Mapping[str, Any], sentences: list[str]) -> str:
    """Return a record as JSON, with the sentences of the warnings."""
    return to_json({**record, "warnings": sentences, "finecal": __version__})
