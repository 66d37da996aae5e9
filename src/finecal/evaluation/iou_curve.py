"""Mean intersection over union at every gamma, exactly.

A position with a finite margin is predicted as its seen winner up to this gamma, and as its absent winner beyond. So a
seen class only ever loses positions as gamma grows, an absent one only gains them, and each change is one more or less
of either the correct positions of a class or its union. Classes are gone through one after the other; what they
contribute are integers, which add up to the same sums in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, SupportsFloat

import torch
from torch import Tensor

from ..inputs.arrays import ArrayT, as_tensor, as_type_of
from ..inputs.checks import check_both_groups, gamma_as_float
from ..inputs.numbers import check_choice
from ..logits.tiles import wide_dtype
from ..results.records import plain_values
from .iou_report import ClassCounts, ClassGroups, IoUReport, Means, report_of_counts
from .objectives import GammaCurve, preferred_index
from .operating_points import gamma_inside


class CountedPositions(NamedTuple):
    """The positions of a curve, and the groups of the classes."""

    positions: Positions
    groups: ClassGroups


@dataclass(frozen=True, eq=False)
class IoUCurve(GammaCurve[ArrayT]):
    """Mean intersection over union at K+1 operating points, for gamma from minus to plus infinity; made by `iou_curve`.

    The breakpoints are the K distinct finite margins of positions whose prediction changes from or to a class that
    occurs in the labels: nothing else changes a mean. Operating point k holds for gamma in ``(breakpoints[k-1],
    breakpoints[k]]``.

    Attributes
    ----------
    gamma : (K+1,) float64
        A value inside each interval: midpoints, and 1 beyond either end; [0] if K = 0.
    iou_seen, iou_absent, iou_all : (K+1,) float64
        Means over the seen, the absent and all classes that occur in the labels, as fractions; NaN where none does.
        Background classes count in the last one only.
    iou_harmonic : (K+1,) float64
        Harmonic mean of `iou_seen` and `iou_absent`, hIoU.
    breakpoints : (K,) float64
        Ascending.
    n_seen, n_absent : int
        Positions with a seen and with an absent label.
    tolerance : float
        Means that differ by less may be equal: rounding.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.iou_curve(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False]
    ... )
    >>> curve
    IoUCurve(4 operating points, 2 seen and 1 absent positions)
    >>> curve.best(), curve.at(0.75).iou_all
    (0.75, 1.0)
    """

    iou_seen: ArrayT
    iou_absent: ArrayT
    iou_all: ArrayT
    breakpoints: ArrayT
    n_seen: int
    n_absent: int
    tolerance: float
    _counted: CountedPositions

    _COLUMNS: ClassVar[tuple[str, ...]] = ("iou_seen", "iou_absent", "iou_all", "iou_harmonic")
    _UNIT: ClassVar[str] = "mean IoU"
    _BEST: ClassVar[Mapping[str, str]] = {
        "overall": "best mean IoU",
        "balanced": "best balanced",
        "harmonic": "best harmonic mean",
    }

    @cached_property
    def iou_harmonic(self) -> ArrayT:
        """Harmonic mean of `iou_seen` and `iou_absent`."""
        means = (as_tensor(getattr(self, name), name) for name in ("iou_seen", "iou_absent"))
        harmonic: ArrayT = as_type_of(self.breakpoints)(harmonic_means(*means))
        return harmonic

    def best(self, objective: str = "overall") -> float:
        """Return a gamma that attains the maximum of `objective` over all real gamma.

        Parameters
        ----------
        objective : {"overall", "balanced", "harmonic", "seen", "absent"}
            `iou_all`; the mean or the harmonic mean of `iou_seen` and `iou_absent`; or one of these.

        Returns
        -------
        float
            Among equally good intervals chosen as by `TradeoffCurve.best`.

        Raises
        ------
        ValueError
            If the positions are of one group only, or `objective` is none of the five.

        Examples
        --------
        >>> import numpy as np, finecal
        >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
        >>> curve = finecal.iou_curve(logits, labels=[0, 2], seen_mask=[True, True, False])
        >>> curve.best("seen"), curve.best("absent")
        (0.0, 3.5)
        """
        value = iou_values(self, objective)
        points = (value >= value.max() - self.tolerance).nonzero().squeeze(1)
        return gamma_inside(self.breakpoints, preferred_index(points, self.breakpoints))

    def at(self, gamma: SupportsFloat) -> IoUReport[ArrayT]:
        """Return the report of `evaluate_iou` at `gamma` (a float, 0-d tensor or GammaEstimate)."""
        value = gamma_as_float(gamma)
        positions, groups = self._counted
        counts = ClassCounts.of(positions.label, positions.predicted(value), len(groups.seen))
        return report_of_counts(counts, groups, value, self.breakpoints)

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as Python values, arrays as lists: for JSON."""
        return plain_values(self, ("gamma", *self._COLUMNS, "breakpoints", "n_seen", "n_absent", "tolerance"))

    def __repr__(self) -> str:
        return f"IoUCurve({self._size()})"

    __str__ = __repr__

    def _size(self) -> str:
        points = len(self.breakpoints) + 1
        return f"{points} operating points, {self.n_seen} seen and {self.n_absent} absent positions"

    def _values_at(self, gamma: float) -> Mapping[str, float]:
        at = self.at(gamma)
        return {"seen": at.iou_seen, "absent": at.iou_absent, "all": at.iou_all, "harmonic": at.iou_harmonic}


