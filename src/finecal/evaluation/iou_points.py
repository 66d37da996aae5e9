"""The operating points of mean IoU: what each class gains and loses where predictions change.

A position with a finite margin is predicted as its seen winner up to this gamma, and as its absent winner beyond. So a
seen class only ever loses positions as gamma grows, an absent one only gains them, and each change is one more or less
of either the correct positions of a class or its union. Classes are gone through one after the other; what they
contribute are integers, which add up to the same sums in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .iou_counts import ClassCounts, ClassGroups, Means
from .iou_scan import Positions

_BLOCK = 1 << 18
"""Changes that are counted at a time, unless a single class has more: temporaries take about 100 bytes of each."""


class IoUPoints(NamedTuple):
    """Breakpoints `(K,)`, and mean IoU at each of K+1 operating points, float64."""

    breakpoints: Tensor
    iou_seen: Tensor
    iou_absent: Tensor
    iou_all: Tensor


def iou_points(positions: Positions, first: ClassCounts, groups: ClassGroups) -> IoUPoints:
    """Return mean IoU at every gamma, given the counts for gamma = -inf.

    Breakpoints are the distinct finite margins of positions that have a winner with labels: no others change any mean.
    """
    means, occurs = Means.over(first.labelled, groups), first.labelled > 0
    changes, point, breakpoints = _in_order(positions, occurs)
    at_first = means.quotients(first.correct, first.union.clamp(min=1)).masked_fill(~occurs, 0)
    group = torch.where(groups.seen, 0, torch.where(groups.absent, 1, 2))
    sums = point.new_zeros(3 if bool((group == 2).any()) else 2, len(breakpoints) + 1)
    sums[:, 0] = torch.stack([at_first[group == of].sum() for of in range(len(sums))])
    for winner, sign in ((changes.seen, -1), (changes.absent, 1)):
        for index, starts in _by_class(winner, occurs):
            of = winner.index_select(0, index).long()
            entry = torch.arange(len(index), device=index.device)
            own = torch.cat([point.new_zeros(1), (changes.label.index_select(0, index) == of).cumsum(0)])
            start, at = starts.index_select(0, of), point.index_select(0, index)
            last = torch.ones_like(of, dtype=torch.bool)
            last[:-1] = (of[1:] != of[:-1]) | (at[1:] != at[:-1])
            if not bool(last.all()):
                of, at, start, entry = of[last], at[last], start[last], entry[last]
            entry = entry + 1
            in_label = own[entry] - own[start]
            elsewhere = entry - start - in_label
            values = means.quotients(first.correct[of] + sign * in_label, first.union[of] + sign * elsewhere)
            before = values.roll(1)
            begins = torch.ones_like(last[: len(of)])
            begins[1:] = of[1:] != of[:-1]
            before = torch.where(begins, at_first[of], before)
            sums.view(-1).index_add_(0, group[of] * sums.shape[1] + at, values - before)
    sums = sums.cumsum(1)
    return IoUPoints(breakpoints, *means.of_sums(sums[0], sums[1], sums.sum(0)))


def _in_order(positions: Positions, occurs: Tensor) -> tuple[Positions, Tensor, Tensor]:
    """Return the positions that matter by margin, the operating point behind each of these, and the breakpoints."""
    matters = positions.margin.isfinite()
    matters &= occurs[positions.seen.long()] | occurs[positions.absent.long()]
    index = matters.nonzero().squeeze(1)
    margin, order = positions.margin.index_select(0, index).sort()
    index = index.index_select(0, order)
    changes = Positions(margin, *(classes.index_select(0, index) for classes in positions[1:]))
    is_first = torch.ones_like(margin, dtype=torch.bool)
    is_first[1:] = margin[1:] != margin[:-1]
    return changes, is_first.cumsum(0), margin[is_first].double()


def _by_class(winner: Tensor, occurs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of the changes of whole classes, by class and margin, and where each class starts in a block."""
    index = occurs[winner.long()].nonzero().squeeze(1)
    index = index.index_select(0, winner.index_select(0, index).sort(stable=True).indices)
    counts = torch.bincount(winner[index].long(), minlength=len(occurs))
    ends = counts.cumsum(0)
    starts = ends - counts
    begin = 0
    while begin < len(index):
        # As many classes as fit, and at least one.
        fitting = int(torch.searchsorted(ends, begin + _BLOCK, right=True))
        end = max(int(ends[fitting - 1]) if fitting else 0, int(ends[ends > begin].min()))
        yield index[begin:end], starts - begin
        begin = end
