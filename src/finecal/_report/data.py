"""Data of the page: its contents, the positions of its slider, and the counts that its scripts add up.

Beyond 16,384 samples, margins are rounded down to levels, which include all positions of the slider, so that the page
does not grow. At a gamma that is a level, all counts are exact: samples below gamma are predicted absent.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from functools import cached_property
from heapq import heappush, heapreplace
from typing import Any, NamedTuple

import numpy as np

from .._calibrators.prototypes import PrototypesReport
from .._core.arrays import NumpyArray
from .._core.curve import TradeoffCurve
from .._core.report import SeenAbsentReport
from .._estimators.estimate import GammaEstimate


class WithPrototypes(NamedTuple):
    """Accuracies with prototypes, and the gamma that they were fitted with."""

    gamma: float
    accuracies: SeenAbsentReport
    made_from: PrototypesReport | None


@dataclass(frozen=True, eq=False)
class Page:
    """Contents of the page: N samples on a curve, and the gamma at which it opens."""

    curve: TradeoffCurve[NumpyArray]
    gamma: float
    num_classes: int | None = None
    num_seen: int | None = None
    class_names: tuple[str, ...] | None = None
    title: str | None = None
    estimate: GammaEstimate | None = None
    gamma_was_given: bool = True
    winners: tuple[NumpyArray, NumpyArray] | None = None
    """Best seen and best absent class of each sample, `(N,)` each; None without logits."""
    prototypes: WithPrototypes | None = None

    @cached_property
    def oracle(self) -> float | None:
        """The best gamma on these labels; None if they are of one group."""
        return self.curve.best() if self.curve.n_seen and self.curve.n_absent else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the estimate and of the prototypes."""
        sources = (self.estimate, None if self.prototypes is None else self.prototypes.made_from)
        return tuple(sentence for source in sources if source is not None for sentence in source.warnings)

    def name(self, index: int) -> str:
        return str(index) if self.class_names is None else self.class_names[index]


SHOWN_PAIRS, SHOWN_CHANGES = 20, 12
"""Most rows of the tables of pairs and of changes."""
_NARROWEST = 1e-300
_MOST_STEPS, _MOST_OF_MANY_CLASSES = 2000, 500
"""Most steps of the slider; rounding the step width leaves at least two fifths of them."""
_CELLS = 1 << 19
"""Most classes times steps; beyond, the slider has at most `_MOST_OF_MANY_CLASSES` steps."""


class ClassRow(NamedTuple):
    """One line of the table of classes."""

    label: int
    name: str
    group: str
    """ "seen" or "absent"."""
    samples: int
    before: float
    now: float

    @property
    def change(self) -> float:
        return self.now - self.before


def class_rows(page: Page) -> list[ClassRow]:
    """Return a row for each class with samples, the largest loss first; none without labels."""
    samples = page.curve.samples
    if samples.label is None:
        return []
    counts = np.bincount(samples.label)
    right = []
    for gamma in (0.0, page.gamma):
        is_right = samples.hit & (samples.is_seen == (samples.margin.astype(np.float64) >= gamma))
        right.append(np.bincount(samples.label[is_right], minlength=len(counts)))
    is_seen = np.zeros(len(counts), dtype=bool)
    is_seen[samples.label] = samples.is_seen
    columns = [array.tolist() for array in (is_seen, counts, *right)]
    rows = [
        ClassRow(label, page.name(label), "seen" if seen else "absent", size, before / size, now / size)
        for label, (seen, size, before, now) in enumerate(zip(*columns, strict=True))
        if size
    ]
    return sorted(rows, key=lambda row: row.change)


