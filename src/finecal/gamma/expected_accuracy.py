"""Gamma as a decision by expected accuracy: what it costs seen samples is measured, what absent ones repay is inferred.

The absent classes' accuracy is taken for the mirror image of the seen classes' at the gap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation.samples import Scan

GAP_ERROR = 0.2
"""Standard deviation of the gap, as a part of it, where labelled seen samples tell alone."""
BANDWIDTH = 0.5
"""Of the smoothed accuracy, in units of log-odds."""
_MOST_SEEN_LOST = 0.5
"""Of the samples that are recognised at gamma = 0: more would bet what is measured on what is inferred."""
LOGISTIC = math.sqrt(3) / math.pi
"""Scale of a logistic distribution with the standard deviation 1."""
_MARGINS, _GRID, _FINE = 1024, 257, 33
_TIE = 1e-12


class SeenAccuracy:
    """`Acc_{S/Y}` of labelled seen samples at any gamma, smoothed. Of many margins evenly spaced ones stand for all."""

    def __init__(self, scan: Scan) -> None:
        hits = scan.margin[scan.scalars.hit & scan.margin.isfinite()].double().cpu().sort().values
        self.recognised = hits[hits >= 0]
        self._kept = pick_evenly(hits, _MARGINS)
        self._each = len(hits) / max(1, len(self._kept)) / len(scan.labels)

    def at(self, gamma: Tensor, bandwidth: float) -> Tensor:
        """Return the accuracy at each gamma, smoothed by a logistic kernel."""
        return self._each * torch.sigmoid((self._kept - gamma.unsqueeze(-1)) / bandwidth).sum(-1)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest margin, or zeros."""
        return (float(self._kept[0]), float(self._kept[-1])) if len(self._kept) else (0.0, 0.0)

    @property
    def most(self) -> float:
        """The largest gamma that leaves half of the samples recognised that are so at 0."""
        place = min(int(_MOST_SEEN_LOST * len(self.recognised)), len(self.recognised) - 1)
        return float(self.recognised[place]) if len(self.recognised) else math.inf


class AbsentModel(NamedTuple):
    """What is thought of the absent classes: their accuracy is the seen classes', mirrored at the gap, times health."""

    gap: float
    error: float
    """Standard deviation of the gap."""
    share: float
    """Of seen samples where the model will be used."""
    retention: float
    """Accuracy of absent samples within their group, relative to that of seen ones."""


class Decision(NamedTuple):
    """A gamma, and by how much the expected accuracy is above that at 0."""

    gamma: float
    gain: float


def decide(accuracy: SeenAccuracy, unit: float, unfamiliarity: float, absent: AbsentModel) -> Decision:
    r"""Return the gamma of the largest expected accuracy.

    .. math:: \pi S(\gamma) + (1 - \pi) \kappa S(2 \gamma_0 - \gamma)

    The mirrored curve is smoothed by the error of the gap as well, which moves it twice as far, and the curve of
    samples that the model has memorised by as much as gamma is uncertain.
    """
    gap, error, share, retention = absent
    if gap < 0:
        retention = 1.0  # It is the seen classes that are to be brought back.
    kernel = BANDWIDTH * unit
    of_seen = math.hypot(kernel, LOGISTIC * (1 - unfamiliarity) * error)
    of_absent = math.hypot(kernel, LOGISTIC * 2 * error)

    def expected(gamma: Tensor) -> Tensor:
        absent_accuracy = accuracy.at(2 * gap - gamma, of_absent)
        return share * accuracy.at(gamma, of_seen) + (1 - share) * retention * absent_accuracy

    lowest, highest = accuracy.range
    if gap > 0:
        low, high = 0.0, min(max(highest, 2 * gap) + unit, accuracy.most)
    else:
        low, high = min(lowest, 2 * gap - highest) - unit, 0.0
    if not low < high:
        return Decision(0.0, 0.0)
    for count in (_GRID, _FINE, _FINE):
        grid = torch.linspace(low, high, count, dtype=torch.float64, device="cpu")
        value = expected(grid)
        best = value >= value.max() - _TIE
        place = int((grid - gap).abs().masked_fill(~best, math.inf).argmin())
        low, high = float(grid[max(place - 1, 0)]), float(grid[min(place + 1, count - 1)])
    none = expected(torch.zeros(1, dtype=torch.float64, device="cpu"))
    return Decision(float(grid[place]), float(value[place] - none))


def pick_evenly(ordered: Tensor, most: int) -> Tensor:
    """Return at most so many of the ordered values."""
    if len(ordered) <= most:
        return ordered
    places = (torch.arange(most, dtype=torch.float64, device=ordered.device) + 0.5) / most
    return ordered[(places * len(ordered)).long()]
