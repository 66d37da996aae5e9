"""Ray Data: logits in many files, reduced to a state of `finecal.streaming` on the workers of a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import ray.data
import torch
from torch import nn

from .._core.arrays import ArrayLike, NumpyArray, as_tensor, check_flag, to_numpy
from .._core.checks import check_logits
from .._core.files import PathLike, check_source, explain_errors, npz_bytes
from .._core.logits_file import LogitsFile
from .._core.logits_file import read_logits as read_whole
from .._core.warning import error_context
from .._models.collect import with_bar
from .._models.output import logits_of
from ..streaming._state import State

__all__ = ["Scorer", "fill", "read_logits"]

StateT = TypeVar("StateT", bound=State)

_PARQUET = ".parquet"
SUFFIXES = (_PARQUET, ".npz", ".safetensors")
_PATH = "path"
"""Column with the file of a row, named as by Ray's own readers."""
_REFUSALS = (TypeError, ValueError, OSError, ImportError)
_ROWS = 1024
"""Rows of a Parquet file that are read at a time: 90 MB with 21,841 classes."""


def fill(
    state: StateT,
    source: Any,
    *,
    logits: str = "logits",
    labels: str = "labels",
    progress: bool = True,
    **options: Any,
) -> StateT:
    """Add the samples of a data set to a state on the workers of a Ray cluster.

    The driver merges a state per block or file. Ray is started locally unless it is running. finecal must be installed
    on all workers. See :doc:`/how-to/distributed`.

    Parameters
    ----------
    state : state of `finecal.streaming`
        Changed in place.
    source : ray.data.Dataset or path
        Rows with logits (array or list) and label; or a folder of logit files as in `read_logits`, at the same path on
        all workers. Ray then never stores the logits.
    logits, labels : str
        Columns of `source`, or of the Parquet files in it.
    progress : bool, default True
        Whether to show a bar of finished files or blocks on stderr, if tqdm is installed.
    **options
        As for `ray.data.Dataset.map_batches`; ``batch_size`` is for a Dataset, by default whole blocks.

    Returns
    -------
    state
        `state`, for any partition the same as from one process: counts exactly, sums to 1e-12. `streaming.MarginRows`
        has its rows in any order.

    Raises
    ------
    TypeError
        If `state` is not a state of `finecal.streaming`, or `source` neither a Dataset nor a path.
    ValueError
        If a file cannot be read, or ``state.update`` raises; names the file of the folder, or the column "path" of a
        Dataset. `state` is unchanged.
    OSError
        If there is no such folder.

    Examples
    --------
    >>> state = fill(GapSums(seen_mask), "/shared/logits")  # doctest: +SKIP
    >>> state.compute().maximum.gamma  # doctest: +SKIP
    4.71
    """
    if not isinstance(state, State):
        raise TypeError(f"state is a {type(state).__name__}; pass one of finecal.streaming, such as GapSums(seen_mask)")
    check_flag(progress, "progress")
    columns = {"logits": logits, "labels": labels}
    empty = state.emptied().to("cpu")
    arguments = {"empty": empty, **columns}
    if isinstance(source, ray.data.Dataset):
        whole_blocks = {"batch_size": None} | options
        reduced = source.map_batches(_reduce_batch, fn_kwargs=arguments, batch_format="numpy", **whole_blocks)
        bar: dict[str, Any] = {"unit": "block"}
    elif isinstance(source, (str, os.PathLike)):
        paths = logit_files(source)
        reduced = _per_file(paths).map_batches(_reduce_file, fn_kwargs=arguments, **options | {"batch_size": 1})
        bar = {"unit": "file", "total": len(paths)}
    else:
        raise TypeError(f"source is a {type(source).__name__}; pass a ray.data.Dataset, or the path of a folder")

    reduced.context.enable_progress_bars = False
    reduced.context.print_on_execution_start = False
    merged = empty.emptied()
    with _unwrap_errors():
        rows = reduced.iter_rows()
        for row in with_bar(rows, desc="fill", **bar) if progress else rows:
            if row["refusal"]:
                raise ValueError(row["refusal"])
            with np.load(BytesIO(row["state"]), allow_pickle=False) as arrays:
                merged.merge(empty.load_state_dict({name: as_tensor(arrays[name], name) for name in arrays.files}))
    return state.merge(merged)


