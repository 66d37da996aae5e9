"""Reductions of rows of logits in plain torch, tile by tile."""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_TILE_ELEMENTS = {"cpu": 1 << 19}
_TILE_ELEMENTS_ELSEWHERE = 1 << 25


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic on logits of `dtype`: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tiles(
    rows: Tensor, dtype: torch.dtype | None = None, *, writable: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield cache-sized blocks in `dtype` (default: float32 or wider) with a shared scratch block, None in graphs."""
    dtype = dtype or wide_dtype(rows.dtype)
    if torch.compiler.is_compiling():
        yield rows.to(dtype, copy=writable), None
        return
    height = tile_rows(rows)
    scratch = torch.empty((min(height, rows.shape[0]), rows.shape[1]), dtype=dtype, device=rows.device)
    copy = torch.empty_like(scratch) if writable or rows.dtype != dtype else None
    for block in torch.split(rows, height):
        count = block.shape[0]
        yield block if copy is None else copy[:count].copy_(block), scratch[:count]


def tile_rows(rows: Tensor) -> int:
    """Return how many rows of `(N, C)` logits make a tile."""
    if torch.compiler.is_compiling():
        return max(1, rows.shape[0])
    return max(1, _TILE_ELEMENTS.get(rows.device.type, _TILE_ELEMENTS_ELSEWHERE) // rows.shape[1])


_LEAST_ELEMENTS = 1 << 21
"""Number of logits from which threads pay off."""


def map_row_chunks(
    kernel: Callable[..., tuple[Tensor, ...]], *columns: Tensor, elements: int | None = None
) -> tuple[Tensor, ...]:
    """Run a kernel on slices of rows, in threads if `elements` (default: the size of the first column) are many."""
    first = columns[0]
    elements = first.numel() if elements is None else elements
    if torch.compiler.is_compiling() or first.device.type != "cpu" or elements < _LEAST_ELEMENTS:
        return kernel(*columns)
    threads = min(torch.get_num_threads(), first.shape[0])
    if threads == 1:
        return kernel(*columns)
    inference = torch.is_inference_mode_enabled()  # of this thread alone, as is the next

    def run(part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode(inference), torch.no_grad():
            return kernel(*part)

    parts = zip(*(column.tensor_split(threads) for column in columns), strict=True)
    return concat_columns(_pool(threads).map(run, parts))


def concat_columns(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Join what a kernel returned for parts of the rows, column by column."""
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    before, all_started = torch.get_num_threads(), Barrier(threads)

    def start() -> None:
        torch.get_num_threads()  # The first call of a thread takes over the number of the process.
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(threads, "finecal", start)
    wait([pool.submit(int) for _ in range(threads)])
    torch.set_num_threads(before)  # New threads of others take over what was set last.
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # Threads do not survive a fork.


_WIDE = 4096
"""Classes from which on winners cost less than rivals: by a third where nearly all rows have a winner of one group."""
_FEW = 8
"""Up to one row of so many is copied out, at the end, rather than to look at the whole tile again."""
_UNDERFLOWS = 1e-280
"""Sums of exponentials below this have lost digits, or terms."""


class LabelHits(NamedTuple):
    """The maxima of both groups in each labelled row, and whether the label is the first largest of its own group."""

    seen_max: Tensor
    absent_max: Tensor
    hit: Tensor


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

    @property
    def hits(self) -> LabelHits:
        return LabelHits(self.seen_max, self.absent_max, self.hit)


def group_limits(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the limits that keep only seen, and only absent, columns under `torch.minimum`."""
    infinity = torch.full(mask.shape, math.inf, dtype=wide_dtype(dtype), device=mask.device)
    return torch.where(mask, infinity, -infinity), torch.where(mask, -infinity, infinity)


def group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest seen and the largest absent logit of each row of `(N, C)` logits."""
    limits = group_limits(mask, logits.dtype)

    def kernel(rows: Tensor) -> tuple[Tensor, ...]:
        return concat_columns([_tile_maxima(tile, limits, scratch) for tile, scratch in tiles(rows)])

    seen_max, absent_max = map_row_chunks(kernel, logits)
    return seen_max, absent_max


def group_log_sum_exps(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64 log-sum-exp over the seen and over the absent logits of each row; -inf where all are masked."""
    groups = torch.stack([mask, ~mask], dim=1).double()
    limits = group_limits(mask, torch.float64)

    def kernel(rows: Tensor) -> tuple[Tensor, ...]:
        parts = [_tile_log_sum_exps(tile, groups, limits, scratch) for tile, scratch in tiles(rows, torch.float64)]
        return torch.cat(parts).unbind(1)

    seen, absent = map_row_chunks(kernel, logits)
    return seen, absent


def label_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars:
    """Return rivals, own logit and hit of each row of `(N, C)` logits, in one pass."""
    return with_rivals(rivals(logits, labels, mask), logits, labels, mask)


def rivals(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return the largest seen and the largest absent logit of each row, the label's own left out, and that."""
    limits = group_limits(mask, logits.dtype)

    def kernel(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        blocks = zip(tiles(rows), torch.split(columns, tile_rows(rows)), strict=True)
        return concat_columns([_tile_rivals(tile, block, limits, scratch) for (tile, scratch), block in blocks])

    return *map_row_chunks(kernel, logits, labels.unsqueeze(1)), own_logits(logits, labels)


def own_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of the label of each row, in float32, or float64 if it came so."""
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1).to(wide_dtype(logits.dtype))


def with_rivals(found: tuple[Tensor, ...], logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars:
    """Complete the scalars of labelled logits from what `rivals` found."""
    seen_rival, absent_rival, own = found
    is_seen = mask[labels]
    rival = torch.where(is_seen, seen_rival, absent_rival)
    scalars = LabelScalars(seen_rival, absent_rival, own, is_seen, own > rival)
    _settle_ties(scalars, own == rival, logits, labels, mask)
    return scalars


class Winners(NamedTuple):
    """The best column of each group in each row, and its logit."""

    seen: Tensor
    absent: Tensor
    seen_max: Tensor
    absent_max: Tensor


def winners(logits: Tensor, mask: Tensor, gamma: float | Tensor | None = None) -> Winners:
    """Look for the first largest logit of each group in each row.

    With gamma, the group that loses at it may come with any of its logits.
    """
    limits = group_limits(mask, logits.dtype)

    def kernel(rows: Tensor) -> "tuple[Tensor, ...]":  # a text, as torch 2.4 cannot compile the type
        if _lie_across(rows):
            return _winners_across_rows(rows, mask)
        # A graph cannot look at values, and a GPU would have to be waited for.
        found = _columns_by_rows(rows, mask, limits, gamma) if _is_eager_cpu(rows) else _columns_by_groups(rows, limits)
        # Where a group is masked as a whole, any column may have come out: its first one wins.
        columns = [
            torch.where(group[column], column, group.to(torch.uint8).argmax())
            for column, group in zip(found, (mask, ~mask), strict=True)
        ]
        return *columns, *(rows.gather(1, column.unsqueeze(1)).squeeze(1).to(limits[0]) for column in columns)

    return Winners(*map_row_chunks(kernel, logits))


def _winners_across_rows(rows: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Find the winners of rows that are columns in memory, many at once, on copies of half the size of a tile."""
    groups = [group.nonzero().squeeze(1) for group in (mask, ~mask)]
    blocks = []
    for block in torch.split(rows, max(1, tile_rows(rows) // 2)):
        found = [_first_largest(block.T.index_select(0, group)) for group in groups]
        columns = [group[place] for group, (place, _) in zip(groups, found, strict=True)]
        blocks.append((*columns, *(maximum.to(wide_dtype(rows.dtype)) for _, maximum in found)))
    return concat_columns(blocks)


def _first_largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each column has its first largest value, or any place where it has NaN, and that value."""
    count = len(values)
    # The first of several has the most places from there on: torch's `argmax` takes longer.
    dtype = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32
    left = torch.arange(count, 0, -1, dtype=dtype).unsqueeze(1)
    maximum = values.amax(0)
    most = ((values == maximum) * left).amax(0).long()
    return (count - most).clamp_(max=count - 1), maximum


def _columns_by_groups(rows: Tensor, limits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    found = [[torch.minimum(tile, limit, out=scratch).argmax(1) for limit in limits] for tile, scratch in tiles(rows)]
    seen, absent = map(torch.cat, zip(*found, strict=True))
    return seen, absent


def _columns_by_rows(
    rows: Tensor, mask: Tensor, limits: tuple[Tensor, Tensor], gamma: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Find the winner of each row, then that of the group that lost; groups that lose in few rows come last."""
    is_seen = mask.numpy()
    columns, later = np.zeros((2, len(rows)), dtype=np.int64), np.zeros(len(rows), dtype=bool)
    # Gamma above 0 leaves absent winners where they are, and seen winners otherwise.
    unmoved = (False, False) if gamma is None else (bool(gamma > 0), bool(gamma <= 0))
    start = 0
    for tile, scratch in tiles(rows):
        part = slice(start, start + len(tile))
        start = part.stop
        winner, loser = columns[:, part]
        tile.numpy().argmax(1, out=winner)
        seen_wins = is_seen[winner]
        for limit, lost, stays in zip(limits, (~seen_wins, seen_wins), unmoved, strict=True):
            if stays:
                continue
            if np.count_nonzero(lost) * _FEW <= len(lost):
                later[part] |= lost
            else:
                np.copyto(loser, torch.minimum(tile, limit, out=scratch).numpy().argmax(1), where=lost)
    absent_wins = ~is_seen[columns[0]]
    for limit, lost in zip(limits, (absent_wins, ~absent_wins), strict=True):
        for index in _chosen(torch.from_numpy(later & lost), rows):
            rest = rows[index].to(limit.dtype)
            columns[1, index.numpy()] = torch.minimum(rest, limit, out=rest).numpy().argmax(1)
    columns[:, absent_wins] = columns[::-1, absent_wins]
    seen, absent = torch.from_numpy(columns)
    return seen, absent


def label_hits(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelHits:
    """Return the maxima of both groups, and whether the label is the first largest of its own."""
    if logits.shape[1] < _WIDE and not _lie_across(logits):
        return label_scalars(logits, labels, mask).hits
    found = winners(logits, mask)
    hit = torch.where(mask[labels], found.seen, found.absent) == labels
    return LabelHits(found.seen_max, found.absent_max, hit)


def weighted_sums(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return the float64 sum of each row of `(N, C)` logits by `(C,)` weights, the label's own left out."""

    def kernel(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        blocks = zip(tiles(rows, torch.float64, writable=True), torch.split(columns, tile_rows(rows)), strict=True)
        return (torch.cat([tile.scatter_(1, block, 0) @ weight for (tile, _), block in blocks]),)

    (sums,) = map_row_chunks(kernel, logits, labels.unsqueeze(1))
    return sums


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
) -> tuple[Tensor, Tensor]:
    # The label is taken out of what is kept of a group, which is a copy in the cache: the tile needs none.
    seen_rival, absent_rival = (
        torch.minimum(tile, limit, out=scratch).scatter_(1, columns, -math.inf).amax(1) for limit in limits
    )
    return seen_rival, absent_rival


def _settle_ties(scalars: LabelScalars, tied: Tensor, rows: Tensor, labels: Tensor, mask: Tensor) -> None:
    """Correct `hit` where the label ties with a rival: it is one if it comes first in its group."""
    for index in _chosen(tied, rows):
        equal = (rows[index] == scalars.own[index].unsqueeze(1)) & (mask == scalars.is_seen[index].unsqueeze(1))
        scalars.hit[index] = equal.to(torch.uint8).argmax(1) == labels[index]


def _chosen(where: Tensor, rows: Tensor) -> Sequence[Tensor]:
    """Return the indices of the rows that are flagged, of no more at a time than make a tile."""
    index = where.nonzero().squeeze(1)
    return torch.split(index, tile_rows(rows)) if index.numel() else ()


def _lie_across(rows: Tensor) -> bool:
    """Whether rows are columns in memory, as the positions of a picture are, and may be looked at many at once."""
    return _is_eager_cpu(rows) and rows.stride(0) < rows.stride(1)


def _is_eager_cpu(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and not torch.compiler.is_compiling()
