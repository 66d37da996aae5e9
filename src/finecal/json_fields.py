"""Dataclasses of numbers and texts as strict JSON, and back: each field is checked against its type."""

import math
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")
_NOT_FINITE = ("nan", "inf", "-inf")
"""JSON has no such numbers: they are texts there."""


def encoded_fields(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON has them."""
    return {field.name: _encoded(getattr(record, field.name), field.type) for field in fields(record)}


def decoded_fields(entries: dict[str, Any], name: str, kind: type[T]) -> T:
    """Return a dataclass from its fields, or say in a ValueError what is wrong; those with a default may be missing."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    required = {key for key, field in known.items() if field.default is MISSING}
    if not required <= entries.keys() <= known.keys():
        raise ValueError(f"{name} has the entries {sorted(entries)}; expected {sorted(known)}")
    return kind(**{key: entry(entries, key, known[key].type) for key in entries})


def entry(record: Any, key: str, kind: Any) -> Any:
    """Return an entry of JSON as `kind`, or say in a ValueError what is wrong with it."""
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"its metadata lacks the entry {key!r}")
    try:
        return _decoded(record[key], kind)
    except TypeError:
        raise ValueError(f"{key!r} in its metadata is {record[key]!r:.60}") from None


def _encoded(value: Any, kind: Any) -> Any:
    if isinstance(kind, UnionType):
        return None if value is None else _encoded(value, get_args(kind)[0])
    if get_origin(kind) is tuple:
        return [_encoded(inner, get_args(kind)[0]) for inner in value]
    if kind is float:
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def _decoded(value: Any, kind: Any) -> Any:
    """Invert `_encoded`; TypeError if the value is of another type."""
    if isinstance(kind, UnionType):
        return None if value is None else _decoded(value, get_args(kind)[0])
    if get_origin(kind) is tuple and isinstance(value, list):
        inner = get_args(kind)
        if inner[-1] is ... or len(value) == len(inner):
            return tuple(_decoded(part, inner[0]) for part in value)
    if kind is float and value in _NOT_FINITE:
        return float(value)
    if type(value) is kind:
        return value
    raise TypeError
