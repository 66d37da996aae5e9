"""Base of all results: how they print, become tables and pages, and hold tensors."""

from __future__ import annotations

import difflib
import json
import math
import re
import shutil
import textwrap
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeVar, get_args, get_origin, get_type_hints
from xml.etree import ElementTree

import torch
from torch import Tensor

from .arrays import NumpyArray
from .files import Unreadable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


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


UNDEFINED = "-"
"""For NaN: an accuracy without samples, say. Every console prints it."""


def percent(fraction: float, decimals: int = 1) -> str:
    """Return 0.5 as "50.0", without the sign."""
    return UNDEFINED if math.isnan(fraction) else f"{100 * fraction:.{decimals}f}"


def points(after: float, before: float = 0.0) -> str:
    """Return a difference of fractions in points, with its sign: "+1.5"."""
    return UNDEFINED if math.isnan(after - before) else f"{100 * (after - before):+.1f}"


def from_to(before: float, after: float) -> str:
    """Return "12.5 -> 50.0 %"."""
    return f"{percent(before)} -> {percent(after)} %"


def decimal(value: float, decimals: int) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.{decimals}f}"


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
    """Write characters that steer a terminal or turn text as Python does (``\\x1b``); line ends only if `and_lines`."""
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


T = TypeVar("T")
_NOT_FINITE = ("nan", "inf", "-inf")
"""JSON has no such numbers: where they have to come back, they are texts."""


class RepeatedEntryError(ValueError):
    """JSON says a thing twice."""


