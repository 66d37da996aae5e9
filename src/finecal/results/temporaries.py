"""Files and directories on their way: written beside their target, and what a killed process has left of them."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows, where nobody can delete an open file
    _LOCKS = False
else:
    _LOCKS = True


@contextmanager
def temporary_beside(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new file in the folder of `target`, open to be written; what is left of it in the end is removed.

    Before, what killed writers of the same target have left is removed: a lock tells it from what others write now.
    """
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
    """Yield a new directory in the folder of `target`, to be filled and moved; what is left in the end is removed.

    Before, what killed writers of the same target have left is removed, as by `temporary_beside`; on Windows it stays,
    since nothing tells there whether it is in use.
    """
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
