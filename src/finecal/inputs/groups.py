"""Which samples belong together: positions of one picture, frames of one video, samples of one patient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .arrays import as_tensor, dtype_name, first_text, shape_of

_FEW = 10
"""Groups below which an interval is called rough."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """The group of each sample. Samples of one group are not independent of each other; groups are.

    Attributes
    ----------
    index : (N,) int64
        On the CPU; the groups are numbered from 0 as they first occur, so that their names do not matter.
    number : int
        G, how many groups there are.
    given : (N,) int64
        The numbers of the groups as they were given, on the CPU.
    name : str
        What the argument is called, for messages.
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
