r"""Counts per class that intersection over union is made of, and its means over groups of classes.

.. math:: \text{IoU}_c = \frac{\text{TP}_c}{\text{labelled}_c + \text{predicted}_c - \text{TP}_c}

A mean of quotients depends on the order in which they are added, unless these are integers: here they are, in units of
:math:`2^{-53}` (or more, where they would overflow). So the mean at a gamma is one number, whichever way it was found.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_MOST_BITS = 53
"""Of a quotient in float64, which is exact as an integer."""


class ClassGroups(NamedTuple):
    """Which classes count in the means over seen and over absent ones, `(C,)` bool each; background is in neither."""

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
    """How means over the classes that occur in the labels are formed, from integers.

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
        """Of which the sum over all classes fits into 63."""
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
