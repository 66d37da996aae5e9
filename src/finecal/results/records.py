"""Results as plain Python values, as tables of pandas and as strict JSON, and back."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from ..inputs.arrays import NumpyArray

if TYPE_CHECKING:
    from pandas import DataFrame

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
    required = {key for key, field in known.items() if field.default is field.default_factory is MISSING}
    if not required <= entries.keys() <= known.keys():
        raise ValueError(f"{name} has the entries {sorted(entries)}; expected {sorted(known)}")
    kinds = get_type_hints(kind)
    return kind(**{key: entry(entries, key, kinds[key]) for key in entries})


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
