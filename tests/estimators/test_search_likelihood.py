import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

import finecal
import reference
from finecal._estimators.search import likeliest_gamma
from profiles import examples

INF = math.inf


def overlapping(rng, n=400, dtype=np.float32):
    """Seen margins around 4 and absent ones around 1: the best gamma is near 2.5."""
    labels = rng.integers(0, 4, n)
    mask = np.array([True, True, False, False])
    logits = rng.normal(size=(n, 4)).astype(dtype)
    logits[np.arange(n), labels] += 4
    logits[:, mask] += 2.5
    return logits, labels, mask


def mean_nll(logits, labels, mask):
    """Return the mean NLL as a function of gamma, from the full matrix of float64 log-probabilities."""
    z, rows = np.asarray(logits, np.float64), np.arange(len(labels))
    return lambda gamma: -log_softmax(np.where(mask, z, z + gamma), axis=1)[rows, labels].mean()


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.95, 0.05)])
def test_nll_is_minimal(rng, scale, shares, device, dtype):
    labels = rng.choice(2, 300, p=shares) * 2 + rng.integers(0, 2, 300)
    logits, mask = rng.normal(size=(300, 4)), np.array([True, True, False, False])
    logits[np.arange(300), labels] += 1.5
    tensor = torch.tensor((logits + 2 * mask) * min(scale, 1e3 if dtype != torch.float16 else 1)).to(device, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)  # on a tiny scale gamma is the logarithm of the shares
        estimate = finecal.search_gamma(tensor, torch.tensor(labels, device=device), mask, "nll")
    nll = mean_nll(tensor.double().cpu(), labels, mask)
    best = minimize_scalar(nll, bracket=(estimate.gamma - scale, estimate.gamma + scale), tol=1e-12)
    assert nll(estimate.gamma) <= best.fun * (1 + 1e-14)
    assert estimate.gamma == pytest.approx(best.x, abs=1e-6 * max(scale, 1)) or scale == 1e3  # flat between the samples
    assert estimate.method == "search_gamma(objective='nll')"
    report = finecal.evaluate(tensor, torch.tensor(labels, device=device), mask, estimate)
    assert estimate.acc_seen_at_gamma == report.acc_seen


