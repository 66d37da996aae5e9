"""How finecal warns, and how an error says which argument or file it is about."""

from __future__ import annotations

import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


WIDTH = 88
"""Columns of a warning as it is shown."""


class FinecalWarning(UserWarning):
    """Warning of an input that looks wrong, or of an estimate whose assumption is visibly broken.

    ``str(warning)`` has lines of 88 columns; ``warning.args[0]``, which filters compare, is one line. To raise errors:

    >>> import warnings, finecal
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", finecal.FinecalWarning)
    """

    def __str__(self) -> str:
        return wrap(super().__str__())


def wrap(text: str) -> str:
    """Return a text in lines, which are indented from the second on."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def warn(message: str) -> None:
    """Issue a `FinecalWarning` that points at the caller's line, outside finecal."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FinecalWarning, stacklevel=level)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep finecal's warnings from being issued, where they are shown in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FinecalWarning)
        yield


@contextmanager
def error_context(what: object, kind: type[Exception] | None = None) -> Iterator[None]:
    """Put the argument or the file that an error is about in front of it, and raise it as `kind`, else as it came."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise (kind or (TypeError if isinstance(error, TypeError) else ValueError))(f"{what}: {error}") from error
