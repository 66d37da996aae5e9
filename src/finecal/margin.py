"""Margins: the ten bytes per sample that answer every question about gamma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, overload

import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import ArrayLike, ArrayT, NumpyArray, as_tensor, matching
from ._checks import (
    as_bool_mask,
    check_labels,
    check_logits,
    check_mask,
    check_mask_values,
    check_scores,
    warn_if_reindexed,
)
from .logits import LabelScalars, group_maxima, label_hits, label_scalars, margin_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .curve import TradeoffCurve


@dataclass(frozen=True, eq=False)
class Margins(Generic[ArrayT]):
    """All that questions about gamma need to know of N labelled samples; made by `margins`.

    Attributes
    ----------
    margin : (N,) float32, or float64 for float64 logits
        Largest seen logit minus largest absent logit: the sample is predicted absent iff ``margin < gamma``. +inf or
        -inf where a whole group is masked by -inf logits (+inf where both are).
    is_seen : (N,) bool
        Whether the label is a seen class.
    hit : (N,) bool
        Whether the label is the argmax within its own group, lowest index at a tie.
    label : (N,) int64
        The labels. None if the margins come from a `streaming.MarginRows` that does not keep them.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> samples = finecal.margins(logits, labels=[0, 2], seen_mask=[True, True, False])
    >>> len(samples), samples.curve().best()
    (2, 0.0)
    """

    margin: ArrayT
    is_seen: ArrayT
    hit: ArrayT
    label: ArrayT | None

    def __len__(self) -> int:
        return int(self.margin.shape[0])

    def curve(self, average: str = "micro") -> TradeoffCurve[ArrayT]:
        """Return the seen-absent curve of these samples; see `tradeoff_curve`."""
        from .curve import curve_from_margins

        return curve_from_margins(self, average)

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw histograms of both groups' margins; see `finecal.plots.plot_margins` (needs the extra ``plots``)."""
        from .plots import plot_margins

        return plot_margins(self, ax, **style)


@overload
def margins(logits: Tensor, labels: ArrayLike, seen_mask: ArrayLike) -> Margins[Tensor]: ...
@overload
def margins(logits: NumpyArray | Sequence[Any], labels: ArrayLike, seen_mask: ArrayLike) -> Margins[NDArray[Any]]: ...
def margins(logits: ArrayLike, labels: ArrayLike, seen_mask: ArrayLike) -> Margins[Any]:
    r"""Reduce logits to one margin, two flags and the label per sample.

    .. math:: \text{margin} = \max_{c \in S} z_c - \max_{c \in U} z_c

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes; -inf masks a class.
    labels : (N,) int
        Class indices in ``[0, C)``, on the device of the logits.
    seen_mask : (C,) bool
        True for the seen classes.

    Returns
    -------
    Margins
        Of the type and device of `logits`. No samples give empty fields.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `labels` not integer, or `seen_mask` not boolean.
    ValueError
        If shapes or devices do not match, labels are out of range, logits hold NaN, +inf or probabilities, or
        `seen_mask` has no seen or no absent class.

    Notes
    -----
    One pass over the logits in cache-sized tiles, `O(NC)`; memory beyond the result does not grow with N.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> m = finecal.margins(logits, labels=[0, 2], seen_mask=[True, True, False])
    >>> m.margin, m.is_seen, m.hit
    (array([1. , 2.5]), array([ True, False]), array([ True,  True]))
    """
    samples = batch_margins(logits, labels, seen_mask)
    warn_if_reindexed(samples.label, as_bool_mask(seen_mask).to(samples.label.device))
    out = matching(logits)
    return Margins(out(samples.margin), out(samples.is_seen), out(samples.hit), out(samples.label))


class BatchMargins(NamedTuple):
    """The fields of `Margins`, with labels, of what may be one batch of many."""

    margin: Tensor
    is_seen: Tensor
    hit: Tensor
    label: Tensor


def batch_margins(logits: ArrayLike, labels: ArrayLike, seen_mask: ArrayLike) -> BatchMargins:
    """Check labelled logits and return their margins; too few labels to tell whether they are re-indexed."""
    x, mask = checked(logits, seen_mask)
    y = check_labels(labels, x.shape[0], x.shape[1], x.device)
    hits = label_hits(x, y, mask)
    check_scores(x, torch.maximum(hits.seen_max, hits.absent_max))
    return BatchMargins(margin_of(hits.seen_max, hits.absent_max), hits.is_seen, hits.hit, y)


def resample(samples: Margins[Tensor], index: Tensor) -> Margins[Tensor]:
    """Return the samples at `index`, from whichever device, without their labels."""
    drawn = index.to(samples.margin.device)
    return Margins(samples.margin[drawn], samples.is_seen[drawn], samples.hit[drawn], None)


class LabelledScan(NamedTuple):
    """Checked input and its per-sample scalars: what the estimators from labelled data start from."""

    logits: Tensor
    labels: Tensor
    mask: Tensor
    scalars: LabelScalars
    margin: Tensor

    @property
    def samples(self) -> Margins[Tensor]:
        """What questions about gamma need of them."""
        return Margins(self.margin, self.scalars.is_seen, self.scalars.hit, self.labels)

    def acc_seen(self, gamma: float) -> float:
        """`Acc_{S/Y}` at gamma, NaN without seen samples."""
        correct = self.scalars.hit & (self.margin.double() >= gamma)
        return float(correct[self.scalars.is_seen].double().mean())

    def rounding_step(self) -> float:
        """Distance of neighbouring numbers, in the dtype of the logits, at the largest of the groups' maxima."""
        maxima = torch.stack([self.scalars.seen_max, self.scalars.absent_max])
        largest = float(maxima.abs().masked_fill(~maxima.isfinite(), 0).max())
        return torch.finfo(self.logits.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 0.0


def scan_labelled(logits: ArrayLike, labels: ArrayLike, seen_mask: ArrayLike) -> LabelledScan:
    """Check labelled logits and reduce them to scalars."""
    scan = scan_batch(logits, labels, seen_mask)
    warn_if_reindexed(scan.labels, scan.mask)
    return scan


def scan_batch(logits: ArrayLike, labels: ArrayLike, seen_mask: ArrayLike) -> LabelledScan:
    """Scan what may be one batch of many: too few labels to tell whether they are re-indexed."""
    x, mask = checked(logits, seen_mask)
    y = check_labels(labels, x.shape[0], x.shape[1], x.device)
    scalars = label_scalars(x, y, mask)
    seen_max, absent_max = scalars.seen_max, scalars.absent_max
    check_scores(x, torch.maximum(seen_max, absent_max))
    return LabelledScan(x, y, mask, scalars, margin_of(seen_max, absent_max))


def unlabelled_margins(logits: ArrayLike, seen_mask: ArrayLike, name: str = "logits") -> Tensor:
    """Check logits without labels and return their margins."""
    x, mask = checked(logits, seen_mask, name)
    seen_max, absent_max = group_maxima(x, mask)
    check_scores(x, torch.maximum(seen_max, absent_max), name)
    return margin_of(seen_max, absent_max)


def checked(logits: ArrayLike, seen_mask: ArrayLike, name: str = "logits") -> tuple[Tensor, Tensor]:
    x = check_logits(as_tensor(logits, name), name).detach()
    return x, check_mask_values(check_mask(seen_mask, x.shape[1], x.device))
