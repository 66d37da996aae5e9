"""Results as plain Python values, and as tables of pandas."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from ._arrays import NumpyArray

if TYPE_CHECKING:
    from pandas import DataFrame


def plain_fields(record: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass by name: numbers, texts, lists and dicts of them; NaN stays a float."""
    return plain_values(record, [field.name for field in fields(record) if field.name not in leave_out])


def plain_values(record: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return attributes by name: numbers, texts, lists and dicts of them; NaN stays a float."""
    return {name: _plain(getattr(record, name)) for name in names}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return plain_fields(value)
    if isinstance(value, tuple):
        named = getattr(value, "_asdict", None)
        return [*map(_plain, value)] if named is None else {key: _plain(entry) for key, entry in named().items()}
    return value.tolist() if hasattr(value, "tolist") else value


def data_frame(
    records: Sequence[Mapping[str, Any]] | Mapping[str, NumpyArray],
    index: Sequence[str] | None = None,
    index_name: str | None = None,
) -> "DataFrame":
    """Make a table of one record per row, or of columns."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() makes a table of pandas, which is not installed: pip install pandas") from error
    return pandas.DataFrame(records, index=None if index is None else pandas.Index(index, name=index_name))
