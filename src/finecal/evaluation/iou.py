"""The public functions on mean intersection over union: at one gamma, and at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat, overload

from torch import Tensor

from ..inputs.arrays import Labels, Logits, Mask, NumpyArray, matching
from ..inputs.background import Background, check_background
from ..inputs.checks import gamma_as_float, warn_if_reindexed
from ..logits.dense import Layout
from .iou_counts import ClassCounts, ClassGroups, Means
from .iou_curve import CountedPositions, IoUCurve
from .iou_points import iou_points
from .iou_report import IoUReport, report_of_counts
from .iou_scan import DenseInput, Positions


@overload
def evaluate_iou(
    logits: Tensor,
    labels: Labels,
    seen_mask: Mask,
    gamma: SupportsFloat | None = 0.0,
    *,
    dim: int = -1,
    ignore_index: int | None = None,
    background: Background | None = None,
) -> IoUReport[Tensor]: ...
@overload
def evaluate_iou(
    logits: NumpyArray | Sequence[Any],
    labels: Labels,
    seen_mask: Mask,
    gamma: SupportsFloat | None = 0.0,
    *,
    dim: int = -1,
    ignore_index: int | None = None,
    background: Background | None = None,
) -> IoUReport[NumpyArray]: ...
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
        A position is predicted absent iff its margin is below it. None is 0: no gamma.
    dim : int, default -1
        Where the classes are in the logits.
    ignore_index : int, optional
        Label of positions that do not count, such as 255. Logits may be anything there.
    background : int or several, optional
        Classes that are neither seen nor absent: they compete for positions, and count in the mean over all classes.

    Returns
    -------
    IoUReport
        Its arrays are of the type and device of `logits`.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `labels` not integer, or `seen_mask` not boolean.
    ValueError
        If shapes or devices do not match, labels are out of range, logits hold NaN, +inf or probabilities, `gamma` is
        not finite, `seen_mask` has no seen or no absent class, or is False for a background class.

    Warns
    -----
    FinecalWarning
        If labels look re-indexed to 0..|S|-1.

    Notes
    -----
    `O(NC)` time for N positions. Logits are neither copied nor transposed; memory beyond them does not grow with N.

    A class without labels does not count, even if it is predicted somewhere: its false positives enlarge the unions of
    the classes that they were taken from, and the mean is over the same classes at every gamma. Tools that count such a
    class as 0 (scikit-learn's `jaccard_score` with ``average="macro"``, torchmetrics' `MulticlassJaccardIndex`) give a
    smaller mean. The harmonic mean is that of Xian et al., "Semantic Projection Network for Zero- and Few-Label
    Semantic Segmentation", CVPR 2019.

    Examples
    --------
    >>> import torch, finecal
    >>> logits = torch.tensor([[4.0, 2, 6, 1], [1, 5, 1, 3], [3, 4.5, 2, 2]])
    >>> labels = torch.tensor([[0, 2], [0, 255]])
    >>> report = finecal.evaluate_iou(
    ...     logits.reshape(1, 3, 2, 2),
    ...     labels.reshape(1, 2, 2),
    ...     torch.tensor([True, True, False]),
    ...     gamma=0.75,
    ...     dim=1,
    ...     ignore_index=255,
    ... )
    >>> print(report)
    gamma = 0.75
    |             |  seen | absent |   all |
    | ----------- | ----: | -----: | ----: |
    | mean IoU, % | 100.0 |  100.0 | 100.0 |
    | accuracy, % | 100.0 |  100.0 | 100.0 |
    | classes     |     1 |      1 |     2 |
    | positions   |     2 |      1 |     3 |
    harmonic mean IoU 100.0 %
    """
    given = DenseInput.checked(logits, labels, seen_mask, Layout.checked(dim, ignore_index))
    groups = ClassGroups.of(given.mask, check_background(background, given.mask))
    value = 0.0 if gamma is None else gamma_as_float(gamma)
    counts = counts_at(given, value)
    warn_if_reindexed(counts.occurring, given.mask)
    return report_of_counts(counts, groups, value, logits)


@overload
def iou_curve(
    logits: Tensor,
    labels: Labels,
    seen_mask: Mask,
    *,
    dim: int = -1,
    ignore_index: int | None = None,
    background: Background | None = None,
) -> IoUCurve[Tensor]: ...
@overload
def iou_curve(
    logits: NumpyArray | Sequence[Any],
    labels: Labels,
    seen_mask: Mask,
    *,
    dim: int = -1,
    ignore_index: int | None = None,
    background: Background | None = None,
) -> IoUCurve[NumpyArray]: ...
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
    logits : (..., C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes, *not* yet calibrated; with ``dim=1`` `(B, C, H, W)`, and so on.
    labels : (...) int
        Class indices in ``[0, C)``, of the shape of the logits without their classes.
    seen_mask : (C,) bool
        True for the seen classes, and for background classes.
    dim : int, default -1
        Where the classes are in the logits.
    ignore_index : int, optional
        Label of positions that do not count, such as 255. Logits may be anything there.
    background : int or several, optional
        Classes that are neither seen nor absent: they compete for positions, and count in the mean over all classes.

    Returns
    -------
    IoUCurve
        Of the type and device of `logits`. Its `best` is the exact optimum over all real gamma, not one on a grid.

    Raises
    ------
    TypeError, ValueError
        As `evaluate_iou`.

    Warns
    -----
    FinecalWarning
        As `evaluate_iou`.

    Notes
    -----
    `O(NC + N log N)` time for N positions. A position changes its prediction once, where gamma passes its margin, from
    its best seen class to its best absent one, and only the unions and intersections of these two change. Means are
    sums of integers, so no rounding error adds up along the curve. Of each position 10 bytes are kept (16 if there are
    more than 32,767 classes, and 4 more for float64 logits); the curve takes 40 for each breakpoint, and making it
    about 160 for each position. For more positions than fit into memory there is `streaming.IoUBins`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.iou_curve(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False]
    ... )
    >>> curve.gamma, curve.iou_all
    (array([-0.5 ,  0.75,  2.5 ,  5.  ]), array([0.5       , 1.        , 0.5       , 0.16666667]))
    """
    given = DenseInput.checked(logits, labels, seen_mask, Layout.checked(dim, ignore_index))
    groups = ClassGroups.of(given.mask, check_background(background, given.mask))
    counts, pieces = ClassCounts.none(given.mask), []
    for piece in given.pieces():
        counts = counts.plus(ClassCounts.of(piece.label, piece.first, given.num_classes))
        pieces.append(piece.compact(given.num_classes))
    warn_if_reindexed(counts.occurring, given.mask)
    positions = Positions.joined(pieces, given.logits)
    n_seen, n_absent = (int(counts.labelled[of].sum()) for of in groups)
    points = map(matching(logits), iou_points(positions, counts, groups))
    breakpoints, iou_seen, iou_absent, iou_all = points
    tolerance = Means.over(counts.labelled, groups).tolerance
    counted = CountedPositions(positions, groups)
    return IoUCurve(iou_seen, iou_absent, iou_all, breakpoints, n_seen, n_absent, tolerance, counted)


def counts_at(given: DenseInput, gamma: float) -> ClassCounts:
    """Count the positions of each class at gamma."""
    counts = ClassCounts.none(given.mask)
    for piece in given.pieces():
        counts = counts.plus(ClassCounts.of(piece.label, piece.predicted(gamma), given.num_classes))
    return counts
