import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal._estimators import evidence as absent_health
from finecal._estimators.evidence import (
    _entropy_of_draws,
    _relative_number,
    retention_from_folds,
    retention_from_rivals,
    retention_from_unlabelled,
)
from problems import scan_labelled
from profiles import examples

MASK = np.arange(20) < 8
FOLD_MASK = np.arange(14) % 7 != 3
"""Twelve of fourteen classes are seen, so that a fold has six of either group."""


def entropy(winners):
    return -sum(count / len(winners) * math.log(count / len(winners)) for count in Counter(winners).values())


def effective_number(winners, k):
    """The exponential of the entropy, over that of random draws, each class by its binomial distribution."""
    n, of_class = len(winners), 0.0
    for count in range(1, n + 1):
        probability = math.comb(n, count) * (k - 1) ** (n - count) / k**n
        of_class -= probability * count / n * math.log(count / n)
    return math.exp(entropy(winners)) / math.exp(k * of_class)


def best(row, classes):
    return max(classes, key=lambda c: (row[c], -c))


def problem(rng, n=60, shift=4.0, winners=None):
    """Samples whose absent logits lag behind; only so many absent classes ever win, if that is given."""
    labels = rng.choice(np.flatnonzero(MASK), n)
    logits = rng.normal(size=(n, 20)) + shift * MASK
    logits[np.arange(n), labels] += 3
    if winners is not None:
        logits[:, 8 : 8 + winners] += 6
        logits[:, MASK] += 6
    return logits, labels


def scan(logits, labels):
    return scan_labelled(logits, labels, MASK)


# --- how many classes win ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 5), (4, 1), (2, 2), (5, 3), (4, 6), (7, 2)])
def test_entropy_of_draws_is_that_of_all_outcomes(n, k):
    outcomes = list(itertools.product(range(k), repeat=n))
    assert _entropy_of_draws(n, k) == pytest.approx(np.mean([entropy(drawn) for drawn in outcomes]))


@pytest.mark.parametrize(("n", "k"), [(100, 10), (300, 700), (5000, 40)])
def test_entropy_of_draws_is_that_of_a_simulation(rng, n, k):
    drawn = [entropy(rng.integers(0, k, n)) for _ in range(60)]
    assert _entropy_of_draws(n, k) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(60) + 1e-6)


@pytest.mark.parametrize(("n", "k"), [(10**6, 2), (10**6, 1000), (1000, 10**6)])
def test_entropy_of_many_draws_is_nearly_the_largest_there_is(n, k):
    found = _entropy_of_draws(n, k)
    assert 0.99 * math.log(min(n, k)) < found <= math.log(min(n, k))
    if n > k:
        assert found == pytest.approx(math.log(k) - (k - 1) / (2 * n), abs=1e-5)  # Miller and Madow


@examples(60)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 6))
def test_effective_number_of_winners(seed, n, k):
    winners = np.random.default_rng(seed).integers(0, k, n)
    group = torch.arange(9) < k
    assert _relative_number(torch.tensor(winners), group) == pytest.approx(effective_number(winners.tolist(), k))


def test_one_winner_is_one_in_so_many():
    winners = torch.full((10_000,), 3)
    assert _relative_number(winners, torch.arange(5) < 5) == pytest.approx(1 / 5, rel=1e-3)
    assert _relative_number(winners, torch.arange(5) < 1) == 1


# --- rivals -----------------------------------------------------------------------------------------------------------


def rival_ratio(logits, labels, mask):
    """Which seen and which absent class would win if the label were not there, sample by sample."""
    seen, absent = [], []
    for row, label in zip(logits, labels, strict=True):
        seen.append(best(row, [c for c in np.flatnonzero(mask) if c != label]))
        absent.append(best(row, np.flatnonzero(~mask)))
    scored = np.isfinite(logits).any(0)
    numbers = [effective_number(won, int((scored & group).sum())) for won, group in ((absent, ~mask), (seen, mask))]
    return numbers[0] / numbers[1]


