"""What the scripts of a page count from; here it is counted by the rules that `report_pages` states anew."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal._report.data import (
    Levels,
    Page,
    confused_pairs,
    first_changes,
    levels_of,
    slider_steps,
    steps_around,
    steps_inside,
    tally,
)
from profiles import examples
from report_pages import accuracies_at, changes_at, confused_at, data_of, page_of_ties, problem, read, right_at

INF = math.inf
GAMMAS = (-3.0, 0.0, 1.0, 1.5, 2.0, 40.0)


def assert_counts_are_right(data, given, gamma):
    """Compare what is counted from the data of a page with predictions from the logits."""
    logits, labels, mask = given
    before, now = (finecal.predict(logits, mask, value) for value in (0.0, gamma))
    assert right_at(data, gamma).tolist() == np.bincount(labels[now == labels], minlength=labels.max() + 1).tolist()
    right, is_seen = now == labels, mask[labels]
    assert accuracies_at(data, gamma) == pytest.approx((right[is_seen].mean(), right[~is_seen].mean(), right.mean()))

    seen_class, absent_class = (columns[logits[:, columns].argmax(1)] for columns in map(np.flatnonzero, (mask, ~mask)))
    rivals = np.where(mask[labels], absent_class, seen_class)
    crossed = mask[now] != mask[labels]
    counts = Counter(zip(labels[crossed].tolist(), now[crossed].tolist(), strict=True))
    pairs = list(dict.fromkeys(zip(labels.tolist(), rivals.tolist(), strict=True)))
    most = sorted(filter(counts.get, pairs), key=lambda pair: -counts[pair])[:20]
    assert confused_at(data, gamma) == [(*pair, counts[pair]) for pair in most]

    changed = (mask[before] != mask[now]).nonzero()[0][:12]
    assert changes_at(data, gamma) == [list(map(int, (i, labels[i], before[i], now[i]))) for i in changed]


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_data_give_what_evaluate_gives_at_every_gamma(average):
    html, given = page_of_ties(average)
    data = data_of(html)
    assert data["average"] == average
    assert data["are_exact"]
    assert len(data["levels"]) < 30
    for gamma in GAMMAS:
        assert_counts_are_right(data, given, gamma)
        right, report = right_at(data, gamma), finecal.evaluate(*given, gamma, average)
        if average == "macro":
            share = right / data["classes"]["size"]
            seen, absent = (share[data["classes"]["is_seen"] == group].mean() for group in (1, 0))
            assert (seen, absent, share.mean()) == pytest.approx((report.acc_seen, report.acc_absent, report.acc_all))
        else:
            assert right.sum() / 60 == report.acc_all


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [7, 90])
def test_many_samples_are_counted_rightly_wherever_the_slider_stands(classes, dtype, monkeypatch):
    logits, labels, mask = problem(3, 2000, classes)
    given = logits.astype(dtype), labels, mask
    best = finecal.tradeoff_curve(*given).best()
    monkeypatch.setattr("finecal._report.data.EXACT", 100)
    html = finecal.html_report(*given, 1.2345)
    data, slider = data_of(html), read(html).one("input", id="slider").attributes
    assert not data["are_exact"]
    low, high, step = (float(slider[name]) for name in ("min", "max", "step"))
    positions = [float(f"{low + i * step:.9g}") for i in range(round((high - low) / step) + 1)]
    assert set(positions) | {0.0, 1.2345, best} <= set(data["levels"].tolist())
    for gamma in (*positions[:: len(positions) // 7], 0.0, 1.2345, best, *data["levels"][[1, -2]]):
        assert_counts_are_right(data, given, gamma)
    finite = finecal.Samples(*given[:2]).margins(given[2]).margin
    assert data["levels"][1] <= finite.min()
    assert data["levels"][-2] > finite.max()


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_each_dtype_keep_their_margins(dtype):
    logits, labels, mask = problem(1)
    tensors = torch.tensor(logits).to(dtype), torch.tensor(labels), torch.tensor(mask)
    levels = data_of(finecal.html_report(*tensors))["levels"]
    assert levels.dtype.itemsize == (8 if dtype == torch.float64 else 4)
    assert levels.tolist() == finecal.Samples(*tensors[:2]).margins(tensors[2]).margin.unique().tolist()


@pytest.mark.usefixtures("without_figures")
def test_many_classes_take_wider_indices():
    logits = np.full((3, 70_000), -1.0, dtype=np.float32)
    labels = np.array([0, 69_999, 65_536])
    logits[np.arange(3), labels] = 3
    logits[0, 10] = 4  # so that its prediction changes
    mask = np.arange(70_000) < 10
    data = data_of(finecal.html_report(logits, labels, mask, 3.0))
    assert data["pairs"]["label"].tolist() == labels.tolist()
    assert data["changes"]["absent_class"].tolist() == [10, 69_999, 65_536]


@pytest.mark.usefixtures("without_figures")
def test_size_does_not_grow_with_the_samples():
    def size(samples, classes):
        # 30 times the same 2,000 margins, a little apart: what is on the page is counted from all.
        logits, labels, mask = problem(2, 2000, classes)
        copies = samples // 2000
        logits = np.tile(logits, (copies, 1))
        logits[:, mask] += np.repeat(np.linspace(0, 0.01, copies, dtype=np.float32), 2000)[:, None]
        return len(finecal.html_report(logits, np.tile(labels, copies), mask))

    assert size(200_000, 5) < 1.1 * size(100_000, 5) < 300_000
    assert size(60_000, 30) < 500_000


@pytest.mark.parametrize("masked", ["seen", "all", "some"])
@pytest.mark.parametrize("exact", [100, 1])
def test_masked_classes(masked, exact, monkeypatch):
    monkeypatch.setattr("finecal._report.data.EXACT", exact)
    logits, labels, mask = problem(6)
    columns = {"seen": mask, "all": mask | True, "some": np.arange(7) < 2}[masked]
    logits[:, columns] = -INF
    html = finecal.html_report(logits, labels, mask, 1.0)
    data = data_of(html)
    for gamma in (0.0, 1.0):
        assert accuracies_at(data, gamma)[2] == finecal.evaluate(logits, labels, mask, gamma).acc_all
    assert "NaN" not in read(html).one("script", id="data").text
    slider = read(html).one("input", id="slider").attributes
    assert float(slider["min"]) < 0 < float(slider["max"])


def test_one_sample():
    data = data_of(finecal.html_report(np.array([[1.0, 2.0]]), [1], [True, False], 0.5))
    assert data["levels"].tolist() == [-1.0]


@examples(60)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, INF, -INF]), min_size=1, max_size=6),
    st.floats(-1e6, 1e6),
    st.sampled_from([2, 1000, 100_000]),
)
def test_slider_holds_zero_and_gamma_between_its_steps(margins, gamma, classes):
    margin = np.array(margins, dtype=np.float32)
    flags = np.arange(len(margin)) % 2 == 0
    curve = finecal.logits.Margins(margin, flags, flags | True, np.full(len(margin), classes - 1)).curve()
    steps = slider_steps(Page(curve, gamma))
    assert steps.values[0] <= gamma <= steps.values[-1]
    assert steps.values[0] < 0 < steps.values[-1]
    assert 0 in steps.values
    most = {2: 2000, 1000: 524, 100_000: 500}[classes]
    assert most / 2.5 - 1 <= len(steps.values) <= most + 3


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
    monkeypatch.setattr("finecal._report.data.EXACT", 10)
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
    monkeypatch.setattr("finecal._report.data.EXACT", 1)
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


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 1.0, 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.26, 0.31, 6, [-0.2, -0.1, 0.0, 0.1, 0.2, 0.3]),
        (3.0, 61.0, 6, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]),
        (-1200.0, 40.0, 4, [-1000.0, -500.0, 0.0]),
        (0.0, 7e-9, 7, [0.0, 1e-9, 2e-9, 3e-9, 4e-9, 5e-9, 6e-9, 7e-9]),
    ],
)
def test_values_are_the_numbers_that_a_reader_writes(low, high, most, expected):
    assert steps_inside(low, high, most).values == expected


@examples(100)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.integers(-250, 250), st.integers(1, 2000))
def test_steps_are_inside_or_around(start, width, exponent, most):
    low, high = start * 10.0**exponent, (start + width) * 10.0**exponent
    inside, around = steps_inside(low, high, most), steps_around(low, high, most)
    near = 1e-6 * inside.step
    assert all(low - near <= value <= high + near for value in inside.values)
    assert (high - low) / most - near <= inside.step <= 2.5 * (high - low) / most + near
    assert around.values[0] < low < high < around.values[-1]
    assert around.values[1:-1] == inside.values
