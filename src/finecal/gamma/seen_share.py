"""The share of seen samples among unlabelled ones, from the margins of both: mixture proportion estimation."""

import math
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

SHARE_BOUNDS = (0.02, 0.98)
_THRESHOLD_QUANTILES = torch.linspace(0.05, 0.95, 91, dtype=torch.float64)
_MOST_CONFUSED = 0.4
_KERNELS, _POINTS = 256, 1024
_PRIOR_SAMPLES = 10
_NARROWEST = 0.02
"""Of a density, as a part of the spread of the unlabelled margins."""
_MAX_STEPS, _CONVERGED = 200, 1e-5


class EstimatedShares(NamedTuple):
    """Three estimates that fail in different ways: the median is off only where two of them are, to the same side."""

    best_bin: float
    confusion: float
    normal: float

    @property
    def median(self) -> float:
        return median(self)

    def likeliest(self, expected: float, n: int) -> float:
        """Return the median of n samples, drawn in log-odds to the `expected` share, which weighs as much as ten."""
        weight = n / (n + _PRIOR_SAMPLES)
        log_odds = weight * math.log(self.median / (1 - self.median)) + (1 - weight) * math.log(
            expected / (1 - expected)
        )
        return 1 / (1 + math.exp(-log_odds))


def estimated_shares(seen: Tensor, unlabelled: Tensor, gamma: float, expected: float) -> EstimatedShares:
    """Estimate the share from margins; `gamma` is about right where every class is equally frequent, as `expected`."""
    best_bin = best_bin_share(seen, unlabelled)
    normal = normal_share(seen, unlabelled, best_bin, expected)
    return EstimatedShares(best_bin, confusion_share(seen, unlabelled, gamma, expected), normal)


def best_bin_share(seen: Tensor, unlabelled: Tensor) -> float:
    """Return the smallest ratio of what exceeds a threshold, since absent samples rarely have large margins.

    Best Bin Estimation, see `mixture_gamma`.
    """
    seen, unlabelled = seen.double().sort().values, unlabelled.double().sort().values
    positions = _THRESHOLD_QUANTILES.to(seen.device) * (len(seen) - 1)
    below = positions.floor().long()
    low, high = seen[below], seen[(below + 1).clamp(max=len(seen) - 1)]
    thresholds = torch.where(low == high, low, torch.lerp(low, high, positions - below))

    def exceeding(ordered: Tensor, errors: int) -> Tensor:
        count = len(ordered) - torch.searchsorted(ordered, thresholds, right=True).double()
        # An empty bin, without an error of its own, would send the share to its lower bound.
        fraction = count.clamp(min=1) / len(ordered)
        return count / len(ordered) + errors * (fraction * (1 - fraction) / len(ordered)).sqrt()

    numerator, denominator = exceeding(unlabelled, 1), exceeding(seen, -1)
    ratios = torch.where(denominator > 0, numerator / denominator, math.inf)
    return _within_bounds(float(ratios.min()))


def confusion_share(seen: Tensor, unlabelled: Tensor, gamma: float, expected: float) -> float:
    r"""Return the share that explains how many unlabelled samples gamma sends to the seen classes.

    Of the seen samples it sends a part :math:`\alpha` to the absent classes. If it is right for the expected share, as
    many absent samples go the other way, which is a part :math:`\beta = \alpha \pi_0 / (1 - \pi_0)` of theirs. Compare
    Lipton et al., "Detecting and Correcting for Label Shift with Black Box Predictors", ICML 2018.
    """
    confused_seen = min(float((seen.double() < gamma).double().mean()), _MOST_CONFUSED)
    confused_absent = min(confused_seen * expected / (1 - expected), _MOST_CONFUSED)
    goes_seen = float((unlabelled.double() >= gamma).double().mean())
    return _within_bounds((goes_seen - confused_absent) / (1 - confused_seen - confused_absent))


def normal_share(seen: Tensor, unlabelled: Tensor, start: float, expected: float) -> float:
    """Return the share of the seen samples' density in a mixture of it and a normal one, by EM from the share `start`.

    The density is a kernel estimate. A Beta prior at the `expected` share weighs as much as ten samples. Of many
    margins evenly spaced quantiles stand for all.
    """
    kernels, points = _quantiles(seen, _KERNELS), _quantiles(unlabelled, _POINTS)
    if len(kernels) == 0 or len(points) == 0 or bool((points == points[0]).all()):
        return start
    narrowest = _NARROWEST * float(points.std(correction=0))
    if narrowest == 0:  # Tiny logits: the square of their spread has underflowed.
        return start
    prior = _PRIOR_SAMPLES * len(points) / len(unlabelled)
    density = _kernel_density(kernels, points, narrowest).clamp(min=1e-12 / narrowest)
    lowest = points[: max(3, int((1 - start) * len(points)))]
    mean, variance, share = lowest.mean(), lowest.var(correction=0), start
    for _ in range(_MAX_STEPS):
        width = variance.sqrt().clamp(min=narrowest)
        is_seen = share * density / (share * density + (1 - share) * _normal_density((points - mean) / width, width))
        last, share = share, float((is_seen.sum() + prior * expected) / (len(points) + prior))
        weight = (1 - is_seen) / (1 - is_seen).sum().clamp(min=1e-9)
        mean = weight @ points
        variance = weight @ (points - mean).square()
        if abs(share - last) < _CONVERGED:
            break
    return _within_bounds(share)


def _quantiles(margin: Tensor, most: int) -> Tensor:
    """Return at most so many finite margins, in order; infinite ones are of masked groups."""
    ordered = margin[margin.isfinite()].double().sort().values
    if len(ordered) <= most:
        return ordered
    places = (torch.arange(most, dtype=torch.float64, device=margin.device) + 0.5) / most
    return ordered[(places * len(ordered)).long()]


def _kernel_density(samples: Tensor, points: Tensor, narrowest: float) -> Tensor:
    """Return a Gaussian kernel estimate at `points`, with Silverman's bandwidth."""
    middle_half = float(samples.quantile(0.75) - samples.quantile(0.25)) / 1.34
    spread = float(samples.std(correction=0))
    width = samples.new_tensor(max(0.9 * (min(spread, middle_half) or spread) * len(samples) ** -0.2, narrowest))
    return _normal_density((points.unsqueeze(1) - samples) / width, width).mean(1)


def _normal_density(deviation: Tensor, width: Tensor) -> Tensor:
    return (-0.5 * deviation.square()).exp() / (math.sqrt(2 * math.pi) * width)


def _within_bounds(share: float) -> float:
    return min(max(share, SHARE_BOUNDS[0]), SHARE_BOUNDS[1])
