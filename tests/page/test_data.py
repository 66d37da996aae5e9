"""What the scripts of a page count from; they count by the rule that `predictions` states anew."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
import reference
from finecal.page.data import Page, slider_range
from profiles import examples
from report_pages import data_of, page_of_ties, predictions, problem, read

INF = math.inf


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_data_give_what_evaluate_gives_at_every_gamma(average):
    html, (logits, labels, mask) = page_of_ties(average)
    data = data_of(html)
    assert data["average"] == average
    assert data["label"].tolist() == labels.tolist()
    assert len(set(data["margin"].tolist())) < 30
    for gamma in (-3.0, 0.0, 1.0, 1.5, 2.0, 40.0):
        chosen = predictions(data, gamma)
        assert chosen.tolist() == finecal.predict(logits, mask, gamma).tolist()
        right = chosen == data["label"]
        assert right.tolist() == [
            bool(hit and (margin < gamma) != seen)
            for margin, hit, seen in zip(data["margin"].tolist(), data["flags"] >> 1, data["flags"] & 1, strict=True)
        ]
        report = finecal.evaluate(logits, labels, mask, gamma, average)
        expected = reference.accuracies(logits, labels, mask, gamma, average)
        assert (report.acc_seen, report.acc_absent, report.acc_all) == pytest.approx(expected)
        if average == "micro":
            assert right.mean() == report.acc_all


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_each_dtype_keep_their_margins(dtype):
    logits, labels, mask = problem(1)
    tensors = torch.tensor(logits).to(dtype), torch.tensor(labels), torch.tensor(mask)
    data = data_of(finecal.html_report(*tensors))
    assert data["margin"].dtype.itemsize == (8 if dtype == torch.float64 else 4)
    assert data["margin"].tolist() == finecal.margins(*tensors).margin.tolist()


@pytest.mark.usefixtures("without_figures")
def test_many_classes_take_wider_indices():
    logits = np.full((3, 70_000), -1.0, dtype=np.float32)
    labels = np.array([0, 69_999, 65_536])
    logits[np.arange(3), labels] = 3
    mask = np.arange(70_000) < 10
    data = data_of(finecal.html_report(logits, labels, mask))
    assert data["label"].tolist() == labels.tolist()
    assert data["absent_class"].tolist() == [10, 69_999, 65_536]


def test_size_grows_by_what_is_counted_from():
    def size(samples):
        return len(finecal.html_report(*problem(2, samples, 30)))

    small, large = size(20_000), size(60_000)
    packed = 4 / 3 * (4 + 1 + 3 * 2)  # margin, flags, three classes; in base64
    assert 40_000 * packed == pytest.approx(large - small, rel=0.02)
    assert small < 800_000


@pytest.mark.parametrize("masked", ["seen", "all", "some"])
def test_masked_classes(masked):
    logits, labels, mask = problem(6)
    columns = {"seen": mask, "all": mask | True, "some": np.arange(7) < 2}[masked]
    logits[:, columns] = -INF
    html = finecal.html_report(logits, labels, mask, 1.0)
    data = data_of(html)
    assert np.isfinite(data["margin"]).all() == (masked == "some")
    assert predictions(data, 1.0).tolist() == finecal.predict(logits, mask, 1.0).tolist()
    assert "NaN" not in read(html).one("script", id="data").text
    slider = read(html).one("input", id="slider").attributes
    assert float(slider["min"]) < 0 < float(slider["max"])


def test_one_sample():
    data = data_of(finecal.html_report(np.array([[1.0, 2.0]]), [1], [True, False], 0.5))
    assert data["margin"].tolist() == [-1.0]


@examples(60)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, INF, -INF]), min_size=1, max_size=6),
    st.floats(-1e6, 1e6),
)
def test_slider_holds_zero_and_gamma_at_its_steps(margins, gamma):
    margin = np.array(margins, dtype=np.float32)
    flags = np.arange(len(margin)) % 2 == 0
    curve = finecal.Margins(margin, flags, flags | True, None).curve()
    low, high, step = slider_range(Page(curve, gamma))
    assert low <= gamma <= high
    assert low < 0 < high
    assert -low / step == pytest.approx(round(-low / step), rel=1e-9)
    assert 200 <= (high - low) / step <= 2005
