"""Files and directories that are written whole or not at all, and archives that are read without a lost member."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from torch import Tensor

from .arrays import NumpyArray

try:
    import fcntl
except ImportError:  # on Windows, where nobody can delete an open file
    _LOCKS = False
else:
    _LOCKS = True


@contextmanager
def temporary_beside(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new open file beside `target`, removed at the end; first remove unlocked ones of killed writers."""
    start = _start(target)
    for leftover in target.parent.glob(f"{start}*.tmp"):
        _remove_leftover(leftover)
    # Nobody else may read what replaces a private file, not even until it has got the mode of that.
    mode = 0o600 if target.exists() else 0o666
    while True:
        temporary = target.with_name(f"{start}{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        if _locked(descriptor) and os.fstat(descriptor).st_nlink:
            break
        # Another writer took it for a leftover between these two lines.
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def directory_beside(target: Path) -> Iterator[Path]:
    """As `temporary_beside`, for a directory; on Windows, where nothing shows whether one is in use, old ones stay."""
    start = _start(target)
    for leftover in target.parent.glob(f"{start}*.tmp"):
        if _LOCKS and leftover.is_dir() and not leftover.is_symlink():
            _remove_directory(leftover)
    while True:
        temporary = target.with_name(f"{start}{secrets.token_hex(8)}.tmp")
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY) if _LOCKS else None
        if descriptor is None or (_locked(descriptor) and temporary.is_dir()):
            break
        # Another writer took it for a leftover between these two lines.
        os.close(descriptor)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _start(target: Path) -> str:
    """Return how the names begin of everything that is on its way to `target`."""
    return f".finecal-{hashlib.sha256(target.name.encode(errors='surrogateescape')).hexdigest()[:16]}-"


