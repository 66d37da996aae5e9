"""Whether samples that are drawn again, and models that are run again, give the same."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, Subset

_FEW = 16
"""Number of samples that are drawn twice: a random flip then differs in at least one of them."""
_FIXED = (list, tuple, range)
"""Types of samplers that give the same indices at each pass."""
_LARGE = 0.01
"""Relative to the spread of the logits; smaller differences may be rounding, as sums on GPUs vary in order."""


AUGMENTED = (
    "the samples are augmented at random. Two draws of the same ones differ, so gamma and the accuracies are those of "
    "augmented samples, which are harder than what the model will meet"
)


def doubts_about_samples(loader: object, instead: str) -> list[str]:
    """Return a warning if the samples of a loader differ when they are drawn again; `instead` says what to pass."""
    return [f"{AUGMENTED}: {instead}"] if are_augmented(loader) else []


def are_augmented(loader: object, *, again: bool = False) -> bool | None:
    """Whether samples of a loader differ when they are drawn again; None if that cannot be told.

    Samples that have an index are drawn by it, and the loader is not touched. Other loaders are gone through again, as
    far as the second batch, only if `again` allows that, since they may give their samples once: ask after their use.
    """
    if isinstance(loader, (tuple, list)):
        return False
    try:
        if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
            return _differ_by_index(loader)
        return _differ_in_epochs(loader) if again and not isinstance(loader, Iterator) else None
    except Exception:  # the user's loader may raise any, and this test is no reason to stop
        return None


def logits_and_doubts(run: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """Return the logits of a batch, and a warning if another run on it gives others.

    It is run again only if random numbers were drawn: most models draw none in eval mode, and some to no effect.
    """
    before = _random_numbers()
    logits = run()
    if all(map(torch.equal, before, _random_numbers())):
        return logits, []
    last = run()  # its logits are returned, since a hook records the features of this run
    known = logits.isfinite() & last.isfinite()
    first, second = logits[known].double(), last[known].double()
    # The median, since masked logits may be large numbers.
    spread = (first - first.median()).abs().median() if len(first) else 0.0
    if not bool((first - second).square().mean().sqrt() > _LARGE * spread):
        return last, []
    return last, [
        "the model is random in eval mode. It gives the same samples other logits each time, as with dropout that is "
        "left on in its forward, and gamma is that of a noisy model: pass training=self.training to functional dropout"
    ]


def _random_numbers() -> list[Tensor]:
    """Return the states of torch's generators, without creating a context on a GPU."""
    return [torch.get_rng_state(), *(generator.get_state() for generator in torch.cuda.default_generators)]


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the states of the generators of Python, NumPy and torch afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # the generator that the code of users draws from
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _differ_by_index(loader: DataLoader[Any]) -> bool:
    """Whether the first samples of a data set differ when they are drawn again."""
    batches, sampler = loader.batch_sampler, loader.sampler
    inner = getattr(batches, "sampler", None)
    if all(each is None or _is_of_torch(each) or isinstance(each, _FIXED) for each in (sampler, batches, inner)):
        indices = sampler if inner is None else inner
        few = _first_indices(chain.from_iterable(batches) if isinstance(batches, _FIXED) else indices)
    else:  # to iterate over a sampler of the user's may change it
        few = list(range(len(loader.dataset)))[:_FEW]  # type: ignore[arg-type]
    size = None if batches is None else _dividing(loader.batch_size or 1, len(few))
    workers = min(1, loader.num_workers)  # a dataset may open its files in the process that first asks for a sample
    again = DataLoader(
        Subset(loader.dataset, few + few),
        batch_size=size,
        collate_fn=loader.collate_fn,
        num_workers=workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
    )
    with random_states_kept():
        drawn = list(again)
    half = len(drawn) // 2
    return not all(map(_equal, drawn[:half], drawn[half:]))


def _differ_in_epochs(loader: Any) -> bool | None:
    """Whether the same batch differs in two epochs that start from the same random numbers.

    Most orders are drawn when an epoch starts, so the random numbers are changed once the first batch has come. Batches
    with the same labels, in an order that chance does not give, are of the same samples.
    """
    batches = _in_order(loader)
    with random_states_kept():
        first = list(islice(batches, 2))
    with random_states_kept():
        again, second = iter(batches), list[Any]()
        for _ in first:
            if len(second) == len(first) - 1:
                random.random(), np.random.random(), torch.rand(())  # noqa: NPY002
            second += islice(again, 1)
    if not first or len(first) != len(second):
        return None
    differing = [pair for pair in zip(first, second, strict=True) if not _equal(*pair)]
    return (any(_are_of_same_samples(*pair) for pair in differing) or None) if differing else False


def _in_order(loader: Any) -> Any:
    """Return a loader as it is, or a copy that draws in this process and, if it is one of fastai, in order."""
    if isinstance(loader, DataLoader):
        return DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn, drop_last=loader.drop_last)
    of_fastai = any(kind.__module__.startswith("fastai.") for kind in type(loader).__mro__)
    return loader.new(shuffle=False, num_workers=0) if of_fastai else loader


_CHANCE = 1e-4
"""Probability of the same labels in a random order that is no longer taken for chance."""


def _are_of_same_samples(first: Any, second: Any) -> bool:
    """Whether two batches have the same labels, or names, in an order that chance does not give."""
    for labels, others in zip(_labels(first), _labels(second), strict=True):
        counts = Counter(labels)
        if labels == others and math.prod(counts[label] / len(labels) for label in labels) < _CHANCE:
            return True
    return False


def _labels(batch: Any) -> list[list[Any]]:
    """Return what may be labels or names of samples: lists, and arrays of one dimension, of integers or texts."""
    if isinstance(batch, (Tensor, np.ndarray)):
        entries = batch.tolist() if batch.ndim == 1 else []
    elif isinstance(batch, Mapping):
        return [labels for value in batch.values() for labels in _labels(value)]
    elif isinstance(batch, (tuple, list)):
        entries = list(batch)
        if not all(isinstance(entry, (int, str)) for entry in entries):
            return [labels for value in batch for labels in _labels(value)]
    else:
        return _labels(vars(batch)) if is_dataclass(batch) else []
    return [entries] if entries and all(isinstance(entry, (int, str)) for entry in entries) else []


def _first_indices(sampler: Any) -> list[Any]:
    """Return the first indices of a sampler of torch, and restore its generator."""
    generator = getattr(sampler, "generator", None)
    state = None if generator is None else generator.get_state()
    try:
        with random_states_kept():
            return list(islice(iter(sampler), _FEW))
    finally:
        if generator is not None:
            generator.set_state(state)


def _is_of_torch(sampler: object) -> bool:
    """Whether a sampler is torch's own: to iterate over it once more changes nothing but its generator."""
    return type(sampler).__module__.startswith(Sampler.__module__.rpartition(".")[0])


def _dividing(most: int, count: int) -> int:
    """Return the largest divisor of `count` that is at most `most`."""
    return next(size for size in range(max(1, min(most, count)), 0, -1) if count % size == 0)


def _equal(first: Any, second: Any) -> bool:
    """Whether all arrays in two batches are equal; other values are not compared."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and bool(torch.isclose(first, second, 0, 0, equal_nan=True).all())
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    if is_dataclass(first) and is_dataclass(second):
        first, second = vars(first), vars(second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return all(_equal(first[key], second.get(key)) for key in first)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return True
