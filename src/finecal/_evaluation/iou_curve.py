"""Mean intersection over union at every gamma, exactly: each position changes once, from seen to absent winner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, SupportsFloat

import torch
from torch import Tensor

from .._core.arrays import ArrayT, as_tensor, as_type_of, check_choice, to_numpy
from .._core.checks import check_both_groups, gamma_as_float
from .._core.kernels import wide_dtype
from .._core.objectives import GammaCurve, gamma_inside, preferred_index
from .._core.report import harmonic_mean
from .._core.results import Block, Result, Table, data_frame, percent, plain_values

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class IoUReport(Result, Generic[ArrayT]):
    """Mean intersection over union, and accuracies of positions, at one gamma; made by `evaluate_iou`.

    Prints as a table. All are fractions in [0, 1], NaN where no label defines them; they are printed in %. Background
    classes count among all classes, but neither among the seen nor among the absent ones.

    Attributes
    ----------
    iou_all, iou_seen, iou_absent : float
        Means of `iou` over all, the seen and the absent classes that occur in the labels.
    iou_harmonic : float
        Harmonic mean of `iou_seen` and `iou_absent`, hIoU.
    acc_all, acc_seen, acc_absent : float
        Share of the positions of these classes that are predicted right (pixel accuracy).
    gamma : float
    n_all, n_seen, n_absent : int
        Positions with labels of these groups.
    classes_all, classes_seen, classes_absent : int
        Classes of these groups that occur in the labels.
    iou : (C,) float64
        Intersection over union of each class; NaN without labels.
    labelled, predicted, correct : (C,) int64
        Positions with this label, predicted as this class, and both.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> labels, seen_mask = [0, 2, 0], [True, True, False]
    >>> report = finecal.dense.evaluate_iou(logits, labels, seen_mask, gamma=2.0)
    >>> report.iou, report.iou_all, report.acc_all
    (array([0.5, nan, 0.5]), 0.5, 0.6666666666666666)
    """

    iou_all: float
    iou_seen: float
    iou_absent: float
    iou_harmonic: float
    acc_all: float
    acc_seen: float
    acc_absent: float
    gamma: float
    n_all: int
    n_seen: int
    n_absent: int
    classes_all: int
    classes_seen: int
    classes_absent: int
    iou: ArrayT
    labelled: ArrayT
    predicted: ArrayT
    correct: ArrayT

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per class."""
        columns = ("labelled", "predicted", "correct", "iou")
        return data_frame({name: to_numpy(getattr(self, name)) for name in columns})

    def _blocks(self) -> list[Block]:
        rows = [
            ["mean IoU, %", *map(percent, (self.iou_seen, self.iou_absent, self.iou_all))],
            ["accuracy, %", *map(percent, (self.acc_seen, self.acc_absent, self.acc_all))],
            ["classes", *map(str, (self.classes_seen, self.classes_absent, self.classes_all))],
            ["positions", *map(str, (self.n_seen, self.n_absent, self.n_all))],
        ]
        table = Table(["", "seen", "absent", "all"], rows)
        return [[f"gamma = {self.gamma:.6g}", table, f"harmonic mean IoU {percent(self.iou_harmonic)} %"]]


def report_of_counts(counts: ClassCounts, groups: ClassGroups, gamma: float, like: Any) -> IoUReport[Any]:
    """Form all means from counts; arrays are of the type of `like`."""
    iou_seen, iou_absent, iou_all = mean_ious(counts, groups)
    of_group = groups.seen, groups.absent, counts.labelled >= 0
    n_seen, n_absent, n_all = (int(counts.labelled[of].sum()) for of in of_group)
    means = Means.over(counts.labelled, groups)

    def accuracy(of: Tensor) -> float:
        return float(counts.correct[of].sum().double() / counts.labelled[of].sum())

    out = as_type_of(like)
    return IoUReport(
        iou_all=iou_all,
        iou_seen=iou_seen,
        iou_absent=iou_absent,
        iou_harmonic=harmonic_mean(iou_seen, iou_absent),
        acc_all=accuracy(of_group[2]),
        acc_seen=accuracy(of_group[0]),
        acc_absent=accuracy(of_group[1]),
        gamma=gamma,
        n_all=n_all,
        n_seen=n_seen,
        n_absent=n_absent,
        classes_all=means.num_all,
        classes_seen=means.num_seen,
        classes_absent=means.num_absent,
        iou=out(counts.iou),
        labelled=out(counts.labelled),
        predicted=out(counts.predicted),
        correct=out(counts.correct),
    )


_MOST_BITS = 53
"""Bits of a quotient in float64, which as an integer is exact."""


class ClassGroups(NamedTuple):
    """Masks of the classes in the means over seen and over absent ones, `(C,)` bool each; background is in neither."""

    seen: Tensor
    absent: Tensor

    @classmethod
    def of(cls, mask: Tensor, background: Tensor) -> ClassGroups:
        return cls(mask & ~background, ~mask)


class ClassCounts(NamedTuple):
    """Positions by class, `(C,)` int64 each: with this label, predicted as it, and both."""

    labelled: Tensor
    predicted: Tensor
    correct: Tensor

    @classmethod
    def none(cls, like: Tensor) -> ClassCounts:
        """Return zeros, one per entry of `like`."""
        return cls(*like.new_zeros((3, len(like)), dtype=torch.int64))

    @classmethod
    def of(cls, label: Tensor, predicted: Tensor, num_classes: int) -> ClassCounts:
        columns = (label, predicted, label[predicted == label])
        return cls(*(torch.bincount(column.to(torch.int64), minlength=num_classes) for column in columns))

    def plus(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(*(one + two for one, two in zip(self, other, strict=True)))

    @property
    def occurring(self) -> Tensor:
        """The classes that occur in the labels."""
        return self.labelled.nonzero().squeeze(1)

    @property
    def union(self) -> Tensor:
        """Positions with this label or predicted as this class."""
        return self.labelled + self.predicted - self.correct

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class, float64; NaN without labels."""
        return torch.where(self.labelled > 0, self.correct.double() / self.union, math.nan)


class Means(NamedTuple):
    """Means over the classes that occur in the labels, from integers; `num_all` of them include background classes."""

    num_seen: int
    num_absent: int
    num_all: int

    @classmethod
    def over(cls, labelled: Tensor, groups: ClassGroups) -> Means:
        occurs = labelled > 0
        return cls(*(int(n.sum()) for n in (occurs & groups.seen, occurs & groups.absent, occurs)))

    @property
    def bits(self) -> int:
        """Bits of a quotient with which the sum over all classes fits into 63."""
        return min(_MOST_BITS, 62 - self.num_all.bit_length())

    @property
    def tolerance(self) -> float:
        """Means closer than this may be equal: quotients are rounded to `bits`, and so are results."""
        return 2.0 ** (5 - self.bits)

    def quotients(self, correct: Tensor, union: Tensor) -> Tensor:
        """Return intersection over union as integers."""
        return (correct.double() / union * 2.0**self.bits).round().to(torch.int64)

    def of_sums(self, seen: Tensor, absent: Tensor, all_classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means from sums of `quotients`, over seen, absent and all classes; NaN where none occurs."""
        sums, numbers = (seen, absent, all_classes), (self.num_seen, self.num_absent, self.num_all)
        units = ((number or math.nan) * 2.0**self.bits for number in numbers)
        seen, absent, all_classes = (total.double() / unit for total, unit in zip(sums, units, strict=True))
        return seen, absent, all_classes


def mean_ious(counts: ClassCounts, groups: ClassGroups) -> tuple[float, float, float]:
    """Return mean IoU over the seen, the absent and all classes that occur in the labels."""
    means, occurs = Means.over(counts.labelled, groups), counts.labelled > 0
    quotients = means.quotients(counts.correct, counts.union.clamp(min=1))
    sums = (quotients[occurs & of].sum() for of in (groups.seen, groups.absent, torch.ones_like(occurs)))
    seen, absent, all_classes = means.of_sums(*sums)
    return float(seen), float(absent), float(all_classes)


@dataclass(frozen=True, eq=False)
class IoUCurve(GammaCurve[ArrayT]):
    """Mean intersection over union at K+1 operating points, for gamma from minus to plus infinity; made by `iou_curve`.

    The breakpoints are the K distinct finite margins of positions whose prediction changes from or to a class that
    occurs in the labels. Operating point k holds for gamma in ``(breakpoints[k-1], breakpoints[k]]``.

    Attributes
    ----------
    gamma : (K+1,) float64
        A value inside each interval: midpoints, and 1 beyond either end; [0] if K = 0.
    iou_seen, iou_absent, iou_all : (K+1,) float64
        Means over the classes that occur in the labels, as in `IoUReport`.
    iou_harmonic : (K+1,) float64
        Harmonic mean of `iou_seen` and `iou_absent`, hIoU.
    breakpoints : (K,) float64
        Ascending.
    n_seen, n_absent : int
        Positions by the group of their label.
    tolerance : float
        Means that differ by less may be equal: rounding.

    Examples
    --------
    >>> import finecal
    >>> logits = [[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]]
    >>> curve = finecal.dense.iou_curve(logits, [0, 2, 0], [True, True, False])
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
    _counted: tuple[DenseMargins, ClassGroups]

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
        >>> import finecal
        >>> logits, mask = [[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]], [True, True, False]
        >>> finecal.dense.iou_curve(logits, [0, 2], mask).best("absent")
        3.5
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


class DenseMargins(NamedTuple):
    """Positions, `(n,)` each, predicted as class `absent` if their margin is below gamma, else as class `seen`."""

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
    def join(cls, pieces: Sequence[DenseMargins], logits: Tensor) -> DenseMargins:
        """Join pieces of the positions of these logits; there may be none."""
        nothing = logits.new_empty(0, dtype=wide_dtype(logits.dtype))
        none = cls(nothing, *nothing.new_empty((3, 0), dtype=torch.int16))
        return cls(*map(torch.cat, zip(*pieces, strict=True))) if pieces else none

    def compact(self, num_classes: int) -> DenseMargins:
        """Return the positions with classes in 16 bits if these hold all of them, else in 32."""
        narrow = torch.int16 if num_classes <= torch.iinfo(torch.int16).max else torch.int32
        return DenseMargins(self.margin, *(classes.to(narrow) for classes in self[1:]))


def iou_points(positions: DenseMargins, first: ClassCounts, groups: ClassGroups) -> tuple[Tensor, ...]:
    """Return the breakpoints of `IoUCurve`, `iou_seen`, `iou_absent` and `iou_all`, given counts for gamma = -inf."""
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
    return breakpoints, *means.of_sums(sums[0], sums[1], sums.sum(0))


def _sort_changes(positions: DenseMargins, occurs: Tensor) -> tuple[DenseMargins, Tensor, Tensor]:
    """Return the positions that change a mean, by margin, the operating point after each, and the breakpoints."""
    matters = positions.margin.isfinite()
    matters &= occurs[positions.seen.long()] | occurs[positions.absent.long()]
    index = matters.nonzero().squeeze(1)
    margin, order = positions.margin.index_select(0, index).sort()
    index = index.index_select(0, order)
    changes = DenseMargins(margin, *(classes.index_select(0, index) for classes in positions[1:]))
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
