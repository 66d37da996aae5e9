"""What one pass over the rows tells: everything that a question about gamma needs.

Each pass runs in plain torch (`torch_kernels`). Where `compile_kernels` asked for fused kernels, it runs in Triton on
CUDA (`triton_kernels`) and in code from torch.compile on a CPU (`compiled_kernels`), with the same results.
"""

import functools
import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from . import compiled_kernels, torch_kernels
from .torch_kernels import LabelScalars, Winners


def fused_kernels(logits: Tensor) -> ModuleType | None:
    """Return the module of Triton's kernels if `compile_kernels` asked for them, and they suit these logits.

    Triton reads plain CUDA memory: a graph that is captured or traced, a gradient or a tensor subclass would not notice
    what it writes.
    """
    if not logits.is_cuda or not compiled_kernels.asked_for(logits) or torch._C._get_tracing_state() is not None:
        return None
    return _fused_kernels_on(logits.device)


@functools.cache
def _fused_kernels_on(device: torch.device) -> ModuleType | None:
    try:
        from . import triton_kernels
    except ImportError:
        return None
    return triton_kernels if triton_kernels.work_on(device) else None


def group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest seen and the largest absent logit of each row of `(N, C)` logits."""
    if fused := fused_kernels(logits):
        seen_max, absent_max = fused.group_maxima(logits, mask)
        return seen_max, absent_max
    if compiled_kernels.suit(logits) and (maxima := compiled_kernels.group_maxima(logits, mask)):
        return maxima
    return torch_kernels.group_maxima(logits, mask)


def margin_of(seen_max: Tensor, absent_max: Tensor) -> Tensor:
    """Return seen minus absent maximum; +inf (always seen) where every class of the row is masked by -inf."""
    all_masked = (seen_max == -math.inf) & (absent_max == -math.inf)
    return torch.where(all_masked, math.inf, seen_max - absent_max)


def group_log_sum_exps(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp over the seen and over the absent logits of each row of `(N, C)` logits, in float64.

    -inf where a whole group is masked.
    """
    if fused := fused_kernels(logits):
        seen, absent = fused.group_log_sum_exps(logits, mask)
        return seen, absent
    return torch_kernels.group_log_sum_exps(logits, mask)


def winning_classes(logits: Tensor, mask: Tensor, gamma: float | Tensor) -> Tensor:
    """Return each row's class: the first largest of the winning group."""
    if fused := fused_kernels(logits):
        classes: Tensor = fused.winning_classes(logits, mask, gamma)
        return classes
    winners = torch_kernels.winners(logits, mask)
    absent_wins = margin_of(winners.seen_max, winners.absent_max).double() < gamma
    return torch.where(absent_wins, winners.absent, winners.seen)


def group_winners(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's best seen and best absent class, the first at a tie: `predict` takes one or the other."""
    if fused := fused_kernels(logits):
        seen_winner, absent_winner = fused.group_winners(logits, mask)
        return seen_winner, absent_winner
    winners = torch_kernels.winners(logits, mask)
    return winners.seen, winners.absent


def group_winners_and_maxima(logits: Tensor, mask: Tensor) -> Winners:
    """Return what `group_winners` does, and the logits of both winners."""
    if fused := fused_kernels(logits):
        return Winners(*fused.group_winners(logits, mask), *fused.group_maxima(logits, mask))
    return torch_kernels.winners(logits, mask)


def label_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars:
    """Return rivals, own logit and hit of each row of `(N, C)` logits, in one pass."""
    return _fused_scalars(logits, labels, mask) or torch_kernels.label_scalars(logits, labels, mask)


def label_hits(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maxima of both groups, and whether the label is the first largest of its own."""
    if scalars := _fused_scalars(logits, labels, mask):
        return scalars.seen_max, scalars.absent_max, scalars.hit
    return torch_kernels.label_hits(logits, labels, mask)


def _fused_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars | None:
    if fused := fused_kernels(logits):
        return LabelScalars(*fused.label_scalars(logits, labels, mask))
    return compiled_kernels.label_scalars(logits, labels, mask) if compiled_kernels.suit(logits) else None


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
