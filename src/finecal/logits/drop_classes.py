"""Classes that are neither seen nor absent, such as a background, taken out of logits and labels."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

import torch

from ..inputs.arrays import ArrayT, Labels, Logits, Mask, as_type_of
from ..inputs.background import Background, check_background
from ..inputs.checks import as_logits, check_labels, check_mask, check_mask_values


class KeptClasses(NamedTuple, Generic[ArrayT]):
    """What `drop_classes` leaves, of the type and device of the logits.

    Attributes
    ----------
    logits : (M, K) tensor or array
        Columns of the K classes that are kept, of the M samples that are kept.
    labels : (M,) int64, or None
        Indices of these columns, in ``[0, K)``.
    seen_mask : (K,) bool
        Which of these columns are of seen classes.
    rows : (M,) int64
        Which samples are kept: ``groups[rows]`` are their groups.
    """

    logits: ArrayT
    labels: ArrayT | None
    seen_mask: ArrayT
    rows: ArrayT


def drop_classes(logits: Logits, labels: Labels | None, seen_mask: Mask, classes: Background) -> KeptClasses[Any]:
    """Take out classes that are neither seen nor absent, such as the background of a segmentation model or a detector.

    Gamma weighs the absent classes against the seen ones. A background class is neither: it belongs to no group of
    which samples can be compared, and gamma is not added to it. So estimate gamma without it: drop its column, and the
    samples that are labelled with it.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes.
    labels : (N,) int, or None
        Class indices in ``[0, C)``. Without labels, all samples are kept.
    seen_mask : (C,) bool
        True for the seen classes, and for those to be dropped: gamma is not added to them.
    classes : int or sequence of int
        Which classes to drop.

    Returns
    -------
    KeptClasses
        ``logits, labels, seen_mask, rows``, with the classes that are kept numbered anew.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `labels` or `classes` not integer, or `seen_mask` not boolean.
    ValueError
        If shapes do not match, `seen_mask` is False for one of `classes`, or no seen or no absent class is left.

    Notes
    -----
    `O(NC)`; the logits that are kept are a copy. To calibrate, keep the mask of all classes:
    ``AdditiveBias(seen_mask, gamma)``.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> seen_mask = np.array(
    ...     [True, True, False]
    ... )  # a background, a seen and an absent class
    >>> logits = np.array([[5.0, 1.0, 0.0], [0.0, 4.0, 1.0], [0.0, 3.0, 2.0]])
    >>> kept = finecal.drop_classes(logits, [0, 1, 2], seen_mask, 0)
    >>> kept.logits.tolist(), kept.labels, kept.seen_mask, kept.rows
    ([[4.0, 1.0], [3.0, 2.0]], array([0, 1]), array([ True, False]), array([1, 2]))
    """
    x = as_logits(logits)
    mask = check_mask_values(check_mask(seen_mask, x.shape[1], x.device))
    if classes is None:
        raise TypeError("classes is None; pass the index of the class to drop, or a list of them")
    dropped = check_background(classes, mask, "classes")
    y = None if labels is None else check_labels(labels, x.shape[0], x.shape[1], x.device)
    same = as_type_of(logits)
    columns = (~dropped).nonzero().squeeze(1)
    rows = torch.arange(x.shape[0], device=x.device) if y is None else (~dropped[y]).nonzero().squeeze(1)
    kept = check_mask_values(mask[columns])
    renumbered = None if y is None else same(((~dropped).cumsum(0) - 1)[y[rows]])
    return KeptClasses(same(x[rows][:, columns]), renumbered, same(kept), same(rows))
