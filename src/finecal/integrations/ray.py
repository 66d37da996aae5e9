"""Ray Data: logits in more files, or of more samples, than one machine should read, reduced to a state on a cluster."""

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

from ..inputs.arrays import ArrayLike, NumpyArray, as_tensor, to_numpy
from ..inputs.checks import check_logits
from ..inputs.warning import error_context
from ..logits.file import LogitsFile
from ..logits.file import read_logits as read_whole
from ..models.output import logits_of
from ..models.progress import with_bar
from ..results.files import PathLike, npz_bytes
from ..streaming.state import State

__all__ = ["Scorer", "fill", "read_logits"]

StateT = TypeVar("StateT", bound=State)

_PARQUET = ".parquet"
SUFFIXES = (_PARQUET, ".npz", ".safetensors")
_PATH = "path"
"""Column that tells the file of a row; Ray's own readers give it this name, too."""
_REFUSALS = (TypeError, ValueError, OSError, ImportError)


def fill(
    state: StateT,
    source: Any,
    *,
    logits: str = "logits",
    labels: str = "labels",
    progress: bool = True,
    **options: Any,
) -> StateT:
    """Add the samples of a data set to a state, block by block, on the workers of a Ray cluster.

    Each block, or each file of a folder, becomes a state where it lies, and only these states come to the driver, where
    they are merged as they arrive: nothing of size (N, C) does.

    Parameters
    ----------
    state : state of `finecal.streaming`
        Takes the samples. Its settings go to the workers, its samples do not.
    source : ray.data.Dataset or path
        Rows with the logits of a sample, as an array or list, and its label; or a folder of logit files, see
        `read_logits`, which then are read without their logits ever being stored by Ray.
    logits, labels : str
        The columns, of `source` or of the Parquet files in it.
    progress : bool, default True
        Whether to show a bar of finished files or blocks on stderr, if tqdm is installed. Ray Data's own bars are off.
    **options
        As for `ray.data.Dataset.map_batches`: ``num_cpus``, ``memory``, ``batch_size`` (for a Dataset; default: whole
        blocks) and others.

    Returns
    -------
    state
        The one given, as one process would have filled it, whatever the partition: counts agree bit for bit, sums to
        1e-12. The rows of `streaming.MarginRows` come in any order.

    Raises
    ------
    TypeError
        If `state` is not a state of `finecal.streaming`, or `source` neither a Dataset nor a path.
    ValueError
        In one sentence, if a file cannot be read, or the state refuses a batch, as its ``update`` does. It names the
        file: that of the folder, or that in the column "path" of a Dataset (``include_paths=True`` in Ray's readers).
        `state` is as before then.
    OSError
        If there is no such folder.

    Notes
    -----
    Ray is started with all of the machine if it does not run. finecal must be installed on the workers, and a folder be
    at the same path on all of them. The state of a file or block takes 3 kB for `streaming.GapSums` of 1000 classes,
    `O(C)` or `O(bins)` for others, and 5 bytes per sample for `streaming.MarginRows`.

    Examples
    --------
    >>> from finecal.streaming import GapSums
    >>> from finecal.integrations.ray import fill
    >>> state = fill(GapSums(seen_mask), "/shared/logits")  # doctest: +SKIP
    >>> state.compute().maximum.gamma  # doctest: +SKIP
    4.71
    >>> dataset = ray.data.read_parquet(
    ...     "s3://bucket/logits", include_paths=True
    ... )  # doctest: +SKIP
    >>> state = fill(GapSums(seen_mask), dataset)  # doctest: +SKIP
    """
    if not isinstance(state, State):
        raise TypeError(f"state is a {type(state).__name__}; pass one of finecal.streaming, such as GapSums(seen_mask)")
    columns = {"logits": logits, "labels": labels}
    empty = state.emptied().to("cpu")
    arguments = {"empty": empty, **columns}
    if isinstance(source, ray.data.Dataset):
        whole_blocks = {"batch_size": None} | options
        reduced = source.map_batches(_reduced_batch, fn_kwargs=arguments, batch_format="numpy", **whole_blocks)
        bar: dict[str, Any] = {"unit": "block"}
    elif isinstance(source, (str, os.PathLike)):
        paths = logit_files(source)
        reduced = _per_file(paths).map_batches(_reduced_file, fn_kwargs=arguments, **options | {"batch_size": 1})
        bar = {"unit": "file", "total": len(paths)}
    else:
        raise TypeError(f"source is a {type(source).__name__}; pass a ray.data.Dataset, or the path of a folder")

    reduced.context.enable_progress_bars = False
    reduced.context.print_on_execution_start = False
    merged = empty.emptied()
    with _refusals_of_others():
        rows = reduced.iter_rows()
        for row in with_bar(rows, desc="fill", **bar) if progress else rows:
            if row["refusal"]:
                raise ValueError(row["refusal"])
            merged.merge(empty.load_state_dict(_decoded(row["state"])))
    return state.merge(merged)


