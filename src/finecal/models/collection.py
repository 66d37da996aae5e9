"""Collect the logits of a model for the samples of a loader, or feed them to a streaming state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ..inputs.background import Background
from ..inputs.checks import check_logits
from ..inputs.devices import without_autocast
from ..inputs.features import check_head, doubts_about_head
from ..inputs.numbers import check_dim, check_flag
from ..inputs.warning import warn
from ..logits.dense import Layout
from .feed import Feed, SplitBatch, move_to, suggest_batch_function
from .head_inputs import HeadInputs, capture_head_inputs, single_head
from .output import logits_of
from .positions import AtLabelSize, PositionRows, Sampling
from .progress import with_bar
from .repeatability import logits_and_doubts
from .rows import SampleRows
from .running import call_model, in_eval_mode


class StreamingState(Protocol):
    """Anything with `update(logits, labels)`: a state of `finecal.streaming`, a metric of torchmetrics."""

    def update(self, logits: Any, labels: Any, /) -> Any: ...


StateT = TypeVar("StateT", bound=StreamingState)


@overload
def collect_logits(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: None = None,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    with_features: Literal[False] = False,
    dim: None = None,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor | Any]: ...
@overload
def collect_logits(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: None = None,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    with_features: Literal[True],
    dim: None = None,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor | Any, Tensor]: ...
@overload
def collect_logits(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: None = None,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    with_features: Literal[False] = False,
    dim: int,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor | Any, Tensor]: ...
@overload
def collect_logits(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: StateT,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    with_features: Literal[False] = False,
    dim: int | None = None,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
    seed: int = 0,
) -> StateT: ...
def collect_logits(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: StreamingState | None = None,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    with_features: bool = False,
    dim: int | None = None,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
    seed: int = 0,
) -> object:
    """Run a model in eval mode over the batches of a loader, and collect logits and labels.

    In dense outputs, such as those of a segmentation model, every position is a sample; `per_item` draws a number of
    them from each picture.

    Parameters
    ----------
    model : nn.Module
        Returns logits `(B, C)`, or an output that holds them, as in `CalibratedModel`; with `dim`, logits of any number
        of dimensions.
    loader : iterable of batches
        A batch is ``(inputs, labels)``, inputs alone, or a mapping, as Hugging Face's collators make it, that may have
        the labels under "labels", "label", "targets" or "target". Inputs in a mapping are passed to the model by name,
        those in a tuple or list by position, all others as the one argument; labels never are. For batches of another
        form pass `batch`.
    into : object with an ``update(logits, labels)`` method, optional
        Takes the batches, as they come from the model and on its device, instead of their being kept: a state of
        `finecal.streaming`, for which nothing of size (N, C) is ever needed.
    device : torch.device or str, optional
        Where inputs are moved to, however deep they are nested; default: the device of the model's first parameter or
        buffer. The model itself is not moved. Floating-point inputs are cast to the dtype of a model that is in float16
        or bfloat16 altogether, except under autocast.
    batch : callable, optional
        From a batch, as the loader gives it, to ``(inputs, labels)``, where labels may be None: ``lambda b: (b[1],
        b[2])`` for batches ``(index, inputs, labels)``, ``lambda b: (b["image"], b["label"])`` where the model takes
        images by position. Default: batches of the forms above.
    progress : bool, default True
        Whether to show a bar, if tqdm is installed.
    with_features : bool, default False
        Whether to collect the inputs of the final linear layer, too.
    dim : int, optional
        Where the classes are in dense logits: 1 for `(B, C, H, W)` of a segmentation model, -1 for `(B, T, C)` of a
        token classifier. Labels then have the shape of the logits without that dimension. Logits `(B, C, h, w)` of
        another size than the labels `(B, H, W)` are interpolated to it, bilinearly. Default: that of `into`, or
        `(B, C)` logits.
    ignore_index : int, optional
        With `dim`: the label of positions that do not count, such as 255 or -100. A state has its own.
    per_item : int, optional
        With `dim`: how many positions of each picture (each item of a batch) to draw, without replacement. Default:
        all.
    balanced : bool, default False
        With `per_item`: whether to draw as many positions of each class of a picture, as far as there are.
    background : int or sequence of int, optional
        With `dim`: classes that are neither seen nor absent. Their positions are not drawn, and their columns are left
        out, as by `drop_classes`. Without labels their positions cannot be recognised, and are kept.
    seed : int, default 0
        Seed of the draw of positions, which does not depend on the size of the batches.

    Returns
    -------
    logits : (N, C) tensor
        On the CPU, in the model's dtype (half precision under autocast).
    labels : (N,) int64 tensor, or None
        On the CPU; None if the batches have none.
    features : (N, D) tensor
        Only if ``with_features=True``. On the CPU, as they enter the final linear layer.
    groups : (N,) int64 tensor
        Only with `dim`: the number of the picture that each position is of. Pass it to estimators as `groups`, since
        positions of one picture are not independent.
    into
        Only that, if given.

    Raises
    ------
    TypeError
        If `model`, `loader`, `into`, a batch or an output is of an unfit type, or labels are not integer.
    ValueError
        If the loader is empty, the logits are not `(B, C)`, labels are missing from some batches or do not fit the
        logits, or features are asked for and the final linear layer is not found, runs several times, or not on one row
        per sample; if arguments are given that need `dim` without it, or do not go together.

    Warns
    -----
    FinecalWarning
        If the model gives the same samples other logits each time, as with dropout that is left on; with
        ``with_features=True``, if the features do not give the logits.

    Notes
    -----
    The model runs under ``torch.inference_mode``, and under autocast if the caller does; `into` runs outside both. Each
    submodule's training flag is as before afterwards, on an error as well. Without `into`, peak memory is that of the
    result and about 64 MB more. Use a loader that augments nothing and drops no last batch.

    Examples
    --------
    >>> import torch, finecal
    >>> model = torch.nn.Linear(8, 3)
    >>> batches = [
    ...     (torch.ones(2, 8), torch.tensor([0, 1])),
    ...     (torch.zeros(1, 8), torch.tensor([1])),
    ... ]
    >>> logits, labels = finecal.collect_logits(model, batches)
    >>> logits.shape, labels
    (torch.Size([3, 3]), tensor([0, 1, 1]))
    >>> from finecal.streaming import MarginRows
    >>> len(
    ...     finecal.collect_logits(
    ...         model, batches, into=MarginRows([True, True, False])
    ...     ).compute()
    ... )
    3

    Two positions of each picture, drawn at random:

    >>> model = torch.nn.Conv2d(8, 3, kernel_size=1)
    >>> pictures = [(torch.ones(4, 8, 5, 5), torch.ones(4, 5, 5).long())]
    >>> logits, labels, groups = finecal.collect_logits(
    ...     model, pictures, dim=1, per_item=2
    ... )
    >>> logits.shape, groups
    (torch.Size([8, 3]), tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    """
    check_collecting(model, loader, into, with_features)
    check_flag(progress, "progress")
    along = _dense_dim(dim, into)
    layout = Layout.checked(-1 if along is None else along, ignore_index)
    sampling = Sampling(layout, per_item, balanced, background, seed)
    check_dense(along, sampling, "with_features" if with_features else None)
    if into is not None and sampling.given:
        raise ValueError(
            f"{sampling.given[0]} is for positions that are kept, but into= takes batches whole; leave it out, and "
            "construct a state that ignores labels with ignore_index="
        )
    feed = Feed(model, device, batch)
    if into is not None:
        run_over(model, loader, into, feed, progress, dim=along)
        return into
    if along is not None:
        positions = PositionRows(sampling)
        run_over(model, loader, positions, feed, progress, dim=along)
        return positions.joined()
    head = single_head(model) if with_features else None
    with capture_head_inputs(head) as recorded:
        rows = SampleRows(recorded if with_features else None)
        run_over(model, loader, rows, feed, progress, recorded)
    logits, labels, _ = rows.joined()
    if head is None:
        return logits, labels
    inputs = rows.features.joined()
    for sentence in doubts_about_head(logits, inputs, *check_head(head, logits.shape[1], inputs.device)):
        warn(f"collect_logits: {sentence}")
    return logits, labels, inputs


def run_over(
    model: nn.Module,
    loader: Iterable[Any],
    state: StreamingState,
    feed: Feed,
    progress: bool,
    recorded: HeadInputs | None = None,
    dim: int | None = None,
    needs_labels: str = "",
) -> None:
    """Run a model in eval mode over the batches of a loader, and update a state with the logits and labels of each.

    If `recorded` is given, it holds the head's inputs of a batch when the state is updated. With `dim` the logits are
    dense, and the state gets them at the size of the labels. `needs_labels` is the argument that an error names where a
    batch has no labels; with "" batches may have none.
    """
    along, is_dense = (-1, False) if dim is None else (dim, True)
    receiver = AtLabelSize(state, along) if is_dense and not isinstance(state, AtLabelSize) else state

    def run(inputs: object, item: object) -> Tensor:
        if recorded is not None:
            recorded.arm()
        with torch.inference_mode():
            return check_logits(logits_of(call_model(model, inputs, item)), any_batch=is_dense, dim=along)

    number = 0
    with in_eval_mode(model):
        batches = with_bar(loader, desc="collect_logits", unit="batch") if progress else loader
        for number, item in enumerate(batches, start=1):
            inputs, labels = feed.split_batch(item)
            if number == 1:
                logits, doubts = logits_and_doubts(partial(run, inputs, item))
                for sentence in doubts:
                    warn(f"collect_logits: {sentence}")
            else:
                logits = run(inputs, item)
            if needs_labels and labels is None:
                raise ValueError(
                    f"{needs_labels} has no labels; its batches must be (inputs, labels), or mappings with the key "
                    f"'labels': {suggest_batch_function(item)}"
                )
            with without_autocast(logits.device):
                receiver.update(logits, move_to(labels, logits.device))
    if number == 0:
        raise ValueError("loader gave no batch: it is empty, or an iterator that was used up before")


def _dense_dim(dim: int | None, into: object) -> int | None:
    """Return the dimension of the classes in dense logits, from the argument or the state; None for `(B, C)` logits."""
    own = getattr(into, "dim", None)
    if dim is not None and own not in (None, check_dim(dim)):
        raise ValueError(f"dim is {dim}, but into has dim={own}; construct it with dim={dim}")
    return own if dim is None and own != -1 else dim


def check_dense(dim: int | None, sampling: Sampling, of_rows: str | None) -> None:
    """Refuse arguments for positions without `dim`, and `dim` with the flag `of_rows`, which needs a row per sample."""
    if dim is None and sampling.given:
        raise ValueError(
            f"{sampling.given[0]} is for dense logits; pass dim as well: 1 for (B, C, H, W), -1 for (B, T, C)"
        )
    if dim is not None and of_rows is not None:
        raise ValueError(
            f"{of_rows}=True is for one row of features per sample, not for dense logits; leave out {of_rows} or dim"
        )


def check_loader(loader: object, name: str = "loader") -> None:
    """Refuse what is no iterable of batches."""
    dataset = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if dataset or isinstance(loader, (Tensor, Mapping)) or not isinstance(loader, Iterable):
        raise TypeError(
            f"{name} is a {type(loader).__name__}; pass something that gives batches: a DataLoader, or a list of them"
        )


def check_collecting(model: object, loader: object, into: object, with_features: bool) -> None:
    """Check the model, the loader, and the state that is to take the logits."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    check_loader(loader)
    check_flag(with_features, "with_features")
    if into is None:
        return
    other = isinstance(into, (type, Mapping, Set)) or hasattr(into, "__array__")  # their update, if any, is another
    if other or not callable(getattr(into, "update", None)):
        raise TypeError(
            f"into is a {type(into).__name__}; pass a state of finecal.streaming, such as MarginRows(seen_mask)"
        )
    if with_features:
        raise ValueError(
            "with_features=True keeps a row per sample, which into= is there to avoid; leave one of them out"
        )
