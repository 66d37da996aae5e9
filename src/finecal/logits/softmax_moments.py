"""Moments of softmaxes over labelled logits, in one pass, and the root of a function that takes such a pass."""

import functools
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs.warning import warn
from .tiles import tile_rows, tiles
from .workers import concat_columns, map_row_chunks

_TILE_PARTS = 4
"""A float64 tile and its scratch of full height would fall out of the cache: 2.5 times slower."""
_FIRST_ROWS = 2048
_LAST_STEP, _LONGEST_STEP, _MOST_STEPS = 1e-4, 3.0, 50
"""Of Newton's method. What remains after a last step is of the order of its square."""
_MASKED = {torch.float64: -1e150, torch.float32: -1e18}
"""Stands in for -inf, whose products with a probability of 0 would be NaN; its square is finite."""


class Samples(NamedTuple):
    """Labelled logits with what every pass needs of them, for G groups of classes.

    All but the logits are of one dtype, in which the passes run: float64, or float32 where that is precise enough.
    """

    logits: Tensor
    """(N, C), as given."""
    groups: Tensor
    """(G, C), 1 where the class belongs to the group."""
    top: Tensor
    """(N, G), the largest logit in the group."""
    own: Tensor
    """(N,), the logit of the label."""
    own_group: Tensor
    """(N, G), 1 for the group of the label."""


def make_samples(
    logits: Tensor, labels: Tensor, groups: Tensor, top: Tensor, caller: str, dtype: torch.dtype = torch.float64
) -> Samples:
    """Leave out samples whose label is masked: their NLL is infinite whatever the temperature is."""
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1).to(dtype)
    kept = own > -math.inf
    left_out = int((~kept).sum())
    if left_out == own.shape[0]:
        raise ValueError(
            f"labels are of classes that are masked (-inf logits) in all {left_out} samples, so their NLL is infinite "
            "at every temperature; check that labels index the columns of these logits"
        )
    if left_out:
        warn(
            f"{caller}: the label is masked (its logit is -inf) in {left_out} of {own.shape[0]} samples, whose NLL is "
            "infinite at every temperature; they are left out"
        )
        logits, labels, top, own = logits[kept], labels[kept], top[kept], own[kept]
    member, masked = groups.to(dtype), _MASKED[dtype]
    return Samples(logits, member, top.to(dtype).clamp(min=masked), own.clamp(min=masked), member.T[labels])


def thin(samples: Samples, number: int = _FIRST_ROWS) -> Samples:
    """Return every k-th of many samples, about `number`, for the first steps; of few, all."""
    stride = samples.own.shape[0] // number
    if stride < 4:
        return samples
    part = slice(None, None, stride)
    logits, groups, top, own, own_group = samples
    return Samples(logits[part], groups, top[part], own[part], own_group[part])


def group_moments(samples: Samples, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return, per sample and group, `(N, G)` each, moments of the logits relative to the largest of their group.

    The logarithm of :math:`\sum_{c \in g} e^{d_c / T_g}` with :math:`d_c = z_c - \max_g z`, and the mean and variance
    of `d` under the softmax of `d / T_g` within the group.
    """
    total, first, second = _power_sums(samples, inverse, 2)
    mean = first / total
    return total.log(), mean, (second / total - mean.square()).clamp_(min=0)


def group_log_sums(samples: Samples, inverse: Tensor) -> Tensor:
    """Return the first of what `group_moments` does, for a fifth less."""
    (total,) = _power_sums(samples, inverse, 0)
    return total.log()


def _power_sums(samples: Samples, inverse: Tensor, order: int) -> tuple[Tensor, ...]:
    r"""Return :math:`\sum_{c \in g} d_c^k \, e^{d_c / T_g}` for k from 0 to `order`."""
    groups, dtype = samples.groups, samples.top.dtype
    columns, per_class = groups.T.contiguous(), inverse @ groups

    def kernel(logits: Tensor, tops: Tensor) -> tuple[Tensor, ...]:
        height = max(1, tile_rows(logits) // _TILE_PARTS)
        parts = []
        for rows, top in zip(torch.split(logits, height), torch.split(tops, height), strict=True):
            for tile, scratch in tiles(rows, dtype, writable=True):
                below = tile.clamp_(min=_MASKED[dtype]).addmm_(top, groups, alpha=-1)
                weight = torch.mul(below, per_class, out=scratch).exp_()
                parts.append((weight @ columns, *(weight.mul_(below) @ columns for _ in range(order))))
        return concat_columns(parts)

    return map_row_chunks(kernel, samples.logits, samples.top)


def rising_root(
    evaluate: Callable[[float], tuple[float, float]], start: float, low: float, high: float
) -> tuple[float, int]:
    """Return where a rising function is 0, or the nearer end if it is so nowhere between the ends, and the steps.

    `evaluate` returns value and slope, and is called once per argument. Newton's method takes the fewest passes; where
    it does not converge, Brent's method finds a change of sign. Beyond the ends the function goes on with slope 1.
    """
    from scipy.optimize import root_scalar

    once = functools.cache(evaluate)

    def extended(x: float) -> tuple[float, float]:
        inside = min(max(float(x), low), high)
        value, slope = once(inside)
        if inside != x:
            return value + x - inside, 1.0
        return value, max(slope, abs(value) / _LONGEST_STEP, sys.float_info.min)

    found = root_scalar(extended, fprime=True, x0=start, method="newton", xtol=_LAST_STEP, maxiter=_MOST_STEPS)
    if not found.converged:
        reach = 1 + max(abs(once(end)[0]) for end in (low, high))
        ends = (low - reach, high + reach)
        found = root_scalar(lambda x: extended(x)[0], bracket=ends, method="brentq", xtol=_LAST_STEP**2)
        extended(found.root)
    return min(max(float(found.root), low), high), found.iterations
