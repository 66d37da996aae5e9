import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finecal._core.groups import HELD_OUT, TRAINING, Bootstrap
from finecal._estimators.evidence import GapEvidence, combine_evidence, evidence_of_held_out, evidence_of_training
from finecal._estimators.mixed_pairs import GapEstimate, estimate_pair_gap
from finecal._estimators.residuals import estimate_residual_gap
from problems import MASK, doubtful_problem, scan_labelled
from profiles import examples

SEEN = np.flatnonzero(MASK)
KINDS = pytest.mark.parametrize(
    ("find", "stream"), [(evidence_of_training, TRAINING), (evidence_of_held_out, HELD_OUT)]
)


def scan(problem):
    return scan_labelled(*problem, MASK)


def with_mistakes(rng, share, n=200, shift=4.0):
    """Samples of which this share is mistaken for another seen class, by a little."""
    labels = rng.choice(SEEN, n)
    logits = rng.normal(size=(n, 7)) / 4 + shift * MASK
    logits[np.arange(n), labels] += 5
    for i in range(round(share * n)):
        logits[i, labels[i]] -= 7
    return logits, labels


def mistakes(logits, labels):
    """The share of samples whose label is not the best seen class, one by one."""
    return np.mean([max(SEEN, key=lambda c: row[c]) != label for row, label in zip(logits, labels, strict=True)])


def found_by(residual, pairs, monkeypatch, unit=1.0, mistaken=0.0, n=40):
    """Return what is found where residuals and mixed pairs say this, and this share of the samples is mistaken."""
    monkeypatch.setattr("finecal._estimators.evidence.estimate_residual_gap", lambda *given, **options: residual)
    monkeypatch.setattr("finecal._estimators.evidence.estimate_pair_gap", lambda *given: pairs)
    rng = np.random.default_rng(0)
    return evidence_of_held_out(scan(with_mistakes(rng, mistaken, n)), Bootstrap(len(residual.replicates)))


def residuals_of(gap, replicates=(), unit=1.0, n=40, sentences=()):
    return GapEstimate(gap, 3 * unit, list(replicates), n, "residual_gap", sentences, unit)


def pairs_of(gap, spread=1.0, replicates=(), sentences=()):
    return GapEstimate(gap, 1.0, list(replicates), 40, "mixed_pair_gap", sentences, spread=spread)


@KINDS
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.2, 0.3])
def test_residuals_count_by_five_times_the_mistakes(rng, find, stream, share):
    problem = with_mistakes(rng, share)
    assert mistakes(*problem) == pytest.approx(share)
    found = find(scan(problem), Bootstrap(9, 2))
    residuals = estimate_residual_gap(scan(problem), Bootstrap(9, 2), substream=stream)
    pairs = estimate_pair_gap(scan(problem), Bootstrap(9, 2), stream)
    weight = min(1, share / 0.2)
    assert residuals.gap < pairs.gap  # so that the bound does not bind
    assert found.unfamiliarity == pytest.approx(weight)
    assert found.gap == pytest.approx(weight * residuals.gap + (1 - weight) * pairs.gap)
    both = zip(residuals.replicates, pairs.replicates, strict=True)
    assert found.replicates == pytest.approx([max(r, weight * r + (1 - weight) * p) for r, p in both])
    assert found.unit == residuals.unit
    assert (found.n, found.gap_weight) == (200, 1.0)
    assert found.pair_z_score == pytest.approx(pairs.gap / pairs.spread)
    expected = {name: w for name, w in (("residual_gap", weight), ("mixed_pair_gap", 1 - weight)) if w > 1e-12}
    assert found.weights == pytest.approx(expected)


@examples(60)
@given(st.integers(0, 10_000), st.floats(0, 5), st.floats(-1, 6))
def test_shifts_do_not_matter_and_gamma_in_the_head_moves_the_gap(seed, lead, shift):
    rng = np.random.default_rng(seed)
    logits, labels = doubtful_problem(rng, 60, shift, lead)
    logits = logits.astype(np.float64)
    found = evidence_of_held_out(scan((logits, labels)), Bootstrap())
    moved = evidence_of_held_out(scan((logits + rng.normal(size=(60, 1)), labels)), Bootstrap())
    assert moved.gap == pytest.approx(found.gap, abs=1e-6)
    assert moved.gap_weight == pytest.approx(found.gap_weight, abs=1e-6)
    calibrated = evidence_of_held_out(scan((logits + 0.5 * ~MASK, labels)), Bootstrap())
    pairs = estimate_pair_gap(scan((logits, labels)), Bootstrap())
    assert calibrated.pair_z_score == pytest.approx((pairs.gap - 0.5) / pairs.spread)
    if min(found.gap, calibrated.gap) > 0:
        assert calibrated.gap == pytest.approx(found.gap - 0.5, abs=1e-6)


