"""Files, written whole or not at all, and read without executing anything."""

import errno
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..inputs.arrays import NumpyArray
from .archives import Unreadable, read_members, shape_words
from .temporaries import temporary_beside

PathLike: TypeAlias = str | os.PathLike[str]
_OPEN_ALREADY = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Names of what the shell has opened for this process: ``--seen <(...)``, ``--seen /dev/stdin``."""


def write_atomically(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that the file is there whole or not at all; an old file stays until then.

    A process that is killed meanwhile leaves a ``.finecal-*.tmp`` beside it, which the next write to `path` removes.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written to, the disk is full, or `path` is no regular file.
    """
    check_destination(path)
    # A link stays one: what it points to is written.
    target = Path(path).resolve()
    try:
        with temporary_beside(target) as (temporary, file):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            if os.name == "nt":
                file.close()  # Windows moves no open file.
            os.replace(temporary, target)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error


def write_text(path: PathLike, text: str) -> None:
    """Write a text as UTF-8, as `write_atomically` does."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path} cannot be written: {error.object[error.start]!r} in its text is half a character, which no file "
            "can hold; mend the names of the classes"
        ) from error
    write_atomically(path, data)


def check_destination(path: PathLike, suffixes: Sequence[str] = ()) -> None:
    """Refuse what cannot be written to before any work is done: a wrong suffix, a missing folder, a directory."""
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} cannot be written: choose a name that ends with {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    if _leads_to_itself(path):
        raise FileExistsError(f"{path} cannot be written: it is a link that leads to itself; remove it")
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise FileExistsError(f"{path} cannot be written: it is {kind}; choose another name")


def check_source(path: Path, *, or_pipe: bool = False) -> None:
    """Refuse what cannot be read, and what might never end; `or_pipe` lets pass what a shell has put into a pipe."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give a file in it")
    if _leads_to_itself(path):
        raise OSError(f"{path} is a link that leads to itself; give the file that it was meant for")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the name")
    # A pipe by name, without a writer, would wait for ever; the shell's have one already.
    is_open = or_pipe and path.is_fifo() and str(path).startswith(_OPEN_ALREADY)
    if not path.is_file() and not is_open:
        raise OSError(f"{path} is no regular file, but a device, a pipe or a socket; give a file in its place")


def _leads_to_itself(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    except ValueError:  # a name that no file has
        return False
    return False


def text_lines(path: Path) -> list[str]:
    """Return the lines of a text file, or of a pipe of the shell, without blank ones."""
    check_source(path, or_pipe=True)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text file (UTF-8); write one class per line") from None
    return [line for line in map(str.strip, text.splitlines()) if line]


def read_lines(path: Path, class_names: Collection[str] = ()) -> list[str]:
    """Return the lines of a text file, without blank ones and comments, which start with ``#``.

    A line that is one of `class_names` is no comment. If one of these starts with ``#``, comments need a blank after
    it, so that no class is lost by a slip.
    """
    is_strict = any(name.startswith("#") for name in class_names)
    return [line for line in text_lines(path) if line in class_names or not _is_comment(line, is_strict)]


def _is_comment(line: str, is_strict: bool) -> bool:
    return line.startswith("#") and (not is_strict or line[1:2] in ("", "#") or line[1].isspace())


def read_npz(path: Path, hint: str) -> dict[str, NumpyArray]:
    """Return all arrays of a `.npz` by name; `hint` says what to do about a damaged one."""
    check_source(path)
    with explain_errors(path, ".npz", hint):
        return {name: array for name, array in read_members(path).items() if array is not None}


def map_npy(path: Path) -> NumpyArray:
    """Return the array of a `.npy` file: its pages are read when they are needed, and never written."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.offset + array.nbytes != path.stat().st_size:
        raise Unreadable(f"holds more than an array of shape {shape_words(array.shape)}")
    return np.asarray(array) if array.flags.aligned else np.array(array)


@contextmanager
def explain_errors(path: Path, suffix: str, hint: str) -> Iterator[None]:
    """Parsers of damaged files raise whatever they stumble over: say what it means, and what to do."""
    try:
        yield
    except (ImportError, PermissionError):
        raise
    except Unreadable as error:
        raise ValueError(f"{path} {error}; {hint}") from error
    except Exception as error:
        words = repr(error).lower()
        if isinstance(error, MemoryError) or "allocate memory" in words:
            raise ValueError(f"{path} needs more memory than there is; {hint}") from error
        if "pickl" in words or "python objects" in words:
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
