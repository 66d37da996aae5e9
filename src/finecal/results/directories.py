"""Directories, and large files, that are made whole or not at all, and never take the place of another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .temporaries import directory_beside


def check_new(path: Path) -> None:
    """Refuse what is there already, and what cannot be made, before any work is done."""
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already, and is not replaced; choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be made: there is no folder {path.parent}; make it first")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to be filled, which becomes `path` at the end; after an error there is none.

    A process that is killed meanwhile leaves a ``.finecal-*.tmp`` beside `path`, which the next one to make `path`
    removes.

    Raises
    ------
    OSError
        If `path` exists, its parent does not or cannot be written to, or the disk is full.
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