def test_residuals_are_a_lower_bound(monkeypatch):
    found = found_by(residuals_of(3.0, [2.0, 4.0]), pairs_of(2.5, 0.5, [5.0, 1.0]), monkeypatch, mistaken=0.1)
    assert found.unfamiliarity == pytest.approx(0.5)
    assert found.gap == 3.0
    assert found.replicates == pytest.approx([3.5, 4.0])
    assert found.weights == {"residual_gap": 1.0}


def test_seen_classes_that_lose_by_both_are_bound_from_above(monkeypatch):
    """A unit of log-odds or more: gamma is negative, and that is clear."""
    found = found_by(residuals_of(-3.0, [-2.0]), pairs_of(-2.0, 9.0, [-4.0]), monkeypatch, mistaken=0.1)
    assert (found.gap, found.gap_weight) == (-3.0, 1.0)
    assert found.replicates == pytest.approx([-3.0])
    lower = found_by(residuals_of(-3.0), pairs_of(-5.0, 9.0), monkeypatch, mistaken=0.1)
    assert lower.gap == pytest.approx(-4.0)
    assert lower.weights == pytest.approx({"residual_gap": 0.5, "mixed_pair_gap": 0.5})


@pytest.mark.parametrize(("residual", "pair"), [(-3.0, -1.9), (-1.9, -3.0), (-3.0, 5.0), (-1.0, 0.5)])
def test_a_gap_below_zero_that_not_both_see_is_none(monkeypatch, residual, pair):
    unit = 2.0
    found = found_by(residuals_of(residual, unit=unit), pairs_of(pair, 0.1), monkeypatch, mistaken=0.2)
    assert found.gap == residual
    assert found.gap_weight == 0


@pytest.mark.parametrize(
    ("pair_z_score", "gap_weight"),
    [(-1.0, 0.0), (1.0, 0.0), (1.2, 0.0), (1.3, 0.25), (1.4, 0.5), (1.6, 1.0), (9.0, 1.0)],
)
def test_clear_is_what_exceeds_the_spread_of_the_pairs(monkeypatch, pair_z_score, gap_weight):
    for spread in (0.5, 4.0):
        found = found_by(residuals_of(7.0), pairs_of(pair_z_score * spread, spread), monkeypatch, mistaken=0.2)
        assert found.gap == 7.0
        assert found.pair_z_score == pytest.approx(pair_z_score)
        assert found.gap_weight == pytest.approx(gap_weight, abs=1e-9)


@pytest.mark.parametrize(("gap", "gap_weight"), [(2.0, 1.0), (-2.0, 0.0)])
def test_pairs_without_spread_are_as_clear_as_can_be(monkeypatch, gap, gap_weight):
    found = found_by(residuals_of(1.0), pairs_of(gap, 0.0), monkeypatch, mistaken=0.2)
    assert found.pair_z_score == math.copysign(math.inf, gap)
    assert found.gap_weight == gap_weight


def test_resamplings_without_pairs_have_no_gap_unless_residuals_tell_alone(monkeypatch):
    nan = math.nan
    residuals, pairs = residuals_of(1.0, [1.0, nan, 2.0]), pairs_of(4.0, 1.0, [nan, 3.0, 3.0])
    assert found_by(residuals, pairs, monkeypatch).replicates == pytest.approx([nan, nan, 3.0], nan_ok=True)
    half = found_by(residuals, pairs, monkeypatch, mistaken=0.1)
    assert half.replicates == pytest.approx([nan, nan, 2.5], nan_ok=True)
    alone = found_by(residuals, pairs, monkeypatch, mistaken=0.2)
    assert alone.replicates == pytest.approx([1.0, nan, 2.0], nan_ok=True)


