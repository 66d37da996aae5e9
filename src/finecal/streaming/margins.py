"""The margins of all samples, from batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..evaluation.guessing import group_hits, warn_of_hits
from ..evaluation.margins import Margins
from ..evaluation.samples import Samples, batch_margins
from ..inputs.arrays import Mask
from ..inputs.checks import warn_if_reindexed
from ..inputs.numbers import check_flag
from ..logits.dense import Layout
from .state import RowState, copy_checked_mask


class MarginRows(RowState):
    """The margins of all samples, from batches: every question about gamma can still be asked, exactly.

    Parameters
    ----------
    keep_labels : bool, default False
        Whether to keep the labels, which macro averages need.
    seen_mask, dim, ignore_index
        As in `AccuracySums`.

    Raises
    ------
    TypeError, ValueError
        As `AccuracySums`.

    Notes
    -----
    `O(NC)` time; memory 5 bytes per sample, and 4 more for its label (float64 logits: 4 more for the margin).

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import MarginRows
    >>> state = MarginRows(np.array([True, True, False]))
    >>> for row, label in [([4.0, 1, 3], 0), ([2.0, 5, 4.5], 2), ([6.0, 1, 2], 0)]:
    ...     state = state.update(np.array([row]), [label])
    >>> state.compute().curve().best()
    0.75
    """

    def __init__(
        self,
        seen_mask: Mask,
        keep_labels: bool = False,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        rows = {"margin": torch.empty(0, dtype=torch.float32), "flags": torch.empty(0, dtype=torch.uint8)}
        if check_flag(keep_labels, "keep_labels"):
            rows["label"] = torch.empty(0, dtype=torch.int32)
        super().__init__(copy_checked_mask(seen_mask), rows, layout=Layout.from_arguments(dim, ignore_index))

    def _add_samples(self, samples: Samples) -> None:
        label, batch = samples.labels_tensor, batch_margins(samples, self.seen_mask)
        flags = batch.is_seen.to(torch.uint8) << 1 | batch.hit
        self._add({"margin": batch.margin, "flags": flags, "label": label.to(torch.int32)})

    def compute(self) -> Margins[Tensor]:
        """Return the margins of all samples so far, in the order they came. Warns as `AccuracySums.compute`."""
        rows = self._current_sums()
        label = rows["label"].long() if "label" in rows else None
        if label is not None:
            warn_if_reindexed(label, self.seen_mask)
        is_seen, hit = (rows["flags"] & 2).bool(), (rows["flags"] & 1).bool()
        warn_of_hits(group_hits(is_seen, hit, self.seen_mask))
        return Margins(rows["margin"].clone(), is_seen, hit, label)
