"""Mean intersection over union at the edges of bins, with certified bounds in between."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluation.iou_curve import harmonic_means, iou_values
from ..evaluation.iou_report import ClassCounts, ClassGroups, Means


@dataclass(frozen=True, eq=False)
class BinnedIoUCurve:
    """Mean intersection over union at the edges of B bins of margins, from minus to plus infinity; made by `IoUBins`.

    At an edge all numbers are exact. Between two edges a mean may be larger than at either, but never larger than the
    bound of the bin.

    Attributes
    ----------
    gamma : (B+1,) float64
        The edges, float32 numbers, from -inf to +inf.
    iou_seen, iou_absent, iou_all : (B+1,) float64
        Means over the seen, the absent and all classes that occur in the labels; NaN where none does. Background
        classes count in the last one only.
    bound_seen, bound_absent, bound_all : (B,) float64
        What these do not exceed in each bin.
    n_seen, n_absent : int
        Positions with a seen and with an absent label.
    tolerance : float
        Means that differ by less may be equal: rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import IoUBins
    >>> state = IoUBins(np.array([True, True, False]))
    >>> curve = state.update(
    ...     np.array([[4.0, 1, 3], [2, 5, 4.5], [6, 1, 2]]), [0, 2, 0]
    ... ).compute()
    >>> curve
    BinnedIoUCurve(4096 bins, 2 seen and 1 absent positions)
    >>> 0.5 < curve.best() <= 1.0, curve.shortfall()
    (True, 0.0)
    """

    gamma: Tensor
    iou_seen: Tensor
    iou_absent: Tensor
    iou_all: Tensor
    bound_seen: Tensor
    bound_absent: Tensor
    bound_all: Tensor
    n_seen: int
    n_absent: int
    tolerance: float

    @property
    def iou_harmonic(self) -> Tensor:
        """Harmonic mean of `iou_seen` and `iou_absent` at each edge, hIoU."""
        return harmonic_means(self.iou_seen, self.iou_absent)

    def best(self, objective: str = "overall") -> float:
        """Return the edge at which `objective` is largest, of equals that nearest to 0; see `shortfall`.

        Objectives are those of `IoUCurve.best`. ValueError if the positions are of one group only.
        """
        value = iou_values(self, objective)[1:-1]
        distance = self.gamma[1:-1].abs().masked_fill(value < value.max() - self.tolerance, math.inf)
        return float(self.gamma[1:-1][distance.argmin()])

    def shortfall(self, objective: str = "overall") -> float:
        """Return how much better than at `best` the objective could be at any gamma, at most, as a fraction."""
        bound = replace(self, iou_seen=self.bound_seen, iou_absent=self.bound_absent, iou_all=self.bound_all)
        difference = float(iou_values(bound, objective).max() - iou_values(self, objective)[1:-1].max())
        return difference if difference > self.tolerance else 0.0

    def __repr__(self) -> str:
        return f"BinnedIoUCurve({len(self.gamma) - 1} bins, {self.n_seen} seen and {self.n_absent} absent positions)"


def binned_iou_curve(
    edges: Tensor, first: ClassCounts, groups: ClassGroups, correct_changes: Tensor, union_changes: Tensor
) -> BinnedIoUCurve:
    """Return the curve from the counts for gamma = -inf, and how many positions change in each bin, `(C, B)`."""
    means, occurring = Means.over(first.labelled, groups), first.occurring
    sign = torch.where(groups.absent[occurring], 1, -1).unsqueeze(1)

    def at_edges(start: Tensor, changes: Tensor) -> Tensor:
        flipped = torch.nn.functional.pad(changes[occurring].cumsum(1), (1, 0))
        return start[occurring].unsqueeze(1) + sign * flipped

    def average(correct: Tensor, union: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quotients = means.quotients(correct, union)
        seen, absent = (quotients[of[occurring]].sum(0) for of in groups)
        return means.of_sums(seen, absent, quotients.sum(0))

    correct, union = at_edges(first.correct, correct_changes), at_edges(first.union, union_changes)
    most = torch.maximum(correct[:, 1:], correct[:, :-1]), torch.minimum(union[:, 1:], union[:, :-1])
    n_seen, n_absent = (int(first.labelled[of].sum()) for of in groups)
    return BinnedIoUCurve(edges, *average(correct, union), *average(*most), n_seen, n_absent, means.tolerance)