def read_logits(folder: PathLike, *, logits: str = "logits", labels: str = "labels", **options: Any) -> Any:
    """Return the samples in a folder of logit files as a Ray Dataset, read by one task per file.

    For samples that need a filter or another step before `fill`, which reads an unchanged folder at less cost.

    Parameters
    ----------
    folder : path
        At the same path on all workers. Read are ``.parquet`` files with a list, fixed-size list or tensor of logits
        per row, and ``.npz`` and ``.safetensors`` files with the keys ``logits`` and ``labels``; no other files and no
        subfolders. Nothing is unpickled.
    logits, labels : str
        Columns of Parquet files.
    **options
        As for `ray.data.Dataset.map_batches`.

    Returns
    -------
    ray.data.Dataset
        Columns `logits`, `labels` and "path". Lazy: a worker raises ValueError with the name of a file that is damaged,
        has gamma added, or has logits and labels that do not fit.

    Raises
    ------
    OSError, ValueError
        If there is no such folder, or no logit file in it.

    Examples
    --------
    >>> samples = read_logits("/shared/logits")  # doctest: +SKIP
    >>> seen = samples.filter(lambda row: seen_mask[row["labels"]])  # doctest: +SKIP
    >>> state = fill(GapSums(seen_mask), seen)  # doctest: +SKIP
    """
    columns = {"logits": logits, "labels": labels}
    return _per_file(logit_files(folder)).map_batches(_read_rows, fn_kwargs=columns, batch_size=1, **options)


