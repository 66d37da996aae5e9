"""Logits and labels in Parquet files, read a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .._core.arrays import NumpyArray
from .._core.files import check_source, explain_errors
from .._core.warning import error_context

_ROWS = 1024
"""Rows read at a time: 90 MB with 21,841 classes."""


def read_parquet(path: Path, logits: str, labels: str) -> Iterator[tuple[NumpyArray, NumpyArray]]:
    """Yield logits `(n, C)` and labels `(n,)` of up to 1024 rows at a time; ValueError names a damaged file."""
    check_source(path)
    with explain_errors(path, ".parquet", "write it again"):
        # Without the option a damaged page is read as other numbers; pages without a checksum are legal.
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        for name in (logits, labels):
            if name not in file.schema_arrow.names:
                found = ", ".join(map(repr, file.schema_arrow.names[:5]))
                raise ValueError(f"{path} has no column {name!r} ({found}); name the columns with logits= and labels=")
        batches = file.iter_batches(_ROWS, columns=[logits, labels])
        while True:
            with explain_errors(path, ".parquet", "write it again"):
                batch = next(batches, None)
            if batch is None:
                return
            with error_context(path, ValueError):
                part = _matrix(batch.column(logits), logits), _numbers(batch.column(labels), labels)
            yield part


def _matrix(column: pa.Array, name: str) -> NumpyArray:
    """Return lists of numbers as `(N, C)`, without a copy."""
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        widths = pc.unique(pc.list_value_length(values)).drop_null().to_pylist()
        if len(widths) > 1:
            raise ValueError(f"rows have logits of {widths[0]} and of {widths[1]} classes; all need one per class")
        width = widths[0] if widths else 0
    else:
        raise ValueError(f"column {name!r} is of type {column.type}; it needs a list of numbers per row")
    if values.null_count:
        raise ValueError(f"column {name!r} is missing in {values.null_count} of {len(values)} rows; drop these")
    return _numbers(values.flatten(), name).reshape(len(values), width)


def _numbers(values: pa.Array, name: str) -> NumpyArray:
    if values.null_count:
        raise ValueError(f"column {name!r} has {values.null_count} missing values (null); drop these rows")
    array: NumpyArray = values.to_numpy(zero_copy_only=False)
    return array
