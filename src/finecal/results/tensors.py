"""Safetensors files: the tensors that are wanted, mapped and not read, the metadata, and copies with a few changes."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .archives import Unreadable
from .records import RepeatedEntryError, parse_json

_MOST_HEADER = 100_000_000
"""Bytes of JSON that the library takes."""
_PART = 1 << 24
"""Bytes that are copied at a time."""


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


def copy_with_tensors(
    source: Path, target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Copy a file that `read_tensors` has read, with other values for some tensors, and more metadata.

    `tensors` have the shapes and dtypes of those that they replace. All other bytes stay as they are.
    """
    with open(source, "rb") as old, open(target, "wb") as new:
        text = old.read(int.from_bytes(old.read(8), "little"))
        header = json.loads(text)
        if metadata:
            header = {**header, "__metadata__": {**header.get("__metadata__", {}), **metadata}}
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
        new.write(len(text).to_bytes(8, "little") + text)
        start = new.tell()
        shutil.copyfileobj(old, new, _PART)
        for name, tensor in tensors.items():
            new.seek(start + header[name]["data_offsets"][0])
            new.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


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
