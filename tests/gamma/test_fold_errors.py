import math
import re

import numpy as np
import pytest
import torch

import finecal
from finecal.evaluation.scan import scan_labelled
from finecal.gamma.bootstrap import Bootstrap
from finecal.gamma.combination import FoldErrors, corrected, fold_errors, gap_of_held_out
from finecal.gamma.gamma_of_share import GammaOfShare
from finecal.inputs.warning import without_warnings

MASK = np.arange(14) % 7 != 3
"""Twelve of fourteen classes are seen, so that a fold has six of either group."""
EQUAL = 12 / 14


def samples(rng, n, trained, gap=3.0, lead=2.5):
    labels = rng.choice(np.flatnonzero(MASK), n)
    logits = rng.normal(size=(n, 14)) + gap * trained
    logits[np.arange(n), labels] += lead
    return logits, labels


@pytest.fixture
def folds(rng):
    halves = finecal.pseudo_cv_splits(MASK)
    return [
        finecal.PseudoFold(*samples(rng, 300, half, gap), half) for half, gap in zip(halves, (3, 4, 5), strict=True)
    ]


def test_an_error_is_what_the_search_says_less_what_residuals_say(folds):
    columns = np.flatnonzero(MASK)
    expected = []
    for fold in folds:
        logits, half = fold.logits[:, columns], fold.pseudo_seen_mask[columns]
        labels = np.searchsorted(columns, fold.labels)
        rows = half[labels]
        residuals = finecal.residual_gap(logits[rows], labels[rows], half, seen_share=0.5)
        with without_warnings():
            expected.append(finecal.pseudo_cv_gamma([fold], MASK).gamma - residuals.gamma)
    found = fold_errors(folds, MASK)
    assert found.errors == pytest.approx(expected)
    assert found.sentences == []


@pytest.mark.parametrize("kind", [torch.tensor, lambda x: torch.tensor(x).tolist()])
def test_takes_what_a_fold_takes(folds, kind):
    def moved(fold):
        return finecal.PseudoFold(torch.tensor(fold.logits), kind(fold.labels), kind(fold.pseudo_seen_mask))

    assert fold_errors(map(moved, folds), kind(MASK)).errors == pytest.approx(fold_errors(folds, MASK).errors)


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
        EQUAL, 0.1, [0.1, 3.0], temperature=1.0, n=80, weights={"residual_gap": 0.1}, sentences=[], unit=1.0
    )
    after = corrected(small, EQUAL, FoldErrors([-2.0], []), Bootstrap(2))
    assert after.gamma(EQUAL) == pytest.approx(0, abs=1e-12)
    assert after.gammas(EQUAL) == pytest.approx([0, 2.5], abs=1e-12)


def test_without_a_gap_folds_say_nothing(folds):
    term = GammaOfShare(0.0, 1.0, [], 0, {}).share_term(EQUAL)
    none = GammaOfShare(-term, 1.0, [], 80, {"residual_gap": 0.0}, ["no gap"])
    assert none.gamma(EQUAL) == 0
    assert corrected(none, EQUAL, fold_errors(folds, MASK), Bootstrap()) == none


def test_estimate_gamma_is_corrected(rng, folds):
    held_out = samples(rng, 200, MASK)
    found = gap_of_held_out(scan_labelled(*held_out, MASK), Bootstrap())
    estimate = finecal.estimate_gamma(MASK, held_out=held_out, folds=folds, seen_share=0.5, n_bootstrap=50)
    added = np.mean(fold_errors(folds, MASK).errors) / 2
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

    seen = np.flatnonzero(MASK)
    halves = finecal.pseudo_cv_splits(MASK)
    folds = [finecal.PseudoFold(*widened(3000, half, seen), half) for half in halves]
    held_out, test = widened(3000, MASK, seen), widened(20_000, MASK, np.arange(14))
    best = finecal.search_gamma(*test, MASK, "balanced").gamma
    without, with_folds = (
        finecal.estimate_gamma(MASK, held_out=held_out, seen_share=0.5, folds=given).gamma for given in (None, folds)
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
    columns = np.flatnonzero(MASK)
    logits = folds[0].logits.copy()
    logits[np.ix_(folds[0].pseudo_seen_mask[folds[0].labels], columns[~folds[0].pseudo_seen_mask[columns]])] = -np.inf
    masked = finecal.PseudoFold(logits, folds[0].labels, folds[0].pseudo_seen_mask)
    (sentence,) = fold_errors([masked], MASK).sentences
    assert sentence.startswith("the folds were not used: fold 0: logits are -inf on the label")


def test_too_few_samples_are_said_and_not_used(folds):
    fold = folds[0]
    few = finecal.PseudoFold(fold.logits[:30], fold.labels[:30], fold.pseudo_seen_mask)
    (sentence,) = fold_errors([fold, few], MASK).sentences
    assert re.fullmatch(r"the folds were not used: \d+ samples of a group are too few to tell a gamma", sentence)


def test_one_pseudo_seen_class_is_too_few(rng):
    one = np.arange(14) == 0
    logits, labels = samples(rng, 600, one)
    (sentence,) = fold_errors([finecal.PseudoFold(logits, labels, one)], MASK).sentences
    assert "fold 0: seen_mask has one seen class" in sentence


def test_folds_are_checked_and_said_not_to_be_used_where_unlabelled_samples_are(rng, folds):
    given = {"held_out": samples(rng, 200, MASK), "unlabelled": rng.normal(size=(200, 14)) + 3 * MASK}
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimate_gamma(MASK, **given, folds=folds)
    assert any("the folds were not used: they correct the gap of labelled seen" in str(w.message) for w in record)
    with pytest.raises(TypeError, match="folds is one int"):
        finecal.estimate_gamma(MASK, **given, folds=3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "folds is one int; pass a sequence of PseudoFold"),
        ([], ValueError, "folds are empty; pass one PseudoFold"),
        ([3], TypeError, "fold 0 is a int; pass a PseudoFold"),
    ],
)
def test_wrong_folds_are_named(rng, given, error, message):
    with pytest.raises(error, match=f"^{message}"):
        finecal.estimate_gamma(MASK, held_out=samples(rng, 100, MASK), folds=given)


def test_folds_alone_are_for_pseudo_cv(folds):
    with pytest.raises(ValueError, match="with folds= alone use pseudo_cv_gamma$"):
        finecal.estimate_gamma(MASK, folds=folds)
