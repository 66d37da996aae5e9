"""Gamma as a decision by expected accuracy: the measured cost to seen samples, the inferred gain of absent ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.groups import Grouping, design_effect, groups_of
from .._core.samples import Scan

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


def absent_gain(accuracy: SeenAccuracy, unit: float, absent: AbsentModel, gamma: float) -> float:
    """Return by how much the expected accuracy of absent samples is higher at gamma than at 0."""
    places = 2 * absent.gap - torch.tensor([gamma, 0.0], dtype=torch.float64, device="cpu")
    at_gamma, at_zero = accuracy.at(places, _absent_bandwidth(unit, absent.error))
    return absent.retention * float(at_gamma - at_zero)


def _absent_bandwidth(unit: float, error: float) -> float:
    return math.hypot(BANDWIDTH * unit, LOGISTIC * 2 * error)


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
    of_absent = _absent_bandwidth(unit, error)

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


_ENOUGH = 50
"""Number of recognised samples from which the measured curve is used."""


class SmoothedAccuracy(SeenAccuracy):
    r"""`Acc_{S/Y}`, smoothed for n < 50 recognised samples (independent ones, by their design effect).

    Margins of mean :math:`\bar m` and standard deviation s shrink towards the mean and are spread by a logistic kernel,
    which keeps mean and variance:

    .. math:: m \to \bar m + \sqrt{n / 50} \, (m - \bar m), \qquad \text{kernel of variance } (1 - n / 50) \, s^2

    A single sample, and the largest allowed gamma, stay.
    """

    def __init__(self, scan: Scan) -> None:
        super().__init__(scan)
        self._widening = 0.0
        chosen = scan.scalars.hit & scan.margin.isfinite()
        n = int(chosen.sum()) / design_effect(scan.margin[chosen], groups_of(scan.groups, chosen))
        if len(self._kept) < 2 or n >= _ENOUGH:
            return
        away = self._kept - self._kept.mean()
        largest = float(away.abs().max())
        if largest > 0:
            deviation = largest * float((away / largest).square().mean().sqrt())  # squares of margins may overflow
            self._widening = LOGISTIC * math.sqrt(1 - n / _ENOUGH) * deviation
            self._kept = self._kept.mean() + math.sqrt(n / _ENOUGH) * away

    def at(self, gamma: Tensor, bandwidth: float) -> Tensor:
        """Return the accuracy at each gamma, smoothed by a logistic kernel."""
        return super().at(gamma, math.hypot(bandwidth, self._widening))


KERNELS, POINTS = 150, 200
"""Most margins of held-out and of unlabelled samples that the likelihood looks at."""
GAP_STEPS = torch.linspace(-2.4, 2.4, 9, dtype=torch.float64, device="cpu")
"""Grid of the gap, in standard deviations."""
_WORTH, _HALF = 60, 200
"""Number of samples that the likelihood counts as, and of held-out ones at which it counts half: it is approximate."""
_KEPT = 1 / 3
"""Prior weight kept on the labelled-sample estimate, because the likelihood is approximate."""
_FLOOR = 1e-6


class UnlabelledEvidence(NamedTuple):
    """The posterior of the gap."""

    gap: float
    error: float
    """Standard deviation of the gap."""
    outlier_share: float = 0.0
    """Share of the unlabelled margins that are far from both components of the mixture."""


def fit_unlabelled(
    seen: Tensor,
    unlabelled: Tensor,
    gap: float,
    unit: float,
    share: float,
    seen_groups: Grouping | None = None,
    groups: Grouping | None = None,
) -> UnlabelledEvidence:
    r"""Update the gap by the likelihood of the unlabelled margins, a mixture of seen ones and their mirror image.

    .. math:: p(m) = \pi \, s(m) + (1 - \pi) \, s(2 \gamma_0 - m)

    s is a kernel estimate from held-out seen margins, :math:`\pi` the share of seen samples. The posterior is on a
    grid. A third of the weight stays with the prior. Grouped samples count by their design effects.
    """
    (seen, seen_groups), (margin, groups) = finite_in_order(seen, seen_groups), finite_in_order(unlabelled, groups)
    error = GAP_ERROR * abs(gap)
    kernels, points = pick_evenly(seen, KERNELS), pick_evenly(margin, POINTS)
    if len(kernels) == 0 or len(points) == 0:
        return UnlabelledEvidence(gap, error)
    width = BANDWIDTH * unit
    of_seen = margin_density(kernels, points, width)
    of_absent = margin_density(kernels, 2 * (gap + error * GAP_STEPS).unsqueeze(1) - points, width)
    likelihood = (share * of_seen + (1 - share) * of_absent).log().mean(1)
    held_out, new = len(seen) / design_effect(seen, seen_groups), len(margin) / design_effect(margin, groups)
    # Half the variance that the gap has without the stream, lest the likelihood lead far away.
    found = (counts_as(held_out, new) * likelihood - GAP_STEPS.square()).softmax(0)
    moved = (1 - _KEPT) * float(found @ GAP_STEPS)
    variance = (1 - _KEPT) * float(found @ (GAP_STEPS - moved).square()) + _KEPT * (1 + moved**2)
    likely = torch.maximum(of_seen, of_absent.amax(0))
    outlier_share = float((likely < 10 * _FLOOR / width).double().mean())
    return UnlabelledEvidence(gap + error * moved, error * math.sqrt(variance), outlier_share)


def counts_as(held_out: float, unlabelled: float) -> float:
    """Return the number of samples that the likelihood of the unlabelled margins counts as."""
    return min(_WORTH * held_out / (held_out + _HALF), unlabelled)


def finite_in_order(margin: Tensor, groups: Grouping | None) -> tuple[Tensor, Grouping | None]:
    """Return the finite margins in their order, and their groups."""
    finite = margin.isfinite()
    ordered, order = margin[finite].double().cpu().sort()
    groups = groups_of(groups, finite)
    return ordered, groups_of(groups, order)


def margin_density(kernels: Tensor, points: Tensor, width: float) -> Tensor:
    """Return a logistic kernel estimate, never quite 0."""
    tail = (-((points.unsqueeze(-1) - kernels) / width).abs()).exp()
    return (tail / (1 + tail).square()).mean(-1) / width + _FLOOR / width
