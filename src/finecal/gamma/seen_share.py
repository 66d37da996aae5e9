"""The share of seen samples among unlabelled ones, from the margins of both: mixture proportion estimation."""

import math

import torch
from torch import Tensor

SHARE_BOUNDS = (0.02, 0.98)
_THRESHOLD_QUANTILES = torch.linspace(0.05, 0.95, 91, dtype=torch.float64)


def best_bin_share(seen: Tensor, unlabelled: Tensor, effects: tuple[float, float] = (1.0, 1.0)) -> float:
    """Return the smallest ratio of what exceeds a threshold, since absent samples rarely have large margins.

    Best Bin Estimation, see `mixture_gamma`. By their design effects, as in `design_effect`, samples of groups have
    larger standard errors.
    """
    seen, unlabelled = seen.double().sort().values, unlabelled.double().sort().values
    positions = _THRESHOLD_QUANTILES.to(seen.device) * (len(seen) - 1)
    below = positions.floor().long()
    low, high = seen[below], seen[(below + 1).clamp(max=len(seen) - 1)]
    thresholds = torch.where(low == high, low, torch.lerp(low, high, positions - below))

    def exceeding(ordered: Tensor, errors: int, effect: float) -> Tensor:
        count = len(ordered) - torch.searchsorted(ordered, thresholds, right=True).double()
        # An empty bin, without an error of its own, would send the share to its lower bound.
        fraction = count.clamp(min=effect) / len(ordered)
        return count / len(ordered) + errors * (effect * fraction * (1 - fraction) / len(ordered)).sqrt()

    numerator, denominator = exceeding(unlabelled, 1, effects[1]), exceeding(seen, -1, effects[0])
    ratios = torch.where(denominator > 0, numerator / denominator, math.inf)
    return _within_bounds(float(ratios.min()))


def _within_bounds(share: float) -> float:
    return min(max(share, SHARE_BOUNDS[0]), SHARE_BOUNDS[1])