@pytest.mark.parametrize("winners", [None, 6, 3, 1])
def test_rivals_are_counted(rng, winners):
    logits, labels = problem(rng, winners=winners)
    expected = min(1, rival_ratio(logits, labels, MASK) / 0.65)
    assert retention_from_rivals(scan(logits, labels)).value == pytest.approx(expected)
    assert (expected == 1) == (winners is None)


def test_rivals_are_compared_with_those_before(rng):
    """A block that always had few winners was not damaged."""
    (logits, labels), (before, _) = problem(rng, winners=2), problem(rng, winners=3)
    after = rival_ratio(logits, labels, MASK)
    found = retention_from_rivals(scan(logits, labels), torch.tensor(before))
    relative = min(1, after / rival_ratio(before, labels, MASK) / 0.65)
    assert found.value == pytest.approx((min(1, after / 0.65) + relative) / 2)
    assert found.value > retention_from_rivals(scan(logits, labels)).value
    assert found.evidence.endswith("few winners among the absent classes, fewer than before fine-tuning")
    unchanged = retention_from_rivals(scan(logits, labels), torch.tensor(logits))
    assert unchanged.value == pytest.approx((after / 0.65 + 1) / 2)


def test_more_winners_before_than_the_seen_classes_have_are_no_harm(rng):
    logits, labels = problem(rng, winners=2)
    before = logits.copy()
    before[:, ~MASK] = rng.normal(size=(60, 12))
    before[:, MASK] = 9.0 * (np.arange(8) == 0)  # one seen class wins
    assert rival_ratio(before, labels, MASK) > 1
    assert retention_from_rivals(scan(logits, labels), torch.tensor(before)) == (
        retention_from_rivals(scan(logits, labels)).value,
        "seen samples without their label have few winners among the absent classes, fewer than before fine-tuning",
    )


def test_classes_that_are_masked_do_not_count(rng):
    logits, labels = problem(rng, winners=3)
    masked = np.insert(logits, [4, 20, 20], -np.inf, axis=1)
    mask = np.insert(MASK, [4, 20, 20], [True, False, False])
    found = retention_from_rivals(scan_labelled(masked, labels + (labels >= 4), mask))
    assert found.value == pytest.approx(retention_from_rivals(scan(logits, labels)).value)