def test_what_both_warn_of_is_told(monkeypatch):
    residuals = residuals_of(1.0, n=38, sentences=["the model is unsure about only a few"])
    (left_out, few) = found_by(residuals, pairs_of(4.0, sentences=["few pairs"]), monkeypatch).sentences
    assert left_out.startswith("2 of 40 samples were left out")
    assert few == "few pairs"


@pytest.mark.parametrize("other", [0, 1])
def test_held_out_samples_that_cannot_be_mixed_are_taken_by_residuals(rng, other):
    """Of one class, or of one and a mistaken sample of another: no pairs."""
    labels = np.array([0] * 50 + [SEEN[other]])
    logits = rng.normal(size=(51, 7)) + 4.0 * MASK
    logits[:, 0] += 6
    found = evidence_of_held_out(scan((logits, labels)), Bootstrap(4))
    residuals = estimate_residual_gap(scan((logits, labels)), Bootstrap(4), substream=HELD_OUT)
    assert found.weights == {"residual_gap": 1.0}
    assert (found.gap, found.unit, found.replicates) == (residuals.gap, residuals.unit, residuals.replicates)
    assert found.sentences == residuals.sentences
    assert (found.unfamiliarity, found.gap_weight) == (1.0, 1.0)
    assert math.isnan(found.pair_z_score)
    with pytest.raises(ValueError, match="mixed_pair_gap needs"):
        evidence_of_training(scan((logits, labels)), Bootstrap())


@pytest.mark.parametrize(("units", "gap_weight"), [(-3.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.25, 0.25), (2.0, 1.0)])
def test_without_pairs_a_gap_is_clear_from_two_units_on(monkeypatch, units, gap_weight):
    residuals = residuals_of(4.0 * units, unit=4.0)
    monkeypatch.setattr("finecal._estimators.evidence.estimate_residual_gap", lambda *given, **options: residuals)
    found = evidence_of_held_out(scan((5 * np.eye(7)[[0] * 5], [0] * 5)), Bootstrap())
    assert found.gap_weight == pytest.approx(gap_weight)


def evidence(
    gap, n, weights, replicates=(), unit=1.0, gap_weight=1.0, unfamiliarity=0.3, pair_z_score=2.0, sentences=()
):
    return GapEvidence(gap, unit, gap_weight, unfamiliarity, pair_z_score, list(replicates), n, weights, sentences)


@pytest.mark.parametrize(("n", "weight"), [(10, 1 / 6), (50, 1 / 2), (150, 3 / 4)])
def test_training_samples_count_for_fifty(n, weight):
    train = evidence(3.0, 999, {"mixed_pair_gap": 1.0}, [2.0, math.nan, 5.0], gap_weight=0.5, sentences=["few pairs"])
    weights = {"residual_gap": 0.2, "mixed_pair_gap": 0.8}
    held_out = evidence(6.0, n, weights, [4.0, 1.0, 7.0], unit=2.0, pair_z_score=5.0, sentences=["few doubts"])
    found = combine_evidence(train, held_out)
    assert found.gap == pytest.approx(3 + 3 * weight)
    assert found.gap_weight == pytest.approx(0.5 + weight / 2)
    assert found.replicates == pytest.approx([2 + 2 * weight, math.nan, 5 + 2 * weight], nan_ok=True)
    assert found.weights == pytest.approx({"residual_gap": 0.2 * weight, "mixed_pair_gap": 1 - 0.2 * weight})
    assert (found.unit, found.unfamiliarity, found.pair_z_score, found.n) == (2.0, 1.0, 5.0, 999 + n)
    assert list(found.sentences) == ["few pairs", "few doubts"]


def test_every_device_and_dtype(rng, device, dtype):
    logits, labels = doubtful_problem(rng)
    tensor = torch.tensor(logits).to(dtype)
    there = scan_labelled(tensor.to(device), torch.tensor(labels, device=device), MASK)
    for find in (evidence_of_training, evidence_of_held_out):
        found = find(there, Bootstrap(3))
        expected = find(scan((tensor.double().numpy(), labels)), Bootstrap(3))
        assert found.gap == pytest.approx(expected.gap, abs=1e-4)
        assert found.replicates == pytest.approx(expected.replicates, abs=1e-4)
        assert found[1:5] == pytest.approx(expected[1:5], rel=1e-3)
