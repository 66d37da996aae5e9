"""What every result can do: print itself, show itself in a notebook, and become Markdown or plain values."""

from collections.abc import Iterable
from typing import Any, ClassVar

from .display import Block, Picture, as_html, as_markdown, as_text
from .records import plain_fields


class Result:
    """Base of the dataclasses that functions return: `_blocks` says what one shows, and this does the rest."""

    _width: ClassVar[int | None] = None
    """Where sentences are wrapped in a terminal; None leaves them whole."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as Python values, for a logger or for JSON: nested results become dicts, NaN stays NaN."""
        return plain_fields(self)

    def to_markdown(self) -> str:
        """Return, as GitHub Markdown, what ``print`` shows."""
        return as_markdown(self._blocks())

    def _repr_html_(self) -> str:
        return as_html(self._blocks(), self._picture())

    def __str__(self) -> str:
        return as_text(self._blocks(), self._width)

    def _blocks(self) -> Iterable[Block]:
        """What it shows, in words and tables."""
        raise NotImplementedError

    def _picture(self) -> Picture | None:
        """What it shows in a notebook below that."""
        return None
