"""What a result shows, written once by each class: for a terminal, for Markdown and for a notebook.

A result yields *blocks*; each is a sequence of sentences, tables and cautions that belong together.
"""

from __future__ import annotations

import re
import textwrap
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PICTURE, _DPI = "display: block; width: 450px; max-width: 100%; margin-top: 0.7em", 120


# No colour but this one, which reads on white and on black: the rest is the notebook's own.
_CAUTION = "border-left: 3px solid #d55e00; padding-left: 0.6em"
_CELL = "padding: 0.2em 0.7em; white-space: nowrap"
_MARKUP = re.compile(r"[\\`*~]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<=\])\(|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")

_STEERING = re.compile(r"([\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff])")
"""Names of files, classes and methods come from outside, and may hold anything."""


class Table(NamedTuple):
    """Cells as text, and what stands above them."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Caution(NamedTuple):
    """A sentence that must not be overlooked."""

    sentence: str


class Picture(NamedTuple):
    """A PNG, and what it shows in words."""

    png: bytes
    words: str


Part: TypeAlias = str | Table | Caution
Block: TypeAlias = Sequence[Part]


def as_text(blocks: Iterable[Block], width: int | None = None) -> str:
    """Return blocks with an empty line between them; with `width`, sentences are wrapped there."""

    def text(part: Part) -> str:
        if isinstance(part, Table):
            return format_table(*part)
        sentence = visible(part.sentence if isinstance(part, Caution) else part)
        return sentence if width is None else textwrap.fill(sentence, width)

    return "\n\n".join("\n".join(map(text, block)) for block in blocks)


def as_markdown(blocks: Iterable[Block]) -> str:
    """Return GitHub Markdown: a paragraph for each sentence, a quotation for each caution."""

    def markdown(part: Part) -> str:
        if isinstance(part, Table):
            return format_table([_inert(cell) for cell in part.header], [[*map(_inert, row)] for row in part.rows])
        return f"> {_inert(part.sentence)}" if isinstance(part, Caution) else _inert(part)

    return "\n\n".join(markdown(part) for block in blocks for part in block)


def as_html(blocks: Iterable[Block], picture: Picture | None = None) -> str:
    """Return HTML whose style is its own and follows the page's colours, light or dark."""
    root = ElementTree.Element("div")
    for part in (part for block in blocks for part in block):
        if isinstance(part, Table):
            _add_table(root, part)
        elif isinstance(part, Caution):
            ElementTree.SubElement(root, "p", style=_CAUTION).text = visible(part.sentence)
        else:
            ElementTree.SubElement(root, "p").text = visible(part)
    if picture is not None:
        source = f"data:image/png;base64,{b64encode(picture.png).decode()}"
        ElementTree.SubElement(root, "img", src=source, alt=picture.words, style=_PICTURE)
    return ElementTree.tostring(root, encoding="unicode", method="html")


def draw_picture(draw: Callable[[], Axes], words: str) -> Picture | None:
    """Return what `draw` draws, None if there is no matplotlib to draw with."""
    try:
        figure = draw().figure.figure  # of a subfigure, the one that can be saved
    except ImportError:
        return None
    with BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=_DPI)
        return Picture(buffer.getvalue(), words)


def _inert(text: str) -> str:
    """Keep Markdown from taking a part of a text for emphasis, code, a link or a tag."""
    return _MARKUP.sub(r"\\\g<0>", visible(text))


def visible(text: str, and_lines: bool = False) -> str:
    """Show characters that steer a terminal, or turn the direction of text, as Python writes them: ``\\x1b``.

    Line ends stay, except with `and_lines`, for what must be one line.
    """
    return "".join(
        repr(part)[1:-1] if _STEERING.fullmatch(part) and (and_lines or part != "\n") else part
        for part in _STEERING.split(text)
    )


def _add_table(root: ElementTree.Element, table: Table) -> None:
    styles = [f"text-align: {'right' if right else 'left'}; {_CELL}" for right in numeric_columns(*table)]
    window = ElementTree.SubElement(root, "div", style="overflow-x: auto")
    element = ElementTree.SubElement(window, "table", style="border-collapse: collapse")
    head = ElementTree.SubElement(ElementTree.SubElement(element, "thead"), "tr", style="border-bottom: 1px solid")
    for text, style in zip(table.header, styles, strict=True):
        ElementTree.SubElement(head, "th", scope="col", style=style).text = visible(text)
    body = ElementTree.SubElement(element, "tbody")
    for row in table.rows:
        line = ElementTree.SubElement(body, "tr")
        for i, (text, style) in enumerate(zip(row, styles, strict=True)):
            cell = ElementTree.SubElement(line, *(("td", {}) if i else ("th", {"scope": "row"})), style=style)
            cell.text = visible(text)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return `rows` under `header` as an aligned Markdown table: the first column to the left, numbers to the right."""
    right = numeric_columns(header, rows)
    lines = [[_cell(text) for text in line] for line in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + ":" if to_right else "-" * width for width, to_right in zip(widths, right, strict=True)]
    aligned = [
        " | ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        )
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {line} |" for line in aligned)


def numeric_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Return which columns hold numbers only, the first one left out."""
    columns = zip(header, *rows, strict=True)
    return [i > 0 and all(_is_number(cell) for cell in column[1:]) for i, column in enumerate(columns)]


def _cell(text: str) -> str:
    """Keep a text within its cell."""
    return visible(" ".join(text.replace("|", "\\|").splitlines()))


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip("%") or "nan")
    except ValueError:
        return cell in ("", "-")
    return True