class IoUs(Protocol):
    """The numbers that objectives are formed from, of an `IoUCurve` or a `BinnedIoUCurve`."""

    @property
    def iou_seen(self) -> Any: ...
    @property
    def iou_absent(self) -> Any: ...
    @property
    def iou_all(self) -> Any: ...
    @property
    def n_seen(self) -> int: ...
    @property
    def n_absent(self) -> int: ...


def iou_values(curve: IoUs, objective: str) -> Tensor:
    """Return the objective at each point of a curve, larger is better; ValueError if labels are of one group only."""
    value_of = IOU_OBJECTIVES[check_choice(objective, tuple(IOU_OBJECTIVES), "objective")]
    check_both_groups(curve.n_seen, curve.n_absent)
    return value_of(*(as_tensor(getattr(curve, name), name) for name in ("iou_seen", "iou_absent", "iou_all")))


def harmonic_means(seen: Tensor, absent: Tensor) -> Tensor:
    """Return the harmonic mean of two fractions at each point; NaN if one is."""
    total = seen + absent
    return torch.where(total == 0, 0, 2 * seen * absent / total)


IOU_OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "overall": lambda seen, absent, all_classes: all_classes,
    "balanced": lambda seen, absent, all_classes: (seen + absent) / 2,
    "harmonic": lambda seen, absent, all_classes: harmonic_means(seen, absent),
    "seen": lambda seen, absent, all_classes: seen,
    "absent": lambda seen, absent, all_classes: absent,
}


_BLOCK = 1 << 18
"""Changes to count at a time, unless a single class has more: each takes about 100 bytes of temporaries."""


class Positions(NamedTuple):
    """Positions, each predicted as class `absent` if its margin is below gamma, else as class `seen`.

    `(n,)` each; classes are integers of any width.
    """

    margin: Tensor
    seen: Tensor
    absent: Tensor
    label: Tensor

    def predicted(self, gamma: float) -> Tensor:
        """Return the class of each position at gamma."""
        return torch.where(self.margin.double() < gamma, self.absent, self.seen)

    @property
    def first(self) -> Tensor:
        """The class of each position where gamma is below all finite margins."""
        return torch.where(self.margin == -math.inf, self.absent, self.seen)

    @classmethod
    def join(cls, pieces: Sequence[Positions], logits: Tensor) -> Positions:
        """Join pieces of the positions of these logits; there may be none."""
        nothing = logits.new_empty(0, dtype=wide_dtype(logits.dtype))
        none = cls(nothing, *nothing.new_empty((3, 0), dtype=torch.int16))
        return cls(*map(torch.cat, zip(*pieces, strict=True))) if pieces else none

    def compact(self, num_classes: int) -> Positions:
        """Return the positions with classes in 16 bits if these hold all of them, else in 32."""
        narrow = torch.int16 if num_classes <= torch.iinfo(torch.int16).max else torch.int32
        return Positions(self.margin, *(classes.to(narrow) for classes in self[1:]))


