"""States of `finecal.streaming` over several processes: every sample of every process, each counted once.

Each process feeds a state of its own, and a function makes one of all. States never synchronise themselves, so that
each can go on being updated.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ._checks import check_collecting
from ._collectives import added, exchanged, gathered, place
from ._process_checks import (
    check_all_came,
    check_batch_rows,
    check_shard,
    check_state,
)
from .collection import StateT as AnyStateT
from .collection import StreamingState, collect_logits
from .streaming._state import State

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["collect_once", "merged"]

StateT = TypeVar("StateT", bound=State)


def merged(state: StateT, group: ProcessGroup | None = None) -> StateT:
    """Return a new state with the samples of all processes; all of them have to call this.

    The given state stays as it is: it can be updated further and merged again, and no sample counts twice.

    Parameters
    ----------
    state : a state of `finecal.streaming`
        Of this process, with or without samples. All processes have to hold the same kind with the same settings.
    group : torch.distributed.ProcessGroup, optional
        The processes to merge; default: all.

    Returns
    -------
    a state of the same kind
        On the device of `state`. The same in every process; rows of `MarginRows` in the order of the processes. Counts
        are exact, sums agree to 1e-12 with those of one process that has all samples. Without an initialised process
        group, or with one process, a copy.

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
    Three collectives at most, whatever the number of processes: a small one, by which the settings are compared, and
    then one all-reduce for all sums of a dtype, in `O(C)` memory; or one all-gather where merging is more than adding:
    for `ClassSums`, in `O(RC)` memory for `R` processes, and for `MarginRows`, in that of `R` times the rows of the
    process that has most. Collectives run on the CPU where the group has a backend for it (gloo), else on the current
    device of the kind that it has one for (NCCL: set it first, by ``torch.cuda.set_device``).

    Examples
    --------
    In each process of a training script, and here in a single one:

    >>> import numpy as np
    >>> from finecal.distributed import merged
    >>> from finecal.streaming import MarginRows
    >>> state = MarginRows(np.array([True, True, False])).update(np.array([[4.0, 1, 3], [2, 5, 4.5]]), [0, 2])
    >>> merged(state).compute().curve().best()
    0.75
    """
    check_state(state, State, "state")
    processes, _ = place(group)
    if processes == 1:
        return copy.deepcopy(state)
    own = state._collected()
    floats = [value.itemsize for value in own.values() if value.is_floating_point()]
    rows = len(next(iter(own.values()))) if state._growing else 0
    told = exchanged(_described(state), [rows, max(floats, default=0)], group, type(state).__name__)
    # Any other way to merge than the plain sum is one that the class defines itself.
    if type(state)._add is State._add:
        return _holding(state, added(own, group))
    own = _widened(own, max(width for _, width in told))
    if state._growing:
        row_bytes = sum(value.shape[1:].numel() * value.itemsize for value in own.values())
        lengths = [rows * row_bytes for rows, _ in told]
    else:
        lengths = [sum(value.nbytes for value in own.values())] * processes
    received = gathered(_as_bytes(own.values()), lengths, group)
    first, *others = (
        _unpacked(message, own, rows if state._growing else None)
        for message, (rows, _) in zip(received, told, strict=True)
    )
    result = _holding(state, first)
    for sums in others:
        result._add(sums)
    return result


def collect_once(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: AnyStateT,
    device: torch.device | str | None = None,
    progress: bool = True,
    group: ProcessGroup | None = None,
) -> AnyStateT:
    """Feed a state as `collect_logits` does, without the duplicates of a `DistributedSampler`; all processes call this.

    A `DistributedSampler` gives all processes equally many samples, some of them twice where the number of samples
    cannot be divided. Each sample is counted in one process here, so that `merged` has each once.

    Parameters
    ----------
    model : nn.Module
        As for `collect_logits`; may be wrapped in `DistributedDataParallel`.
    loader : DataLoader
        With ``sampler=DistributedSampler(...)`` and a ``batch_size``, or with a ``BatchSampler`` of such a sampler;
        shuffled or not. One process may have any loader that `collect_logits` takes.
    into : object with an ``update(logits, labels)`` method
        Takes the samples that this process counts: a state of `finecal.streaming`, or a metric of torchmetrics.
    device, progress
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
        `DistributedSampler`, neither of them a subclass; or as by `collect_logits`.
    ValueError
        If the sampler is that of another process or of another number of processes, the samplers of the processes
        differ (length, shuffling, seed, epoch, drop_last), `loader` has ``in_order=False`` or does not give the samples
        that its sampler draws, the model does not return one row per sample, or this process is not in `group`; or as
        by `collect_logits`. An error in one process reaches the others when they wait for it.

    See Also
    --------
    merged : One state of those of all processes.

    Notes
    -----
    Duplicates are left out of `into`, not out of the batches: every process runs the model equally often, as models
    that communicate (`DistributedDataParallel` with buffers, FSDP) need. What ``drop_last=True`` drops, of the sampler
    or the loader, is not counted at all.

    Loaders that other libraries have prepared are refused, as they may repeat samples, too. Accelerate: with
    ``DataLoaderConfiguration(even_batches=False)`` and a dataset that has a length none is repeated, so that
    `collect_logits` will do. Lightning replaces samplers by a subclass, unless
    ``Trainer(use_distributed_sampler=False)``: give the loader a `DistributedSampler` of your own then.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
    >>> from finecal.distributed import collect_once, merged
    >>> from finecal.streaming import MarginRows
    >>> dataset = TensorDataset(torch.ones(5, 8), torch.tensor([0, 1, 2, 0, 1]))
    >>> loader = DataLoader(dataset, batch_size=2, sampler=DistributedSampler(dataset, num_replicas=1, rank=0))
    >>> rows = collect_once(torch.nn.Linear(8, 3), loader, into=MarginRows([True, True, False]), progress=False)
    >>> len(merged(rows).compute())
    5
    """
    if into is None:
        raise TypeError("into is None; pass a state of finecal.streaming, such as MarginRows(seen_mask)")
    check_collecting(model, loader, into, features=False)
    processes, rank = place(group)
    shard = check_shard(loader, processes, rank)
    if shard is None:
        return collect_logits(model, loader, into=into, device=device, progress=progress)
    sampler, batches = shard
    samples = len(sampler.dataset)  # type: ignore[arg-type]
    if processes > 1:
        order = {"length": samples, "shuffle": sampler.shuffle, "drop_last": sampler.drop_last}
        if sampler.shuffle:
            order |= {"seed": sampler.seed, "epoch": sampler.epoch}
        exchanged({key: str(value) for key, value in order.items()}, [], group, "DistributedSampler")
    drawn = len(sampler)
    if batches.drop_last:
        drawn -= drawn % batches.batch_size
    # Position i of a process is position i * processes + rank of all: the sampler's duplicates come at the end.
    counted = len(range(rank, min(samples, sampler.total_size), processes))
    shares = _FirstRows(into, counted, drawn, batches.batch_size)
    collect_logits(model, loader, into=shares, device=device, progress=progress and rank == 0)
    check_all_came(shares.came, drawn)
    return into


class _FirstRows:
    """Private: hands on the first rows that come, in batches of a known size, and leaves out the rest."""

    def __init__(self, state: StreamingState, counted: int, drawn: int, batch_size: int) -> None:
        self.came = 0
        self._state, self._counted, self._drawn, self._batch_size = state, counted, drawn, batch_size

    def update(self, logits: Tensor, labels: Any) -> None:
        rows = logits.shape[0]
        check_batch_rows(rows, min(self._batch_size, self._drawn - self.came))
        left_out = self.came + rows - self._counted
        self.came += rows
        if left_out <= 0:
            self._state.update(logits, labels)
        elif left_out < rows:
            # From the end of both, so that labels of another number than logits are noticed still.
            self._state.update(logits[:-left_out], None if labels is None else labels[:-left_out])


def _described(state: State) -> dict[str, str]:
    """Say what has to be the same in all processes; tensors as hashes."""
    own = state._collected()
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


def _holding(state: StateT, sums: dict[str, Tensor]) -> StateT:
    """Return a state with the settings of this one; sums are replaced, never changed in place, so none are shared."""
    result = copy.copy(state)
    result._replace(sums)
    return result


def _widened(own: Mapping[str, Tensor], itemsize: int) -> dict[str, Tensor]:
    """Return the entries, floating-point ones as wide as in the process that has the widest: as merging makes them."""
    dtype = torch.float64 if itemsize > 4 else torch.float32
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in own.items()}


def _as_bytes(values: Iterable[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1).view(torch.uint8) for value in values])


def _unpacked(message: Tensor, own: Mapping[str, Tensor], rows: int | None) -> dict[str, Tensor]:
    """Return what `_as_bytes` has packed: entries as one's own, but for the number of rows."""
    shapes = {name: value.shape if rows is None else (rows, *value.shape[1:]) for name, value in own.items()}
    sizes = [torch.Size(shape).numel() * own[name].itemsize for name, shape in shapes.items()]
    pieces = torch.split(message, sizes)
    # A view of another dtype has to start at a multiple of its size, as a copy does.
    return {
        name: piece.clone().view(own[name].dtype).reshape(shape)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }
