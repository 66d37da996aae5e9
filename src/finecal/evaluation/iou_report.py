r"""Mean intersection over union at one gamma, and the counts per class and means that it is made of.

.. math:: \text{IoU}_c = \frac{\text{TP}_c}{\text{labelled}_c + \text{predicted}_c - \text{TP}_c}

A mean of quotients depends on the order in which they are added, unless these are integers: here they are, in units of
:math:`2^{-53}` (or more, where they would overflow). So the mean at a gamma is one number, however it was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch
from torch import Tensor

from ..inputs.arrays import ArrayT, as_type_of, to_numpy
from ..results.display import Block, Table
from ..results.format import percent
from ..results.records import data_frame
from ..results.result import Result
from .accuracies import harmonic_mean

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
        The gamma of this report.
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
    >>> report = finecal.evaluate_iou(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False], gamma=2.0
    ... )
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
    """Means over the classes that occur in the labels, formed from integers.

    `num_seen` and `num_absent` classes occur in either group, `num_all` together with background classes.
    """

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
