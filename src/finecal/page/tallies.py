"""Samples counted by their margins: what a page counts from at each gamma, whose size does not grow with them.

Up to 16,384 samples keep their margins. Margins of more are rounded down to levels, among them every position of the
slider. A sample is predicted absent if its margin is below gamma, so that at a gamma that is a level no count changes.
"""

from heapq import heappush, heapreplace
from typing import NamedTuple

import numpy as np

from ..inputs.arrays import NumpyArray

EXACT = 1 << 14
"""Samples up to which margins are kept as they are."""
_BEYOND = 256
"""Levels on either side of the slider."""
_STRONGEST = (64, 256)
"""Pairs with the most samples, by which others are left out: first by few of all, then by many of what remains."""


class Levels(NamedTuple):
    """L levels of the margin, ascending, and on which of them each of N samples is."""

    values: NumpyArray
    of_sample: NumpyArray
    are_exact: bool
    """Whether the levels are the margins, so that every gamma tells apart what it should."""


def levels_of(margin: NumpyArray, wanted: list[float]) -> Levels:
    """Return the margins themselves, or, of too many, the gammas that are `wanted` and some levels beyond these."""
    if len(margin) <= EXACT:
        values, of_sample = np.unique(margin, return_inverse=True)
        return Levels(values, of_sample.astype(np.uint16), True)
    wide = margin.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    edges = [*wanted, np.inf]
    if len(finite):
        largest = finite.max()  # At a level above it, all finite margins are below.
        edges += [finite.min(), max(largest + 1, np.nextafter(largest, np.inf))]
        edges += [*_few(finite[finite < min(wanted)]), *_few(finite[finite > max(wanted)])]
    values = np.unique(edges)
    of_sample = np.searchsorted(values, wide, side="right").astype(np.uint16)
    return Levels(np.append(-np.inf, values), of_sample, False)


def _few(values: NumpyArray) -> list[float]:
    distinct: list[float] = np.unique(values).tolist()
    return distinct[:: len(distinct) // _BEYOND + 1]


class Tally(NamedTuple):
    """How many samples of each group are on each level, where there are any: cells, by group and then by level."""

    cells: NumpyArray
    """Of each group."""
    level: NumpyArray
    """Of each cell."""
    samples: NumpyArray
    """Of each cell."""


def tally(group: NumpyArray, level: NumpyArray, groups: int) -> Tally:
    """Count samples, given the group and the level of each."""
    width = int(level.max()) + 1 if len(level) else 1
    key, samples = np.unique(group.astype(np.int64) * width + level, return_counts=True)
    return Tally(np.bincount(key // width, minlength=groups), key % width, samples)


class Pairs(NamedTuple):
    """Pairs of a label and a class of the other group, in the order in which they first occur; and their samples."""

    label: NumpyArray
    predicted: NumpyArray
    tally: Tally


def confused_pairs(label: NumpyArray, other: NumpyArray, is_seen: NumpyArray, levels: Levels, shown: int) -> Pairs:
    """Pair the label of each sample with the class of the other group that it can be taken for, which is one only.

    If margins are rounded, pairs that are at no gamma among the `shown` most frequent ones are left out: each has a
    score, the samples that are taken for the other class and, of equal ones, the earlier pair. It rises with gamma
    where the label is seen, and falls where it is absent, so that there gamma runs downwards.
    """
    width = int(other.max()) + 1
    key, first, pair = np.unique(label * width + other, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    key, pair, level = key[order], rank[pair], levels.of_sample
    if not levels.are_exact and len(key) > shown:
        last = len(levels.values) - 1
        kept = np.zeros(len(key), dtype=bool)
        for rows, outwards in ((is_seen, level), (~is_seen, last - level)):
            kept[_among_most(pair[rows], outwards[rows], len(key), shown)] = True
        rows = kept[pair]
        key, pair, level = key[kept], (kept.cumsum() - 1)[pair[rows]], level[rows]
    return Pairs(key // width, key % width, tally(pair, level, len(key)))


def _among_most(pair: NumpyArray, level: NumpyArray, pairs: int, shown: int) -> NumpyArray:
    """Return the pairs that may be among the `shown` ones with the highest score while samples come level by level.

    A pair must get, with one of its samples, a score as high as that which `shown` of the strongest pairs then have.
    """
    order = np.argsort(pair * (int(level.max(initial=0)) + 1) + level)
    pair, level = pair[order], level[order]
    for number in _STRONGEST:
        so_far = np.arange(1, len(pair) + 1) - np.searchsorted(pair, pair)
        least = _least_scores(pair, level, pairs, shown, number)
        remains = np.zeros(pairs, dtype=bool)
        remains[pair[so_far * pairs + (pairs - 1 - pair) >= least[level]]] = True
        rows = remains[pair]
        pair, level = pair[rows], level[rows]
    return np.unique(pair)


def _least_scores(pair: NumpyArray, level: NumpyArray, pairs: int, shown: int, number: int) -> NumpyArray:
    """Return, by level, the least score of the `shown` best among the `number` pairs with the most samples."""
    width = int(level.max(initial=0)) + 1
    total = np.bincount(pair, minlength=pairs)
    strongest = np.lexsort((np.arange(pairs), -total))[: min(number, np.count_nonzero(total))]
    if len(strongest) < shown:
        return np.zeros(width, dtype=np.int64)
    place = np.full(pairs, -1)
    place[strongest] = np.arange(len(strongest))
    chosen = place[pair] >= 0
    cell = place[pair[chosen]] * width + level[chosen]
    scores = np.bincount(cell, minlength=len(strongest) * width).reshape(-1, width).cumsum(1)
    scores *= pairs
    scores += (pairs - 1 - strongest)[:, None]
    least: NumpyArray = np.partition(scores, len(scores) - shown, axis=0)[len(scores) - shown]
    return least


def first_changes(levels: Levels, shown: int) -> NumpyArray:
    """Return all samples that are, at some gamma, among the first `shown` whose prediction is not that at gamma = 0."""
    at_zero = int(np.searchsorted(levels.values, 0.0))
    level = levels.of_sample
    absent = np.flatnonzero(level < at_zero)
    seen = np.flatnonzero(level >= at_zero)
    found = _first(level[seen], seen, shown) + _first(at_zero - 1 - level[absent].astype(np.int64), absent, shown)
    return np.array(sorted(found), dtype=np.int64)


def _first(level: NumpyArray, sample: NumpyArray, shown: int) -> list[int]:
    """Return the samples that are among the first `shown` on their level and below."""
    order = np.argsort(level.astype(np.uint16), kind="stable")
    level, sample = level[order], sample[order]
    on_level = np.arange(len(level)) - np.searchsorted(level, level)
    first: list[int] = []  # The first ones so far, negative: the last of these comes out first.
    found = []
    for index in sample[on_level < shown].tolist():
        if len(first) < shown:
            heappush(first, -index)
        elif index < -first[0]:
            heapreplace(first, -index)
        else:
            continue
        found.append(index)
    return found
