"""Moments of each class's logit, from batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation.samples import Samples
from ..inputs.arrays import Mask
from ..inputs.checks import check_only_seen, check_scores
from ..logits.dense import Layout
from ..logits.tiles import tile_rows, tiles
from ..logits.workers import map_row_chunks
from .state import LabelledState, copy_checked_mask


class ClassMoments(NamedTuple):
    """Statistics of each class's logit, `(C,)` each; made by `ClassSums`.

    Attributes
    ----------
    loc : (C,) float64
        Mean; NaN without samples.
    scale : (C,) float64
        Standard deviation of the samples themselves (the variance is divided by their number, not by one less); NaN
        without samples.
    counts : (C,) int64
        Samples that they are of.
    """

    loc: Tensor
    scale: Tensor
    counts: Tensor


class ClassSums(LabelledState):
    r"""Mean and standard deviation of each class's logit, over seen samples of other classes.

    .. math:: \mu_c = \langle z_c \rangle_{y \in S,\, y \ne c}, \qquad
              \sigma_c^2 = \langle (z_c - \mu_c)^2 \rangle_{y \in S,\, y \ne c}

    The label's own logit is left out, so that seen and absent classes are measured alike, and so are -inf logits.

    Parameters
    ----------
    seen_mask, dim, ignore_index
        As in `AccuracySums`.

    Raises
    ------
    TypeError, ValueError
        As `AccuracySums`.

    Notes
    -----
    `O(NC)` time, `O(C)` memory. Means and sums of squared deviations are merged, never sums of squares: Chan, Golub and
    LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 1983.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import ClassSums
    >>> state = ClassSums(np.array([True, True, False]))
    >>> moments = state.update(np.array([[9.0, 1, 2], [2, 8, 4]]), [0, 1]).compute()
    >>> moments.loc, moments.scale, moments.counts
    (tensor([2., 1., 3.], dtype=torch.float64), tensor([0., 0., 1.], dtype=torch.float64), tensor([1, 1, 2]))
    """

    def __init__(self, seen_mask: Mask, *, dim: int = -1, ignore_index: int | None = None) -> None:
        mask = copy_checked_mask(seen_mask)
        zero = torch.zeros_like(mask, dtype=torch.float64)
        sums = {"count": zero.long(), "mean": zero, "deviation": zero}
        super().__init__(mask, sums, layout=Layout.from_arguments(dim, ignore_index))

    def _add_samples(self, samples: Samples) -> None:
        x, y, mask = samples.logits_tensor, samples.labels_tensor, samples.check_mask(self.seen_mask)
        check_scores(x, x.amax(1))
        check_only_seen(y, mask, "ClassSums")
        for sums in zip(*map_row_chunks(_moments_of_tiles, x, y), strict=True):
            self._add(dict(zip(self._sums, sums, strict=True)))

    def compute(self) -> ClassMoments:
        """Return the moments of all samples so far."""
        count = self._sums["count"]
        loc = self._sums["mean"].masked_fill(count == 0, torch.nan)
        return ClassMoments(loc, (self._sums["deviation"] / count).sqrt(), count.clone())

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        count, mean, deviation = (self._sums[name] for name in ("count", "mean", "deviation"))
        new, new_mean, new_deviation = (sums[name].to(self.device) for name in ("count", "mean", "deviation"))
        total = count + new
        share = new.double() / total.clamp(min=1)
        distance = new_mean - mean
        deviation = deviation + new_deviation + distance.square() * share * count
        # The nearer mean is moved, so that a state merged into an empty one is copied exactly.
        merged = torch.where(share < 0.5, mean + distance * share, new_mean - distance * (1 - share))
        self._sums = {"count": total, "mean": torch.where(new > 0, merged, mean), "deviation": deviation}


def _moments_of_tiles(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return count, mean and sum of squared deviations of each column of each tile, `(tiles, C)` each."""
    blocks = zip(tiles(logits, torch.float64, writable=True), torch.split(labels, tile_rows(logits)), strict=True)
    parts = [_moments_without_own(rows, own.unsqueeze(1), scratch) for (rows, scratch), own in blocks]
    return tuple(torch.stack(column) for column in zip(*parts, strict=True))


def _moments_without_own(rows: Tensor, own: Tensor, scratch: Tensor | None) -> tuple[Tensor, ...]:
    """Return count, mean and sum of squared deviations of each column of a (writable) tile, the label's entry left out.

    -inf entries, the label's among them, are filled with zeros in the sums, and again after the mean is subtracted.
    """
    ones = rows.new_ones(rows.shape[0])
    rows.scatter_(1, own, 0)
    count = rows.shape[0] - torch.bincount(own.squeeze(1), minlength=rows.shape[1])
    total = ones @ rows
    masked = None
    if not bool(total.isfinite().all()):
        masked = rows == -torch.inf
        count = count - masked.sum(0)
        total = ones @ rows.masked_fill_(masked, 0)
    mean = total / count.clamp(min=1)
    rows.sub_(mean).scatter_(1, own, 0)
    if masked is not None:
        rows.masked_fill_(masked, 0)
    return count, mean, ones @ torch.mul(rows, rows, out=scratch)
