"""Samples, or groups of them, drawn with replacement, again and again, for the interval of an estimate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..inputs.groups import Grouping, check_several
from ..inputs.numbers import check_n_bootstrap, check_seed

TRAINING, HELD_OUT, UNLABELLED, FOLDS = 1, 2, 3, 4
"""Streams of the samples that `estimate_gamma` draws: independent of each other."""
_PARTS, _AT_A_TIME = 2048, 128
_COVERAGE = (0.025, 0.975)


class Bootstrap(NamedTuple):
    """How often samples are drawn, and the seed: of these draws, and of whatever else an estimator draws."""

    n: int = 0
    seed: int = 0

    @classmethod
    def from_arguments(cls, n_bootstrap: int, seed: int) -> Bootstrap:
        """Check the arguments that estimators take."""
        return cls(check_n_bootstrap(n_bootstrap), check_seed(seed))

    def indices(
        self, n: int, size: int | None = None, *, substream: int = 0, groups: Grouping | None = None
    ) -> Iterator[Tensor]:
        """Yield index tensors of `size` (default n) draws from n samples, the same on every device.

        With groups, `size` of these are drawn (by default as many as there are), and each brings all its samples.
        Draws that have to be independent under one seed take different streams.
        """
        generator = torch.Generator("cpu").manual_seed(self.seed + substream)
        units = n if groups is None else self._units(groups)
        for _ in range(self.n):
            drawn = torch.randint(units, (size or units,), generator=generator, device="cpu")
            yield drawn if groups is None else groups.members(drawn)

    def counts(self, n: int, *, substream: int = 0, groups: Grouping | None = None) -> Resamples:
        """Draw from n samples or groups; of many, from some thousand parts, which vary as much: see `Resamples`."""
        units = n if groups is None else self._units(groups)
        size = min(units, _PARTS)
        generator = torch.Generator("cpu").manual_seed(self.seed + substream)
        in_order = size == units or self.n == 0
        order = (
            torch.arange(units, device="cpu") if in_order else torch.randperm(units, generator=generator, device="cpu")
        )
        part = order % size
        return Resamples(part if groups is None else part[groups.index], self.n, size, generator)

    def resample(self, values: Tensor, *, substream: int = 0, groups: Grouping | None = None) -> Iterator[Tensor]:
        """Yield draws of `values`, as many as there are; with groups, those of as many groups as there are."""
        for index in self.indices(len(values), substream=substream, groups=groups):
            yield values[index.to(values.device)]

    def _units(self, groups: Grouping) -> int:
        """Return how many groups there are to draw from."""
        if self.n > 0:
            check_several(groups)
        return groups.number


class Resamples:
    """How often each sample is drawn, in each of many resamplings, for sums that are linear in it.

    The samples of a part are drawn together: those of a group or, where there are more than 2048 samples (or groups),
    those of as many random unions of them. A resampling of these varies as one of the samples does, and takes no longer
    for a million samples.

    Attributes
    ----------
    part : (N,) int64
        The part of each sample; of few samples each has its own.
    number : int
        Resamplings.
    """

    def __init__(self, part: Tensor, number: int, size: int, generator: torch.Generator) -> None:
        self.part, self.number = part, number
        self._size, self._generator = size, generator

    def __iter__(self) -> Iterator[Tensor]:
        """Yield `(R, P)` float64 tensors: how often each part is drawn, of some resamplings at a time."""
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
        """Return `(P, K)`: the `(N, K)` values added up in each part."""
        return torch.zeros((self._size, values.shape[1]), dtype=torch.float64, device="cpu").index_add_(
            0, self.part, values.double().cpu()
        )

    def tallies(self, column: Tensor, width: int) -> Tensor:
        """Return `(P, width)` float64: how many samples of each part are in each column, given that of each sample."""
        place = self.part * width + column.cpu()
        return torch.bincount(place, minlength=self._size * width).view(self._size, width).double()


def percentile_interval(replicates: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the finite bootstrap replicates, None without any."""
    finite = [value for value in replicates if math.isfinite(value)]
    if not finite:
        return None
    low, high = np.quantile(finite, _COVERAGE)
    return float(low), float(high)
