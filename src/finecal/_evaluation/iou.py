"""Mean intersection over union of dense logits, at one gamma and at all of them, from one checked pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, as_type_of
from .._core.calibrate import Layout, are_ignored, rows_of
from .._core.checks import (
    Background,
    as_logits,
    check_background,
    check_mask,
    check_mask_values,
    check_scores,
    gamma_as_float,
    labels_as_tensor,
    warn_if_reindexed,
)
from .._core.reductions import margin_of, winners
from .iou_curve import (
    ClassCounts,
    ClassGroups,
    DenseMargins,
    IoUCurve,
    IoUReport,
    Means,
    iou_points,
    report_of_counts,
)


def evaluate_iou(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    gamma: SupportsFloat | None = 0.0,
    *,
    dim: int = -1,
    ignore_index: int | None = None,
    background: Background | None = None,
) -> IoUReport[Any]:
    r"""Return mean intersection over union on seen, absent and all classes at `gamma`, and the accuracies of positions.

    .. math::
        \text{IoU}_c = \frac{\sum_i [\hat y_i(\gamma) = y_i = c]}{\sum_i [\hat y_i(\gamma) = c \vee y_i = c]}

    where i runs over all positions that count, in all pictures, and :math:`\hat y` is `predict`. Means are over the
    classes that occur in the labels.

    Parameters
    ----------
    logits : (..., C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes, *not* yet calibrated; with ``dim=1`` `(B, C, H, W)`, and so on.
    labels : (...) int
        Class indices in ``[0, C)``, of the shape of the logits without their classes.
    seen_mask : (C,) bool
        True for the seen classes, and for background classes.
    gamma : float, 0-d tensor, GammaEstimate or None, default 0
        A position is predicted absent iff its margin is below it. None is 0.
    dim : int, default -1
        Dimension of the classes in the logits.
    ignore_index : int, optional
        Label of positions that do not count, such as 255. Logits may be anything there.
    background : int or several, optional
        Classes that are neither seen nor absent: they compete for positions, and count in the mean over all classes.

    Returns
    -------
    IoUReport
        Its arrays are of the type and device of `logits`. Warns if labels look re-indexed to 0..|S|-1.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `labels` not integer, or `seen_mask` not boolean.
    ValueError
        If shapes or devices do not match, labels are out of range, logits hold NaN, +inf or probabilities, `gamma` is
        not finite, `seen_mask` has no seen or no absent class, or is False for a background class.

    Notes
    -----
    `O(NC)` time for N positions. Logits are neither copied nor transposed; memory beyond them does not grow with N.
    Tools that count a class without labels as 0 if it is predicted (scikit-learn's `jaccard_score` with
    ``average="macro"``, torchmetrics' `MulticlassJaccardIndex`) give a smaller mean. Harmonic mean: Xian et al.,
    "Semantic Projection Network for Zero- and Few-Label Semantic Segmentation", CVPR 2019.

    Examples
    --------
    >>> import torch, finecal
    >>> logits = torch.tensor([[[[4.0, 2]], [[1, 5]], [[3, 4.5]]]])
    >>> labels, mask = torch.tensor([[[0, 2]]]), [True, True, False]
    >>> finecal.dense.evaluate_iou(logits, labels, mask, gamma=0.75, dim=1).iou_all
    1.0
    """
    given = DenseInput.from_arguments(logits, labels, seen_mask, Layout.from_arguments(dim, ignore_index))
    groups = ClassGroups.of(given.mask, check_background(background, given.mask))
    value = 0.0 if gamma is None else gamma_as_float(gamma)
    counts = counts_at(given, value)
    warn_if_reindexed(counts.occurring, given.mask)
    return report_of_counts(counts, groups, value, logits)


def iou_curve(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    *,
    dim: int = -1,
    ignore_index: int | None = None,
    background: Background | None = None,
) -> IoUCurve[Any]:
    """Return mean intersection over union on seen, absent and all classes at every gamma, exactly.

    Parameters
    ----------
    logits, labels, seen_mask, dim, ignore_index, background
        As in `evaluate_iou`, with its errors and warnings.

    Returns
    -------
    IoUCurve
        Of the type and device of `logits`. Its `best` is the exact optimum over all real gamma, not one on a grid.

    Notes
    -----
    `O(NC + N log N)` time for N positions. 10 bytes are kept per position (16 above 32,767 classes, and 4 more for
    float64 logits); the curve takes 40 per breakpoint, and making it about 160 per position.
    `streaming.IoUBins` needs fixed memory.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.dense.iou_curve(logits, [0, 2, 0], [True, True, False])
    >>> curve.gamma, curve.iou_all
    (array([-0.5 ,  0.75,  2.5 ,  5.  ]), array([0.5       , 1.        , 0.5       , 0.16666667]))
    """
    given = DenseInput.from_arguments(logits, labels, seen_mask, Layout.from_arguments(dim, ignore_index))
    groups = ClassGroups.of(given.mask, check_background(background, given.mask))
    counts, pieces = ClassCounts.none(given.mask), []
    for piece in given.pieces():
        counts = counts.plus(ClassCounts.of(piece.label, piece.first, given.num_classes))
        pieces.append(piece.compact(given.num_classes))
    warn_if_reindexed(counts.occurring, given.mask)
    positions = DenseMargins.join(pieces, given.logits)
    n_seen, n_absent = (int(counts.labelled[of].sum()) for of in groups)
    points = map(as_type_of(logits), iou_points(positions, counts, groups))
    breakpoints, iou_seen, iou_absent, iou_all = points
    tolerance = Means.over(counts.labelled, groups).tolerance
    return IoUCurve(iou_seen, iou_absent, iou_all, breakpoints, n_seen, n_absent, tolerance, (positions, groups))


def counts_at(given: DenseInput, gamma: float) -> ClassCounts:
    """Count the positions of each class at gamma."""
    counts = ClassCounts.none(given.mask)
    for piece in given.pieces():
        counts = counts.plus(ClassCounts.of(piece.label, piece.predicted(gamma), given.num_classes))
    return counts


_POSITIONS = {"cpu": 1 << 17}
_POSITIONS_ELSEWHERE = 1 << 22
"""Positions in a piece, each of which takes about 40 bytes."""


class DenseInput(NamedTuple):
    """Logits and labels of any shape, checked but for their values."""

    logits: Tensor
    labels: Tensor
    mask: Tensor
    layout: Layout

    @classmethod
    def from_arguments(cls, logits: Logits, labels: Labels, seen_mask: Mask, layout: Layout) -> DenseInput:
        """Check types, shapes and devices."""
        x = as_logits(logits, any_batch=True, dim=layout.dim).detach()
        y = labels_as_tensor(labels, "labels")
        mask = check_mask_values(check_mask(seen_mask, x.shape[layout.dim], x.device, x.shape))
        layout.check_shapes(x, y)
        return cls(x, y.flatten(), mask, layout)

    @property
    def num_classes(self) -> int:
        return self.mask.shape[0]

    def pieces(self) -> Iterator[DenseMargins]:
        """Yield the positions that count, about 100,000 at a time, in order and uncopied; check values on the way."""
        start = 0
        size = _POSITIONS.get(self.logits.device.type, _POSITIONS_ELSEWHERE)
        for view in rows_of(self.logits, self.layout.dim):
            for rows in torch.split(view, size) if len(view) else ():
                yield self._positions(rows, start)
                start += len(rows)

    def _positions(self, rows: Tensor, start: int) -> DenseMargins:
        label = self.labels[start : start + len(rows)]
        best = winners(rows, self.mask)
        top = torch.maximum(best.seen_max, best.absent_max)
        positions = DenseMargins(margin_of(best.seen_max, best.absent_max), best.seen, best.absent, label)
        if self.layout.ignore_index is not None:
            ignored = are_ignored(label, self.layout.ignore_index)
            if bool(ignored.any()):
                top = top.masked_fill(ignored, 0.5)  # passes every check
                positions = DenseMargins(*(column[~ignored] for column in positions))
        check_scores(rows, top, first_row=start)
        return positions._replace(label=self.layout.check_range(positions.label, self.num_classes))
