"""Whether the same samples give the same logits twice: not if they are augmented, nor if dropout is left on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, Subset

_FEW = 16
"""Samples that are drawn twice: enough to meet one that a random flip leaves alone in one draw only."""
_LARGE = 0.01
"""Of the spread of the logits; less is the rounding of sums in another order, as on GPUs."""


def doubts_about_samples(loader: object, instead: str) -> list[str]:
    """Return a warning if the samples of a loader differ when they are drawn again; `instead` says what to pass."""
    twice = _drawn_twice(loader)
    if twice is None or _equal(*twice):
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
    last = run()  # what else is recorded of a run is of this one
    known = logits.isfinite() & last.isfinite()
    first, second = logits[known].double(), last[known].double()
    if not bool((first - second).square().mean().sqrt() > _LARGE * first.std(correction=0)):
        return last, []
    return last, [
        "the model is random in eval mode. It gives the same samples other logits each time, as with dropout that is "
        "left on in its forward, and gamma is that of a noisy model: pass training=self.training to functional dropout"
    ]


def _random_numbers() -> list[Tensor]:
    """Return the states of torch's random numbers."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _drawn_twice(loader: object) -> tuple[Any, Any] | None:
    """Return two batches of the same few samples; None if a loader gives its samples only once, or in its own way."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    batches = loader.batch_sampler
    if not isinstance(loader.dataset, Sized) or not all(map(_is_of_torch, (loader.sampler, batches))):
        return None
    size = None if batches is None else _FEW
    few = list(range(min(size or 1, len(loader.dataset))))
    workers = min(1, loader.num_workers)  # a dataset may open its files in the process that first asks for a sample
    again = DataLoader(
        Subset(loader.dataset, few + few),
        batch_size=size and len(few),
        collate_fn=loader.collate_fn,
        num_workers=workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
    )
    with _random_states_kept():
        first, second = again
    return first, second


def _is_of_torch(sampler: object) -> bool:
    """Whether a sampler gives the indices 0 to N - 1, as those of torch do."""
    return sampler is None or type(sampler).__module__.startswith(Sampler.__module__.rpartition(".")[0])


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Leave the random numbers of Python, NumPy and torch as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # what others draw from
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _equal(first: Any, second: Any) -> bool:
    """Whether all arrays in two batches are equal; of what else is in them nothing is known."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and bool(torch.isclose(first, second, 0, 0, equal_nan=True).all())
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return all(_equal(first[key], second.get(key)) for key in first)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return True