def _remove_directory(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if _locked(descriptor, or_cannot=False):
                shutil.rmtree(path)
        finally:
            os.close(descriptor)


def _remove_leftover(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if _LOCKS and _locked(descriptor, or_cannot=False):
                path.unlink()
        finally:
            os.close(descriptor)
        if not _LOCKS:
            path.unlink()


def _locked(descriptor: int, or_cannot: bool = True) -> bool:
    """Return whether this process has the file for itself now, `or_cannot` where no file can be locked."""
    if not _LOCKS:
        return or_cannot
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return or_cannot
    return True


def check_new(path: Path) -> None:
    """Refuse what is there already, and what cannot be made, before any work is done."""
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already, and is not replaced; choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be made: there is no folder {path.parent}; make it first")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory that becomes `path` at the end and is removed after an error; OSError if it cannot.

    A killed process leaves a ``.finecal-*.tmp`` beside `path`, which the next one to make `path` removes.
    """
    check_new(path)
    with directory_beside(path) as temporary:
        yield temporary
        _finish(temporary, path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """As `new_directory`, but yield a name under which a file is to be written."""
    check_new(path)
    with directory_beside(path) as temporary:
        yield temporary / path.name
        _finish(temporary / path.name, path)


def _finish(temporary: Path, path: Path) -> None:
    """Put what was written into its place, once it is on the disk."""
    for file in (temporary, *temporary.rglob("*")):
        if file.is_file():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
    check_new(path)  # os.rename would replace an empty directory
    os.rename(temporary, path)


ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
"""Of an archive, and of an empty one."""
_LOCAL_HEADER = struct.Struct("<26xHH")
_FOLDER = 0x10
"""The bit by which MS-DOS, and torch, tell a folder from a file."""
_LONGEST_DESCRIPTOR = 24
"""What may follow a member: its sizes and its checksum, where they were not known before it."""
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_CHUNK = 1 << 20


class Unreadable(ValueError):
    """What is wrong with a file, in words that follow its name; `explain_errors` makes a sentence of it."""


def read_members(path: Path, wanted: Collection[str] | None = None) -> dict[str, NumpyArray | None]:
    """Return the arrays of a `.npz` by name; None, unread, for those that are not `wanted`."""
    with open(path, "rb") as file, ZipFile(file) as archive:
        members = _checked_members(archive, file)
        names = [member.filename.removesuffix(".npy") for member in members]
        _refuse_repeated(names)
        return {
            name: _array(archive, member) if wanted is None or name in wanted else None
            for name, member in zip(names, members, strict=True)
        }


def check_archive(path: Path) -> None:
    """Refuse an archive with a damaged member: torch.load does not look at the checksums."""
    with open(path, "rb") as file, ZipFile(file) as archive:
        members = _checked_members(archive, file)
        _refuse_repeated([member.filename for member in members])
        for member in members:
            # Torch fills no memory from what calls itself a folder, and takes what was in it before for numbers.
            if member.is_dir() or member.external_attr & _FOLDER:
                raise Unreadable(f"is damaged in {member.filename!r} (it is marked as a folder)")
            with _open(archive, member) as content:
                while content.read(_CHUNK):
                    pass


def _refuse_repeated(names: list[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise Unreadable(f"holds {repeated[0]!r} more than once")


def _checked_members(archive: ZipFile, file: BinaryIO) -> list[ZipInfo]:
    """Return the members in the order of the file, which must lie side by side: none is missing in the directory."""
    members, position = sorted(archive.infolist(), key=lambda member: member.header_offset), 0
    for member in members:
        _check_gap(position, member.header_offset)
        if member.compress_type == ZIP_STORED and member.compress_size != member.file_size:
            raise Unreadable(f"is damaged in {member.filename!r} (it has two sizes)")
        with _open(archive, member):  # compares its name with that in the directory
            pass
        file.seek(member.header_offset)
        name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        position = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length + member.compress_size
    _check_gap(position, archive.start_dir)
    return members


def _check_gap(end: int, start: int) -> None:
    if not 0 <= start - end <= _LONGEST_DESCRIPTOR:
        raise Unreadable("is damaged: its directory does not tell all that is in it")


@contextmanager
def _open(archive: ZipFile, member: ZipInfo) -> Iterator[IO[bytes]]:
    """Open a member; whatever is found to be wrong with it, its checksum at its end included, is damage."""
    try:
        with archive.open(member) as content:
            yield content
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise Unreadable(f"is damaged in {member.filename!r} ({str(error).rstrip('.')})") from error


def _array(archive: ZipFile, member: ZipInfo) -> NumpyArray:
    with _open(archive, member) as content:
        version = np.lib.format.read_magic(content)
        if version in _READ_HEADER:
            shape, _, dtype = _READ_HEADER[version](content)
            size = content.tell() + math.prod(shape) * dtype.itemsize
            # Before memory is taken for what is not there; NumPy refuses objects itself.
            if size != member.file_size and not dtype.hasobject:
                raise Unreadable(f"claims {shape_words(shape)} entries in {member.filename!r}, which are not in it")
    with _open(archive, member) as content:
        array: NumpyArray = np.lib.format.read_array(content, allow_pickle=False)
        # Only at the end is the checksum compared.
        if content.read(1):
            raise Unreadable(f"has more in {member.filename!r} than an array")
    return array


def shape_words(shape: Sequence[int]) -> str:
    """Return "6 x 4", of whatever shape an array claims to have."""
    return " x ".join(map(str, shape)) or "1"


CHECKSUM = "sha256"
"""The key under which a file keeps it."""


def checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of JSON values and of tensors, with their names, dtypes and shapes, in whatever order."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Return `record` with the checksum of it and of the tensors."""
    return {**record, CHECKSUM: checksum(record, tensors or {})}


def check_checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Refuse what does not match its checksum; files without one, not written by finecal, are legal."""
    rest = {key: value for key, value in record.items() if key != CHECKSUM}
    if CHECKSUM in record and record[CHECKSUM] != checksum(rest, tensors or {}):
        raise Unreadable("does not match its checksum, so it was damaged or edited")


PathLike: TypeAlias = str | os.PathLike[str]
_OPEN_ALREADY = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Names of what the shell has opened for this process: ``--seen <(...)``, ``--seen /dev/stdin``."""


def write_atomically(path: PathLike, data: bytes) -> None:
    """Write `data` to the regular file `path`, which is replaced whole or not at all; OSError if it cannot.

    A killed process leaves a ``.finecal-*.tmp`` beside it, which the next write to `path` removes.
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
        reason = str(error.strerror or error)
        if os.name == "nt" and isinstance(error, PermissionError):
            reason += " (Windows replaces no file in use; logits that were read from a file use it)"
        raise type(error)(f"{path} cannot be written: {reason}; nothing was changed") from error


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
    """Return the lines of a text file, without blank ones and ``#`` comments that are none of `class_names`.

    If a class name starts with ``#``, comments need a blank after it, so that no misspelt class is lost.
    """
    is_strict = any(name.startswith("#") for name in class_names)

    def is_comment(line: str) -> bool:
        return line.startswith("#") and (not is_strict or line[1:2] in ("", "#") or line[1].isspace())

    return [line for line in text_lines(path) if line in class_names or not is_comment(line)]


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
