"""Collect samples: the logits of a model over a loader, or feed them to a streaming state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from .._core.arrays import check_flag, plain, without_autocast
from .._core.checks import check_head, check_logits, head_warnings
from .._core.samples import Samples
from .._core.warning import warn
from .feed import Feed, SplitBatch, call_model, in_eval_mode, move_to, suggest_batch_function
from .heads import HeadInputs, capture_head_inputs, single_head
from .next_tokens import check_shift, shifted
from .output import Output, check_no_boxes, in_detail
from .positions import AtLabelSize, LineFrames, PositionRows, Positions, SampleRows, check_selection
from .repeatability import logits_and_doubts
from .sharded import shards_parameters

T = TypeVar("T")


def with_bar(items: Iterable[T], **options: Any) -> Iterable[T]:
    """Return `items`, showing a bar on stderr while they are taken; `options` are those of tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, **options)
    return bar


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
    positions: Positions | LineFrames | None = None,
    with_features: bool = False,
    batch: SplitBatch | None = None,
    output: Output | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Samples: ...
@overload
def collect_logits(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: StateT,
    positions: Positions | None = None,
    batch: SplitBatch | None = None,
    output: Output | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> StateT: ...
def collect_logits(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: StreamingState | None = None,
    positions: Positions | LineFrames | None = None,
    with_features: bool = False,
    batch: SplitBatch | None = None,
    output: Output | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> object:
    """Run a model in eval mode over the batches of a loader, and collect logits and labels.

    In dense outputs, such as those of a segmentation model, positions are samples: `positions` says which.

    Parameters
    ----------
    model : nn.Module
        Returns logits `(B, C)`, or an output that holds them, as in `CalibratedModel`; with `positions`, logits
        of any number of dimensions.
    loader : iterable of batches
        A batch is ``(inputs, labels)``, inputs alone, or a mapping, as Hugging Face's collators make it, that may have
        the labels under "labels", "label", "targets" or "target". Inputs in a mapping are passed to the model by name,
        those in a tuple or list by position, all others as the one argument; labels never are. For batches of another
        form pass `batch`.
    into : object with an ``update(logits, labels)`` method, optional
        Takes the batches, on the device of the model, instead of their being kept: a state of `finecal.streaming`, or
        `sequences.CtcFrames` for lines of text.
    positions : Positions or sequences.CtcFrames, optional
        For dense logits: where the classes are, and which positions are kept; for lines of text, the settings by which
        frames are. Default: that of `into`, or `(B, C)` logits.
    with_features : bool, default False
        Whether to collect the inputs of the final linear layer, too.
    batch : callable, optional
        From a batch, as the loader gives it, to ``(inputs, labels)``, where labels may be None: ``lambda b: (b[1],
        b[2])`` for batches ``(index, inputs, labels)``. Default: batches of the forms above.
    output : str or callable, optional
        Where the logits are in what the model returns: a key or attribute, such as "main", or a function from the
        output to them, ``lambda out: out[1]``. Default: the forms of `CalibratedModel`.
    device : torch.device or str, optional
        Where inputs are moved to, however deep they are nested; default: the device of the model's first parameter or
        buffer. The model itself is not moved. Floating-point inputs are cast to the dtype of a model that is in float16
        or bfloat16 altogether, except under autocast.
    progress : bool, default True
        Whether to show a bar, if tqdm is installed.

    Returns
    -------
    Samples
        Tensors on the CPU: logits in the model's dtype (half precision under autocast), labels if the batches have
        some, features if asked for. The groups of positions are the pictures that they are of.
    into
        Only that, if given.

    Raises
    ------
    TypeError
        If `model`, `loader`, `into`, a batch or an output is of an unfit type, or labels are not integer.
    ValueError
        If the loader is empty, the logits are not `(B, C)`, labels are missing from some batches or do not fit the
        logits; if features are asked for and the final linear layer is not found, or does not run once per sample; if
        arguments do not go together.

    Warns
    -----
    FinecalWarning
        If the model gives the same samples other logits each time, as with dropout that is left on; with
        ``with_features=True``, if the features do not give the logits.

    Notes
    -----
    The model runs under ``torch.inference_mode`` (``torch.no_grad`` with FSDP), and under autocast if the caller does;
    `into` runs outside both. Each submodule's training flag is restored. Without `into`, peak memory is that of the
    result and about 64 MB more. Use a loader that augments nothing and drops no last batch. Of several processes, each
    gets the samples of its own loader: see `finecal.distributed.collect_sharded`.

    Examples
    --------
    >>> import torch, finecal
    >>> model = torch.nn.Linear(8, 3)
    >>> batches = [
    ...     (torch.ones(2, 8), torch.tensor([0, 1])),
    ...     (torch.zeros(1, 8), torch.tensor([1])),
    ... ]
    >>> samples = finecal.collect_logits(model, batches)
    >>> samples, samples.labels
    (Samples(3 x 3 logits, labels), tensor([0, 1, 1]))
    """
    check_collecting(model, loader, into, with_features)
    check_flag(progress, "progress")
    check_selection(positions)
    feed = Feed(model, device, batch, output)
    if isinstance(positions, LineFrames):
        if into is not None:
            raise ValueError("into and positions are both given, of which the second keeps frames of its own; pass one")
        check_rows_wanted(positions, with_features, "with_features")
        lines = positions.emptied()
        run_over(model, loader, lines, feed, progress, dense=Positions(lines.dim, shift=0))
        return lines.samples().to("cpu")
    if into is not None:
        run_over(model, loader, into, feed, progress, dense=_dense(positions, into))
        return into
    if positions is not None:
        check_rows_wanted(positions, with_features, "with_features")
        rows = PositionRows(positions)
        run_over(model, loader, rows, feed, progress, dense=positions)
        return rows.samples()
    head = single_head(model) if with_features else None
    with capture_head_inputs(head) as recorded:
        state = SampleRows(recorded if with_features else None)
        run_over(model, loader, state, feed, progress, recorded)
    samples = state.samples()
    if head is not None and (inputs := samples.features_tensor) is not None:
        weight, bias = check_head(head, samples.num_classes, inputs.device)
        for sentence in head_warnings(samples.logits_tensor, inputs, weight, bias):
            warn(f"collect_logits: {sentence}")
    return samples


def run_over(
    model: nn.Module,
    loader: Iterable[Any],
    state: StreamingState,
    feed: Feed,
    progress: bool,
    recorded: HeadInputs | None = None,
    dense: Positions | None = None,
    needs_labels: str = "",
) -> None:
    """Run a model in eval mode over the batches of a loader, and update a state with the logits and labels of each.

    If `recorded` is given, it holds the head's inputs of a batch when the state is updated. With `dense` the logits are
    dense, and the state gets them shifted, and at the size of the labels. `needs_labels` is the argument that an error
    names where a batch has no labels; with "" batches may have none.
    """
    along, is_dense = (-1, False) if dense is None else (dense.dim, True)
    receiver = AtLabelSize(state, along) if is_dense and not isinstance(state, AtLabelSize) else state

    # FSDP keeps what it gathers for later calls, which may need gradients: those refuse tensors of inference mode.
    without_gradients = torch.no_grad if any(map(shards_parameters, model.modules())) else torch.inference_mode

    def run(inputs: object, item: object) -> Tensor:
        if recorded is not None:
            recorded.arm()
        with without_gradients():
            output = call_model(model, inputs, item)
            logits = plain(feed.logits_of(output))
            if not is_dense:
                check_no_boxes(output, logits)
            if not is_dense and logits.ndim == 3 and logits.shape[1] == 1:
                raise ValueError(
                    f"logits have shape {tuple(logits.shape)}; expected (B, C): pass output=lambda out: out[:, 0] if "
                    "the model returns these alone, or, for sequences of one position, positions=Positions(-1), and "
                    "labels (B, 1)"
                )
            return check_logits(logits, any_batch=is_dense, dim=along)

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
            if needs_labels:
                check_labelled(item, labels, needs_labels)
            if dense is not None:
                if dense.shift is None:
                    check_shift(model, inputs, labels, dense.ignore_index)
                logits, labels = shifted(logits, labels, dense.shift, along)
            with without_autocast(logits.device):
                receiver.update(logits, move_to(plain(labels), logits.device))
    if number == 0:
        raise ValueError("loader gave no batch: it is empty, or an iterator that was used up before")


def check_labelled(batch: object, labels: object, name: str) -> None:
    """Refuse a batch of the loader `name` in which no labels were found."""
    if labels is None or (isinstance(labels, Mapping) and labels.get("targets") is None):
        raise ValueError(
            f"{name} has no labels; its batches must be (inputs, labels), or mappings with the key 'labels': "
            f"{suggest_batch_function(batch)}"
        )


def _dense(positions: Positions | None, into: object) -> Positions | None:
    """Return which positions count in dense logits, from the argument or the state; None for `(B, C)` logits."""
    own, ignored = getattr(into, "dim", None), getattr(into, "ignore_index", None)
    ignore_index = ignored if isinstance(ignored, int) else None
    if positions is None:
        return None if own in (None, -1) else Positions(own, ignore_index=ignore_index)
    if positions != Positions(positions.dim, shift=positions.shift):
        raise ValueError(
            "positions select what is kept, but into= takes batches whole; pass Positions(dim) alone, or with shift=, "
            "and construct a state that ignores labels with ignore_index="
        )
    if own not in (None, positions.dim):
        raise ValueError(
            f"positions have dim={positions.dim}, but into has dim={own}; construct it with dim={positions.dim}"
        )
    return replace(positions, ignore_index=ignore_index)


def check_rows_wanted(positions: object, flag: bool, name: str) -> None:
    """Refuse dense logits with a flag that needs a row of features per sample."""
    if positions is not None and flag:
        raise ValueError(
            f"{name}=True is for one row of features per sample, not for dense logits; leave out {name} or positions"
        )


def check_loader(loader: object, name: str = "loader") -> None:
    """Refuse what is no iterable of batches."""
    dataset = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if dataset or isinstance(loader, (Tensor, Mapping)) or not isinstance(loader, Iterable):
        raise TypeError(
            f"{name} is a {type(loader).__name__}; pass something that gives batches: a DataLoader, or a list of them"
        )
    if _is_one_batch(loader):
        raise TypeError(
            f"{name} is one batch, {in_detail(loader)}, in place of several; pass a list of it, [(inputs, labels)], or "
            "DataLoader(TensorDataset(inputs, labels), batch_size=64)"
        )


def _is_one_batch(loader: object) -> bool:
    """Whether a pair of arrays is inputs and labels: as batches of inputs alone they would be alike."""
    if not isinstance(loader, (tuple, list)) or len(loader) != 2:
        return False
    inputs, labels = loader
    if not all(isinstance(array, (Tensor, np.ndarray)) and array.ndim > 0 for array in loader):
        return False
    return len(inputs) == len(labels) and (inputs.ndim, inputs.dtype) != (labels.ndim, labels.dtype)


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
