"""Groups of samples that are not independent, their design effect, and the bootstrap that resamples them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arrays import as_tensor, check_n_bootstrap, check_seed, dtype_name, first_text, shape_of

_FEW = 10
"""Groups below which an interval is called rough."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """The group of each sample. Samples of one group are not independent of each other; groups are.

    Attributes
    ----------
    index : (N,) int64
        Groups on the CPU, numbered from 0 as they first occur.
    number : int
        Number of groups.
    given : (N,) int64
        The numbers of the groups as they were given, on the CPU.
    name : str
        Name of the argument, for messages.
    """

    index: Tensor
    number: int
    given: Tensor
    name: str = "groups"

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def sizes(self) -> Tensor:
        """Samples of each group, `(G,)` int64."""
        return torch.bincount(self.index, minlength=self.number)

    @cached_property
    def _by_group(self) -> tuple[Tensor, Tensor]:
        """The samples, those of a group side by side, and where the first one of each group is."""
        return self.index.argsort(stable=True), self.sizes.cumsum(0) - self.sizes

    def only(self, chosen: Tensor) -> Grouping:
        """Return the groups of some of the samples: a boolean for each, or their indices, on any device."""
        return _number_groups(self.given[chosen.cpu()], self.name)

    def sides(self, is_seen: Tensor) -> Tensor:
        """Return whether each group has a seen sample, and whether it has an absent one: `(2, G)` bool."""
        return (self.sums(torch.stack([is_seen, ~is_seen], dim=1)) > 0).T

    def draw(self, size: int, generator: torch.Generator, sides: Tensor) -> Tensor:
        """Draw groups with replacement, again until there are samples of both sides among theirs."""
        while True:
            drawn = torch.randint(self.number, (size,), generator=generator, device="cpu")
            if bool(sides[:, drawn].any(1).all()):
                return drawn

    def members(self, drawn: Tensor) -> Tensor:
        """Return the indices of all samples of the drawn groups, again for each time that a group is drawn."""
        order, start = self._by_group
        sizes = self.sizes[drawn]
        before = sizes.cumsum(0) - sizes
        return order[torch.arange(int(sizes.sum()), device="cpu") + (start[drawn] - before).repeat_interleave(sizes)]

    def sums(self, values: Tensor) -> Tensor:
        """Return `(G, K)` float64: the `(N, K)` values added up in each group."""
        total = torch.zeros((self.number, values.shape[1]), dtype=torch.float64, device="cpu")
        return total.index_add_(0, self.index, values.double().cpu())


def check_groups(groups: object, num_samples: int, name: str = "groups", rows_of: str = "logits") -> Grouping | None:
    """Any integers `(N,)`, on any device; None where every sample is a group of its own."""
    if groups is None:
        return None
    if (text := first_text(groups)) is not None:
        raise TypeError(
            f"{name} hold names, such as {text!r:.60}; pass a number for each: numpy.unique({name}, "
            "return_inverse=True)[1]"
        )
    tensor = as_tensor(groups, name)
    if tensor.numel() > 0 and (tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(
            f"{name} have dtype {dtype_name(tensor)}; expected an integer per sample, the number of the picture (or "
            "patient, or document) that it comes from"
        )
    if tensor.shape != (num_samples,):
        raise ValueError(
            f"{name} have shape {shape_of(tensor)} for {num_samples} rows of {rows_of}; expected ({num_samples},), the "
            "number of the picture (or patient, or document) that each row comes from"
        )
    return _number_groups(tensor.detach().to("cpu", torch.int64), name)


def groups_of(groups: Grouping | None, chosen: Tensor) -> Grouping | None:
    """Return the groups of some of the samples, as `Grouping.only`; None without groups."""
    return None if groups is None else groups.only(chosen)


def numbers_of(groups: Grouping | None) -> Tensor | None:
    """Return the number of each sample's group as it was given; None without groups."""
    return None if groups is None else groups.given


def check_several(groups: Grouping) -> None:
    """At least two groups, so that resamplings differ."""
    if groups.number < 2:
        raise ValueError(
            f"{groups.name} are all the same: whole groups are resampled for the interval, and at least two are "
            "needed; pass the number of the picture (or patient, or document) of each sample, or n_bootstrap=0"
        )


def in_groups(groups: Grouping | None) -> str:
    """Return how many groups there are, in words that follow the samples; nothing without groups."""
    return "" if groups is None else f" in {groups.number} group{'' if groups.number == 1 else 's'}"


def group_warnings(*groupings: Grouping | None) -> list[str]:
    """Return a warning for each of the arguments by which an interval rests on few groups."""
    return [
        f"{groups.name} are only {groups.number} groups: the interval rests on these few, and is probably too narrow"
        for groups in groupings
        if groups is not None and groups.number < _FEW
    ]


def _number_groups(values: Tensor, name: str) -> Grouping:
    distinct, place = torch.unique(values, return_inverse=True)
    n = len(values)
    first = torch.full((len(distinct),), n, device="cpu").scatter_reduce_(
        0, place, torch.arange(n, device="cpu"), "amin"
    )
    number = torch.empty_like(first)
    number[first.argsort()] = torch.arange(len(distinct), device="cpu")
    return Grouping(number[place], len(distinct), values, name)


def design_effect(values: Tensor, groups: Grouping | None) -> float:
    r"""Return by which factor groups enlarge the variance of the mean, at least 1; n samples count as n over it.

    .. math:: \frac{\sum_g \big(\sum_{i \in g} (x_i - \bar x)\big)^2}{\sum_i (x_i - \bar x)^2}

    The cluster-robust variance over the usual one, of the ranks x of the values, which may be infinite.
    """
    n = len(values)
    if groups is None or n < 2 or groups.number == n:
        return 1.0
    if groups.number == 1:
        return float(n)
    _, place, counts = torch.unique(values.cpu(), return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0).double() - counts.double() / 2)[place] / n
    away = (rank - rank.mean()).unsqueeze(1)
    spread = float(away.square().sum())
    if spread == 0:
        return 1.0
    return max(1.0, float(groups.sums(away).square().sum()) / spread)


def design_effect_of_classes(classes: Tensor, groups: Grouping | None) -> float:
    r"""Return by which factor groups enlarge the variance of the shares of classes, at least 1.

    .. math:: \frac{1}{n \, (k - 1)} \sum_c \frac{1}{p_c} \sum_g \Big(\sum_{i \in g} ([c_i = c] - p_c)\Big)^2

    over the k classes that occur, with shares :math:`p_c` (Rao and Scott, Annals of Statistics 1984).
    """
    n = len(classes)
    if groups is None or n < 2 or groups.number == n:
        return 1.0
    if groups.number == 1:
        return float(n)
    occurring, place = torch.unique(classes.cpu(), return_inverse=True)
    k = len(occurring)
    if k == 1:
        return 1.0
    counts = torch.bincount(groups.index * k + place, minlength=groups.number * k).view(groups.number, k).double()
    share = counts.sum(0) / n
    away = counts - groups.sizes.unsqueeze(1) * share
    return max(1.0, float((away.square().sum(0) / share).sum()) / (n * (k - 1)))


def number_in_words(n: int, effect: float, kind: str) -> str:
    """Describe n samples, with the number of independent ones if that is smaller."""
    if effect == 1:
        return f"{n} {kind} samples"
    return f"{n / effect:.3g} independent {kind} samples, which {n} in groups count for"


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
        """Yield `size` indices of n samples (default n), or those of `size` groups; substreams are independent."""
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
    """Bootstrap counts for sums that are linear in `part`, `(N,)` int64: at most 2048 unions of samples or groups."""

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
