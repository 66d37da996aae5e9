"""The passes over the rows in plain torch.

The maximum of a group is `minimum(tile, limit).amax(1)`, where `limit` is +inf on the group's columns and -inf
elsewhere: exact, safe at -inf, and NaN carries through. Half types are widened to float32 tile by tile.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .tiles import tile_rows, tiles, wide_dtype
from .workers import by_rows, joined

_WIDE = 4096
"""Classes from which on winners cost less than rivals, by a sixth at 20,000."""
_UNDERFLOWS = 1e-280
"""Sums of exponentials below this have lost digits, or terms."""


class LabelScalars(NamedTuple):
    """What a question about gamma needs of each labelled sample: `(N,)` each, in float32, or float64 if it came so."""

    seen_rival: Tensor
    """Largest seen logit, the label's own left out."""
    absent_rival: Tensor
    """Largest absent logit, the label's own left out."""
    own: Tensor
    """Logit of the label."""
    is_seen: Tensor
    hit: Tensor
    """Whether the label is the argmax within its group, lowest index at a tie."""

    @property
    def seen_max(self) -> Tensor:
        return torch.where(self.is_seen, torch.maximum(self.seen_rival, self.own), self.seen_rival)

    @property
    def absent_max(self) -> Tensor:
        return torch.where(self.is_seen, self.absent_rival, torch.maximum(self.absent_rival, self.own))


def group_limits(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the limits that keep only seen, and only absent, columns under `torch.minimum`."""
    infinity = torch.full(mask.shape, math.inf, dtype=wide_dtype(dtype), device=mask.device)
    return torch.where(mask, infinity, -infinity), torch.where(mask, -infinity, infinity)


def group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest seen and the largest absent logit of each row of `(N, C)` logits."""
    limits = group_limits(mask, logits.dtype)

    def kernel(rows: Tensor) -> tuple[Tensor, ...]:
        return joined([_tile_maxima(tile, limits, scratch) for tile, scratch in tiles(rows)])

    seen_max, absent_max = by_rows(kernel, logits)
    return seen_max, absent_max


def group_log_sum_exps(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp over the seen and over the absent logits of each row of `(N, C)` logits, in float64.

    -inf where a whole group is masked. One exponential per element, relative to the larger group; rows in which the
    other group underflows against it are done again.
    """
    groups = torch.stack([mask, ~mask], dim=1).double()
    limits = group_limits(mask, torch.float64)

    def kernel(rows: Tensor) -> tuple[Tensor, ...]:
        parts = [_tile_log_sum_exps(tile, groups, limits, scratch) for tile, scratch in tiles(rows, torch.float64)]
        return torch.cat(parts).unbind(1)

    seen, absent = by_rows(kernel, logits)
    return seen, absent


def label_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars:
    """Return rivals, own logit and hit of each row of `(N, C)` logits, in one pass."""
    limits = group_limits(mask, logits.dtype)

    def kernel(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        blocks = zip(tiles(rows), torch.split(columns, tile_rows(rows)), strict=True)
        return joined([_tile_rivals(tile, block, limits, scratch) for (tile, scratch), block in blocks])

    seen_rival, absent_rival, own = by_rows(kernel, logits, labels.unsqueeze(1))
    own, is_seen = own.squeeze(1), mask[labels]
    rival = torch.where(is_seen, seen_rival, absent_rival)
    scalars = LabelScalars(seen_rival, absent_rival, own, is_seen, own > rival)
    settle_ties(scalars, own == rival, logits, labels, mask)
    return scalars


class Winners(NamedTuple):
    """The best column of each group in each row, and its logit."""

    seen: Tensor
    absent: Tensor
    seen_max: Tensor
    absent_max: Tensor


def winners(logits: Tensor, mask: Tensor) -> Winners:
    """Look for the winner of all classes and of the absent ones, and for the seen one where that is another."""
    seen_limit, absent_limit = group_limits(mask, logits.dtype)
    # A graph cannot look at values, and a GPU would have to be waited for.
    is_small = logits.shape[0] <= tile_rows(logits)
    seen_first = _is_eager_cpu(logits) and (is_small or _are_mostly_seen(logits, mask))

    def kernel(rows: Tensor) -> "tuple[Tensor, ...]":  # a text, as torch 2.4 cannot compile the type
        found = []
        for tile, scratch in tiles(rows):
            absent = _argmax(torch.minimum(tile, absent_limit, out=scratch))
            found.append((*_argmax(tile if seen_first else torch.minimum(tile, seen_limit, out=scratch)), *absent))
        seen, seen_max, absent_winner, absent_max = joined(found)
        for index in _chosen(~mask[seen], rows) if seen_first else ():
            seen[index], seen_max[index] = _argmax(torch.minimum(rows[index].to(seen_max), seen_limit))
        return seen, absent_winner, seen_max, absent_max

    seen, absent, seen_max, absent_max = by_rows(kernel, logits)
    # The first column of a group wins where the whole group is masked.
    seen = torch.where(seen_max == -math.inf, mask.to(torch.uint8).argmax(), seen)
    absent = torch.where(absent_max == -math.inf, (~mask).to(torch.uint8).argmax(), absent)
    return Winners(seen, absent, seen_max, absent_max)


def label_hits(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maxima of both groups, and whether the label is the first largest of its own."""
    if logits.shape[1] < _WIDE:
        scalars = label_scalars(logits, labels, mask)
        return scalars.seen_max, scalars.absent_max, scalars.hit
    found = winners(logits, mask)
    hit = torch.where(mask[labels], found.seen, found.absent) == labels
    return found.seen_max, found.absent_max, hit


def _tile_maxima(tile: Tensor, limits: tuple[Tensor, Tensor], scratch: Tensor | None) -> tuple[Tensor, Tensor]:
    seen_limit, absent_limit = limits
    seen_max = torch.minimum(tile, seen_limit, out=scratch).amax(1)
    return seen_max, torch.minimum(tile, absent_limit, out=scratch).amax(1)


def _tile_log_sum_exps(tile: Tensor, groups: Tensor, limits: tuple[Tensor, Tensor], scratch: Tensor | None) -> Tensor:
    """Return `(rows, 2)`: the logarithms of sums of exponentials in the columns of `groups`."""
    top = tile.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).min)
    sums = torch.exp(torch.sub(tile, top, out=scratch), out=scratch) @ groups
    result = sums.log() + top
    redo = (sums < _UNDERFLOWS).any(1).nonzero().squeeze(1)
    if redo.numel():
        rows = tile[redo]
        result[redo] = torch.stack([torch.minimum(rows, limit).logsumexp(1) for limit in limits], dim=1)
    return result


