import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

import finecal
from finecal._core.warning import without_warnings
from finecal._estimators.seen_budget import _below, _Bound


@pytest.mark.parametrize("n", [1, 2, 10, 58, 59, 200, 5000])
@pytest.mark.parametrize("budget", [0.001, 0.02, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_rank_equals_the_binomial_bound(n, budget, confidence):
    ranks = [k for k in range(1, n + 1) if binom.cdf(k - 1, n, budget) <= 1 - confidence]
    assert _Bound(budget, confidence).rank(n) == max(ranks, default=0)


def one_class_problem(margins, correct):
    """Samples of seen class 0 with the given margins; wrong ones prefer seen class 1 instead."""
    logits = np.zeros((len(margins), 3))
    logits[np.arange(len(margins)), np.where(correct, 0, 1)] = margins
    logits[:, 2] = 0.0
    return logits, np.zeros(len(margins), int), [True, True, False]


def test_gamma_is_the_order_statistic_of_what_can_be_lost(rng):
    margins = rng.permutation(np.arange(1.0, 301.0))
    correct = rng.random(300) < 0.8
    estimate = finecal.estimators.seen_budget_gamma(*one_class_problem(margins, correct), max_seen_drop=0.05)
    rank = max(k for k in range(1, 301) if binom.cdf(k - 1, 300, 0.05) <= 0.05)
    assert estimate.gamma == pytest.approx(np.sort(margins[correct])[rank - 1])
    assert estimate.gamma < np.sort(margins[correct])[rank - 1]
    assert estimate.acc_seen_at_gamma == pytest.approx(correct.mean() - (rank - 1) / 300)
    assert estimate.method == "seen_budget_gamma(max_seen_drop=0.05, confidence=0.95)"


def test_the_budget_is_kept_in_the_population(rng):
    """Over many draws from a known population with ties, the true loss exceeds the budget in at most 5 % (+ noise)."""
    broken, number = 0, 2000
    for _ in range(number):
        margins = np.ceil(rng.exponential(4.0, 200) * 4) / 4
        correct = rng.random(200) < 0.9
        gamma = finecal.estimators.seen_budget_gamma(*one_class_problem(margins, correct), max_seen_drop=0.1).gamma
        flipped_up_to = np.floor(gamma * 4 - 1e-9) / 4 if gamma > 0 else 0.0  # margins on a grid, strictly below gamma
        true_loss = 0.9 * (1 - math.exp(-flipped_up_to / 4.0))
        broken += true_loss > 0.1
    assert broken / number <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / number)
    assert broken > 0  # the bound is not vacuous


def test_more_confidence_or_less_budget_lowers_gamma(rng):
    problem = one_class_problem(rng.exponential(4.0, 1000), np.ones(1000, bool))
    gammas = [finecal.estimators.seen_budget_gamma(*problem, max_seen_drop=d).gamma for d in (0.01, 0.05, 0.2)]
    assert gammas == sorted(gammas)
    assert (
        finecal.estimators.seen_budget_gamma(*problem, confidence=0.999).gamma
        < finecal.estimators.seen_budget_gamma(*problem).gamma
    )


def test_too_few_samples_give_zero_and_a_warning():
    with pytest.warns(finecal.FinecalWarning) as record:
        estimate = finecal.estimators.seen_budget_gamma(
            *one_class_problem(np.full(58, 2.0), np.ones(58, bool)), max_seen_drop=0.05
        )
    assert estimate.gamma == 0.0
    assert len(estimate.warnings) == 1
    assert "58 samples are too few" in str(record[0].message)
    assert "59 are needed" in str(record[0].message)


def test_one_seen_class_is_enough(rng):
    logits = np.stack([rng.exponential(4.0, 300), np.zeros(300)], axis=1)
    assert finecal.estimators.seen_budget_gamma(logits, np.zeros(300, int), [True, False]).gamma > 0


def test_a_budget_that_cannot_be_spent_is_warned_of(rng):
    correct = np.arange(400) < 2
    with pytest.warns(finecal.FinecalWarning) as record:
        estimate = finecal.estimators.seen_budget_gamma(
            *one_class_problem(np.full(400, 3.0), correct), max_seen_drop=0.05
        )
    assert estimate.gamma == 4.0
    assert len(record) == len(estimate.warnings) == 3
    assert "only 2 of 400 samples are correct" in estimate.warnings[2]
    assert "costs the seen classes everything" in estimate.warnings[1]
    assert "told apart within their own group" in estimate.warnings[0]


def test_nothing_to_lose_is_an_error():
    with pytest.raises(ValueError, match="none of the 100 samples correctly"):
        finecal.estimators.seen_budget_gamma(*one_class_problem(np.full(100, 2.0), np.zeros(100, bool)))


def test_interval(rng):
    problem = one_class_problem(rng.exponential(4.0, 500), np.ones(500, bool))
    estimate = finecal.estimators.seen_budget_gamma(*problem, n_bootstrap=200)
    low, high = estimate.interval
    assert 0 <= low < estimate.gamma < high


def test_samples_right_on_the_line_can_be_lost():
    """A margin of exactly 0 is correct at gamma = 0, and lost at any gamma above."""
    margins = np.concatenate([np.zeros(20), np.full(280, 5.0)])
    logits, labels, mask = one_class_problem(margins, np.ones(300, bool))
    assert finecal.estimators.seen_budget_gamma(logits - 1, labels, mask, max_seen_drop=0.05).gamma == 0.0


def test_the_last_sample_that_may_be_lost():
    rank = _Bound(0.05, 0.95).rank(400)
    for correct, lost in ((rank, False), (rank - 1, True)):
        problem = one_class_problem(np.full(400, 3.0), np.arange(400) < correct)
        if not lost:
            assert finecal.estimators.seen_budget_gamma(*problem, max_seen_drop=0.05).gamma == pytest.approx(3.0)
            continue
        with pytest.warns(finecal.FinecalWarning) as record:
            finecal.estimators.seen_budget_gamma(*problem, max_seen_drop=0.05)
        assert str(record[-1].message) == (
            f"seen_budget_gamma: only {correct} of 400 samples are correct at "
            "gamma = 0: no gamma can cost more than the budget; this one, beyond all their margins, gives up every "
            "seen sample"
        )


def test_messages_are_whole_sentences():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finecal.estimators.seen_budget_gamma(*one_class_problem(np.full(100, 2.0), np.zeros(100, bool)))
    assert str(error.value) == (
        "logits predict none of the 100 samples correctly at gamma = 0 (or mask the absent classes by -inf), so "
        "there is nothing to lose and the budget sets no gamma: check that labels belong to these logits"
    )
    with pytest.raises(ValueError, match="max_seen_drop is 2.0; it must lie strictly between 0 and 1"):
        finecal.estimators.seen_budget_gamma(*one_class_problem(np.full(100, 2.0), np.ones(100, bool)), max_seen_drop=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_calibrator_keeps_the_budget_that_predict_keeps(rng, dtype):
    """In bfloat16 many samples tie at the bound, and argmax after rounding would give the ties to the absent class."""
    seen = torch.tensor(rng.normal(50, 4, 20_000))
    logits = torch.stack([torch.full_like(seen, 42.0), seen], dim=1).to(dtype)  # the absent class comes first
    labels, mask = torch.ones(20_000, dtype=torch.int64), [False, True]
    gamma = finecal.estimators.seen_budget_gamma(logits, labels, mask, max_seen_drop=0.018)
    before = (logits.argmax(1) == 1).double().mean()
    after = (finecal.AdditiveBias(mask, gamma)(logits).argmax(1) == 1).double().mean()
    assert 0.005 < before - after <= 0.018


def test_resamples_without_a_correct_sample_count_as_unlimited():
    logits = np.tile(np.float32([0, 2, 0]), (100, 1))
    logits[0] = [5, 1, 0]
    with pytest.warns(finecal.FinecalWarning):
        estimate = finecal.estimators.seen_budget_gamma(
            logits, np.zeros(100, int), [True, True, False], 0.1, n_bootstrap=20
        )
    assert estimate.interval == (6.0, 6.0)


@pytest.mark.parametrize(
    ("ordered", "rank", "step", "gamma"),
    [
        ([1.0, 3.0, 9.0], 2, 0.25, 2.75),  # one step below V_(2)
        ([1.0, 3.0, 9.0], 2, 5.0, 2.0),  # no more than half-way down
        ([2.0, 3.0, 3.0], 3, 5.0, 2.5),  # past those that tie
        ([3.0, 3.0, 3.0], 3, 5.0, 1.5),  # half-way to 0
        ([1.0, 3.0, 9.0], 1, 5.0, 0.5),
        ([1.0, math.inf, math.inf], 2, 0.25, 7.0),
        ([1.0, 3.0, 9.0], 0, 0.25, 0.0),
    ],
)
def test_gamma_is_a_step_below_the_bound(ordered, rank, step, gamma):
    assert _below(torch.tensor(ordered, dtype=torch.float64), rank, step, beyond=7.0) == gamma


def test_too_few_samples_are_not_blamed_on_the_model():
    correct = np.arange(50) < 30
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimators.seen_budget_gamma(*one_class_problem(np.full(50, 2.0), correct), max_seen_drop=0.02)
    assert len(record) == 1


# --- groups -----------------------------------------------------------------------------------------------------------


def grouped(problem, groups):
    """The same arguments, with the samples in groups."""
    logits, labels, mask = problem
    return finecal.Samples(logits, labels, groups=groups), mask


def p_value(mean_loss, number, budget):
    """Of Hoeffding and Bentkus (Bates et al. 2021), term by term."""

    def h(a, b):
        return (a * math.log(a / b) if a > 0 else 0.0) + (1 - a) * math.log((1 - a) / (1 - b))

    hoeffding = math.exp(-number * h(min(mean_loss, budget), budget))
    return min(hoeffding, math.e * binom.cdf(math.ceil(number * mean_loss - 1e-9), number, budget))


def naive_gamma(margins, correct, groups, budget, confidence):
    """The largest gamma up to which each one is certain enough, by trying each margin."""
    names = sorted(set(groups))
    best = 0.0
    for gamma in sorted(set(margins[correct])):
        lost = correct & (margins < gamma)
        mean_loss = sum(lost[groups == name].mean() for name in names) / len(names)
        if p_value(mean_loss, len(names), budget) > 1 - confidence:
            return best
        best = gamma
    return best


@pytest.mark.parametrize("budget", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("number", [30, 100, 300])
def test_of_groups_equals_fixed_sequence_testing(rng, budget, number):
    groups = np.append(rng.integers(number, size=3 * number), np.arange(number))
    margins = np.round(rng.exponential(4.0, 4 * number), 1) + 0.1  # some are equal
    correct = rng.random(4 * number) < 0.8
    expected = naive_gamma(margins, correct, groups, budget, 0.9)
    with without_warnings():
        estimate = finecal.estimators.seen_budget_gamma(
            *grouped(one_class_problem(margins, correct), groups), budget, 0.9
        )
    assert estimate.gamma == pytest.approx(expected, abs=1e-6)
    assert estimate.gamma < expected or expected == 0
    assert estimate.data.endswith(f" in {number} groups")


def test_of_groups_of_one_sample_it_is_close_to_the_binomial_bound(rng):
    problem = one_class_problem(rng.exponential(4.0, 2000), rng.random(2000) < 0.9)
    alone = finecal.estimators.seen_budget_gamma(*problem, 0.05)
    of_groups = finecal.estimators.seen_budget_gamma(*grouped(problem, np.arange(2000)), 0.05)
    assert 0.75 * alone.gamma < of_groups.gamma < alone.gamma


@pytest.mark.parametrize("number", [58, 59])
def test_groups_that_are_too_few(number):
    """As many are needed as of samples, however many samples they have."""
    problem = one_class_problem(np.full(10 * number, 2.0), np.ones(10 * number, bool))
    problem = grouped(problem, np.arange(10 * number) // 10)
    if number == 59:
        assert finecal.estimators.seen_budget_gamma(*problem, 0.05).gamma == pytest.approx(2.0)
        return
    with pytest.warns(finecal.FinecalWarning) as record:
        assert finecal.estimators.seen_budget_gamma(*problem, 0.05).gamma == 0
    (warning,) = record
    assert "58 groups are too few to guarantee a drop of at most 0.05 with 0.95 confidence: 59 are" in str(warning)


def test_the_budget_is_kept_over_groups(rng):
    """In 1000 draws of pictures whose positions share an offset; positions taken for independent break it."""
    pictures, positions, budget = 60, 20, 0.2
    broken = {True: 0, False: 0}
    offsets = 3 + 3 * rng.normal(size=20_000)
    margins = offsets[:, None] + rng.normal(size=(20_000, 20))
    population = np.sort(margins[margins >= 0])
    for _ in range(1000):
        drawn = (3 + 3 * rng.normal(size=(pictures, 1)) + rng.normal(size=(pictures, positions))).ravel()
        losable = torch.where(torch.tensor(drawn >= 0), torch.tensor(drawn), math.inf).sort()
        weight = torch.full((len(drawn),), 1 / positions, dtype=torch.float64)
        for by_picture in (True, False):
            rank = _Bound(budget, 0.95).rank(weight if by_picture else len(drawn))
            gamma = _below(losable.values, rank, 0.0, 99.0)
            broken[by_picture] += np.searchsorted(population, gamma) / margins.size > budget
    assert broken[True] / 1000 <= 0.05
    assert broken[False] / 1000 > 0.2


def test_interval_of_groups(rng):
    """Pictures whose margins are alike: those of the resamplings are the more apart."""
    margins = np.repeat(rng.exponential(4.0, 100), 5) + 0.1 * rng.random(500)
    problem = one_class_problem(margins, np.ones(500, bool))
    alone = finecal.estimators.seen_budget_gamma(*problem, 0.2, n_bootstrap=100).interval
    low, high = finecal.estimators.seen_budget_gamma(
        *grouped(problem, np.arange(500) // 5), 0.2, n_bootstrap=100
    ).interval
    assert high - low > 1.2 * (alone[1] - alone[0])
