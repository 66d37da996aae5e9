"""Detect samples that are augmented at random, and models that are random in eval mode."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, Subset

_FEW = 16
"""Number of samples that are drawn twice: a random flip then differs in at least one of them."""
_LARGE = 0.01
"""Relative to the spread of the logits; smaller differences may be rounding, as sums on GPUs vary in order."""


def doubts_about_samples(loader: object, instead: str) -> list[str]:
    """Return a warning if the samples of a loader differ when they are drawn again; `instead` says what to pass."""
    if not _differ(loader):
        return []
    return [
        "the samples are augmented at random. Two draws of the same ones differ, so gamma and the accuracies are those "
        f"of augmented samples, which are harder than what the model will meet: {instead}"
    ]


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


def _differ(loader: object) -> bool:
    """Whether the first samples of a loader differ when they are drawn again; False if that cannot be tested."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    batches, sampler = loader.batch_sampler, loader.sampler
    if not all(each is None or _is_of_torch(each) for each in (sampler, batches, getattr(batches, "sampler", None))):
        return False
    try:
        few = _first_indices(getattr(batches, "sampler", sampler))
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
    except Exception:  # the user's loader may raise any, and this test is no reason to stop
        return False


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
