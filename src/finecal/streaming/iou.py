"""Mean intersection over union at one gamma, from batches."""

from __future__ import annotations

from typing import Self, SupportsFloat

import torch
from torch import Tensor

from ..evaluation.iou import DenseInput, counts_at
from ..evaluation.iou_report import ClassCounts, ClassGroups, IoUReport, report_of_counts
from ..evaluation.samples import Samples
from ..inputs.arrays import Labels, Logits, Mask
from ..inputs.background import Background, check_background
from ..inputs.checks import gamma_as_float, warn_if_reindexed
from ..logits.dense import Layout
from .state import LabelledState, copy_checked_mask


class IoUSums(LabelledState):
    """The report of `evaluate_iou` at one gamma, from batches of pictures, in constant memory.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes, and for background classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        In units of the logits.
    dim : int, default -1
        Where the classes are in the logits: 1 for `(B, C, H, W)`.
    ignore_index : int, optional
        The label of positions that do not count, such as 255.
    background : int or several, optional
        Classes that are neither seen nor absent.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or is False for a background class, or
        another argument is out of its range.

    Notes
    -----
    `O(NC)` time for N positions, `O(C)` memory: logits are neither copied nor transposed.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import IoUSums
    >>> state = IoUSums(np.array([True, True, False]), gamma=2.0)
    >>> for row, label in [([4.0, 1, 3], 0), ([2.0, 5, 4.5], 2), ([6.0, 1, 2], 0)]:
    ...     state = state.update(np.array([row]), [label])
    >>> state.compute().iou
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
        """Return mean IoU of all positions so far; NaN where no label defines it.

        Warns if labels look re-indexed to 0..|S|-1.
        """
        counts = ClassCounts(*(self._sums[name].clone() for name in ClassCounts._fields))
        warn_if_reindexed(counts.occurring, self.seen_mask)
        groups = ClassGroups.of(self.seen_mask, self._settings["background"])
        return report_of_counts(counts, groups, float(self._settings["gamma"]), counts.labelled)
