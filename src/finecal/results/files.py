"""Files, written whole or not at all, and read without executing anything."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from ..inputs.arrays import NumpyArray

PathLike: TypeAlias = str | os.PathLike[str]


def write_atomically(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that the file is there whole or not at all; an old file stays until then.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written to, the disk is full, or `path` is no regular file.
    """
    check_destination(path)
    # A link stays one: what it points to is written.
    target = Path(path).resolve()
    temporary = target.with_name(f".finecal-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_destination(path: PathLike, suffixes: Sequence[str] = ()) -> None:
    """Refuse what cannot be written to before any work is done: a wrong suffix, a missing folder, a directory."""
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} cannot be written: choose a name that ends with {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise FileExistsError(f"{path} cannot be written: it is {kind}; choose another name")


def check_source(path: Path) -> None:
    """Refuse what cannot be read."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give a file in it")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the name")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without blank ones and those that start with ``#``."""
    check_source(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text file (UTF-8); write one class per line") from None
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def read_npz(path: Path, hint: str) -> dict[str, NumpyArray]:
    """Return all arrays of a `.npz` by name; `hint` says what to do about a damaged one."""
    check_source(path)
    with explaining(path, ".npz", hint), open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
        return dict(content)


@contextmanager
def explaining(path: Path, suffix: str, hint: str) -> Iterator[None]:
    """Parsers of damaged files raise whatever they stumble over: say what it means, and what to do."""
    try:
        yield
    except (ImportError, MemoryError, PermissionError):
        raise
    except Exception as error:
        if "pickl" in repr(error).lower():
            raise ValueError(
                f"{path} holds Python objects or is no {suffix} file at all, and finecal never unpickles; {hint}"
            ) from error
        raise ValueError(f"{path} is truncated or no {suffix} file; {hint}") from error


def npy_bytes(array: NumpyArray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def import_safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors files need the package safetensors: pip install 'finecal[io]'") from error
    return safetensors
