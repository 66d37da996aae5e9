"""Margins: the few numbers per sample that answer every question about gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from torch import Tensor

from ..inputs.arrays import ArrayT
from ..results import lazy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .curve import TradeoffCurve


@dataclass(frozen=True, eq=False)
class Margins(Generic[ArrayT]):
    """All that questions about gamma need to know of N labelled samples; made by `margins`.

    14 bytes per sample, 18 for float64 logits; `streaming.MarginRows` packs the same into 5, without the labels.

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
    >>> samples = finecal.Samples(logits, labels=[0, 2]).margins([True, True, False])
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
        axes: Axes = lazy.plots().plot_margins(self, ax, **style)
        return axes


def resample(samples: Margins[Tensor], index: Tensor) -> Margins[Tensor]:
    """Return the samples at `index`, from whichever device, without their labels."""
    drawn = index.to(samples.margin.device)
    return Margins(samples.margin[drawn], samples.is_seen[drawn], samples.hit[drawn], None)
