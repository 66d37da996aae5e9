import math
import pickle
from dataclasses import asdict

import numpy as np
import pytest

import finecal
import reference


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.3, 2.0, 50.0])
@pytest.mark.parametrize("average", ["micro", "macro"])
def test_equals_predicting_every_sample(rng, gamma, average):
    logits = rng.normal(size=(300, 11)).astype(np.float32)
    labels, mask = rng.integers(0, 11, 300), np.arange(11) < 5
    report = finecal.evaluate(logits, labels, mask, gamma, average)
    seen, absent, both = reference.accuracies(logits.astype(np.float64), labels, mask, gamma, average)
    assert (report.acc_seen, report.acc_absent, report.acc_all) == pytest.approx((seen, absent, both))
    assert report.balanced == pytest.approx((seen + absent) / 2)
    assert report.harmonic_mean == pytest.approx(reference.objective("harmonic", seen, absent, both))
    hits = np.array([reference.is_hit(row, y, mask) for row, y in zip(logits, labels, strict=True)])
    if average == "micro":
        assert report.acc_seen_within == pytest.approx(hits[mask[labels]].mean())
        assert report.acc_absent_within == pytest.approx(hits[~mask[labels]].mean())
    else:
        assert report.acc_seen_within == pytest.approx(np.mean([hits[labels == c].mean() for c in range(5)]))
        assert report.acc_absent_within == pytest.approx(np.mean([hits[labels == c].mean() for c in range(5, 11)]))
    assert (report.n_seen, report.n_absent) == (mask[labels].sum(), (~mask[labels]).sum())
    assert report.gamma == gamma


def test_prints_as_a_table():
    text = str(finecal.evaluate(np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]]), [0, 2], [True, True, False]))
    assert text.splitlines() == [
        "gamma = 0",
        "| accuracy, %         |  seen | absent |  all |",
        "| ------------------- | ----: | -----: | ---: |",
        "| every class allowed | 100.0 |    0.0 | 50.0 |",
        "| own group allowed   | 100.0 |  100.0 |      |",
        "| samples             |     1 |      1 |    2 |",
        "harmonic mean 0.0 %, balanced 50.0 %, AUSUC 0.0000",
    ]


def test_one_sided_data_print_a_dash():
    report = finecal.evaluate(np.zeros((1, 2)), [0], [True, False])
    assert math.isnan(report.harmonic_mean)
    assert "nan" not in str(report)
    assert " - |" in str(report)


def test_gamma_may_be_an_estimate(rng):
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    mask = [True, True, False, False]
    estimate = finecal.search_gamma(logits, labels, mask)
    assert finecal.evaluate(logits, labels, mask, estimate).gamma == estimate.gamma


def test_harmonic_mean_where_the_accuracies_are_equal_or_zero():
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert finecal.evaluate(logits, [0, 1], [True, False]).harmonic_mean == 1.0
    assert finecal.evaluate(logits, [0, 1], [True, False], 9.0).harmonic_mean == 0.0
    wrong = np.array([[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 0.0]])
    assert finecal.evaluate(wrong, [0, 3], [True, True, False, False]).harmonic_mean == 0.0


def test_keeps_the_margins_aside(rng):
    logits, labels, mask = rng.normal(size=(50, 4)), rng.integers(0, 4, 50), np.arange(4) < 2
    report = finecal.evaluate(logits, labels, mask, 0.5, "macro")
    assert report.average == "macro"
    for kept in (report.samples, pickle.loads(pickle.dumps(report)).samples):
        np.testing.assert_array_equal(kept.margin, finecal.margins(logits, labels, mask).margin)
        assert kept.curve(report.average).at(report.gamma) == report
    assert "samples" not in asdict(report)
    assert "samples" not in repr(report)
