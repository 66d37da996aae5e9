"""Reduce rows to the scalars that questions about gamma need, in plain torch or in compiled code."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import compiled
from . import kernels as torch_kernels
from .kernels import LabelHits, LabelScalars, Winners, concat_columns, map_row_chunks, tile_rows, tiles
from .warning import warn

_TILE_PARTS = 4
"""A float64 tile and its scratch of full height would fall out of the cache: 2.5 times slower."""
_FIRST_ROWS = 2048
_LAST_STEP, _LONGEST_STEP, _MOST_STEPS = 1e-4, 2.0, 50
"""Of Newton's method. What remains after a last step is of the order of its square."""
_MASKED = {torch.float64: -1e150, torch.float32: -1e18}
"""Stands in for -inf, whose products with a probability of 0 would be NaN; its square is finite."""


class Samples(NamedTuple):
    """Labelled logits with what every pass needs, for G groups of classes; float32 if precise enough, else float64."""

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
    r"""Return, `(N, G)` each, moments of the logits :math:`d_c = z_c - \max_g z` of each group g.

    The logarithm of :math:`\sum_{c \in g} e^{d_c / T_g}`, and mean and variance of `d` under the softmax of `d / T_g`.
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
    """Return the root of a rising function, or the nearer end without one, and the number of steps.

    `evaluate` returns value and slope. Newton's method, or Brent's where it does not converge; slope 1 beyond the ends.
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


def group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest seen and the largest absent logit of each row of `(N, C)` logits."""
    run = compiled.group_maxima if compiled.is_worthwhile(logits) else torch_kernels.group_maxima
    return run(logits, mask)


def margin_of(seen_max: Tensor, absent_max: Tensor) -> Tensor:
    """Return seen minus absent maximum; +inf (always seen) where every class of the row is masked by -inf."""
    all_masked = (seen_max == -math.inf) & (absent_max == -math.inf)
    return torch.where(all_masked, math.inf, seen_max - absent_max)


def winning_classes(logits: Tensor, mask: Tensor, gamma: float | Tensor) -> Tensor:
    """Return each row's class: the first largest of the winning group."""
    best = winners(logits, mask, gamma)
    absent_wins = margin_of(best.seen_max, best.absent_max).double() < gamma
    return torch.where(absent_wins, best.absent, best.seen)


def winners(logits: Tensor, mask: Tensor, gamma: float | Tensor | None = None) -> Winners:
    """Return the first largest logit of each group in each row; of the group that loses at gamma, if given, any."""
    run = compiled.winners if compiled.is_worthwhile(logits) else torch_kernels.winners
    return run(logits, mask, gamma)


def label_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars:
    """Return rivals, own logit and hit of each row of `(N, C)` logits, in one pass."""
    run = compiled.rivals if compiled.is_worthwhile(logits) else torch_kernels.rivals
    return torch_kernels.with_rivals(run(logits, labels, mask), logits, labels, mask)


def label_hits(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelHits:
    """Return the maxima of both groups, and whether the label is the first largest of its own."""
    if compiled.is_worthwhile(logits):
        return label_scalars(logits, labels, mask).hits
    return torch_kernels.label_hits(logits, labels, mask)


def weighted_sums(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return the float64 sum of each row of `(N, C)` logits by `(C,)` weights, the label's own left out."""
    run = compiled.weighted_sums if compiled.is_worthwhile(logits) else torch_kernels.weighted_sums
    return run(logits, labels, weight)


class LargestTwo(NamedTuple):
    """Each row's largest value, its lead over the next one (0 if there is none), and the number of values: float64.

    With an exponential tail, one more of n values raises the largest by lead / (n + 1), one less lowers it by lead / n.
    """

    largest: Tensor
    spacing: Tensor
    number: Tensor


def largest_two(values: Tensor) -> LargestTwo:
    """Look at `(N, C)` values, of which -inf ones are masked and do not count."""
    top = values.topk(min(2, values.shape[1])).values.double()
    spacing = top[:, 0] - top[:, -1]
    count = (values > -math.inf).sum(1).double()
    return LargestTwo(top[:, 0], torch.where(spacing.isfinite(), spacing, 0), count)
