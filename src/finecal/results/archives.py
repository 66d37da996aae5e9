"""Zip archives, as which NumPy and torch write: no member is lost, comes twice or is damaged without a word."""

import math
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np

from ..inputs.arrays import NumpyArray

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