class IoUPoints(NamedTuple):
    """Breakpoints `(K,)`, and mean IoU at each of K+1 operating points, float64."""

    breakpoints: Tensor
    iou_seen: Tensor
    iou_absent: Tensor
    iou_all: Tensor


def iou_points(positions: Positions, first: ClassCounts, groups: ClassGroups) -> IoUPoints:
    """Return mean IoU at every gamma, given the counts for gamma = -inf.

    Breakpoints are the distinct finite margins of positions that have a winner with labels: no others change any mean.
    """
    means, occurs = Means.over(first.labelled, groups), first.labelled > 0
    changes, point, breakpoints = _sort_changes(positions, occurs)
    at_first = means.quotients(first.correct, first.union.clamp(min=1)).masked_fill(~occurs, 0)
    group = torch.where(groups.seen, 0, torch.where(groups.absent, 1, 2))
    sums = point.new_zeros(3 if bool((group == 2).any()) else 2, len(breakpoints) + 1)
    sums[:, 0] = torch.stack([at_first[group == of].sum() for of in range(len(sums))])
    for winner, sign in ((changes.seen, -1), (changes.absent, 1)):
        for index, starts in _by_class(winner, occurs):
            of = winner.index_select(0, index).long()
            entry = torch.arange(len(index), device=index.device)
            own = torch.cat([point.new_zeros(1), (changes.label.index_select(0, index) == of).cumsum(0)])
            start, at = starts.index_select(0, of), point.index_select(0, index)
            last = torch.ones_like(of, dtype=torch.bool)
            last[:-1] = (of[1:] != of[:-1]) | (at[1:] != at[:-1])
            if not bool(last.all()):
                of, at, start, entry = of[last], at[last], start[last], entry[last]
            entry = entry + 1
            in_label = own[entry] - own[start]
            elsewhere = entry - start - in_label
            values = means.quotients(first.correct[of] + sign * in_label, first.union[of] + sign * elsewhere)
            before = values.roll(1)
            begins = torch.ones_like(last[: len(of)])
            begins[1:] = of[1:] != of[:-1]
            before = torch.where(begins, at_first[of], before)
            sums.view(-1).index_add_(0, group[of] * sums.shape[1] + at, values - before)
    sums = sums.cumsum(1)
    return IoUPoints(breakpoints, *means.of_sums(sums[0], sums[1], sums.sum(0)))


def _sort_changes(positions: Positions, occurs: Tensor) -> tuple[Positions, Tensor, Tensor]:
    """Return the positions that change a mean, by margin, the operating point after each, and the breakpoints."""
    matters = positions.margin.isfinite()
    matters &= occurs[positions.seen.long()] | occurs[positions.absent.long()]
    index = matters.nonzero().squeeze(1)
    margin, order = positions.margin.index_select(0, index).sort()
    index = index.index_select(0, order)
    changes = Positions(margin, *(classes.index_select(0, index) for classes in positions[1:]))
    is_first = torch.ones_like(margin, dtype=torch.bool)
    is_first[1:] = margin[1:] != margin[:-1]
    return changes, is_first.cumsum(0), margin[is_first].double()


def _by_class(winner: Tensor, occurs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of the changes of whole classes, by class and margin, and the start of each class in its block."""
    index = occurs[winner.long()].nonzero().squeeze(1)
    index = index.index_select(0, winner.index_select(0, index).sort(stable=True).indices)
    counts = torch.bincount(winner[index].long(), minlength=len(occurs))
    ends = counts.cumsum(0)
    starts = ends - counts
    begin = 0
    while begin < len(index):
        # As many classes as fit, and at least one.
        fitting = int(torch.searchsorted(ends, begin + _BLOCK, right=True))
        end = max(int(ends[fitting - 1]) if fitting else 0, int(ends[ends > begin].min()))
        yield index[begin:end], starts - begin
        begin = end
