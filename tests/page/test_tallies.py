"""Samples counted by levels of their margins, against the same counted one by one."""

import math

import numpy as np
import pytest

from finecal.page import tallies
from finecal.page.tallies import Levels, confused_pairs, first_changes, levels_of, tally

INF = math.inf
WANTED = [-1.0, -0.5, 0.0, 0.5, 1.0]


def margins(seed=0, samples=3000):
    margin = np.random.default_rng(seed).normal(size=samples).astype(np.float32)
    margin[:9] = [0.0, 0.5, -0.5, INF, -INF, 1.0, -1.0, 40.0, -0.0]
    return margin


def test_few_margins_are_their_own_levels():
    margin = margins()
    levels = levels_of(margin, WANTED)
    assert levels.are_exact
    assert levels.values[levels.of_sample].tolist() == margin.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_margins_change_sides_at_levels_only_as_they_are(dtype, monkeypatch):
    monkeypatch.setattr(tallies, "EXACT", 10)
    margin = margins().astype(dtype)
    levels = levels_of(margin, WANTED)
    assert not levels.are_exact
    assert set(WANTED) <= set(levels.values)
    assert len(levels.values) <= len(WANTED) + 2 * 257 + 4
    rounded = levels.values[levels.of_sample]
    assert (rounded <= margin).all()
    for gamma in levels.values:
        assert ((margin < gamma) == (rounded < gamma)).all()
    between = 0.5 * (levels.values[1:-2] + levels.values[2:-1])
    for gamma, above in zip(between, levels.values[2:-1], strict=True):
        assert ((margin < above) == (rounded < gamma)).all()
    assert set(rounded[margin == INF]) == {INF}
    assert set(rounded[margin == -INF]) == {-INF}


def test_infinite_margins_alone_have_levels(monkeypatch):
    monkeypatch.setattr(tallies, "EXACT", 1)
    levels = levels_of(np.array([INF, -INF, INF], dtype=np.float32), [0.0])
    assert levels.values[levels.of_sample].tolist() == [INF, -INF, INF]


def test_tally_counts_every_sample_once():
    rng = np.random.default_rng(1)
    group, level = rng.integers(0, 5, 200), rng.integers(0, 9, 200).astype(np.uint16)
    group[group == 3] = 4
    found = tally(group, level, 6)
    assert found.cells[3] == found.cells[5] == 0
    cells = zip(np.repeat(np.arange(6), found.cells), found.level, found.samples, strict=True)
    expected = [(g, k, ((group == g) & (level == k)).sum()) for g in range(6) for k in range(9)]
    assert list(cells) == [cell for cell in expected if cell[2]]
    assert tally(group[:0], level[:0], 3).cells.tolist() == [0, 0, 0]


def most_confused(label, other, is_seen, levels, below, shown):
    """Return the pairs with the most samples on the other side, of equal ones the earlier, with their samples."""
    counts = {}
    for *pair, absent, seen in zip(label.tolist(), other.tolist(), levels.of_sample < below, is_seen, strict=True):
        pair = tuple(pair)
        counts[pair] = counts.get(pair, 0) + int(absent == seen)
    return sorted(((pair, n) for pair, n in counts.items() if n), key=lambda item: -item[1])[:shown]


@pytest.mark.parametrize("are_exact", [True, False])
@pytest.mark.parametrize(("classes", "samples"), [(4, 300), (30, 500), (12, 1500)])
def test_pairs_that_are_ever_shown_are_kept(classes, samples, are_exact):
    rng = np.random.default_rng(classes)
    label, is_seen = rng.integers(0, classes, samples), np.zeros(samples, dtype=bool)
    is_seen[label < classes // 2] = True
    other = np.minimum(rng.geometric(0.3, samples) - 1, classes // 2 - 1) + np.where(is_seen, classes // 2, 0)
    of_sample = rng.integers(0, 15, samples).astype(np.uint16)
    levels = Levels(np.arange(15.0), of_sample, are_exact)
    pairs = confused_pairs(label, other, is_seen, levels, shown=5)
    kept = list(zip(pairs.label.tolist(), pairs.predicted.tolist(), strict=True))
    everything = list(dict.fromkeys(zip(label.tolist(), other.tolist(), strict=True)))
    assert kept == [pair for pair in everything if pair in set(kept)]
    if are_exact:
        assert len(kept) == len(everything)
    elif classes == 30:
        assert len(kept) < 0.6 * len(everything)
    group = np.repeat(np.arange(len(kept)), pairs.tally.cells)
    for below in range(16):
        found = []
        for index, pair in enumerate(kept):
            cells = group == index
            absent = pairs.tally.samples[cells & (pairs.tally.level < below)].sum()
            count = absent if pair[0] < classes // 2 else pairs.tally.samples[cells].sum() - absent
            found.append((pair, int(count)))
        shown = sorted((item for item in found if item[1]), key=lambda item: -item[1])[:5]
        assert shown == most_confused(label, other, is_seen, levels, below, 5)


@pytest.mark.parametrize("order", ["mixed", "rising", "falling"])
def test_first_changes_hold_all_that_come_first_at_some_gamma(order):
    margin = margins(2, 400)
    if order != "mixed":
        margin = np.sort(margin)[:: 1 if order == "rising" else -1]
    values, of_sample = np.unique(margin, return_inverse=True)
    kept = first_changes(Levels(values, of_sample.astype(np.uint16), True), shown=4)
    assert kept.tolist() == sorted(set(kept.tolist()))
    ever = set()
    for gamma in [*values, 50.0]:
        ever |= set(((margin < gamma) != (margin < 0)).nonzero()[0][:4].tolist())
    assert ever <= set(kept.tolist())
    assert order != "mixed" or len(kept) < 100