class Scorer:
    """A class for `ray.data.Dataset.map_batches` that replaces inputs by the logits of a model.

    Parameters
    ----------
    make_model : callable
        Returns the uncalibrated model, an `nn.Module` with logits `(B, C)` or an output as in `CalibratedModel`; called
        once per worker. Runs in eval mode under ``torch.inference_mode``.
    inputs : str, default "inputs"
        Column with the model's one argument; removed from the result.
    logits : str, default "logits"
        Column for the logits.
    device : torch.device or str, optional
        Default: the GPU that Ray has assigned to the worker (``num_gpus=1``), or else the CPU.

    Examples
    --------
    >>> scored = dataset.map_batches(  # doctest: +SKIP
    ...     Scorer, fn_constructor_args=[make_model], batch_size=256, num_gpus=1
    ... )
    >>> state = fill(GapSums(seen_mask), scored)  # doctest: +SKIP
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        inputs: str = "inputs",
        logits: str = "logits",
        device: torch.device | str | None = None,
    ) -> None:
        self.inputs: str = inputs
        self.logits: str = logits
        self.device: torch.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: nn.Module = make_model().eval().to(self.device)

    def __call__(self, batch: dict[str, NumpyArray]) -> dict[str, NumpyArray]:
        """Replace the inputs of a batch by logits."""
        inputs = as_tensor(_stack_rows(_column(batch, self.inputs), self.inputs), self.inputs).to(self.device)
        with torch.inference_mode():
            scores = check_logits(logits_of(self.model(inputs)))
        return {**{name: batch[name] for name in batch if name != self.inputs}, self.logits: to_numpy(scores)}


# --- for the command line ---------------------------------------------------------------------------------------------


def first_classes(folder: PathLike) -> LogitsFile:
    """Return a `LogitsFile` without rows, with the classes of the first file that has any; read on a worker."""
    classes, names, refusal = ray.get(ray.remote(_count_classes).remote(logit_files(folder)))
    if refusal:
        raise ValueError(refusal)
    if not classes:
        raise ValueError(f"{folder} has no sample in any of its files; there is nothing to estimate from")
    return LogitsFile(torch.empty(0, classes), class_names=names)


@contextmanager
def run_ray() -> Iterator[None]:
    """Start Ray without messages, unless it is running, and stop it afterwards."""
    logger = logging.getLogger("ray.data")
    level, started = logger.level, not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if started:
            ray.shutdown()


# --- on the workers ---------------------------------------------------------------------------------------------------


def _reduce_batch(batch: Mapping[str, NumpyArray], empty: Any, logits: str, labels: str) -> dict[str, Any]:
    def update(rows: Any = slice(None)) -> Any:
        return empty.emptied().update(_stack_rows(_column(batch, logits)[rows], logits), _column(batch, labels)[rows])

    def update_or_name() -> Any:
        try:
            return update()
        except (TypeError, ValueError):
            paths = np.asarray(batch.get(_PATH, ()))
            for path in np.unique(paths):  # a block can contain several files
                with error_context(path, ValueError):
                    update(paths == path)
            raise

    return _pack_state(update_or_name)


def _reduce_file(batch: Mapping[str, NumpyArray], empty: Any, logits: str, labels: str) -> dict[str, Any]:
    (path,) = batch[_PATH]

    def update() -> Any:
        state = empty.emptied()
        for rows, classes in _read_parts(Path(path), logits, labels):
            with error_context(path, ValueError):
                state.update(rows, classes)
        return state

    return _pack_state(update)


def _pack_state(update: Callable[[], Any]) -> dict[str, Any]:
    """Return a row with a state or the message of an error, as Ray would log pages about an exception."""
    state, refusal = b"", ""
    try:
        state = npz_bytes({name: to_numpy(value) for name, value in update().state_dict().items()})
    except _REFUSALS as error:
        refusal = str(error) or type(error).__name__
    # An array of bytes would lose trailing zeros; an array of objects keeps them.
    return {"state": np.array([state], dtype=object), "refusal": [refusal]}


def _read_rows(batch: Mapping[str, NumpyArray], logits: str, labels: str) -> Iterator[dict[str, NumpyArray]]:
    (path,) = batch[_PATH]
    for rows, classes in _read_parts(Path(path), logits, labels):
        if len(classes):
            yield {logits: to_numpy(rows), labels: np.asarray(classes), _PATH: np.full(len(classes), path)}


def _read_parts(path: Path, logits: str, labels: str) -> Iterator[tuple[ArrayLike, ArrayLike]]:
    """Yield logits and labels of a file batch by batch; errors name the file."""
    if path.suffix.lower() == _PARQUET:
        yield from read_parquet(path, logits, labels)
        return
    content = read_whole(path)
    if content.gamma != 0:
        raise ValueError(f"{path} already has gamma = {content.gamma:.6g} added; give the logits before calibration")
    if content.labels is None:
        raise ValueError(f"{path} has no labels; save them under the key 'labels'")
    yield content.logits, content.labels


def read_parquet(path: Path, logits: str, labels: str) -> Iterator[tuple[NumpyArray, NumpyArray]]:
    """Yield logits `(n, C)` and labels `(n,)` of up to 1024 rows at a time; ValueError names a damaged file."""
    import pyarrow.parquet as pq

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


def _matrix(column: Any, name: str) -> NumpyArray:
    """Return lists of numbers as `(N, C)`, without a copy."""
    import pyarrow as pa
    import pyarrow.compute as pc

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


def _numbers(values: Any, name: str) -> NumpyArray:
    if values.null_count:
        raise ValueError(f"column {name!r} has {values.null_count} missing values (null); drop these rows")
    array: NumpyArray = values.to_numpy(zero_copy_only=False)
    return array


def _stack_rows(column: NumpyArray, name: str) -> NumpyArray:
    """Convert an array of arrays, which Ray makes of lists, to one of numbers."""
    if column.dtype != object:
        return column
    rows = [np.asarray(row) for row in column]
    shapes = sorted({row.shape for row in rows})
    if len(shapes) > 1:
        raise ValueError(f"{name} of rows have different shapes, such as {shapes[0]} and {shapes[1]}")
    return np.stack(rows)


def _column(batch: Mapping[str, NumpyArray], name: str) -> NumpyArray:
    if name not in batch:
        raise ValueError(f"the rows have no column {name!r}, but {', '.join(map(repr, batch))}; name the right one")
    return batch[name]


def _count_classes(paths: list[str]) -> tuple[int, tuple[str, ...] | None, str]:
    try:
        for path in map(Path, paths):
            if path.suffix.lower() != _PARQUET:
                content = read_whole(path, with_labels=False)
                return content.logits.shape[1], content.class_names, ""
            for rows, _ in _read_parts(path, "logits", "labels"):
                return as_tensor(rows, "logits").shape[1], None, ""
    except _REFUSALS as error:
        return 0, None, str(error)
    return 0, None, ""


# --- on the driver ----------------------------------------------------------------------------------------------------


def logit_files(folder: PathLike) -> list[str]:
    """Return the logit files in a folder, by name."""
    folder = Path(folder).absolute()
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; check the name")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; give the one that holds the logit files")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] not in "._"]
    if not files:
        raise ValueError(f"{folder} has no file that ends with {' or '.join(SUFFIXES)}; subfolders are not read")
    return list(map(str, files))


def _per_file(paths: Iterable[str]) -> Any:
    rows = [{_PATH: path} for path in paths]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


@contextmanager
def _unwrap_errors() -> Iterator[None]:
    """Raise a ValueError of an earlier step, such as `read_logits`, without Ray's wrapper."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ValueError):
            raise
        # Ray appends how to retry.
        raise ValueError(str(error.cause).partition("\n")[0]) from error
