"""Mean intersection over union at thousands of gammas, from batches, in fixed memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self, SupportsFloat

import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, check_bins, check_temperature
from .._core.calibrate import Layout
from .._core.checks import Background, check_background, gamma_as_float, warn_if_reindexed
from .._core.samples import Samples
from .._evaluation.iou import DenseInput, counts_at
from .._evaluation.iou_curve import (
    ClassCounts,
    ClassGroups,
    DenseMargins,
    IoUReport,
    Means,
    harmonic_means,
    iou_values,
    report_of_counts,
)
from ._bins import bin_edges
from ._state import LabelledState, copy_checked_mask


class IoUSums(LabelledState):
    """The report of `evaluate_iou` at one gamma, from batches of pictures, in constant memory.

    `O(NC)` time for N positions, `O(C)` memory: logits are neither copied nor transposed.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes, and for background classes; ValueError if it is False for one of these.
    gamma, dim, ignore_index
        As in `AccuracySums`, with its errors.
    background : int or several, optional
        Classes that are neither seen nor absent.

    Examples
    --------
    >>> from finecal.streaming import IoUSums
    >>> state = IoUSums([True, True, False], gamma=2.0).update([[4.0, 1, 3]], [0])
    >>> state.update([[2.0, 5, 4.5], [6.0, 1, 2]], [2, 0]).compute().iou
    tensor([0.5000,    nan, 0.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        seen_mask: Mask,
        gamma: SupportsFloat = 0.0,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
        background: Background | None = None,
    ) -> None:
        mask = copy_checked_mask(seen_mask)
        settings = {
            "gamma": torch.tensor(gamma_as_float(gamma), dtype=torch.float64),
            "background": check_background(background, mask),
        }
        sums = ClassCounts.none(mask)._asdict()
        super().__init__(mask, sums, settings, layout=Layout.from_arguments(dim, ignore_index))

    def update(self, logits: Logits | Samples, labels: Labels | None = None) -> Self:
        """Add a batch, `(B, C, H, W)` logits with `(B, H, W)` labels for ``dim=1``, checked as by `evaluate_iou`."""
        given = DenseInput.from_arguments(*self._arrays(logits, labels), self.seen_mask, self._layout)
        self._add(counts_at(given, float(self._settings["gamma"]))._asdict())
        return self

    def compute(self) -> IoUReport[Tensor]:
        """Return mean IoU of all positions so far, NaN without labels. Warns if these look re-indexed to 0..|S|-1."""
        counts = ClassCounts(*(self._sums[name].clone() for name in ClassCounts._fields))
        warn_if_reindexed(counts.occurring, self.seen_mask)
        groups = ClassGroups.of(self.seen_mask, self._settings["background"])
        return report_of_counts(counts, groups, float(self._settings["gamma"]), counts.labelled)


@dataclass(frozen=True, eq=False)
class BinnedIoUCurve:
    """Mean intersection over union at the edges of B bins of margins, from minus to plus infinity; made by `IoUBins`.

    At an edge all numbers are exact. Between two edges a mean never exceeds the bound of the bin.

    Attributes
    ----------
    gamma : (B+1,) float64
        The edges, float32 numbers, from -inf to +inf.
    iou_seen, iou_absent, iou_all, n_seen, n_absent, tolerance
        As in `IoUCurve`, with B+1 operating points.
    bound_seen, bound_absent, bound_all : (B,) float64
        Upper bounds of these means in each bin.

    Examples
    --------
    >>> from finecal.streaming import IoUBins
    >>> logits, labels = [[4.0, 1, 3], [2, 5, 4.5], [6, 1, 2]], [0, 2, 0]
    >>> curve = IoUBins([True, True, False]).update(logits, labels).compute()
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
        """Return the edge with the largest `objective`, among equals that nearest to 0; see `shortfall`.

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


class IoUBins(LabelledState):
    """Mean intersection over union in fixed memory, from batches: exact at 4095 gammas, bounded in between.

    `O(NC + N log B)` time for N positions; 16 B C bytes of memory: 9.4 MiB for 150 classes, and up to three times that
    during an update. `finecal.dense.iou_curve` is exact at every gamma, but keeps all positions.

    Parameters
    ----------
    n_bins : int, default 4096
        Bins of margins, half of them below 0.
    scale : float, default 16
        As in `MarginBins`; by default bins are 0.008 wide at 0, 0.02 at 10.
    seen_mask, dim, ignore_index, background
        As in `IoUSums`, with its errors; ValueError also if another argument is out of its range.

    Examples
    --------
    >>> from finecal.streaming import IoUBins
    >>> logits, labels = [[4.0, 1, 3], [2, 5, 4.5], [6, 1, 2]], [0, 2, 0]
    >>> IoUBins([True, True, False]).update(logits, labels).compute()
    BinnedIoUCurve(4096 bins, 2 seen and 1 absent positions)
    """

    def __init__(
        self,
        seen_mask: Mask,
        n_bins: int = 1 << 12,
        scale: float = 16.0,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
        background: Background | None = None,
    ) -> None:
        mask = copy_checked_mask(seen_mask)
        edges = bin_edges(check_bins(n_bins, least=2), check_temperature(scale, "scale"))
        changes = torch.zeros(len(mask), len(edges) - 1, dtype=torch.int64)
        sums = ClassCounts.none(mask)._asdict() | {"correct_changes": changes, "union_changes": changes}
        settings = {"edges": edges, "background": check_background(background, mask)}
        super().__init__(mask, sums, settings, layout=Layout.from_arguments(dim, ignore_index))

    def update(self, logits: Logits | Samples, labels: Labels | None = None) -> Self:
        """Add a batch, `(B, C, H, W)` logits with `(B, H, W)` labels for ``dim=1``, checked as by `iou_curve`."""
        given = DenseInput.from_arguments(*self._arrays(logits, labels), self.seen_mask, self._layout)
        edges = self._settings["edges"].to(given.mask.device)
        first = ClassCounts.none(given.mask)
        changes = edges.new_zeros((2, given.num_classes, len(edges) - 1), dtype=torch.int64)
        for piece in given.pieces():
            first = first.plus(ClassCounts.of(piece.label, piece.first, given.num_classes))
            _count_changes(piece, edges, changes)
        self._add(first._asdict() | {"correct_changes": changes[0], "union_changes": changes[1]})
        return self

    def compute(self) -> BinnedIoUCurve:
        """Return the curve of all positions so far, NaN without labels. Warns if these look re-indexed to 0..|S|-1."""
        first = ClassCounts(*(self._sums[name] for name in ClassCounts._fields))
        warn_if_reindexed(first.occurring, self.seen_mask)
        groups = ClassGroups.of(self.seen_mask, self._settings["background"])
        changes = self._sums["correct_changes"], self._sums["union_changes"]
        return binned_iou_curve(self._settings["edges"].clone(), first, groups, *changes)


def _count_changes(positions: DenseMargins, edges: torch.Tensor, changes: torch.Tensor) -> None:
    """Add, for each class and bin, the positions that enter or leave its correct ones, and those of its union."""
    finite = positions.margin.isfinite()
    margin, seen, absent, label = (column[finite] for column in positions)
    bins = torch.bucketize(margin.double(), edges[1:-1], right=True)
    _, num_classes, num_bins = changes.shape
    for winner in (seen, absent):
        cell = ((winner != label) * num_classes + winner) * num_bins + bins
        changes.view(-1).index_add_(0, cell, cell.new_ones(1).expand(len(cell)))
