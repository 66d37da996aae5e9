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

    def resampled(self, values: Tensor, *, stream: int = 0) -> Iterator[Tensor]:
        """Yield draws of `values`, as many as there are."""
        for index in self.indices(len(values), stream=stream):
            yield values[index.to(values.device)]


def percentile_interval(replicates: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the finite bootstrap replicates, None without any."""
    finite = [value for value in replicates if math.isfinite(value)]
    if not finite:
        return None
    low, high = np.quantile(finite, _COVERAGE)
    return float(low), float(high)
