"""Reduce rows to the scalars that questions about gamma need, in one pass.

A pass runs in plain torch (`torch_kernels`), or in code from torch.compile (`compiled_kernels`) where `compile_kernels`
is on and that is worthwhile, with the same results.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_kernels
from .compiled_kernels import compiled_group_maxima, compiled_label_scalars, is_worthwhile
from .torch_kernels import LabelHits, LabelScalars


def group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest seen and the largest absent logit of each row of `(N, C)` logits."""
    if is_worthwhile(logits):
        return compiled_group_maxima(logits, mask)
    return torch_kernels.group_maxima(logits, mask)


def margin_of(seen_max: Tensor, absent_max: Tensor) -> Tensor:
    """Return seen minus absent maximum; +inf (always seen) where every class of the row is masked by -inf."""
    all_masked = (seen_max == -math.inf) & (absent_max == -math.inf)
    return torch.where(all_masked, math.inf, seen_max - absent_max)


def winning_classes(logits: Tensor, mask: Tensor, gamma: float | Tensor) -> Tensor:
    """Return each row's class: the first largest of the winning group."""
    winners = torch_kernels.winners(logits, mask)
    absent_wins = margin_of(winners.seen_max, winners.absent_max).double() < gamma
    return torch.where(absent_wins, winners.absent, winners.seen)


def label_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars:
    """Return rivals, own logit and hit of each row of `(N, C)` logits, in one pass."""
    if is_worthwhile(logits):
        return compiled_label_scalars(logits, labels, mask)
    return torch_kernels.label_scalars(logits, labels, mask)


def label_hits(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelHits:
    """Return the maxima of both groups, and whether the label is the first largest of its own."""
    if is_worthwhile(logits):
        return compiled_label_scalars(logits, labels, mask).hits
    return torch_kernels.label_hits(logits, labels, mask)


class LargestTwo(NamedTuple):
    """The largest of each row's values, its lead over the next one (0 if there is none), and their number: float64.

    The largest of n values rises by spacing / (n + 1) on average with one more value, and falls by spacing / n with one
    less, if the values have an exponential tail (Rényi's representation).
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
