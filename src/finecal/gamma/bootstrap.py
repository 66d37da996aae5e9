"""Samples drawn with replacement, again and again, for the interval of an estimate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..inputs.numbers import check_n_bootstrap, check_seed

TRAINING, HELD_OUT, UNLABELLED, FOLDS = 1, 2, 3, 4
"""Streams of the samples that `estimate_gamma` draws: independent of each other."""
_GROUPS, _AT_A_TIME = 2048, 128
_COVERAGE = (0.025, 0.975)


class Bootstrap(NamedTuple):
    """How often samples are drawn, and the seed: of these draws, and of whatever else an estimator draws."""

    n: int = 0
    seed: int = 0

    @classmethod
    def checked(cls, n_bootstrap: int, seed: int) -> Bootstrap:
        """Check the arguments that estimators take."""
        return cls(check_n_bootstrap(n_bootstrap), check_seed(seed))

    def indices(self, n: int, size: int | None = None, *, stream: int = 0) -> Iterator[Tensor]:
        """Yield index tensors of `size` (default n) draws from n samples, the same on every device.

        Draws that have to be independent under one seed take different streams.
        """
        generator = torch.Generator("cpu").manual_seed(self.seed + stream)
        for _ in range(self.n):
            yield torch.randint(n, (size or n,), generator=generator, device="cpu")

    def counts(self, n: int, *, stream: int = 0) -> Resamples:
        """Draw from n samples, or from some thousand groups of as many each, which vary as much: see `Resamples`."""
        size = min(n, _GROUPS)
        generator = torch.Generator("cpu").manual_seed(self.seed + stream)
        in_order = size == n or self.n == 0
        order = torch.arange(n, device="cpu") if in_order else torch.randperm(n, generator=generator, device="cpu")
        return Resamples(order % size, self.n, size, generator)

    def resampled(self, values: Tensor, *, stream: int = 0) -> Iterator[Tensor]:
        """Yield draws of `values`, as many as there are."""
        for index in self.indices(len(values), stream=stream):
            yield values[index.to(values.device)]


class Resamples:
    """How often each sample is drawn, in each of many resamplings, for sums that are linear in it.

    The samples of a group are drawn together: a resampling of 2048 random groups varies as one of the samples does, and
    takes no longer for a million samples.

    Attributes
    ----------
    group : (N,) int64
        The group of each sample; of few samples each has its own.
    number : int
        Resamplings.
    """

    def __init__(self, group: Tensor, number: int, size: int, generator: torch.Generator) -> None:
        self.group, self.number = group, number
        self._size, self._generator = size, generator

    def __iter__(self) -> Iterator[Tensor]:
        """Yield `(R, G)` float64 tensors: how often each group is drawn, of some resamplings at a time."""
        for start in range(0, self.number, _AT_A_TIME):
            shape = min(_AT_A_TIME, self.number - start), self._size
            drawn = torch.randint(self._size, shape, generator=self._generator, device="cpu")
            yield torch.zeros(shape, dtype=torch.float64, device="cpu").scatter_add_(
                1, drawn, torch.ones(1, dtype=torch.float64, device="cpu").expand(shape)
            )

    def means(self, values: Tensor) -> list[float]:
        """Return the mean of the drawn ones of `(N,)` values in each resampling."""
        sums = self.sums(torch.stack([values, torch.ones_like(values)], dim=1))
        return [float(mean) for times in self for mean in torch.div(*(times @ sums).T)]

    def sums(self, values: Tensor) -> Tensor:
        """Return `(G, K)`: the `(N, K)` values added up in each group."""
        return torch.zeros((self._size, values.shape[1]), dtype=torch.float64, device="cpu").index_add_(
            0, self.group, values.double().cpu()
        )


def percentile_interval(replicates: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the finite bootstrap replicates, None without any."""
    finite = [value for value in replicates if math.isfinite(value)]
    if not finite:
        return None
    low, high = np.quantile(finite, _COVERAGE)
    return float(low), float(high)
