"""Safetensors files: the tensors that are wanted, mapped and not read, and the metadata."""

from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from torch import Tensor

from .archives import Unreadable
from .records import RepeatedEntryError, parse_json

_MOST_HEADER = 100_000_000
"""Bytes of JSON that the library takes."""


def read_tensors(path: Path, wanted: Collection[str] | None = None) -> tuple[dict[str, Tensor | None], dict[str, str]]:
    """Return the tensors by name, None for those that are not `wanted`, and the metadata."""
    library = import_safetensors()
    _check_header(path)
    with library.safe_open(path, framework="pt", device="cpu") as file:
        tensors = {
            name: file.get_tensor(name) if wanted is None or name in wanted else None
            for name in file.keys()  # noqa: SIM118
        }
        return tensors, file.metadata() or {}


def _check_header(path: Path) -> None:
    """Refuse a name that comes twice, of which the library would take one."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _MOST_HEADER else b""
    try:
        parse_json(header)
    except RepeatedEntryError as error:
        raise Unreadable(f"is damaged: {error}") from error
    except ValueError:
        return  # The library says what is wrong.


def import_safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors files need the package safetensors: pip install 'finecal[io]'") from error
    return safetensors