def test_one_absent_class_is_healthy(rng):
    logits, labels = problem(rng)
    found = retention_from_rivals(scan_labelled(logits[:, :9], labels, MASK[:9]))
    assert found.value == 1


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_of_very_many_samples_evenly_spaced_ones_are_looked_at(rng, monkeypatch, default):
    logits, labels = problem(rng, 1001, winners=3)
    monkeypatch.setattr(absent_health, "_ENTRIES", 20 * 700)
    monkeypatch.setattr(absent_health, "_LEAST_ROWS", 1)
    rows = np.array([i * 1001 // 700 for i in range(700)])
    torch.set_default_dtype(default)
    try:
        found = retention_from_rivals(scan(logits, labels)).value
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == pytest.approx(retention_from_rivals(scan(logits[rows], labels[rows])).value)


# --- unlabelled samples -----------------------------------------------------------------------------------------------


def stream(logits, gap, before=None):
    return retention_from_unlabelled(finecal.Samples(logits, pretrained_logits=before), torch.tensor(MASK), gap)


def naive_stream(logits, gap, before=None):
    groups = np.flatnonzero(MASK), np.flatnonzero(~MASK)
    is_absent = [max(row[MASK]) - max(row[~MASK]) < gap for row in logits]
    winners = [best(row, groups[1]) for row, absent in zip(logits, is_absent, strict=True) if absent]
    value = min(1, effective_number(winners, 12) / 0.8)
    if before is None:
        return value
    kept = []
    for group, wanted in ((groups[0], False), (groups[1], True)):
        both = [(a, b) for a, b, absent in zip(logits, before, is_absent, strict=True) if absent == wanted]
        kept.append(np.mean([best(a, group) == best(b, group) for a, b in both]))
    return (value + min(1, kept[1] / kept[0] / 0.9)) / 2


@pytest.mark.parametrize("winners", [None, 6, 3, 1])
def test_winners_below_the_gap_are_counted(rng, winners):
    logits, _ = problem(rng, 120, winners=winners)
    found = stream(logits, 5.5)
    assert found.value == pytest.approx(naive_stream(logits, 5.5))
    assert found.evidence == "unlabelled samples have few winners among the absent classes"


def test_winners_that_are_those_before_fine_tuning_are_healthy(rng):
    logits, _ = problem(rng, 120, winners=3)
    alone = stream(logits, 5.5).value
    assert alone < 0.5
    assert stream(logits, 5.5, logits).value == pytest.approx((alone + 1) / 2)
    before = logits + rng.normal(size=logits.shape)
    found = stream(logits, 5.5, before)
    assert found.value == pytest.approx(naive_stream(logits, 5.5, before))
    moved = stream(logits, 5.5, np.where(MASK, logits, np.roll(logits, 1, axis=0)))
    assert moved.value < found.value < (alone + 1) / 2
    assert moved.evidence.startswith("unlabelled samples have few winners among the absent classes, and ")
    assert moved.evidence.endswith(" % keep the one that they had before fine-tuning")


def test_seen_winners_that_all_changed_tell_nothing_of_agreement(rng):
    logits, _ = problem(rng, 120, winners=3)
    before = logits.copy()
    before[:, MASK] = np.roll(np.sort(logits[:, MASK], 1), 1, axis=1)  # the second class wins everywhere
    before[:, MASK] = np.where(np.arange(8) == (logits[:, MASK].argmax(1) + 1)[:, None] % 8, 99.0, 0.0)
    assert stream(logits, 5.5, before).value == pytest.approx((stream(logits, 5.5).value + 1) / 2)


def test_too_few_samples_below_the_gap_tell_nothing(rng):
    logits, _ = problem(rng, 40)
    margin = np.sort(logits[:, MASK].max(1) - logits[:, ~MASK].max(1))
    assert stream(logits, margin[9]) is None  # as everywhere: a sample is absent if its margin is below gamma
    assert stream(logits, margin[10]).value == pytest.approx(naive_stream(logits, margin[10]))
    few_seen = stream(logits, margin[31], -logits)
    assert few_seen == stream(logits, margin[31])
    assert stream(logits, margin[30], -logits) != stream(logits, margin[30])


# --- folds ------------------------------------------------------------------------------------------------------------


def fold(half, right_seen, right_absent, n=100):
    """As many samples of either group, of which so many are right among the classes of their group."""
    columns = np.flatnonzero(FOLD_MASK)
    groups = columns[half[columns]], columns[~half[columns]]
    labels, wins = [], []
    for group, right in zip(groups, (right_seen, right_absent), strict=True):
        for i in range(n):
            labels.append(group[i % len(group)])
            wins.append(group[(i + (i >= right)) % len(group)])
    logits = np.zeros((2 * n, 14)) + 3.0 * half
    logits[np.arange(2 * n), wins] += 2
    return finecal.estimators.PseudoFold((logits, np.array(labels)), half)


@pytest.mark.parametrize(
    ("of_folds", "health"),
    [
        ([(90, 18)], 0.4),
        ([(100, 10), (80, 20)], (15 / 90) / 0.5),
        ([(90, 45)], 1.0),
        ([(80, 90)], 1.0),
        ([(90, 0)], 0.0),
        ([(0, 50)], 1.0),
    ],
)
def test_folds_compare_accuracies_within_the_groups(of_folds, health):
    halves = finecal.estimators.pseudo_cv_splits(FOLD_MASK, len(of_folds))
    folds = [fold(half, *right) for half, right in zip(halves, of_folds, strict=True)]
    found = retention_from_folds(folds, FOLD_MASK)
    assert found.retention.value == pytest.approx(health)
    assert (found.number, found.sentences) == (len(folds), [])
    seen, absent = np.mean(of_folds, axis=0)
    assert found.retention.evidence == (
        f"in the folds {absent:.0f} % of the pseudo-absent samples are right among their own classes, and "
        f"{seen:.0f} % of the pseudo-seen ones"
    )


@pytest.mark.parametrize("kind", [torch.tensor, lambda x: torch.tensor(x).tolist()])
def test_takes_what_a_fold_takes(kind):
    (half,) = finecal.estimators.pseudo_cv_splits(FOLD_MASK, 1)
    numpy = fold(half, 90, 20)
    moved = finecal.estimators.PseudoFold((torch.tensor(numpy.samples.logits), kind(numpy.samples.labels)), kind(half))
    assert retention_from_folds(iter([moved]), kind(FOLD_MASK)) == retention_from_folds([numpy], FOLD_MASK)


def test_too_little_is_said_and_not_used():
    (half,) = finecal.estimators.pseudo_cv_splits(FOLD_MASK, 1)
    few = retention_from_folds([fold(half, 90, 90), fold(half, 9, 9, n=19)], FOLD_MASK)
    assert few == (
        None,
        2,
        ["the folds were not used: 19 samples of a group are too few to tell what was damaged"],
    )
    assert retention_from_folds([fold(half, 9, 9, n=20)], FOLD_MASK).retention is not None
    most = FOLD_MASK & (np.arange(14) < 12)  # all but two of the seen classes
    classes = retention_from_folds([fold(most, 90, 90)], FOLD_MASK)
    assert classes == (
        None,
        1,
        ["the folds were not used: 2 pseudo-absent classes are too few to stand in for the absent ones"],
    )


# --- samples of every kind --------------------------------------------------------------------------------------------


def test_every_device_and_dtype(rng, device, dtype):
    logits, labels = problem(rng, winners=3)
    rounded, before = (torch.tensor(x).to(dtype) for x in (logits, problem(rng, winners=5)[0]))
    x, y, mask = rounded.to(device), torch.tensor(labels, device=device), torch.tensor(MASK, device=device)
    expected = scan(rounded.double(), torch.tensor(labels))
    there = scan_labelled(x, y, mask)
    for given_before in (None, before):
        moved = None if given_before is None else given_before.to(device)
        double = None if given_before is None else given_before.double()
        assert retention_from_rivals(there, moved) == retention_from_rivals(expected, double)
        found = retention_from_unlabelled(finecal.Samples(x, pretrained_logits=moved), mask, 5.5)
        wide = finecal.Samples(rounded.double(), pretrained_logits=double)
        assert found == retention_from_unlabelled(wide, torch.tensor(MASK), 5.5)


def test_winners_of_pictures_count_as_independent_ones(rng):
    """Fifteen pictures cannot show all of twenty classes, however many positions they have."""
    labels = rng.integers(20, size=15)
    logits, mask = rng.normal(size=(15, 40)), np.arange(40) < 20
    logits[np.arange(15), labels] += 3
    many, groups = np.repeat(logits, 30, axis=0), np.repeat(np.arange(15), 30)
    each = scan_labelled(logits, labels, mask)
    repeated = finecal.Samples(many, np.repeat(labels, 30), groups=groups).scan(mask)
    assert retention_from_rivals(repeated) == retention_from_rivals(each)

    def of_stream(x, groups=None):
        return retention_from_unlabelled(finecal.Samples(x, groups=groups), torch.tensor(mask), 99.0).value

    assert of_stream(many, groups) == pytest.approx(of_stream(logits))
    assert of_stream(many) < 0.9 * of_stream(many, groups)
