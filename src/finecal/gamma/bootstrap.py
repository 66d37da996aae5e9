"""Bootstrap draws of samples or of groups, and percentile intervals."""

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
"""Independent substreams of the draws of `estimate_gamma`."""
_PARTS, _AT_A_TIME = 2048, 128
_COVERAGE = (0.025, 0.975)


class Bootstrap(NamedTuple):
    """The number of resamplings, and the seed of all draws of an estimator."""

    n: int = 0
    seed: int = 0

    @classmethod
    def from_arguments(cls, n_bootstrap: int, seed: int) -> Bootstrap:
        """Validate the arguments of estimators."""
        return cls(check_n_bootstrap(n_bootstrap), check_seed(seed))

    def indices(
        self, n: int, size: int | None = None, *, substream: int = 0, groups: Grouping | None = None
    ) -> Iterator[Tensor]:
        """Yield the indices of `size` draws from n samples (default n), the same on every device.

        With groups, `size` whole groups are drawn (default all). Draws of different substreams are independent.
        """
        generator = torch.Generator("cpu").manual_seed(self.seed + substream)
        units = n if groups is None else self._units(groups)
        for _ in range(self.n):
            drawn = torch.randint(units, (size or units,), generator=generator, device="cpu")
            yield drawn if groups is None else groups.members(drawn)

    def counts(self, n: int, *, substream: int = 0, groups: Grouping | None = None) -> Resamples:
        """Draw bootstrap counts; beyond 2048 units resample 2048 random blocks, which has the same variance."""
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
        """Yield resamples of `values`, of whole groups with groups."""
        for index in self.indices(len(values), substream=substream, groups=groups):
            yield values[index.to(values.device)]

    def _units(self, groups: Grouping) -> int:
        """Return the number of groups, at least two if any are to be drawn."""
        if self.n > 0:
            check_several(groups)
        return groups.number


class Resamples:
    """Bootstrap counts of parts of the samples, for sums that are linear in them.

    A part is a sample or a group; beyond 2048 of these, one of 2048 random unions.

    Attributes
    ----------
    part : (N,) int64
        The part of each sample.
    number : int
        Number of resamplings.
    """

    def __init__(self, part: Tensor, number: int, size: int, generator: torch.Generator) -> None:
        self.part, self.number = part, number
        self._size, self._generator = size, generator

    def __iter__(self) -> Iterator[Tensor]:
        """Yield `(R, P)` float64 counts of the parts, for up to 128 resamplings at a time."""
        for start in range(0, self.number, _AT_A_TIME):
            shape = min(_AT_A_TIME, self.number - start), self._size
            drawn = torch.randint(self._size, shape, generator=self._generator, device="cpu")
            yield torch.zeros(shape, dtype=torch.float64, device="cpu").scatter_add_(
                1, drawn, torch.ones(1, dtype=torch.float64, device="cpu").expand(shape)
            )

    def means(self, values: Tensor) -> list[float]:
        """Return the mean of `(N,)` values in each resampling."""
        sums = self.sums(torch.stack([values, torch.ones_like(values)], dim=1))
        return [float(mean) for times in self for mean in torch.div(*(times @ sums).T)]

    def sums(self, values: Tensor) -> Tensor:
        """Return `(P, K)`: the `(N, K)` values added up in each part."""
        return torch.zeros((self._size, values.shape[1]), dtype=torch.float64, device="cpu").index_add_(
            0, self.part, values.double().cpu()
        )

    def tallies(self, column: Tensor, width: int) -> Tensor:
        """Return `(P, width)` float64 counts of the samples by part and column."""
        place = self.part * width + column.cpu()
        return torch.bincount(place, minlength=self._size * width).view(self._size, width).double()


def percentile_interval(replicates: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the finite bootstrap replicates, None without any."""
    finite = [value for value in replicates if math.isfinite(value)]
    if not finite:
        return None
    low, high = np.quantile(finite, _COVERAGE)
    return float(low), float(high)
