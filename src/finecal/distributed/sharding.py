"""Logits collected by several processes, each sample once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from ..models.collection import StateT as AnyStateT
from ..models.collection import StreamingState, check_collecting, collect_logits
from ..models.feed import SplitBatch
from ..models.positions import AtLabelSize
from .merging import all_gather_ints, world

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def collect_sharded(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    into: AnyStateT,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    group: ProcessGroup | None = None,
) -> AnyStateT:
    """Feed a state as `collect_logits` does, without the duplicates of a `DistributedSampler`; all processes call this.

    A `DistributedSampler` gives all processes equally many samples, some of them twice where the number of samples
    cannot be divided. Each sample is counted in one process here, so that `merge_across_processes` has each once.

    Parameters
    ----------
    model : nn.Module
        As for `collect_logits`; may be wrapped in `DistributedDataParallel`.
    loader : DataLoader
        With ``sampler=DistributedSampler(...)`` and a ``batch_size``, or with a ``BatchSampler`` of such a sampler;
        shuffled or not. One process may have any loader that `collect_logits` takes.
    into : object with an ``update(logits, labels)`` method
        Takes the samples that this process counts: a state of `finecal.streaming`, or a metric of torchmetrics.
    device, batch, progress
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
    merge_across_processes : One state of those of all processes.

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
    >>> from finecal.distributed import collect_sharded, merge_across_processes
    >>> from finecal.streaming import MarginRows
    >>> dataset = TensorDataset(torch.ones(5, 8), torch.tensor([0, 1, 2, 0, 1]))
    >>> loader = DataLoader(
    ...     dataset,
    ...     batch_size=2,
    ...     sampler=DistributedSampler(dataset, num_replicas=1, rank=0),
    ... )
    >>> rows = collect_sharded(
    ...     torch.nn.Linear(8, 3),
    ...     loader,
    ...     into=MarginRows([True, True, False]),
    ...     progress=False,
    ... )
    >>> len(merge_across_processes(rows).compute())
    5
    """
    if into is None:
        raise TypeError("into is None; pass a state of finecal.streaming, such as MarginRows(seen_mask)")
    check_collecting(model, loader, into, with_features=False)
    processes, rank = world(group)
    shard = check_shard(loader, processes, rank)
    if shard is None:
        return collect_logits(model, loader, into=into, device=device, batch=batch, progress=progress)
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
    collect_logits(model, loader, into=shares, device=device, batch=batch, progress=progress and rank == 0)
    check_all_came(shares.came, drawn)
    return into


class _FirstRows(AtLabelSize):
    """Private: hands on the first samples that come, in batches of a known size, and leaves out the rest."""

    def __init__(self, state: StreamingState, counted: int, drawn: int, batch_size: int) -> None:
        super().__init__(state, getattr(state, "dim", -1))
        self.came = 0
        self._counted, self._drawn, self._batch_size = counted, drawn, batch_size

    def update(self, logits: Tensor, labels: Any) -> None:
        rows = logits.shape[0]
        check_batch_rows(rows, min(self._batch_size, self._drawn - self.came))
        left_out = self.came + rows - self._counted
        self.came += rows
        if left_out <= 0:
            super().update(logits, labels)
        elif left_out < rows:
            # From the end of both, so that labels of another number than logits are noticed still.
            super().update(logits[:-left_out], None if labels is None else labels[:-left_out])


_INSTEAD = (
    "pass a DataLoader(dataset, batch_size, sampler=DistributedSampler(dataset)), or, if no sample goes to two "
    "processes, use collect_logits(model, loader, into=state)"
)


def check_shard(loader: object, processes: int, rank: int) -> tuple[DistributedSampler[Any], BatchSampler] | None:
    """Return the sampler that shares out the samples, and what makes batches of them.

    None for one process without such a sampler: it has all samples.
    """
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


def check_batch_rows(rows: int, expected: int) -> None:
    if rows != expected:
        raise ValueError(
            f"the model returned {rows} rows of logits for a batch of {expected} samples, so that duplicates cannot be "
            "told; use a loader and a model that give one row per sample"
        )


def check_all_came(came: int, expected: int) -> None:
    if came != expected:
        raise ValueError(
            f"loader gave {came} of the {expected} samples of this process; use one that starts at the first sample "
            "and stops at the last"
        )
