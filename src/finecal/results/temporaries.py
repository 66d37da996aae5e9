"""Files on their way: written beside their target, and what a killed process has left of them."""

import hashlib
import os
import secrets
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
    start = f".finecal-{hashlib.sha256(target.name.encode(errors='surrogateescape')).hexdigest()[:16]}-"
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
