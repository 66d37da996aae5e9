"""Labels that do not belong to the logits: guesses, and neighbours."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import binom

import finecal
import reference
from finecal._core import plausibility as guessing
from finecal._core.plausibility import GroupHits, hit_warning
from finecal._core.reductions import label_hits
from finecal.streaming import AccuracySums, GapSums, MarginBins, MarginRows

GUESSED = "told apart within their own group, where guessing gives"
MOVED = "labels look moved by one class"


def problem(rng, classes, n=600, right=0.6, gap=3.0):
    """A model that is right about this share of the samples within their groups, and the seen half of the classes."""
    mask = np.arange(classes) < classes // 2
    labels = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    logits = rng.normal(size=(n, classes)) * 0.5 + gap * mask
    knows = rng.random(n) < right
    logits[np.flatnonzero(knows), labels[knows]] += 4
    return logits, labels, mask


def said(call, about="told apart"):
    """The warnings that have these words."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in record if about in str(warning.message)]


CALLS = {
    "margins": lambda logits, labels, mask: finecal.Samples(logits, labels).margins(mask),
    "tradeoff_curve": finecal.tradeoff_curve,
    "evaluate": finecal.evaluate,
    "evaluate_probabilities": finecal.probabilities.evaluate_probabilities,
    "search_gamma": finecal.search_gamma,
    "search_gamma, nll": lambda *given: finecal.search_gamma(*given, objective="nll"),
    "fit_class_bias": finecal.calibrators.fit_class_bias,
    "fit_class_bias, given": lambda *given: finecal.calibrators.fit_class_bias(*given, shrinkage=3.0),
    "fit_group_temperature": finecal.calibrators.fit_group_temperature,
    "html_report": finecal.html_report,
}


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("classes", [12, 40])
def test_labels_of_other_samples_are_warned_of(rng, name, classes):
    logits, labels, mask = problem(rng, classes)
    assert not said(lambda: CALLS[name](logits, labels, mask))
    shuffled = rng.permutation(labels)
    (warned,) = said(lambda: CALLS[name](logits, shuffled, mask), GUESSED)
    assert "Check that they index all columns, in this order" in warned


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("step", [-1, 1])
@pytest.mark.parametrize("name", CALLS)
def test_labels_that_are_moved_by_one_class_are_warned_of(rng, name, step):
    logits, labels, mask = problem(rng, 12)
    (warned,) = said(lambda: CALLS[name](logits, (labels + step) % 12, mask))
    assert GUESSED in warned or MOVED in warned


@pytest.mark.parametrize("step", [-1, 1])
def test_moved_labels_are_found_where_neighbours_are_alike(rng, step):
    """Half of a sample's logit goes to either neighbour, so that moved labels are hits far more often than guesses."""
    logits, labels, mask = problem(rng, 30, n=900, right=0.0)
    kind = rng.random(900)
    taken_for = np.where(kind < 0.5, labels, np.where(kind < 0.75, labels - 1, labels + 1)) % 30
    logits[np.arange(900), taken_for] += 6
    assert not said(lambda: finecal.evaluate(logits, labels, mask))
    moved = (labels + step) % 30
    (warned,) = said(lambda: finecal.evaluate(logits, moved, mask))
    assert MOVED in warned
    assert f"if label {moved[0]} is taken for {labels[0]}, and so on" in warned


@pytest.mark.parametrize("levels", [1, 2, 4, 50])
@pytest.mark.parametrize("share", [0.0, 0.15, 0.4])
def test_neighbours_are_counted_where_they_are_the_first_largest(rng, levels, share, monkeypatch):
    """Many logits tie: the largest one of a group is no hit unless it comes first."""
    monkeypatch.setattr(guessing, "_SHIFTED_ROWS", 100)
    answers = set()
    for _ in range(60):
        mask = rng.permutation(np.arange(8) < 4)
        logits, labels = rng.integers(0, levels + 1, (350, 8)).astype(np.float32), rng.integers(0, 8, 350)
        moved = rng.random(350) < share
        logits[moved, (labels[moved] + 1) % 8] += levels
        given = torch.tensor(logits), torch.tensor(labels), torch.tensor(mask)
        hits = label_hits(*given)
        found = guessing._order_warning(*given, hits)
        assert bool(found) == (int(hits.hit.sum()) < 175 and any(more_hits(logits[::4], labels[::4], mask)))
        answers.add(bool(found))
    assert (True in answers) or share < 0.4