def slider_steps(page: Page) -> Steps:
    """Return the positions of the slider: a range of the central 99 % of the margins, 0, gamma and the oracle."""
    margin = page.curve.samples.margin
    finite = margin[np.isfinite(margin)].astype(np.float64)
    bulk = np.quantile(finite, [0.005, 0.995]).tolist() if len(finite) else [-1.0, 1.0]
    points = [*bulk, *_marked(page)]
    low, high = min(points), max(points)
    if high - low < _NARROWEST:
        low, high = -1.0, 1.0
    label = page.curve.samples.label
    classes = 1 if label is None else int(label.max()) + 1
    return steps_around(low, high, min(_MOST_STEPS, max(_MOST_OF_MANY_CLASSES, _CELLS // classes)))


def _marked(page: Page) -> list[float]:
    """Return 0, the gamma of the page and, if it exists, the oracle."""
    return [0.0, page.gamma, *([] if page.oracle is None else [page.oracle])]


def script_data(page: Page, slider: Steps, axes: dict[str, Any]) -> dict[str, Any]:
    """Return the counts that the scripts add up, and the positions of the axes of the figures."""
    samples = page.curve.samples
    levels = levels_of(samples.margin, [*slider.values, *_marked(page)])
    is_seen, hit, label = samples.is_seen, samples.hit, samples.label
    data: dict[str, Any] = {
        "gamma": page.gamma,
        "average": page.curve.average,
        "class_names": page.class_names,
        "axes": axes,
        "shown_pairs": SHOWN_PAIRS,
        "shown_changes": SHOWN_CHANGES,
        "are_exact": levels.are_exact,
        "levels": _packed(levels.values),
        # By group: absent miss, seen miss, absent hit, seen hit.
        "samples": _packed_tally(tally(is_seen | hit.astype(np.uint8) << 1, levels.of_sample, 4)),
        "classes": None,
        "pairs": None,
        "changes": None,
    }
    if label is not None:
        count = np.bincount(label)
        class_is_seen = np.zeros(len(count), dtype=np.uint8)
        class_is_seen[label] = is_seen
        hits = _packed_tally(tally(label[hit], levels.of_sample[hit], len(count)))
        data["classes"] = {"size": _packed_counts(count), "is_seen": _packed(class_is_seen), "hits": hits}
    if label is not None and page.winners is not None:
        seen_class, absent_class = page.winners
        other = np.where(is_seen, absent_class, seen_class)
        pairs = confused_pairs(label, other, is_seen, levels, SHOWN_PAIRS)
        data["pairs"] = {
            "label": _packed_counts(pairs.label),
            "predicted": _packed_counts(pairs.predicted),
            "samples": _packed_tally(pairs.tally),
        }
        sample = first_changes(levels, SHOWN_CHANGES)
        of_sample = {
            "level": levels.of_sample,
            "label": label,
            "seen_class": seen_class,
            "absent_class": absent_class,
        }
        chosen = {name: _packed_counts(array[sample]) for name, array in of_sample.items()}
        data["changes"] = {"sample": _packed_counts(sample), **chosen}
    return data


def _packed_tally(counted: Tally) -> dict[str, dict[str, str]]:
    return {name: _packed_counts(array) for name, array in counted._asdict().items()}


def _packed_counts(array: NumpyArray) -> dict[str, str]:
    """Pack non-negative integers into the smallest unsigned type."""
    largest = int(array.max(initial=0))
    return _packed(
        array.astype(next(kind for kind in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(kind).max))
    )


def _packed(array: NumpyArray) -> dict[str, str]:
    little = array.astype(array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "base64": base64.b64encode(little.tobytes()).decode()}


EXACT = 1 << 14
"""Largest number of samples without rounded margins."""
_BEYOND = 256
"""Most levels beyond either end of the slider."""
_STRONGEST = (64, 256)
"""Numbers of the most frequent pairs to compare the others with, in a coarse and a fine pass."""


class Levels(NamedTuple):
    """L levels of the margin, ascending, and the index of the level of each of N samples."""

    values: NumpyArray
    of_sample: NumpyArray
    are_exact: bool
    """Whether the levels are the margins themselves, so that counts are exact at every gamma."""


def levels_of(margin: NumpyArray, wanted: list[float]) -> Levels:
    """Return the margins as levels; for more than `EXACT`, the `wanted` gammas and up to 256 levels on either side."""
    if len(margin) <= EXACT:
        values, of_sample = np.unique(margin, return_inverse=True)
        return Levels(values, of_sample.astype(np.uint16), True)
    wide = margin.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    edges = [*wanted, np.inf]
    if len(finite):
        largest = finite.max()  # one level above all finite margins
        edges += [finite.min(), max(largest + 1, np.nextafter(largest, np.inf))]
        edges += [*_few(finite[finite < min(wanted)]), *_few(finite[finite > max(wanted)])]
    values = np.unique(edges)
    of_sample = np.searchsorted(values, wide, side="right").astype(np.uint16)
    return Levels(np.append(-np.inf, values), of_sample, False)


def _few(values: NumpyArray) -> list[float]:
    distinct: list[float] = np.unique(values).tolist()
    return distinct[:: len(distinct) // _BEYOND + 1]


class Tally(NamedTuple):
    """Counts of samples by group and level, as the nonzero cells of a sparse matrix, sorted by group and level."""

    cells: NumpyArray
    """Number of cells of each group."""
    level: NumpyArray
    """Level of each cell."""
    samples: NumpyArray
    """Number of samples in each cell."""


def tally(group: NumpyArray, level: NumpyArray, groups: int) -> Tally:
    """Count samples by group and level."""
    width = int(level.max()) + 1 if len(level) else 1
    key, samples = np.unique(group.astype(np.int64) * width + level, return_counts=True)
    return Tally(np.bincount(key // width, minlength=groups), key % width, samples)


class Pairs(NamedTuple):
    """Pairs of a label and a class of the other group, in order of occurrence, with their counts."""

    label: NumpyArray
    predicted: NumpyArray
    tally: Tally


def confused_pairs(label: NumpyArray, other: NumpyArray, is_seen: NumpyArray, levels: Levels, shown: int) -> Pairs:
    """Pair the label of each sample with its best class of the other group, the only one it can be confused with.

    If margins are rounded, pairs that are never among the `shown` most frequent confusions are left out. The number of
    confusions rises with gamma for a seen label and falls for an absent one, so that levels are reversed for these.
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
    """Return the pairs that may be among the `shown` most frequent ones at some level, counting from the lowest level.

    Ties go to the earlier pair. A pair remains if its score at one of its samples is at least the `shown`-th best score
    among the most frequent pairs at that level.
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
    """Return, by level, the lowest score of the best `shown` among the `number` pairs with the most samples."""
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
    """Return all samples that are, at some gamma, among the first `shown` with another prediction than at 0."""
    at_zero = int(np.searchsorted(levels.values, 0.0))
    level = levels.of_sample
    absent = np.flatnonzero(level < at_zero)
    seen = np.flatnonzero(level >= at_zero)
    found = _first(level[seen], seen, shown) + _first(at_zero - 1 - level[absent].astype(np.int64), absent, shown)
    return np.array(sorted(found), dtype=np.int64)


def _first(level: NumpyArray, sample: NumpyArray, shown: int) -> list[int]:
    """Return the samples that are among the first `shown` of those up to their level."""
    order = np.argsort(level.astype(np.uint16), kind="stable")
    level, sample = level[order], sample[order]
    on_level = np.arange(len(level)) - np.searchsorted(level, level)
    first: list[int] = []  # heap of the first samples so far, negated, so that the last of them is at its top
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


_ROUNDING = 1e-9
"""Share of a step within which an end counts as a multiple."""


class Steps(NamedTuple):
    """Multiples of a round step, from the first to the last one; 0 is one of them if it lies between."""

    first: int
    last: int
    unit: int
    """1, 2 or 5, times a power of ten: the step."""
    exponent: int

    @property
    def step(self) -> float:
        return self._multiple(1)

    @property
    def values(self) -> list[float]:
        return [self._multiple(number) for number in range(self.first, self.last + 1)]

    def _multiple(self, number: int) -> float:
        # A quotient of whole numbers is the float nearest to the decimal number: 3 / 10 is 0.3, 3 * 0.1 is not.
        multiple = number * self.unit
        return float(multiple * 10**self.exponent) if self.exponent >= 0 else multiple / 10**-self.exponent


def steps_inside(low: float, high: float, most: int) -> Steps:
    """Return the multiples between `low` and `high` of the smallest round step that fits between them `most` times."""
    least = (high - low) / most
    exponent = math.floor(math.log10(least))
    fitting = (unit for unit in (1, 2, 5) if unit * 10.0**exponent >= least)
    unit, exponent = next(((unit, exponent) for unit in fitting), (1, exponent + 1))
    step = Steps(0, 0, unit, exponent).step
    return Steps(math.ceil(low / step - _ROUNDING), math.floor(high / step + _ROUNDING), unit, exponent)


def steps_around(low: float, high: float, most: int) -> Steps:
    """Return the same multiples, and those next to them on either side, beyond `low` and `high`."""
    inside = steps_inside(low, high, most)
    return inside._replace(first=inside.first - 1, last=inside.last + 1)
