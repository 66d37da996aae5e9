"""The samples of many processes, each of which scores its share of them: gathered, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from operator import length_hint
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from .._core.samples import Samples
from .collect import StreamingState
from .positions import AtLabelSize
from .processes import all_gather_bytes, all_gather_ints, as_bytes, unpack, world
from .sharded import shards_parameters

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_INTERLEAVED = {
    "torch.DistributedSampler",
    "lightning.DistributedSamplerWrapper",
    "lightning.UnrepeatedDistributedSampler",
    "pytorch_lightning.DistributedSamplerWrapper",
    "pytorch_lightning.UnrepeatedDistributedSampler",
    "timm.OrderedDistributedSampler",
}
"""Samplers of which process r of R gets the samples r, r + R, ...; what they repeat comes at the end."""
_BY_BATCH = {"accelerate.BatchSamplerShard"}
"""Batch samplers of which process r of R gets the batches r, r + R, ...; what they repeat comes at the end."""
_DISPATCHED = {"accelerate.DataLoaderDispatcher"}
"""Loaders of which process r gets the r-th part of each batch; what they repeat comes at the end."""
_REPEATED = -1
"""The place of a sample that another process has, too."""
_COMPARED = 8
"""Columns of the logits by which samples are recognised."""
_ROUNDINGS = 16
"""Logits of the same samples in two processes differ by at most so many steps of their dtype."""


class Share:
    """What one process scores of the samples of a loader; all processes construct it, and gather, together.

    Parameters
    ----------
    loader : iterable of batches
    model : nn.Module
        Compared, not run: one that communicates has to run equally often in all processes.
    name : str
        Argument that errors name.

    Attributes
    ----------
    is_first : bool
        Whether this is the first process, which reports.
    """

    def __init__(self, loader: object, model: nn.Module, name: str) -> None:
        self._processes, rank = world(None)
        self._name, self.is_first = name, rank == 0
        self._order = order_of(loader)
        if self._processes > 1:
            try:
                compare(loader, model, self._order, name, None)
            except RuntimeError as error:  # of torch.distributed, which says nothing of what was called
                raise RuntimeError(
                    f"{name} may be shared with other processes, which did not come ({error}); call this in all "
                    "processes of the group, or use collect_logits and estimate_gamma in one, with a model that does "
                    "not communicate"
                ) from error

    def counted(self, state: StreamingState, dim: int | None, items: int = 0) -> StreamingState:
        """Return a state that passes batches on to another one, and notes which items, along `items`, count."""
        if self._processes == 1:
            return state
        self._counted = _Counted(state, -1 if dim is None else dim, self._order, items)
        return self._counted

    def gather(self, own: Samples) -> Samples:
        """Return the samples of all processes, the same in each, in the order of the loader where that is known."""
        if self._processes == 1:
            return own
        grouping = own.grouping
        place = torch.arange(len(own), device="cpu") if grouping is None else grouping.given
        if self._order is not None:
            place = torch.cat(self._counted.places)[place]
            own, place = own[place != _REPEATED], place[place != _REPEATED]
        tensors = {"place": place, "logits": own.logits_tensor}
        if own.labels is not None:
            tensors["labels"] = own.labels_tensor
        if own.features_tensor is not None:
            tensors["features"] = own.features_tensor
        joined = _join(_gather(tensors, self._name), self._order is not None)
        groups = None if grouping is None else joined["place"]
        return Samples(joined["logits"], joined.get("labels"), features=joined.get("features"), groups=groups)


class Order:
    """The places of the samples of one process among those of all, taken batch by batch.

    Parameters
    ----------
    described : dict of str to str
        What must be the same in all processes.
    size : int
        Number of samples of all processes; later ones are repeated.
    processes, rank : int
        That share the samples: fewer than there are where several get the same ones.
    batch : int, optional
        Size of the batches that the processes get in turn, of which the last one may be smaller; 0 if all processes get
        equal batches of any size; None if they get samples in turn.
    """

    def __init__(
        self, described: Mapping[str, object], size: int, processes: int, rank: int, batch: int | None = None
    ) -> None:
        self.described = {key: str(value) for key, value in described.items()} | {"length": str(size)}
        self.by_batch = batch is not None
        self._batch = batch
        self._size, self._processes, self._rank = size, processes, rank
        self._came, self._is_over = 0, False

    def take(self, rows: int) -> range:
        """Return the places of the next rows; the last ones have none if they are repeated."""
        start = self._came * self._processes + self._rank * (self._batch or rows if self.by_batch else 1)
        places = range(start, self._size, 1 if self.by_batch else self._processes)[:rows]
        repeated = rows - len(places)
        if self._is_over or (repeated > 1 and not self.by_batch):
            raise ValueError(
                "the model returns more rows of logits than the sampler of the loader draws samples, so that repeated "
                "ones cannot be told; use a loader and a model that give one row per sample"
            )
        self._came, self._is_over = self._came + rows, repeated > 0
        return places


class _Counted(AtLabelSize):
    """Passes batches on, and keeps the places of their samples."""

    def __init__(self, state: Any, dim: int, order: Order | None, items: int) -> None:
        super().__init__(state, dim)
        self._items = items
        self.places: list[Tensor] = []
        self._order = order

    def update(self, logits: Tensor, labels: Any) -> None:
        if self._order is not None:
            places = torch.full((logits.shape[self._items],), _REPEATED, device="cpu")
            known = self._order.take(len(places))
            places[: len(known)] = torch.tensor(known, dtype=torch.int64, device="cpu")
            self.places.append(places)
        super().update(logits, labels)


def order_of(loader: Any) -> Order | None:
    """Return the order in which a loader shares out samples, if it is one that is known."""
    batches = getattr(loader, "batch_sampler", None)
    if batches is None or not getattr(loader, "in_order", True):
        return None
    if _kind(batches) in _BY_BATCH:
        inner = batches.batch_sampler
        processes, rank = batches.num_processes, batches.process_index
        size = batches.batch_size // processes if batches.split_batches else batches.batch_size
    elif _kind(loader) in _DISPATCHED:
        inner = batches
        processes, rank, size = loader.state.num_processes, loader.state.process_index, 0
    elif type(batches) is BatchSampler and _kind(batches.sampler) in _INTERLEAVED:
        sampler: Any = batches.sampler
        shuffle = getattr(sampler, "shuffle", False)
        described = {"order of samples": _kind(sampler), "shuffle": shuffle}
        if shuffle:
            described |= {"seed": sampler.seed, "epoch": sampler.epoch}
        return Order(described, len(sampler.dataset), sampler.num_replicas, sampler.rank)
    else:
        return None
    sampler = getattr(inner, "sampler", None)
    if type(inner) is not BatchSampler or _kind(sampler) in _INTERLEAVED or not isinstance(sampler, Sized):
        return None
    return Order({"order of samples": _kind(batches)}, len(sampler), processes, rank, size)


def _kind(value: object) -> str:
    """Return the package and the name of a type."""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"


def _communicates(model: nn.Module) -> bool:
    """Whether processes exchange parameters or buffers whenever the model runs."""
    replicated = [each for each in model.modules() if isinstance(each, nn.parallel.DistributedDataParallel)]
    sends_buffers = any(each.broadcast_buffers and list(each.buffers()) for each in replicated)
    return sends_buffers or any(map(shards_parameters, model.modules()))


def _gather(own: Mapping[str, Tensor], name: str) -> list[dict[str, Tensor]]:
    """Return the rows of every process."""
    layout = {key: f"{value.dtype} {tuple(value.shape[1:])}" for key, value in own.items()}
    rows = [rows for (rows,) in all_gather_ints(layout, [len(own["place"])], None, f"samples of {name}")]
    row_bytes = sum(value.shape[1:].numel() * value.itemsize for value in own.values())
    received = all_gather_bytes(as_bytes(own.values()), [row_bytes * number for number in rows], None)
    return [unpack(message, own, number) for message, number in zip(received, rows, strict=True)]


def _join(blocks: list[dict[str, Tensor]], are_places_known: bool) -> dict[str, Tensor]:
    """Join the rows of the processes by their places, those that several processes have once."""
    distinct: list[dict[str, Tensor]] = []
    for block in blocks:
        if are_places_known:
            is_new = not any(torch.equal(block["place"], other["place"]) for other in distinct)
        else:
            is_new = not any(_have_same_rows(block, other) for other in distinct)
        if is_new:
            distinct.append(block)
    if not are_places_known:
        start = 0
        for block in distinct:
            block["place"] = block["place"] + start
            start = int(block["place"].max()) + 1 if len(block["place"]) else start
    joined = {key: torch.cat([block[key] for block in distinct]) for key in blocks[0]}
    order = joined["place"].argsort(stable=True)
    return {key: value[order] for key, value in joined.items()}


def _have_same_rows(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two processes have the same rows in any order, up to the rounding of the logits; a few columns tell."""
    if one["logits"].shape != other["logits"].shape:
        return False
    if "labels" in one and not torch.equal(one["labels"].sort().values, other["labels"].sort().values):
        return False
    first, second = (block["logits"][:, :_COMPARED].double().sort(dim=0).values for block in (one, other))
    known = first.isfinite() & second.isfinite()
    size = float(first[known].abs().max()) if bool(known.any()) else 0.0
    return torch.allclose(first, second, rtol=0, atol=_ROUNDINGS * torch.finfo(one["logits"].dtype).eps * size)


def compare(loader: object, model: nn.Module, order: Order | None, name: str, group: ProcessGroup | None) -> None:
    """Check that all processes share out the same samples, and run a model that communicates equally often."""
    described = {"order of samples": "unknown"} if order is None else order.described
    headers = all_gather_ints(described, [length_hint(loader, -1), _communicates(model)], group, name)
    check_equal_batches([number for number, _ in headers], any(flag for _, flag in headers), name)


def check_equal_batches(numbers: list[int], is_in_step: bool, name: str) -> None:
    """Check that a model that communicates runs equally often; -1 stands for an unknown number of batches."""
    if is_in_step and len({number for number in numbers if number >= 0}) > 1:
        raise ValueError(
            f"{name} has {', '.join(map(str, numbers))} batches in processes 0 to {len(numbers) - 1}, but all "
            "must run this model equally often, since they exchange parameters or buffers whenever it runs; use a "
            "DistributedSampler, or a loader that Accelerate prepares with even_batches=True"
        )
