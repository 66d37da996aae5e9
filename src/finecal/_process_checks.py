"""Checks of what several processes hold: states that can be merged, and loaders that share out the samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

_LONGEST_SHOWN = 40
"""Characters of a value that a message shows; hashes are longer."""
_INSTEAD = (
    "pass a DataLoader(dataset, batch_size, sampler=DistributedSampler(dataset)), or, if no sample goes to two "
    "processes, use collect_logits(model, loader, into=state)"
)


def check_state(state: object, kind: type, name: str) -> None:
    if not isinstance(state, kind):
        raise TypeError(
            f"{name} is a {type(state).__name__}; pass a state of finecal.streaming, such as MarginRows(seen_mask)"
        )


def check_member(rank: int) -> None:
    if rank < 0:
        raise ValueError("group does not contain this process; call this in the processes of the group only")


def check_processes_agree(described: Sequence[Mapping[str, str]], what: str) -> None:
    """All describe theirs as the first process does: the same error everywhere, as each has what all have said."""
    first = described[0]
    for rank, other in enumerate(described):
        for key in (*first, *other):
            values = first.get(key, "none"), other.get(key, "none")
            if values[0] != values[1]:
                shown = f" ({values[0]}; {values[1]})" if max(map(len, values)) <= _LONGEST_SHOWN else ""
                raise ValueError(
                    f"{what}: {key} differs between processes 0 and {rank}{shown}; give all processes the same {key}"
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
