"""The samples that a DataLoader gives in one pass, in batches from a new loader."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from .._models.repeatability import random_states_kept
from ._calibration import choose_samples


def batches_again(loader: Any, max_samples: int | None = None, max_batches: float = math.inf) -> Iterable[Any]:
    """Return the samples of one pass over a loader, in new batches; the loader and its samplers stay as they are.

    In several processes, each gets the samples of all. Samplers that draw at random do so with a fixed seed, or go on
    as their own generator will.

    Parameters
    ----------
    loader : DataLoader or iterable of batches
        A DataLoader may be in use; others are iterated over themselves.
    max_samples : int, optional
        Most samples, chosen with a fixed seed; whole batches of a batch sampler of one's own, since its sizes may fit
        the memory; the first batches of a stream.
    max_batches : int or inf, default inf
        Number of batches of the loader after which its pass ends, in each process.
    """
    if not isinstance(loader, DataLoader):
        return islice(loader, _stop(max_batches))
    dataset: Any = loader.dataset
    settings: dict[str, Any] = {
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context if loader.num_workers else None,
        "generator": torch.Generator(),
    }
    if isinstance(dataset, IterableDataset):
        batches = DataLoader(dataset, loader.batch_size, drop_last=loader.drop_last, **settings)
        wanted = math.inf if max_samples is None else math.ceil(max_samples / (loader.batch_size or 1))
        return islice(batches, _stop(min(wanted, max_batches)))
    drawn, size = _draw(loader, max_batches)
    if size is None and all(isinstance(batch, list) for batch in drawn):
        chosen = drawn if max_samples is None else _some_batches(drawn, max_samples)
    else:
        chosen = _some_indices(drawn, size, max_samples)
    if loader.batch_sampler is None:  # the data set makes a batch of each index, or of each list of indices
        return DataLoader(dataset, None, sampler=chosen, **settings)
    return DataLoader(dataset, batch_sampler=chosen, **settings)


def _draw(loader: DataLoader[Any], max_batches: float) -> tuple[list[Any], int | None]:
    """Return the batches of indices that a loader gives; indices and the size of their batches where any batch will do.

    The size is None where the indices are batches already, or the data set makes a batch of each.
    """
    is_batched = loader.batch_sampler is not None
    sampler = _copied(loader.batch_sampler if is_batched else loader.sampler, loader.dataset)
    sampler, processes = _whole(sampler)
    size = sampler.batch_size if type(sampler) is BatchSampler else None
    with _fixed_random_numbers():
        if size is None:
            drawn = list(islice(sampler, _stop(max_batches * processes)))
        else:
            drawn = list(islice(sampler.sampler, _stop(max_batches * processes * size)))
    if size is None and is_batched:
        drawn = list(map(list, drawn))
    elif size is not None and sampler.drop_last:
        del drawn[len(drawn) // size * size :]
    if all(issubclass(kind, Integral) for kind in set(map(type, drawn))):
        drawn.sort()  # so that gamma does not depend on the order of a shuffle
    return (drawn if processes > 1 else _of_all_processes(drawn)), size


def _some_indices(indices: list[Any], size: int | None, max_samples: int | None) -> list[Any]:
    """Return at most `max_samples` of the indices, in batches if these have a size."""
    chosen = choose_samples(indices, max_samples)
    if chosen is not None:
        indices = [indices[position] for position in chosen]
    if size is None:
        return indices
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _some_batches(batches: list[list[Any]], max_samples: int) -> list[list[Any]]:
    """Return batches drawn with a fixed seed, or all in their order; the last one is cut."""
    if sum(map(len, batches)) <= max_samples:
        return batches
    chosen = []
    for position in torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist():
        chosen.append(batches[position][:max_samples])
        max_samples -= len(chosen[-1])
        if max_samples == 0:
            break
    return chosen


def _copied(sampler: Any, dataset: Any) -> Any:
    """Return a copy of a sampler that shares the data set: a pass may shuffle its lists or advance its generator."""
    memo = {id(dataset): dataset}
    for each in (sampler, getattr(sampler, "sampler", None)):
        for value in getattr(each, "__dict__", {}).values():
            if isinstance(value, Dataset):
                memo[id(value)] = value
            elif isinstance(value, torch.Generator):
                memo[id(value)] = torch.Generator(value.device).set_state(value.get_state())
    try:
        return copy.deepcopy(sampler, memo)
    except Exception:  # of any kind: it comes out of the user's sampler, which may hold a lock or an open file
        return copy.copy(sampler) if hasattr(sampler, "__dict__") else sampler


def _whole(sampler: Any) -> tuple[Any, int]:
    """Return a sampler of the samples of all processes, and the number of processes if it had the share of one."""
    if isinstance(sampler, DistributedSampler):
        samples: Any = sampler.dataset
        if type(sampler) is DistributedSampler:
            return SequentialSampler(samples), sampler.num_replicas
        if type(sampler).__name__ == "DistributedSamplerWrapper":  # Lightning's
            return samples._sampler, sampler.num_replicas
    inner = getattr(sampler, "sampler", None)
    whole, processes = (None, 1) if inner is None else _whole(inner)
    if whole is not inner:
        sampler.sampler = whole
    return sampler, processes


def _of_all_processes(drawn: list[Any]) -> list[Any]:
    """Return what all processes have drawn, which may be the same."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return drawn
    parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, drawn)
    return drawn if all(part == drawn for part in parts) else list(chain.from_iterable(parts))


@contextmanager
def _fixed_random_numbers() -> Iterator[None]:
    """Seed what samplers draw from, so that all processes draw the same, and restore it."""
    with random_states_kept():
        torch.default_generator.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  # the generator that the code of users draws from
        random.seed(0)
        yield


def _stop(count: float) -> int | None:
    """Return where `islice` stops."""
    return None if math.isinf(count) else int(count)
