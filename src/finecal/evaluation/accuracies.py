"""Accuracies as means over samples ("micro") or over classes ("macro")."""

import math

import torch
from torch import Tensor

from .margins import Margins

AVERAGES = ("micro", "macro")


def harmonic_mean(seen: float, absent: float) -> float:
    """Return the harmonic mean of two accuracies, NaN if one is."""
    return 2 * seen * absent / (seen + absent) if seen + absent != 0 else 0.0


def accuracies_within(samples: Margins[Tensor], average: str) -> tuple[float, float]:
    """Return `Acc_{S/S}` and `Acc_{U/U}`."""
    is_seen, hit = samples.is_seen, samples.hit
    weight = _class_weights(samples)[0] if average == "macro" else hit.new_ones(len(hit)).double()
    seen, absent = ((weight * (hit & group)).sum() / (weight * group).sum() for group in (is_seen, ~is_seen))
    return float(seen), float(absent)


def macro_accuracies(samples: Margins[Tensor], breakpoints: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `Acc_{S/Y}`, `Acc_{U/Y}` and `Acc_{Y/Y}` at each operating point, as means over classes."""
    is_seen, hit = samples.is_seen, samples.hit
    weight, seen_share = _class_weights(samples)
    seen_sum, absent_sum = weigh_correct(samples.margin[hit], weight[hit], is_seen[hit], breakpoints)
    seen, absent = seen_sum / weight[is_seen].sum(), absent_sum / weight[~is_seen].sum()
    return seen, absent, seen_share * seen.nan_to_num() + (1 - seen_share) * absent.nan_to_num()


def weigh_correct(margin: Tensor, weight: Tensor, is_seen: Tensor, breakpoints: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the weights of the seen and of the absent hits that are correct at each operating point."""
    points = breakpoints.numel() + 1
    position = torch.searchsorted(breakpoints, margin.double())
    stays = is_seen & (margin > -math.inf)
    seen = torch.bincount(position[stays], weight[stays], points).flip(0).cumsum(0).flip(0)
    position = torch.where(margin == -math.inf, 0, position + 1)
    joins = ~is_seen & (margin < math.inf)
    absent = torch.bincount(position[joins], weight[joins], points).cumsum(0)
    return seen, absent


def _class_weights(samples: Margins[Tensor]) -> tuple[Tensor, float]:
    """Return 1 / (samples of its class) for each sample, and the seen share of the classes that occur."""
    assert samples.label is not None
    classes, index, counts = torch.unique(samples.label, return_inverse=True, return_counts=True)
    class_is_seen = torch.zeros_like(classes, dtype=torch.bool).scatter(0, index, samples.is_seen)
    return 1 / counts[index].double(), float(class_is_seen.double().mean())
