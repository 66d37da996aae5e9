import math
import re

import numpy as np
import pytest
import torch

import finecal
from finecal.evaluation.scan import scan_labelled
from finecal.gamma.bootstrap import HELD_OUT, Bootstrap
from finecal.gamma.combination import (
    FoldErrors,
    _freshness,
    corrected,
    doubts_about_shares,
    fold_errors,
    gamma_at_known_share,
    gamma_of_unlabelled,
    gap_of_both,
    gap_of_held_out,
    gap_of_training,
    with_drift,
)
from finecal.gamma.gamma_of_share import GammaOfShare
from finecal.gamma.head_drift import DriftGamma
from finecal.gamma.mixed_pairs import gap_of_mixed_pairs
from finecal.gamma.residuals import gap_of_residuals
from finecal.gamma.seen_share import EstimatedShares
from finecal.inputs.warning import without_warnings
from problems import MASK, doubtful_problem

EQUAL = 4 / 7
TERM = math.log(3 / 4)
"""What a share of 4/7 adds at a temperature of 1."""
FOLD_MASK = np.arange(14) % 7 != 3
"""Twelve of fourteen classes are seen, so that a fold has six of either group."""
FOLD_EQUAL = 12 / 14


def softmax(rows):
    weights = np.exp(rows - rows.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def scan(problem):
    return scan_labelled(*problem, MASK)


def estimate(function, problem, **options):
    with without_warnings():
        return function(*problem, MASK, 0.5, **options).gamma


def sampled_problem(rng, n, sharpness):
    """Labels drawn from the softmax over the seen classes; `sharpness` above 1 makes fewer mistakes than that."""
    logits = rng.normal(size=(n, 7)) * 2
    logits[:, ~MASK] -= 3
    seen = np.flatnonzero(MASK)
    probabilities = softmax(logits[:, seen] * sharpness)
    labels = np.array([rng.choice(seen, p=row) for row in probabilities])
    return logits, labels


def test_freshness_is_mistakes_over_expected_ones(rng):
    logits, labels = sampled_problem(rng, 500, sharpness=2.0)
    seen = np.flatnonzero(MASK)
    mistakes = (seen[logits[:, seen].argmax(1)] != labels).sum()
    expected = (1 - softmax(logits[:, seen]).max(1)).sum()
    assert 0.3 < mistakes / expected < 0.9
    assert mistakes / 500 > 0.05
    assert _freshness(scan((logits, labels))) == pytest.approx(mistakes / expected)


def test_few_mistakes_are_no_proof_of_freshness(rng):
    """An overconfident model: it expects hardly any mistakes, and makes 3 in 100."""
    logits, labels = doubtful_problem(rng, n=100, lead=60.0)
    labels[:3] = np.roll(np.flatnonzero(MASK), 1)[np.searchsorted(np.flatnonzero(MASK), labels[:3])]
    assert _freshness(scan((logits, labels))) == pytest.approx(0.03 / 0.05)


def test_freshness_of_new_samples_is_one_and_of_memorised_ones_zero(rng):
    assert _freshness(scan(sampled_problem(rng, 20_000, sharpness=1.0))) == pytest.approx(1, abs=0.05)
    assert _freshness(scan(sampled_problem(rng, 500, sharpness=0.3))) == 1
    assert _freshness(scan(doubtful_problem(rng, lead=30.0))) == 0


def test_training_is_blended_by_freshness(rng):
    problem = sampled_problem(rng, 400, sharpness=2.0)
    fresh = _freshness(scan(problem))
    found = gap_of_training(scan(problem), Bootstrap())
    residuals = gap_of_residuals(scan(problem), Bootstrap(), least=1.0)
    pairs = estimate(finecal.mixed_pair_gap, problem) + TERM
    assert found.gamma(EQUAL) == pytest.approx(fresh * residuals.gamma(EQUAL) + (1 - fresh) * pairs)
    assert found.temperature == pytest.approx(fresh * residuals.temperature + 1 - fresh)
    assert found.weights == {"residual_gap": fresh, "mixed_pair_gap": 1 - fresh}
    assert found.method(0.5) == f"{fresh:.2f} residual_gap + {1 - fresh:.2f} mixed_pair_gap (seen_share=0.5)"
    assert found.gamma(0.2) == pytest.approx(found.gap + math.log(4))


def test_memorised_training_samples_are_those_of_mixed_pairs(rng):
    problem = doubtful_problem(rng, lead=9.0)
    found = gap_of_training(scan(problem), Bootstrap(30, 5))
    direct = finecal.mixed_pair_gap(*problem, MASK, 0.3, n_bootstrap=30, seed=5)
    assert found.method(0.3) == direct.method == "mixed_pair_gap(seen_share=0.3)"
    assert found.gamma(0.3) == direct.gamma
    interval = np.quantile([gap + found.share_term(0.3) for gap in found.replicates], [0.025, 0.975])
    assert direct.interval == pytest.approx(interval)


def far_apart(rng):
    """Memorised samples, whose mixtures lie far from the absent classes, but whose own rivals are near them."""
    logits, labels = doubtful_problem(rng, lead=40.0, shift=1.5)
    return logits, labels


def test_mixed_pairs_are_held_to_three_times_the_residuals(rng):
    problem = far_apart(rng)
    residuals = gap_of_residuals(scan(problem), Bootstrap(), least=1.0).gamma(EQUAL)
    pairs = estimate(finecal.mixed_pair_gap, problem) + TERM
    assert 1.5 < 3 * residuals < pairs
    found = gap_of_training(scan(problem), Bootstrap())
    assert found.gamma(EQUAL) == pytest.approx(3 * residuals)
    assert found.gamma(0.5) == pytest.approx(3 * residuals - TERM)
    assert found.method(0.5) == "3 residual_gap (seen_share=0.5)"
    (sentence,) = found.sentences
    assert sentence == (
        f"mixed_pair_gap ({pairs:.4g}) and residual_gap ({residuals:.4g}) on the training samples are far apart: "
        "gamma from these is 3 times the lower one, for equally frequent classes; look at it on a few labelled samples "
        "of all classes if you can, with search_gamma"
    )


def test_residuals_are_a_lower_bound(rng, monkeypatch):
    """As with label smoothing, where mixed pairs are too low."""
    problem = doubtful_problem(rng)
    low = gap_of_residuals(scan(problem), Bootstrap(), least=1.0).gamma(EQUAL)
    pairs = GammaOfShare(low - TERM - 1, 1.0, [low - 3, low + 3], 80, {"mixed_pair_gap": 1.0})
    monkeypatch.setattr("finecal.gamma.combination.gap_of_mixed_pairs", lambda *given: pairs)
    monkeypatch.setattr("finecal.gamma.combination._freshness", lambda scan: 0.0)
    found = gap_of_training(scan(problem), Bootstrap(2))
    assert found.gamma(EQUAL) == pytest.approx(low)
    assert found.method(0.5) == "residual_gap(seen_share=0.5)"


def test_held_out_samples_without_doubts_are_taken_by_pairs(rng):
    """Of 100 samples 0, 2 or 10 are mistaken: residuals count not at all, by two fifths, and alone."""
    labels = rng.choice(np.flatnonzero(MASK), 100)
    logits = rng.normal(size=(100, 7)) / 4 + 4.0 * MASK
    logits[np.arange(100), labels] += 5
    for mistaken, weight in ((0, 0.0), (2, 0.4), (10, 1.0)):
        problem = (logits.copy(), labels)
        problem[0][np.arange(mistaken), labels[:mistaken]] -= 8
        found = gap_of_held_out(scan(problem), Bootstrap(3))
        residuals = gap_of_residuals(scan(problem), Bootstrap(3))
        pairs = gap_of_mixed_pairs(scan(problem), Bootstrap(3), HELD_OUT)
        expected = weight * residuals.gamma(EQUAL) + (1 - weight) * pairs.gamma(EQUAL)
        assert residuals.gamma(EQUAL) < expected <= 3 * residuals.gamma(EQUAL) or weight == 1
        assert found.gamma(EQUAL) == pytest.approx(expected)
        assert found.weights.get("residual_gap", 0.0) == pytest.approx(weight)
        both = zip(residuals.gammas(EQUAL), pairs.gammas(EQUAL), strict=True)
        assert found.gammas(EQUAL) == pytest.approx([weight * low + (1 - weight) * pair for low, pair in both])


def test_held_out_samples_that_cannot_be_mixed_are_taken_by_residuals(rng):
    """Of one class, or of one and a mistaken sample of another: too few mistakes, and no pairs."""
    labels = np.zeros(51, int)
    logits = rng.normal(size=(51, 7)) + 4.0 * MASK
    logits[:, 0] += 6
    for other in (0, 1):
        labels[50] = other
        found, residuals = (
            gap_of_held_out(scan((logits, labels)), Bootstrap()),
            gap_of_residuals(scan((logits, labels)), Bootstrap()),
        )
        assert found.weights == {"residual_gap": 1.0}
        assert found.gamma(EQUAL) == residuals.gamma(EQUAL) > 1.5 * residuals.unit
        assert found.sentences == residuals.sentences


@pytest.mark.parametrize("find", [gap_of_training, gap_of_held_out])
def test_no_gap_is_zero_for_equally_frequent_classes(rng, find):
    problem = doubtful_problem(rng, shift=-4.0)
    found = find(scan(problem), Bootstrap(20, 0))
    assert found.gamma(EQUAL) == pytest.approx(0, abs=1e-12)
    assert found.gamma(0.5) == pytest.approx(-found.share_term(EQUAL))
    assert [gap + found.share_term(EQUAL) for gap in found.replicates] == pytest.approx([0] * 20, abs=1e-12)
    assert any(s.startswith("no gap is seen (gamma would be -") for s in found.sentences)
    assert found.method(0.5).startswith("0 residual_gap")


def test_a_temperature_that_had_to_be_raised_is_no_unit(rng):
    """Few samples, all of them certain: T rises far, and the gap of 4 is a gap all the same."""
    labels = rng.choice(np.flatnonzero(MASK), 20)
    logits = rng.normal(size=(20, 7)) + 4.0 * MASK
    logits[np.arange(20), labels] += 12
    residuals, found = (
        gap_of_residuals(scan((logits, labels)), Bootstrap()),
        gap_of_held_out(scan((logits, labels)), Bootstrap()),
    )
    assert residuals.temperature > 2 * residuals.unit
    assert found.gap > 3
    assert not any("no gap" in sentence or "gap is small" in sentence for sentence in found.sentences)


def test_a_gap_of_exactly_zero_is_said_to_be_none():
    logits, labels = np.zeros((40, 7)), np.tile(np.flatnonzero(MASK), 10)
    found = gap_of_held_out(scan((logits, labels)), Bootstrap())
    assert found.gamma(EQUAL) == 0
    assert any(s.startswith("no gap is seen (gamma would be ") for s in found.sentences)


@pytest.mark.parametrize("find", [gap_of_training, gap_of_held_out])
@pytest.mark.parametrize(
    ("units", "kept", "words"),
    [
        (0.9, 0.0, "no gap is seen (gamma would be "),
        (1.0, 0.0, "no gap is seen (gamma would be "),
        (1.2, 0.6, "the gap is small (gamma would be "),
        (1.5, 1.5, None),
        (4.0, 4.0, None),
    ],
)
def test_what_is_too_small_to_be_told_from_no_gap_is_none(rng, monkeypatch, find, units, kept, words):
    """Between 1 and 1.5 units of log-odds gamma rises from 0 to what it is, in resamples too."""
    temperature = 2.0
    residuals = GammaOfShare.at_share(
        EQUAL,
        units * temperature,
        [0.5, 2.4, 9.0, math.nan],
        temperature=temperature,
        n=80,
        weights={"residual_gap": 1.0},
        sentences=[],
        unit=temperature,
    )
    monkeypatch.setattr("finecal.gamma.combination.gap_of_residuals", lambda *given, **options: residuals)
    monkeypatch.setattr("finecal.gamma.combination.gap_of_mixed_pairs", lambda *given: residuals)
    monkeypatch.setattr("finecal.gamma.combination._freshness", lambda scan: 1.0)
    found = find(scan(doubtful_problem(rng)), Bootstrap(4))
    assert found.gamma(EQUAL) == pytest.approx(kept * temperature)
    assert found.gammas(EQUAL) == pytest.approx([0.0, 1.2, 9.0, math.nan], nan_ok=True)
    assert (found.temperature, found.n) == (temperature, 80)
    assert found.weights == pytest.approx({"residual_gap": kept / units})
    assert [s[: len(words)] for s in found.sentences] == [words] if words else found.sentences == []


def test_the_quantile_of_an_estimated_share_moves_gamma_by_half_a_unit_at_most(rng):
    seen, absent = torch.tensor(rng.normal(8, 1, 200)), torch.tensor(rng.normal(0, 1, 200))
    unlabelled = torch.cat([seen, absent])
    for gap, change in ((-9.0, 0.75), (17.0, -0.75)):
        labelled = GammaOfShare(gap, 4.0, [], 200, {"residual_gap": 1.0}, unit=1.5)
        gamma, share, _ = gamma_of_unlabelled(labelled, seen, unlabelled, 0.5)
        assert gamma == pytest.approx(labelled.gamma(share) + change)
    known = gamma_at_known_share(GammaOfShare(9.0, 1.5, [], 200, {}), unlabelled, 0.5)
    assert known == pytest.approx(
        (9 + finecal.known_share_gamma(np.stack([unlabelled, 0 * unlabelled], 1), [True, False], 0.5).gamma) / 2
    )


def test_held_out_is_residual_gap(rng):
    problem = doubtful_problem(rng)
    found = gap_of_held_out(scan(problem), Bootstrap(20, 3))
    direct = finecal.residual_gap(*problem, MASK, 0.3, n_bootstrap=20, seed=3)
    assert found.method(0.3) == direct.method
    assert found.gamma(0.3) == direct.gamma
    interval = np.quantile([gap + found.share_term(0.3) for gap in found.replicates], [0.025, 0.975])
    assert direct.interval == pytest.approx(interval)


def test_held_out_counts_twice():
    train = GammaOfShare(3.0, 1.0, [2.0, 4.0], 100, {"residual_gap": 0.25, "mixed_pair_gap": 0.75}, ["few pairs"])
    held_out = GammaOfShare(6.0, 2.0, [5.0, 8.0], 40, {"residual_gap": 1.0}, ["few doubts"])
    found = gap_of_both(train, held_out, EQUAL)
    assert found.gamma(EQUAL) == pytest.approx((3 + TERM + 2 * (6 + 2 * TERM)) / 3)
    assert found.gamma(0.5) == pytest.approx(found.gamma(EQUAL) - 2 * TERM)
    both = [(2 + TERM + 2 * (5 + 2 * TERM)) / 3, (4 + TERM + 2 * (8 + 2 * TERM)) / 3]
    assert [gap + 2 * TERM for gap in found.replicates] == pytest.approx(both)
    assert found.weights == pytest.approx({"residual_gap": 0.75, "mixed_pair_gap": 0.25})
    assert found.method(0.5) == "0.75 residual_gap + 0.25 mixed_pair_gap (seen_share=0.5)"
    assert (found.n, list(found.sentences)) == (140, ["few pairs", "few doubts"])


def test_drift_counts_a_fifth_half_a_unit_at_most_and_not_without_a_gap():
    found = GammaOfShare(5.0, 1.0, [4.0, math.nan], 80, {"residual_gap": 1.0}, ["few"], unit=2.0)
    after = with_drift(found, DriftGamma(6.0, [3.0, 2.0], []), EQUAL)
    assert after.gap == pytest.approx(5.2)
    assert after.replicates == pytest.approx([3.8, math.nan], nan_ok=True)
    assert after.weights == pytest.approx({"residual_gap": 0.8, "head_drift_gamma": 0.2})
    assert [with_drift(found, DriftGamma(x, [x, x], []), EQUAL).gap for x in (99.0, -99.0)] == [6.0, 4.0]
    none = found._replace(gap=-TERM - 0.1)
    assert with_drift(none, DriftGamma(6.0, [3.0, 2.0], []), EQUAL) == none
    doubted = with_drift(found, DriftGamma(6.0, [3.0, 2.0], ["another head"]), EQUAL)
    assert (doubted.gap, doubted.sentences) == (5.0, ["few", "the drift of the head is not used: another head"])


def test_few_mistakes_among_certain_samples_do_not_decide(rng):
    """One sample is taken for an absent class, and all others are certain: it is not the only one that counts."""
    logits, labels = doubtful_problem(rng, n=300, lead=30.0, shift=30.0)
    with without_warnings():
        usual = [find(scan((logits, labels)), Bootstrap()).gamma(EQUAL) for find in (gap_of_training, gap_of_held_out)]
        logits[0] = [0, 50, 0, 0, 0, 0, 0]
        found = [find(scan((logits, labels)), Bootstrap()).gamma(EQUAL) for find in (gap_of_training, gap_of_held_out)]
    assert min(found) > 0.7 * min(usual) > 15


def test_left_out_samples_are_said_and_not_counted(rng):
    logits, labels = doubtful_problem(rng)
    logits[:20, ~MASK] = -np.inf
    for find in (gap_of_training, gap_of_held_out):
        found = find(scan((logits, labels)), Bootstrap())
        assert found.n == 60
        assert found.sentences[0].startswith("20 of 80 samples were left out")


def test_shares_that_agree_two_to_one_are_trusted():
    assert doubts_about_shares(EstimatedShares(0.3, 0.35, 0.9)) == []
    (sentence,) = doubts_about_shares(EstimatedShares(0.3, 0.5, 0.9))
    assert sentence == (
        "three estimates of the share of seen samples are far apart: 0.30 by best bin estimation, 0.90 by a normal "
        "mixture, 0.50 by confusion; give seen_share if you know it"
    )


# --- refits on halves of the seen classes -----------------------------------------------------------------------------


def samples(rng, n, trained, gap=3.0, lead=2.5):
    labels = rng.choice(np.flatnonzero(FOLD_MASK), n)
    logits = rng.normal(size=(n, 14)) + gap * trained
    logits[np.arange(n), labels] += lead
    return logits, labels


@pytest.fixture
def folds(rng):
    halves = finecal.pseudo_cv_splits(FOLD_MASK)
    return [
        finecal.PseudoFold(*samples(rng, 300, half, gap), half) for half, gap in zip(halves, (3, 4, 5), strict=True)
    ]


def test_an_error_is_what_the_search_says_less_what_residuals_say(folds):
    columns = np.flatnonzero(FOLD_MASK)
    expected = []
    for fold in folds:
        logits, half = fold.logits[:, columns], fold.pseudo_seen_mask[columns]
        labels = np.searchsorted(columns, fold.labels)
        rows = half[labels]
        residuals = finecal.residual_gap(logits[rows], labels[rows], half, seen_share=0.5)
        with without_warnings():
            expected.append(finecal.pseudo_cv_gamma([fold], FOLD_MASK).gamma - residuals.gamma)
    found = fold_errors(folds, FOLD_MASK)
    assert found.errors == pytest.approx(expected)
    assert found.sentences == []


@pytest.mark.parametrize("kind", [torch.tensor, lambda x: torch.tensor(x).tolist()])
def test_takes_what_a_fold_takes(folds, kind):
    def moved(fold):
        return finecal.PseudoFold(torch.tensor(fold.logits), kind(fold.labels), kind(fold.pseudo_seen_mask))

    assert fold_errors(map(moved, folds), kind(FOLD_MASK)).errors == pytest.approx(fold_errors(folds, FOLD_MASK).errors)


@pytest.mark.parametrize(
    ("errors", "added"), [([0.4, 0.2], 0.15), ([9.0], 1.0), ([-9.0, -7.0], -1.0), ([-0.5, 0.5], 0.0), ([1.0] * 3, 0.5)]
)
def test_half_of_the_mean_is_added_but_half_a_unit_at_most(errors, added):
    found = GammaOfShare(5.0, 3.0, [4.0, 6.0, math.nan], 80, {"residual_gap": 1.0}, ["few"], unit=2.0)
    after = corrected(found, 0.5, FoldErrors(errors, []), Bootstrap(3))
    assert after.gap == pytest.approx(5 + added)
    assert abs(after.replicates[0] - 4) <= 1.0
    assert math.isnan(after.replicates[2])
    assert (after.temperature, after.n, after.sentences) == (3.0, 80, ["few"])
    part = added / np.mean(errors) if np.mean(errors) else 0.5
    assert after.weights == {"residual_gap": 1.0, "fold_error": pytest.approx(part)}


def test_resamples_draw_folds():
    found = GammaOfShare(5.0, 20.0, [5.0] * 200, 80, {"residual_gap": 1.0}, unit=20.0)
    replicates = corrected(found, 0.5, FoldErrors([0.0, 1.0], []), Bootstrap(200, 1)).replicates
    assert set(replicates) == {5.0, 5.25, 5.5}
    assert replicates == corrected(found, 0.5, FoldErrors([0.0, 1.0], []), Bootstrap(200, 1)).replicates
    assert replicates != corrected(found, 0.5, FoldErrors([0.0, 1.0], []), Bootstrap(200, 2)).replicates


def test_never_below_zero_for_equally_frequent_classes():
    small = GammaOfShare.at_share(
        FOLD_EQUAL, 0.1, [0.1, 3.0], temperature=1.0, n=80, weights={"residual_gap": 0.1}, sentences=[], unit=1.0
    )
    after = corrected(small, FOLD_EQUAL, FoldErrors([-2.0], []), Bootstrap(2))
    assert after.gamma(FOLD_EQUAL) == pytest.approx(0, abs=1e-12)
    assert after.gammas(FOLD_EQUAL) == pytest.approx([0, 2.5], abs=1e-12)


def test_without_a_gap_folds_say_nothing(folds):
    term = GammaOfShare(0.0, 1.0, [], 0, {}).share_term(FOLD_EQUAL)
    none = GammaOfShare(-term, 1.0, [], 80, {"residual_gap": 0.0}, ["no gap"])
    assert none.gamma(FOLD_EQUAL) == 0
    assert corrected(none, FOLD_EQUAL, fold_errors(folds, FOLD_MASK), Bootstrap()) == none


def test_estimate_gamma_is_corrected(rng, folds):
    held_out = samples(rng, 200, FOLD_MASK)
    found = gap_of_held_out(scan_labelled(*held_out, FOLD_MASK), Bootstrap())
    estimate = finecal.estimate_gamma(FOLD_MASK, held_out=held_out, folds=folds, seen_share=0.5, n_bootstrap=50)
    added = np.mean(fold_errors(folds, FOLD_MASK).errors) / 2
    assert estimate.gamma == pytest.approx(found.gap + np.clip(added, -found.temperature / 2, found.temperature / 2))
    assert added != 0
    assert estimate.data == "200 held-out labelled seen-class samples, and 3 folds"
    assert estimate.method.startswith("1 residual_gap + 0.")
    assert estimate.method.endswith(" fold_error (seen_share=0.5)")
    assert estimate.interval[0] < estimate.gamma < estimate.interval[1]


def test_corrects_towards_the_truth(rng):
    """Absent logits are wider here than seen ones, which residuals cannot see, but folds of the same kind can."""

    def widened(n, trained, classes):
        labels = rng.choice(classes, n)
        logits = rng.normal(size=(n, 14)) * np.where(trained, 1, 2.0) + 6.0 * trained
        logits[np.arange(n), labels] += np.where(trained[labels], 2.5, 5.0)
        return logits, labels

    seen = np.flatnonzero(FOLD_MASK)
    halves = finecal.pseudo_cv_splits(FOLD_MASK)
    folds = [finecal.PseudoFold(*widened(3000, half, seen), half) for half in halves]
    held_out, test = widened(3000, FOLD_MASK, seen), widened(20_000, FOLD_MASK, np.arange(14))
    best = finecal.search_gamma(*test, FOLD_MASK, "balanced").gamma
    without, with_folds = (
        finecal.estimate_gamma(FOLD_MASK, held_out=held_out, seen_share=0.5, folds=given).gamma
        for given in (None, folds)
    )
    assert abs(with_folds - best) < abs(without - best)


def test_too_few_classes_are_said_and_not_used(rng):
    mask = np.arange(8) < 6
    labels = np.arange(120) % 6
    logits = rng.normal(size=(120, 8)) + 3 * mask + 2.5 * np.eye(8)[labels]
    half = np.arange(8) < 3
    given = {"held_out": (logits, labels), "folds": [finecal.PseudoFold(logits, labels, half)]}
    with pytest.warns(finecal.FinecalWarning, match="the folds were not used: 3 pseudo-absent classes are too few"):
        estimate = finecal.estimate_gamma(mask, **given)
    assert estimate.gamma == finecal.estimate_gamma(mask, held_out=given["held_out"]).gamma


def test_folds_in_which_nothing_can_be_estimated_are_not_used(folds):
    columns = np.flatnonzero(FOLD_MASK)
    logits = folds[0].logits.copy()
    logits[np.ix_(folds[0].pseudo_seen_mask[folds[0].labels], columns[~folds[0].pseudo_seen_mask[columns]])] = -np.inf
    masked = finecal.PseudoFold(logits, folds[0].labels, folds[0].pseudo_seen_mask)
    (sentence,) = fold_errors([masked], FOLD_MASK).sentences
    assert sentence.startswith("the folds were not used: fold 0: logits are -inf on the label")


def test_too_few_samples_are_said_and_not_used(folds):
    fold = folds[0]
    few = finecal.PseudoFold(fold.logits[:30], fold.labels[:30], fold.pseudo_seen_mask)
    (sentence,) = fold_errors([fold, few], FOLD_MASK).sentences
    assert re.fullmatch(r"the folds were not used: \d+ samples of a group are too few to tell a gamma", sentence)


def test_one_pseudo_seen_class_is_too_few(rng):
    one = np.arange(14) == 0
    logits, labels = samples(rng, 600, one)
    (sentence,) = fold_errors([finecal.PseudoFold(logits, labels, one)], FOLD_MASK).sentences
    assert "fold 0: seen_mask has one seen class" in sentence


def test_folds_are_checked_and_said_not_to_be_used_where_unlabelled_samples_are(rng, folds):
    given = {"held_out": samples(rng, 200, FOLD_MASK), "unlabelled": rng.normal(size=(200, 14)) + 3 * FOLD_MASK}
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimate_gamma(FOLD_MASK, **given, folds=folds)
    assert any("the folds were not used: they correct the gap of labelled seen" in str(w.message) for w in record)
    with pytest.raises(TypeError, match="folds is one int"):
        finecal.estimate_gamma(FOLD_MASK, **given, folds=3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "folds is one int; pass a sequence of PseudoFold"),
        ([], ValueError, "folds are empty; pass one PseudoFold"),
        ([3], TypeError, r"folds\[0\] is a int; pass a PseudoFold"),
    ],
)
def test_wrong_folds_are_named(rng, given, error, message):
    with pytest.raises(error, match=f"^{message}"):
        finecal.estimate_gamma(FOLD_MASK, held_out=samples(rng, 100, FOLD_MASK), folds=given)


def test_folds_alone_are_for_pseudo_cv(folds):
    with pytest.raises(ValueError, match="with folds= alone use pseudo_cv_gamma$"):
        finecal.estimate_gamma(FOLD_MASK, folds=folds)
