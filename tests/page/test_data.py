"""What the scripts of a page count from; here it is counted by the rules that `report_pages` states anew."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal.page.data import Page, slider_steps
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
    monkeypatch.setattr("finecal.page.tallies.EXACT", 100)
    html = finecal.html_report(*given, 1.2345)
    data, slider = data_of(html), read(html).one("input", id="slider").attributes
    assert not data["are_exact"]
    low, high, step = (float(slider[name]) for name in ("min", "max", "step"))
    positions = [float(f"{low + i * step:.9g}") for i in range(round((high - low) / step) + 1)]
    assert set(positions) | {0.0, 1.2345, best} <= set(data["levels"].tolist())
    for gamma in (*positions[:: len(positions) // 7], 0.0, 1.2345, best, *data["levels"][[1, -2]]):
        assert_counts_are_right(data, given, gamma)
    finite = finecal.margins(*given).margin
    assert data["levels"][1] <= finite.min()
    assert data["levels"][-2] > finite.max()


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_each_dtype_keep_their_margins(dtype):
    logits, labels, mask = problem(1)
    tensors = torch.tensor(logits).to(dtype), torch.tensor(labels), torch.tensor(mask)
    levels = data_of(finecal.html_report(*tensors))["levels"]
    assert levels.dtype.itemsize == (8 if dtype == torch.float64 else 4)
    assert levels.tolist() == finecal.margins(*tensors).margin.unique().tolist()


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
    monkeypatch.setattr("finecal.page.tallies.EXACT", exact)
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
    curve = finecal.Margins(margin, flags, flags | True, np.full(len(margin), classes - 1)).curve()
    steps = slider_steps(Page(curve, gamma))
    assert steps.values[0] <= gamma <= steps.values[-1]
    assert steps.values[0] < 0 < steps.values[-1]
    assert 0 in steps.values
    most = {2: 2000, 1000: 524, 100_000: 500}[classes]
    assert most / 2.5 - 1 <= len(steps.values) <= most + 3