@examples(60)
@given(st.integers(0, 2**32 - 1))
def test_nll_balances_the_expected_labels(seed):
    """At the minimum as many absent labels are expected as there are: the derivative is zero, to 1e-12 of gamma."""
    rng = np.random.default_rng(seed)
    logits, labels, mask = reference.integer_problem(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        gamma = finecal.search_gamma(logits, labels, mask, "nll").gamma
        swapped = finecal.search_gamma(logits, labels, ~mask, "nll").gamma
        shifted = finecal.search_gamma(finecal.calibrate_logits(logits.astype(float), mask, 3.0), labels, mask, "nll")
    z = logits.astype(np.float64)
    expected = softmax(np.where(mask, z, z + gamma), axis=1)[:, ~mask].sum(1)
    slope = (expected * (1 - expected)).sum()
    assert abs(expected.sum() - (~mask[labels]).sum()) <= 1e-11 * max(1, abs(gamma)) * slope + 1e-13
    assert swapped == pytest.approx(-gamma, abs=1e-9)
    assert shifted.gamma == pytest.approx(gamma - 3, abs=1e-9)


@pytest.mark.parametrize("distance", [1.0, 30.0, 1000.0, 1e6])
def test_nll_of_separated_groups(distance):
    """By symmetry gamma is half-way, although the derivative is zero in float64 all around it."""
    gamma = finecal.search_gamma(np.array([[distance, 0], [0, 0]]), [0, 1], [True, False], "nll").gamma
    assert gamma == pytest.approx(distance / 2, rel=1e-12)


@pytest.mark.parametrize("distance", [1.0, 30.0, 1000.0])
def test_nll_of_groups_on_the_wrong_side(distance):
    logits = np.array([[0, 0], [distance, 0]])
    with pytest.warns(finecal.FinecalWarning, match="empties one side"):
        gamma = finecal.search_gamma(logits, [0, 1], [True, False], "nll").gamma
    nll = mean_nll(logits, [0, 1], np.array([True, False]))
    assert nll(gamma) == pytest.approx(nll(distance / 2), rel=1e-12)


@pytest.mark.parametrize("drop", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nll_keeps_to_the_budget(rng, drop, dtype):
    problem = overlapping(rng, 200, dtype)
    logits, labels, mask = problem
    gamma = finecal.search_gamma(*problem, "nll", drop).gamma
    free = finecal.search_gamma(*problem, "nll").gamma
    floor = reference.accuracies(logits, labels, mask, 0.0)[0] - drop - 1e-12
    allowed = [
        g
        for g in [0.0, *reference.plateaus(logits, labels, mask)]
        if reference.accuracies(logits, labels, mask, g)[0] >= floor
    ]
    assert reference.accuracies(logits, labels, mask, gamma)[0] >= floor
    nll = mean_nll(logits, labels, mask)
    assert nll(gamma) <= min(map(nll, allowed)) + 1e-12
    assert gamma <= free
    if gamma < free:  # on the edge: the next float32 number loses a sample too many
        assert np.float32(gamma) == gamma
        above = float(np.nextafter(np.float32(gamma), np.float32(np.inf)))
        assert reference.accuracies(logits, labels, mask, above)[0] < floor


def test_nll_interval_is_the_percentile_one(rng):
    logits, labels, mask = overlapping(rng, 300)
    estimate = finecal.search_gamma(logits, labels, mask, "nll", n_bootstrap=400)
    replicates = []
    for _ in range(400):
        index = rng.integers(0, 300, 300)
        replicates.append(finecal.search_gamma(logits[index], labels[index], mask, "nll").gamma)
    assert estimate.interval == pytest.approx(np.quantile(replicates, [0.025, 0.975]), abs=0.1)
    assert estimate.interval == finecal.search_gamma(logits, labels, mask, "nll", n_bootstrap=400).interval
    problem = overlapping(rng, 2000)
    bound = finecal.search_gamma(*problem, "nll", 0.0, n_bootstrap=20).interval
    free = finecal.search_gamma(*problem, "nll", n_bootstrap=20).interval
    assert (bound[0] < free[0]) & (bound[1] < free[1])


def test_nll_leaves_out_what_no_gamma_changes(rng):
    logits, labels, mask = overlapping(rng, 50)
    gamma = finecal.search_gamma(logits, labels, mask, "nll").gamma
    useless = np.array([[-INF, 1, 2, 3], [1, 2, -INF, -INF], [-INF, -INF, 1, 2], [-INF] * 4], np.float32)
    with pytest.warns(finecal.FinecalWarning, match="4 of 54 samples were left out: -inf masks their label"):
        estimate = finecal.search_gamma(
            np.vstack([useless, logits]), np.concatenate([[0, 1, 2, 0], labels]), mask, "nll", n_bootstrap=3
        )
    assert estimate.gamma == pytest.approx(gamma, rel=1e-12)
    with pytest.raises(ValueError, match="in all samples of absent classes; the likelihood does not determine gamma"):
        finecal.search_gamma(useless[[0, 2]], [1, 2], mask, "nll")


@pytest.mark.parametrize(("labels", "group"), [([0, 1], "seen"), ([2, 2], "absent")])
def test_nll_needs_both_groups(labels, group):
    with pytest.raises(ValueError, match=f"labels are of {group} classes only"):
        finecal.search_gamma(np.array([[4.0, 2.0, 1.0]] * 2), labels, [True, True, False], "nll")


def test_a_curve_has_no_likelihood(rng):
    with pytest.raises(
        ValueError, match=r"'nll' needs the logits, and a curve has only margins: use search_gamma\(objective='nll'\)"
    ):
        finecal.tradeoff_curve(*overlapping(rng)).best("nll")


def test_weights_count_as_repetitions(rng):
    log_odds, is_seen = torch.tensor(rng.normal(size=30)), torch.tensor(rng.random(30) < 0.5)
    times = torch.tensor(rng.integers(0, 4, 30))
    repeated = likeliest_gamma(log_odds.repeat_interleave(times), is_seen.repeat_interleave(times))
    assert likeliest_gamma(log_odds, is_seen, times.double()) == pytest.approx(repeated, abs=1e-12)
    assert likeliest_gamma(log_odds, is_seen | True) == -INF


def test_the_edge_of_the_budget_between_float32_numbers():
    low, high = 1 + 1e-9, 1 + 2e-9
    logits = np.array([[low, 0], [high, 0], [-5.0, 0], *[[5.0, 0]] * 6])
    estimate = finecal.search_gamma(logits, [0, 0] + [1] * 7, [True, False], "nll", 0.5)
    assert estimate.gamma == high
    assert estimate.acc_seen_at_gamma == 0.5


def test_resamples_without_one_of_the_groups_are_left_out():
    logits = np.array([[5.0, 0, 1], [0, 2, 3]])  # the absent sample is no hit, so that alone it has no breakpoint
    estimate = finecal.search_gamma(logits, [0, 1], [True, False, False], "nll", 0.5, n_bootstrap=30)
    assert estimate.interval == (estimate.gamma, estimate.gamma)
