"""The gamma of the largest expected accuracy, with the absent classes' as the mirror image of the seen classes'."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation.samples import Scan

GAP_ERROR = 0.2
"""Relative standard deviation of the gap if only labelled seen samples are available."""
BANDWIDTH = 0.5
"""Scale of the kernel that smooths the accuracy, in units of log-odds."""
_MOST_SEEN_LOST = 0.5
"""Share of the samples recognised at gamma = 0: a larger loss would trade a measured accuracy for an inferred one."""
LOGISTIC = math.sqrt(3) / math.pi
"""Scale of a logistic distribution with the standard deviation 1."""
_MARGINS, _GRID, _FINE = 1024, 257, 33
_TIE = 1e-12


class SeenAccuracy:
    """`Acc_{S/Y}` of labelled seen samples at any gamma, smoothed; more than 1024 margins are thinned evenly."""

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
    """Assumptions about the absent classes: the seen classes' accuracy, mirrored at the gap, times retention."""

    gap: float
    error: float
    """Standard deviation of the gap."""
    share: float
    """Share of seen samples where the model will be used."""
    retention: float
    """Accuracy of absent samples within their group, relative to that of seen ones."""


class Decision(NamedTuple):
    """A gamma, and by how much the expected accuracy is above that at 0."""

    gamma: float
    gain: float


def decide(accuracy: SeenAccuracy, unit: float, unfamiliarity: float, absent: AbsentModel) -> Decision:
    r"""Return the gamma of the largest expected accuracy.

    .. math:: \pi S(\gamma) + (1 - \pi) \kappa S(2 \gamma_0 - \gamma)

    The mirrored curve is also smoothed by twice the error of the gap, the curve of memorised samples by that error
    times 1 - unfamiliarity.
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
    """Return at most `most` of the ordered values."""
    if len(ordered) <= most:
        return ordered
    places = (torch.arange(most, dtype=torch.float64, device=ordered.device) + 0.5) / most
    return ordered[(places * len(ordered)).long()]
