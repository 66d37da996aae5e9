"""States of `finecal.streaming` over several processes: each feeds its own state, and one function merges them all."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from ._core.arrays import check_flag
from ._models.collect import StateT as AnyStateT
from ._models.collect import StreamingState, check_collecting, collect_logits
from ._models.feed import SplitBatch
from ._models.output import Output
from ._models.positions import AtLabelSize
from ._models.processes import all_gather_bytes, all_gather_ints, as_bytes, collective_device, unpack, world
from ._models.shares import Order, compare, order_of
from .streaming._state import State

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["collect_sharded", "merge_across_processes"]

StateT = TypeVar("StateT", bound=State)


def merge_across_processes(state: StateT, group: ProcessGroup | None = None) -> StateT:
    """Return a new state with the samples of all processes; all of them have to call this.

    The given state stays as it is: it can be updated further and merged again, and no sample counts twice. See
    :doc:`/how-to/distributed`.

    Parameters
    ----------
    state : a state of `finecal.streaming`
        The state of this process, with or without samples; of the same kind and settings in all processes.
    group : torch.distributed.ProcessGroup, optional
        The processes to merge; default: all.

    Returns
    -------
    a state of the same kind
        On the device of `state`, the same in every process; rows of `MarginRows` in the order of the processes. Counts
        are exact, sums agree to 1e-12 with those of one process. A copy if there is one process, or no process group.

    Raises
    ------
    TypeError
        If `state` is of another type.
    ValueError
        In every process, if the states differ in kind, entries or settings; or if this process is not in `group`.
    RuntimeError
        By torch.distributed, if another process has died, or does not call this within the timeout of the group. (With
        NCCL, torch may end the process instead.)

    Notes
    -----
    At most three collectives: a small one compares the settings, then there is one all-reduce for all sums of a dtype,
    in `O(C)` memory, or one all-gather: for `ClassSums`, in `O(RC)` memory for `R` processes, and for `MarginRows`, in
    `R` times the rows of the largest process. They run on the CPU where the group has a backend for it (gloo), else on
    the current device of its kind (NCCL: set it first, by ``torch.cuda.set_device``).

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.distributed import merge_across_processes
    >>> from finecal.streaming import MarginRows
    >>> logits, labels = np.array([[4.0, 1, 3], [2, 5, 4.5]]), [0, 2]
    >>> state = MarginRows(np.array([True, True, False])).update(logits, labels)
    >>> merge_across_processes(state).compute().curve().best()
    0.75
    """
    if not isinstance(state, State):
        raise TypeError(
            f"state is a {type(state).__name__}; pass a state of finecal.streaming, such as MarginRows(seen_mask)"
        )
    processes, _ = world(group)
    if processes == 1:
        return copy.deepcopy(state)
    own = state._current_sums()
    floats = [value.itemsize for value in own.values() if value.is_floating_point()]
    rows = len(next(iter(own.values()))) if state._growing else 0
    headers = all_gather_ints(_describe(state), [rows, max(floats, default=0)], group, type(state).__name__)
    # Any other way to merge than the plain sum is one that the class defines itself.
    if type(state)._add is State._add:
        return _with_sums(state, all_reduce_sum(own, group))
    # As merging makes them: floating-point entries as wide as in the process that has the widest.
    wide = torch.float64 if max(width for _, width in headers) > 4 else torch.float32
    own = {name: value.to(wide) if value.is_floating_point() else value for name, value in own.items()}
    if state._growing:
        row_bytes = sum(value.shape[1:].numel() * value.itemsize for value in own.values())
        lengths = [rows * row_bytes for rows, _ in headers]
    else:
        lengths = [sum(value.nbytes for value in own.values())] * processes
    received = all_gather_bytes(as_bytes(own.values()), lengths, group)
    first, *others = (
        unpack(message, own, rows if state._growing else None)
        for message, (rows, _) in zip(received, headers, strict=True)
    )
    result = _with_sums(state, first)
    for sums in others:
        result._add(sums)
    return result


def _describe(state: State) -> dict[str, str]:
    """Describe what must be the same in all processes; tensors by their hashes."""
    own = state._current_sums()
    described = {"class": type(state).__name__, "entries": ", ".join(own)}
    for name, value in state._settings.items():
        # -0.0 is no other gamma than 0.0.
        positive = value + 0.0 if value.is_floating_point() else value
        described[name] = _hash(f"{value.dtype}{tuple(value.shape)}".encode() + positive.cpu().numpy().tobytes())
    if not state._growing:
        layout = "".join(f"{value.dtype}{tuple(value.shape)}" for value in own.values())
        described["shapes"] = _hash(layout.encode())
    return described


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _with_sums(state: StateT, sums: dict[str, Tensor]) -> StateT:
    """Return a state with the settings of this one; sums are replaced, never changed in place, so none are shared."""
    result = copy.copy(state)
    result._replace(sums)
    return result


def all_reduce_sum(own: Mapping[str, Tensor], group: ProcessGroup | None) -> dict[str, Tensor]:
    """Return the sums of all processes, by one all-reduce per dtype."""
    sums = {}
    for dtype in dict.fromkeys(value.dtype for value in own.values()):
        parts = {name: value for name, value in own.items() if value.dtype == dtype}
        buffer = torch.cat([value.reshape(-1) for value in parts.values()]).to(collective_device(group))
        dist.all_reduce(buffer, group=group)
        pieces = torch.split(buffer, [value.numel() for value in parts.values()])
        for (name, value), piece in zip(parts.items(), pieces, strict=True):
            sums[name] = piece.reshape(value.shape).to(value.device, copy=True)
    return {name: sums[name] for name in own}


def collect_sharded(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: AnyStateT,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    output: Output | None = None,
    progress: bool = True,
    group: ProcessGroup | None = None,
) -> AnyStateT:
    """Feed a state as `collect_logits` does, without the duplicates of a `DistributedSampler`; all processes call this.

    Each sample is counted in one process, so that `merge_across_processes` has each once: a `DistributedSampler`
    repeats some. See :doc:`/how-to/distributed`.

    Parameters
    ----------
    model : nn.Module
        As for `collect_logits`; may be wrapped in `DistributedDataParallel`.
    loader : DataLoader
        With ``sampler=DistributedSampler(...)`` and a ``batch_size``, or with a ``BatchSampler`` of such a sampler;
        shuffled or not. Or one that Accelerate has prepared, of a dataset that has a length. One process may have any
        loader that `collect_logits` takes.
    into : object with an ``update(logits, labels)`` method
        Takes the samples that this process counts: a state of `finecal.streaming`, or a metric of torchmetrics.
    device, batch, output, progress
        As for `collect_logits`; only the first process shows a bar.
    group : torch.distributed.ProcessGroup, optional
        The processes that share the samples; default: all.

    Returns
    -------
    into
        With the samples of this process.

    Raises
    ------
    TypeError
        If there are several processes, and the batches of `loader` are not drawn by a `BatchSampler` of a
        `DistributedSampler`, neither of them a subclass, nor by Accelerate; or as by `collect_logits`.
    ValueError
        If the sampler is that of another process or of another number of processes, the samplers of the processes
        differ (length, shuffling, seed, epoch, drop_last), `loader` has ``in_order=False`` or does not give the samples
        that its sampler draws, the model does not return one row per sample, or this process is not in `group`; or as
        by `collect_logits`. An error in one process reaches the others when they wait for it.

    Notes
    -----
    Every process runs the model equally often, as models that communicate need. Samples that ``drop_last=True`` drops
    are not counted. Lightning: set ``Trainer(use_distributed_sampler=False)`` and a `DistributedSampler`.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
    >>> from finecal.distributed import collect_sharded
    >>> from finecal.streaming import MarginRows
    >>> data = TensorDataset(torch.ones(5, 8), torch.tensor([0, 1, 2, 0, 1]))
    >>> loader = DataLoader(data, 2, sampler=DistributedSampler(data, 1, rank=0))
    >>> model, rows = torch.nn.Linear(8, 3), MarginRows([True, True, False])
    >>> len(collect_sharded(model, loader, into=rows, progress=False).compute())
    5
    """
    if into is None:
        raise TypeError("into is None; pass a state of finecal.streaming, such as MarginRows(seen_mask)")
    check_collecting(model, loader, into, with_features=False)
    check_flag(progress, "progress")
    collect = partial(collect_logits, model, loader, device=device, batch=batch, output=output)
    processes, rank = world(group)
    dealing = order_of(loader)
    if processes > 1 and dealing is not None and dealing.by_batch:
        compare(loader, model, dealing, "loader", group)
        dealt = _DealtRows(into, dealing)
        collect(into=dealt, progress=progress and rank == 0)
        return into
    shard = check_shard(loader, processes, rank)
    if shard is None:
        collect(into=into, progress=progress)
        return into
    sampler, batches = shard
    samples = len(sampler.dataset)  # type: ignore[arg-type]
    if processes > 1:
        order = {"length": samples, "shuffle": sampler.shuffle, "drop_last": sampler.drop_last}
        if sampler.shuffle:
            order |= {"seed": sampler.seed, "epoch": sampler.epoch}
        all_gather_ints({key: str(value) for key, value in order.items()}, [], group, "DistributedSampler")
    drawn = len(sampler)
    if batches.drop_last:
        drawn -= drawn % batches.batch_size
    # Position i of a process is position i * processes + rank of all: the sampler's duplicates come at the end.
    counted = len(range(rank, min(samples, sampler.total_size), processes))
    shares = _FirstRows(into, counted, drawn, batches.batch_size)
    collect(into=shares, progress=progress and rank == 0)
    if shares.came != drawn:
        raise ValueError(
            f"loader gave {shares.came} of the {drawn} samples of this process; use one that starts at the first "
            "sample and stops at the last"
        )
    return into


class _Cut(AtLabelSize):
    """Private: hands on batches without their last rows."""

    def __init__(self, state: StreamingState) -> None:
        super().__init__(state, getattr(state, "dim", -1))

    def hand_on(self, logits: Tensor, labels: Any, left_out: int) -> None:
        if left_out <= 0:
            super().update(logits, labels)
        elif left_out < logits.shape[0]:
            # From the end of both, so that labels of another number than logits are noticed still.
            super().update(logits[:-left_out], None if labels is None else labels[:-left_out])


class _DealtRows(_Cut):
    """Private: hands on the samples that have a place among those of all processes."""

    def __init__(self, state: StreamingState, order: Order) -> None:
        super().__init__(state)
        self._order = order

    def update(self, logits: Tensor, labels: Any) -> None:
        rows = logits.shape[0]
        self.hand_on(logits, labels, rows - len(self._order.take(rows)))


class _FirstRows(_Cut):
    """Private: hands on the first samples that come, in batches of a known size, and leaves out the rest."""

    def __init__(self, state: StreamingState, counted: int, drawn: int, batch_size: int) -> None:
        super().__init__(state)
        self.came = 0
        self._counted, self._drawn, self._batch_size = counted, drawn, batch_size

    def update(self, logits: Tensor, labels: Any) -> None:
        rows = logits.shape[0]
        expected = min(self._batch_size, self._drawn - self.came)
        if rows != expected:
            raise ValueError(
                f"the model returned {rows} rows of logits for a batch of {expected} samples, so that duplicates "
                "cannot be told; use a loader and a model that give one row per sample"
            )
        left_out = self.came + rows - self._counted
        self.came += rows
        self.hand_on(logits, labels, left_out)


_INSTEAD = (
    "pass a DataLoader(dataset, batch_size, sampler=DistributedSampler(dataset)), or, if no sample goes to two "
    "processes, use collect_logits(model, loader, into=state)"
)


def check_shard(loader: object, processes: int, rank: int) -> tuple[DistributedSampler[Any], BatchSampler] | None:
    """Return the sampler that shares out the samples and its batch sampler; None for one process without one."""
    if not isinstance(loader, DataLoader):
        if processes > 1:
            raise TypeError(
                f"loader is a {type(loader).__name__}, which does not say which samples the other processes get; "
                f"{_INSTEAD}"
            )
        return None
    batches: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    sampler = getattr(batches, "sampler", batches)
    if isinstance(sampler, DistributedSampler) and (sampler.num_replicas, sampler.rank) != (processes, rank):
        raise ValueError(
            f"the DistributedSampler of loader is that of process {sampler.rank} of {sampler.num_replicas}, but this "
            f"is process {rank} of {processes}; leave out num_replicas and rank, or pass the group that they are of"
        )
    # Subclasses may yield samples in another order, or pad otherwise.
    if type(sampler) is not DistributedSampler or type(batches) is not BatchSampler:
        if processes > 1:
            of = "" if sampler is batches else f" of a {type(sampler).__name__}"
            raise TypeError(
                f"the batches of loader are drawn by a {type(batches).__name__}{of}, which may give a sample to two "
                f"processes unnoticed; {_INSTEAD}"
            )
        return None
    if loader.num_workers and not getattr(loader, "in_order", True):
        raise ValueError("loader has in_order=False, so that duplicates may come anywhere; leave it at True")
    return sampler, batches