def more_hits(logits, labels, mask):
    """Whether the label before or after, of all classes or of the group, is a hit in significantly more rows."""
    best = {group: [reference.first_argmax(row, mask, group) for row in logits] for group in (True, False)}

    def hits(classes):
        return np.array([best[bool(mask[y])][row] == y for row, y in enumerate(classes)])

    for step in (-1, 1):
        within = np.arange(len(mask))
        for group in (mask, ~mask):
            within[group] = np.roll(np.flatnonzero(group), -step)
        for neighbour in (np.roll(np.arange(len(mask)), -step), within):
            before, after = hits(labels), hits(neighbour[labels])
            gained, lost = (after & ~before).sum(), (before & ~after).sum()
            yield gained - lost > 3 * np.sqrt(gained + lost)


@pytest.mark.parametrize(
    "estimate",
    [
        finecal.estimators.average_logit_gap,
        finecal.estimators.max_logit_gap,
        finecal.estimators.mixed_pair_gap,
        finecal.estimators.residual_gap,
    ],
)
def test_estimators_keep_the_warning(rng, estimate):
    logits, labels, mask = problem(rng, 24)
    seen = mask[labels]
    shuffled = rng.permutation(labels[seen])
    with pytest.warns(finecal.FinecalWarning, match=GUESSED):
        found = estimate(logits[seen], shuffled, mask)
    assert sum(GUESSED in sentence for sentence in found.warnings) == 1


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_the_labels_of_either_argument_are_looked_at(rng):
    (logits, labels, mask), (others, their_labels, _) = problem(rng, 24), problem(rng, 24)
    seen, theirs = mask[labels], mask[their_labels]
    good = others[theirs], their_labels[theirs]
    wrong = logits[seen], rng.permutation(labels[seen])
    for train, held_out in ((wrong, good), (good, wrong)):
        found = finecal.estimate_gamma(mask, train=train, held_out=held_out)
        (sentence,) = (sentence for sentence in found.warnings if GUESSED in sentence)
        assert sentence.startswith("train: labels do not" if train is wrong else "labels do not")


@pytest.mark.parametrize("state", [AccuracySums, MarginRows, MarginBins, GapSums])
def test_states_warn_of_all_that_they_were_given(rng, state):
    logits, labels, mask = problem(rng, 12)
    if state is GapSums:
        logits, labels = logits[mask[labels]], labels[mask[labels]]
    for wrong, given in ((False, labels), (True, rng.permutation(labels))):
        filled = state(mask)
        for batch in np.array_split(np.arange(len(labels)), 7):
            filled.update(logits[batch], given[batch])
        assert bool(said(filled.compute, GUESSED)) is wrong


@pytest.mark.parametrize(
    ("samples", "classes", "useful"),
    [(100, 5, 0.32), (300, 2, 0.575), (1000, 100, 0.02), (100, 8, 0.25), (50_000, 8, 0.25)],
)
def test_the_threshold_is_a_binomial_tail(samples, classes, useful):
    tried = range(0, samples + 1, max(1, samples // 1000))
    doubtful = [hits for hits in tried if hit_warning([GroupHits(samples, hits, classes)])]
    counted = min(samples, 10_000)
    expected = [
        hits
        for hits in tried
        if binom.cdf(-(-hits * counted // samples), counted, useful) <= 0.05
        or (
            binom.sf(counted - 1 - -(-(samples - hits) * counted // samples), counted, 1 / classes) > 0.05
            and binom.cdf(-(-hits * counted // samples), counted, max(useful, 0.1)) <= 0.05
        )
    ]
    assert doubtful == expected
    assert hit_warning([GroupHits(samples, samples // classes, classes)])


def test_few_samples_of_many_classes_are_enough_where_there_are_no_more_hits_than_guesses():
    assert not hit_warning([GroupHits(10, 0, 100)])
    assert hit_warning([GroupHits(40, 0, 100)])
    assert not hit_warning([GroupHits(40, 4, 100)])


def test_a_group_of_one_class_tells_nothing():
    assert not hit_warning([GroupHits(500, 500, 1), GroupHits(0, 0, 7)])
    assert hit_warning([GroupHits(500, 500, 1), GroupHits(300, 30, 10)])


def test_no_samples_and_masked_ones():
    empty = finecal.Samples(torch.empty(0, 4), torch.empty(0, dtype=torch.long)).margins([True, True, False, False])
    assert len(empty) == 0
    logits = torch.full((50, 4), -torch.inf)
    with pytest.warns(finecal.FinecalWarning, match=GUESSED):
        finecal.Samples(logits, torch.ones(50, dtype=torch.long)).margins([True, True, False, False])
