"""Mean intersection over union at thousands of gammas, from batches, in fixed memory."""

from __future__ import annotations

from typing import Self

import torch

from ..evaluation.iou import DenseInput
from ..evaluation.iou_curve import Positions
from ..evaluation.iou_report import ClassCounts, ClassGroups
from ..evaluation.samples import Samples
from ..inputs.arrays import Labels, Logits, Mask
from ..inputs.background import Background, check_background
from ..inputs.checks import warn_if_reindexed
from ..inputs.numbers import check_bins, check_temperature
from ..logits.dense import Layout
from .binned_curve import bin_edges
from .binned_iou_curve import BinnedIoUCurve, binned_iou_curve
from .state import LabelledState, copy_checked_mask


class IoUBins(LabelledState):
    r"""Mean intersection over union in fixed memory, from batches: exact at 4095 gammas, bounded in between.

    Parameters
    ----------
    n_bins : int, default 4096
        Bins of margins, half of them below 0.
    scale : float, default 16
        As in `MarginBins`; by default bins are 0.008 wide at 0, 0.02 at 10.
    seen_mask, dim, ignore_index, background
        As in `IoUSums`.

    Raises
    ------
    TypeError, ValueError
        As `IoUSums`; also if `n_bins` or `scale` is out of its range.

    Notes
    -----
    `O(NC + N log B)` time for N positions; 16 B C bytes of memory: 9.4 MiB for 150 classes, and up to three times that
    during an update. In each bin it counts how many positions enter or leave the correct ones of each class, and its
    union. `finecal.iou_curve` is exact at every gamma, but keeps all positions.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import IoUBins
    >>> state = IoUBins(np.array([True, True, False]))
    >>> for row, label in [([4.0, 1, 3], 0), ([2.0, 5, 4.5], 2), ([6.0, 1, 2], 0)]:
    ...     state = state.update(np.array([row]), [label])
    >>> state.compute()
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
        """Return the curve of all positions so far; NaN where no label defines it.

        Warns if labels look re-indexed to 0..|S|-1.
        """
        first = ClassCounts(*(self._sums[name] for name in ClassCounts._fields))
        warn_if_reindexed(first.occurring, self.seen_mask)
        groups = ClassGroups.of(self.seen_mask, self._settings["background"])
        changes = self._sums["correct_changes"], self._sums["union_changes"]
        return binned_iou_curve(self._settings["edges"].clone(), first, groups, *changes)


def _count_changes(positions: Positions, edges: torch.Tensor, changes: torch.Tensor) -> None:
    """Add, for each class and bin, the positions that enter or leave its correct ones, and those of its union."""
    finite = positions.margin.isfinite()
    margin, seen, absent, label = (column[finite] for column in positions)
    bins = torch.bucketize(margin.double(), edges[1:-1], right=True)
    _, num_classes, num_bins = changes.shape
    for winner in (seen, absent):
        cell = ((winner != label) * num_classes + winner) * num_bins + bins
        changes.view(-1).index_add_(0, cell, cell.new_ones(1).expand(len(cell)))