def plain_fields(record: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass by name: numbers, texts, lists and dicts of them; NaN stays a float."""
    return plain_values(record, [field.name for field in fields(record) if field.name not in leave_out])


def plain_values(record: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return attributes by name: numbers, texts, lists and dicts of them; NaN stays a float."""
    return {name: _plain(getattr(record, name), float) for name in names}


def encoded_fields(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as strict JSON has them, for `decoded_fields`."""
    return {field.name: _plain(getattr(record, field.name), str) for field in fields(record)}


def to_json(record: Mapping[str, Any]) -> str:
    """Return strict JSON in ASCII, which every console prints: NaN and infinity, which JSON does not have, are null."""
    return json.dumps(strict_json(record), indent=2, allow_nan=False) + "\n"


def strict_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as `to_json` writes it: numbers, texts, lists and dicts, and None for NaN and infinity."""
    plain: dict[str, Any] = _plain(record, lambda value: None)
    return plain


def parse_json(text: str | bytes) -> Any:
    """Return what JSON says; ValueError if it is none, is nested without end, or says a thing twice."""
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RepeatedEntryError(f"it has the entry {repeated!r:.60} more than once")
    return entries


def refuse_misnamed(names: Iterable[object], known: Sequence[str]) -> None:
    """Refuse a name that is nearly one of the known, which is missing: what it holds would be left out silently."""
    names = list(names)
    missing = [name for name in known if name not in names]
    for name in names:
        near = difflib.get_close_matches(str(name).lower(), missing, n=1, cutoff=0.8)
        if near and name not in known:
            raise ValueError(
                f"it has no {near[0]!r}, but {name!r:.60}; name it {near[0]!r} if it is that, and less alike if not"
            )


def _plain(value: Any, not_finite: Callable[[float], Any]) -> Any:
    """Return numbers, texts, lists and dicts of them, NaN and infinity as `not_finite` makes them."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), not_finite) for field in fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(entry, not_finite) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, not_finite) for entry in value]
    return not_finite(value) if isinstance(value, float) and not math.isfinite(value) else value


def decoded_fields(entries: dict[str, Any], name: str, kind: type[T]) -> T:
    """Return a dataclass from its fields, or say in a ValueError what is wrong; those with a default may be missing."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    entries = with_new_names(entries, kind)
    required = {key for key, field in known.items() if field.default is field.default_factory is MISSING}
    if not required <= entries.keys() <= known.keys():
        raise ValueError(f"{name} has the entries {sorted(entries)}; expected {sorted(known)}")
    kinds = get_type_hints(kind)
    return kind(**{key: entry(entries, key, kinds[key]) for key in entries})


def with_new_names(entries: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return entries by the names that fields have now, where files may have the `_FORMER_NAMES` of `kind`."""
    renamed = getattr(kind, "_FORMER_NAMES", {})
    return {renamed.get(name, name): value for name, value in entries.items()}


def entry(record: Any, key: str, kind: Any) -> Any:
    """Return an entry of JSON as `kind`, or say in a ValueError what is wrong with it."""
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"its metadata lacks the entry {key!r}")
    try:
        return _decode(record[key], kind)
    except TypeError:
        raise ValueError(f"{key!r} in its metadata is {record[key]!r:.60}") from None


def _decode(value: Any, kind: Any) -> Any:
    """Invert `encoded_fields` for a value; TypeError if it is of another type."""
    if isinstance(kind, UnionType):
        return None if value is None else _decode(value, get_args(kind)[0])
    if get_origin(kind) is tuple and isinstance(value, list):
        inner = get_args(kind)
        if inner[-1] is ... or len(value) == len(inner):
            return tuple(_decode(part, inner[0]) for part in value)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _decode(part, get_args(kind)[1]) for key, part in value.items()}
    if kind is float and (value in _NOT_FINITE or type(value) is int):
        return float(value)
    if type(value) is kind:
        return value
    raise TypeError


def data_frame(
    records: Sequence[Mapping[str, Any]] | Mapping[str, NumpyArray],
    index: Sequence[str] | None = None,
    index_name: str | None = None,
) -> DataFrame:
    """Make a table of one record per row, or of columns."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() makes a table of pandas, which is not installed: pip install pandas") from error
    return pandas.DataFrame(records, index=None if index is None else pandas.Index(index, name=index_name))


def plots() -> ModuleType:
    """Return `finecal.plots`."""
    return import_module("...plots", __name__)


def page() -> ModuleType:
    """Return `finecal._report`."""
    return import_module("..._report", __name__)


_MOST_HEADER = 100_000_000
"""Bytes of JSON that the library takes."""
_PART = 1 << 24
"""Bytes that are copied at a time."""


def read_tensors(path: Path, wanted: Collection[str] | None = None) -> tuple[dict[str, Tensor | None], dict[str, str]]:
    """Return the tensors by name, None for those that are not `wanted`, and the metadata."""
    library = import_safetensors()
    _check_header(path)
    with library.safe_open(path, framework="pt", device="cpu") as file:
        tensors = {
            name: file.get_tensor(name) if wanted is None or name in wanted else None
            for name in file.keys()  # noqa: SIM118
        }
        return tensors, file.metadata() or {}


def copy_with_tensors(
    source: Path, target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Copy a file that `read_tensors` has read, with other values of the same shapes and dtypes, and more metadata."""
    with open(source, "rb") as old, open(target, "wb") as new:
        text = old.read(int.from_bytes(old.read(8), "little"))
        header = json.loads(text)
        if metadata:
            header = {**header, "__metadata__": {**header.get("__metadata__", {}), **metadata}}
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
        new.write(len(text).to_bytes(8, "little") + text)
        start = new.tell()
        shutil.copyfileobj(old, new, _PART)
        for name, tensor in tensors.items():
            new.seek(start + header[name]["data_offsets"][0])
            new.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _check_header(path: Path) -> None:
    """Refuse a name that comes twice, of which the library would take one."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _MOST_HEADER else b""
    try:
        parse_json(header)
    except RepeatedEntryError as error:
        raise Unreadable(f"is damaged: {error}") from error
    except ValueError:
        return  # The library says what is wrong.


def import_safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors files need the package safetensors: pip install 'finecal[io]'") from error
    return safetensors