def read_logits(folder: PathLike, *, logits: str = "logits", labels: str = "labels", **options: Any) -> Any:
    """Return the samples in a folder of logit files as a Ray Dataset, read by one task per file.

    For what has to be done to them first; a folder as it is can be given to `fill`, which costs less.

    Parameters
    ----------
    folder : path
        On all workers. Files that end with ``.parquet``, ``.npz`` or ``.safetensors`` are read, others and subfolders
        left alone. Parquet files have logits as a list, fixed-size list or tensor of numbers per row; the others are
        those that finecal and NumPy write, with ``logits`` and ``labels`` under these keys. Nothing is ever unpickled.
    logits, labels : str
        The columns of Parquet files.
    **options
        As for `ray.data.Dataset.map_batches`: ``num_cpus``, ``memory`` and others.

    Returns
    -------
    ray.data.Dataset
        With columns of the names given, and "path". Lazy: reading it can raise ValueError, from a worker, that names
        the file that is damaged, has gamma added already, or whose logits and labels do not fit.

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
    return _per_file(logit_files(folder)).map_batches(_rows_of_file, fn_kwargs=columns, batch_size=1, **options)


class Scorer:
    """A model on the workers, from rows of inputs to rows of logits: a class for `ray.data.Dataset.map_batches`.

    Parameters
    ----------
    make_model : callable
        Returns the uncalibrated model, an `nn.Module`; called once per worker, so that its weights are read there.
    inputs : str, default "inputs"
        Column with the model's one argument; left out of the result, while all others are kept.
    logits : str, default "logits"
        Column for the logits.
    device : torch.device or str, optional
        Default: the GPU that Ray has given the worker (``num_gpus=1``), the CPU without one.

    Notes
    -----
    The model runs in eval mode and under ``torch.inference_mode``, and returns logits `(B, C)`, or an output that holds
    them, as in `CalibratedModel`.

    Examples
    --------
    >>> scored = dataset.map_batches(  # doctest: +SKIP
    ...     Scorer,
    ...     fn_constructor_args=[make_model],
    ...     batch_size=256,
    ...     num_gpus=1,
    ...     concurrency=4,
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
        self.inputs, self.logits = inputs, logits
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = make_model().eval().to(self.device)

    def __call__(self, batch: dict[str, NumpyArray]) -> dict[str, NumpyArray]:
        """Replace the inputs of a batch by logits."""
        inputs = as_tensor(_rectangular(_column(batch, self.inputs), self.inputs), self.inputs).to(self.device)
        with torch.inference_mode():
            scores = check_logits(logits_of(self.model(inputs)))
        return {**{name: batch[name] for name in batch if name != self.inputs}, self.logits: to_numpy(scores)}


# --- for the command line ---------------------------------------------------------------------------------------------


def first_classes(folder: PathLike) -> LogitsFile:
    """Return the classes of the first file that tells how many there are, without its logits; read on a worker."""
    classes, names, refusal = ray.get(ray.remote(_first_classes).remote(logit_files(folder)))
    if refusal:
        raise ValueError(refusal)
    if not classes:
        raise ValueError(f"{folder} has no sample in any of its files; there is nothing to estimate from")
    return LogitsFile(torch.empty(0, classes), class_names=names)


@contextmanager
def running_quietly() -> Iterator[None]:
    """Start Ray without a word, as far as it does not run yet, and stop it afterwards."""
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


def _reduced_batch(batch: Mapping[str, NumpyArray], empty: Any, logits: str, labels: str) -> dict[str, Any]:
    def update(rows: Any = slice(None)) -> Any:
        return empty.emptied().update(_rectangular(_column(batch, logits)[rows], logits), _column(batch, labels)[rows])

    def update_or_name() -> Any:
        try:
            return update()
        except (TypeError, ValueError):
            paths = np.asarray(batch.get(_PATH, ()))
            for path in np.unique(paths):  # many small files can be in one block
                with error_context(path, ValueError):
                    update(paths == path)
            raise

    return _sent(update_or_name)


def _reduced_file(batch: Mapping[str, NumpyArray], empty: Any, logits: str, labels: str) -> dict[str, Any]:
    (path,) = batch[_PATH]

    def update() -> Any:
        state = empty.emptied()
        for rows, classes in _parts(Path(path), logits, labels):
            with error_context(path, ValueError):
                state.update(rows, classes)
        return state

    return _sent(update)


def _sent(update: Callable[[], Any]) -> dict[str, Any]:
    """Return a row with a state, or the sentence that refuses it: as an exception Ray would log pages about it."""
    state, refusal = b"", ""
    try:
        state = npz_bytes({name: to_numpy(value) for name, value in update().state_dict().items()})
    except _REFUSALS as error:
        refusal = str(error) or type(error).__name__
    # An array of bytes would lose zeros at its end, one of objects does not.
    return {"state": np.array([state], dtype=object), "refusal": [refusal]}


def _rows_of_file(batch: Mapping[str, NumpyArray], logits: str, labels: str) -> Iterator[dict[str, NumpyArray]]:
    (path,) = batch[_PATH]
    for rows, classes in _parts(Path(path), logits, labels):
        if len(classes):
            scores = to_numpy(rows)
            yield {logits: scores, labels: np.asarray(classes), _PATH: np.full(len(classes), path)}


def _parts(path: Path, logits: str, labels: str) -> Iterator[tuple[ArrayLike, ArrayLike]]:
    """Yield logits and labels of a file, of one batch after the other; each error names the file."""
    if path.suffix.lower() == _PARQUET:
        from ._parquet import parquet_parts

        yield from parquet_parts(path, logits, labels)
        return
    content = read_whole(path)
    if content.gamma != 0:
        raise ValueError(f"{path} already has gamma = {content.gamma:.6g} added; give the logits before calibration")
    if content.labels is None:
        raise ValueError(f"{path} has no labels; save them under the key 'labels'")
    yield content.logits, content.labels


def _rectangular(column: NumpyArray, name: str) -> NumpyArray:
    """Return an array of arrays, as which Ray gives lists, as one of numbers."""
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


def _first_classes(paths: list[str]) -> tuple[int, tuple[str, ...] | None, str]:
    try:
        for path in map(Path, paths):
            if path.suffix.lower() != _PARQUET:
                content = read_whole(path, with_labels=False)
                return content.logits.shape[1], content.class_names, ""
            for rows, _ in _parts(path, "logits", "labels"):
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


def _decoded(state: bytes) -> dict[str, torch.Tensor]:
    with np.load(BytesIO(state), allow_pickle=False) as arrays:
        return {name: as_tensor(arrays[name], name) for name in arrays.files}


@contextmanager
def _refusals_of_others() -> Iterator[None]:
    """Raise the ValueError of a step before, such as `read_logits`, as one; Ray's own errors stay what they are."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ValueError):
            raise
        # Ray appends how to retry.
        raise ValueError(str(error.cause).partition("\n")[0]) from error