def _tile_rivals(
    tile: Tensor, columns: Tensor, limits: tuple[Tensor, Tensor], scratch: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest seen and absent logits that are left without those in `columns`, and these, `(rows, 1)`."""
    # The label is taken out of what is kept of a group, which is a copy in the cache: the tile needs none.
    seen_rival, absent_rival = (
        torch.minimum(tile, limit, out=scratch).scatter_(1, columns, -math.inf).amax(1) for limit in limits
    )
    return seen_rival, absent_rival, tile.gather(1, columns)  # Only now is the tile in the cache.


def settle_ties(scalars: LabelScalars, tied: Tensor, rows: Tensor, labels: Tensor, mask: Tensor) -> None:
    """Correct `hit` where the label ties with a rival: it is one if it comes first in its group."""
    for index in _chosen(tied, rows):
        equal = (rows[index] == scalars.own[index].unsqueeze(1)) & (mask == scalars.is_seen[index].unsqueeze(1))
        scalars.hit[index] = equal.to(torch.uint8).argmax(1) == labels[index]


def _chosen(where: Tensor, rows: Tensor) -> Sequence[Tensor]:
    """Return the indices of the rows that are flagged, of no more at a time than make a tile."""
    index = where.nonzero().squeeze(1)
    return torch.split(index, tile_rows(rows)) if index.numel() else ()


def _are_mostly_seen(logits: Tensor, mask: Tensor) -> bool:
    """Whether seen classes win in some thirty rows, but for so few that it costs less to look at such rows again.

    No more than an eighth of the rows are looked at for it.
    """
    rows = logits[:: max(8, logits.shape[0] // 32)]
    winner = torch.cat([_argmax(tile)[0] for tile, _ in tiles(rows)])
    return int((~mask[winner]).sum()) * 6 <= rows.shape[0]


def _argmax(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first column of each maximum, and the maximum: on a CPU by NumPy, three times faster than torch."""
    column = torch.from_numpy(rows.numpy().argmax(1)) if _is_eager_cpu(rows) else rows.argmax(1)
    return column, rows.gather(1, column.unsqueeze(1)).squeeze(1)


def _is_eager_cpu(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and not torch.compiler.is_compiling()
