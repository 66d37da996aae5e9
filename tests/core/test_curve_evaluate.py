"""The functions from logits to a report."""

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


def test_gamma_may_be_an_estimate(rng):
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    mask = [True, True, False, False]
    estimate = finecal.search_gamma(logits, labels, mask)
    assert finecal.evaluate(logits, labels, mask, estimate).gamma == estimate.gamma


def test_none_is_no_gamma(rng):
    logits, labels, mask = rng.normal(size=(50, 6)), rng.integers(0, 6, 50), np.arange(6) < 3
    assert finecal.evaluate(logits, labels, mask, None) == finecal.evaluate(logits, labels, mask, 0.0)
