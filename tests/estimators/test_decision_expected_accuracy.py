import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finecal._estimators.decision import AbsentModel, SeenAccuracy, decide, pick_evenly
from problems import scan_labelled
from profiles import examples

LOGISTIC = math.sqrt(3) / math.pi
"""Scale of a logistic distribution whose standard deviation is 1."""


def scan_of(margins, hits=None, device="cpu", dtype=torch.float64):
    """Samples of two seen classes with these margins, of which some are taken for the other seen class."""
    margins = np.asarray(margins, dtype=np.float64)
    hits = np.ones(len(margins), bool) if hits is None else hits
    logits = torch.tensor(np.stack([margins, margins - 1, 0 * margins], axis=1)).to(device, dtype)
    return scan_labelled(logits, torch.tensor(np.where(hits, 0, 1), device=device), [True, True, False])


def seen_margins(rng, n=60, mean=6.0, spread=3.0):
    return rng.normal(mean, spread, n), rng.random(n) < 0.8


def smoothed(margins, hits, gamma, scale):
    """Acc_{S/Y} at gamma, sample by sample."""
    return sum(1 / (1 + math.exp((gamma - m) / scale)) for m, hit in zip(margins, hits, strict=True) if hit) / len(hits)


def expected(margins, hits, gamma, unit, unfamiliarity, absent):
    """What gamma is chosen by."""
    gap, error, share, health = absent
    of_seen = math.sqrt((unit / 2) ** 2 + (LOGISTIC * (1 - unfamiliarity) * error) ** 2)
    of_absent = math.sqrt((unit / 2) ** 2 + (LOGISTIC * 2 * error) ** 2)
    absent_accuracy = (health if gap >= 0 else 1) * smoothed(margins, hits, 2 * gap - gamma, of_absent)
    return share * smoothed(margins, hits, gamma, of_seen) + (1 - share) * absent_accuracy


def largest_allowed(margins, hits):
    """The largest margin that may be gamma: half of the samples that are right at 0 stay so, or more."""
    right = [m for m, hit in zip(margins, hits, strict=True) if hit and m >= 0]
    allowed = [g for g in right if 2 * sum(m >= g for m in right) >= len(right)]
    return max(allowed) if right else math.inf


def brute_force(margins, hits, unit, unfamiliarity, absent, steps=400):
    of_hits = [m for m, hit in zip(margins, hits, strict=True) if hit]
    if absent.gap > 0:
        low, high = 0.0, min(max([*of_hits, 2 * absent.gap]) + unit, largest_allowed(margins, hits))
    else:
        low, high = min([*of_hits, *(2 * absent.gap - m for m in of_hits)]) - unit, 0.0
    grid = np.linspace(low, high, steps)
    values = [expected(margins, hits, gamma, unit, unfamiliarity, absent) for gamma in grid]
    return grid[int(np.argmax(values))], max(values), grid[1] - grid[0]


@examples(60)
@given(
    st.integers(0, 10_000),
    st.floats(0.2, 3),
    st.floats(0, 1),
    st.floats(-6, 8),
    st.floats(0.05, 0.95),
    st.floats(0.1, 1),
)
def test_no_gamma_is_better(seed, unit, unfamiliarity, gap, share, health):
    margins, hits = seen_margins(np.random.default_rng(seed), n=30)
    hits[0] = True
    absent = AbsentModel(gap, 0.2 * abs(gap), share, health)
    decision = decide(SeenAccuracy(scan_of(margins, hits)), unit, unfamiliarity, absent)
    gamma, best, step = brute_force(margins, hits, unit, unfamiliarity, absent)
    value = expected(margins, hits, decision.gamma, unit, unfamiliarity, absent)
    assert value >= best - 1e-4
    assert decision.gain == pytest.approx(value - expected(margins, hits, 0.0, unit, unfamiliarity, absent), abs=1e-9)
    assert (0 <= decision.gamma <= largest_allowed(margins, hits)) if gap > 0 else decision.gamma <= 0
    if abs(decision.gamma - gamma) > 2 * step:  # two places that are equally good
        assert best == pytest.approx(value, abs=1e-3)


def test_by_hand():
    """All seen margins are 9, and absent ones mirrored at 6 are 3: any gamma in between, the gap as the nearest."""
    accuracy = SeenAccuracy(scan_of([9.0] * 40))
    decision = decide(accuracy, 0.01, 1.0, AbsentModel(6.0, 0.0, 0.5, 1.0))
    assert decision.gamma == pytest.approx(6, abs=0.01)
    assert decision.gain == pytest.approx(0.5)
    uncertain = decide(accuracy, 0.01, 1.0, AbsentModel(6.0, 1.0, 0.5, 1.0))
    assert 6 < uncertain.gamma < 9  # more gamma brings back those that the error of the gap hides, at no cost
    assert decide(accuracy, 0.01, 1.0, AbsentModel(5.0, 0.0, 0.5, 1.0)).gamma == pytest.approx(5, abs=0.01)


def test_equal_terms_meet_at_the_gap(rng):
    """With equally many samples of either group, and no error, the sum of both curves is symmetric about the gap."""
    margins, _ = seen_margins(rng, 400, 8, 2)
    assert decide(SeenAccuracy(scan_of(margins)), 1.0, 1.0, AbsentModel(5.0, 0.0, 0.5, 1.0)).gamma == pytest.approx(
        5, abs=0.2
    )


@pytest.mark.parametrize("scale", [1e-6, 0.5, 1e8])
def test_gamma_has_the_unit_of_the_logits(rng, scale):
    margins, hits = seen_margins(rng)
    for gap in (4.0, -3.0):
        absent = AbsentModel(gap, 0.7, 0.4, 0.9)
        gamma = decide(SeenAccuracy(scan_of(margins, hits)), 1.5, 0.5, absent).gamma
        scaled = absent._replace(gap=scale * gap, error=scale * 0.7)
        found = decide(SeenAccuracy(scan_of(scale * margins, hits)), scale * 1.5, 0.5, scaled)
        assert found.gamma == pytest.approx(scale * gamma, rel=1e-4)


def test_who_counts_more_gets_more(rng):
    accuracy = SeenAccuracy(scan_of(*seen_margins(rng, 300)))
    absent = AbsentModel(4.0, 0.8, 0.5, 1.0)
    by_health = [decide(accuracy, 1.0, 1.0, absent._replace(retention=h)).gamma for h in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert by_health == sorted(by_health)
    assert by_health[0] == 0 < by_health[1] < by_health[-1]
    by_share = [decide(accuracy, 1.0, 1.0, absent._replace(share=s)).gamma for s in (0.95, 0.7, 0.5, 0.3)]
    assert by_share == sorted(by_share)
    assert by_share[0] < by_share[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 11])
def test_half_of_the_recognised_samples_stay_so(rng, n, dtype):
    """However far the gap is: counted sample by sample, at the margins themselves."""
    hits = rng.random(n) < 0.9
    hits[0] = True
    scan = scan_of(rng.integers(0, 9, n), hits, dtype=dtype)
    accuracy = SeenAccuracy(scan)
    assert accuracy.most == largest_allowed(scan.margin.tolist(), hits)
    gamma = decide(accuracy, 1.0, 1.0, AbsentModel(10.0, 2.0, 1e-6, 1.0)).gamma
    assert gamma == accuracy.most
    assert 2 * scan.acc_seen(gamma) >= scan.acc_seen(0.0)


def test_a_gamma_that_would_cost_half_at_once_is_zero():
    """Half of the samples tie with the absent classes: any gamma loses them, and more is not allowed."""
    decision = decide(SeenAccuracy(scan_of([0.0] * 6 + [5.0] * 4)), 1.0, 1.0, AbsentModel(3.0, 0.0, 0.5, 1.0))
    assert decision == (0.0, 0.0)


def test_seen_classes_that_lose_are_brought_back_whatever_the_health(rng):
    margins, hits = seen_margins(rng, mean=-5.0)
    accuracy, absent = SeenAccuracy(scan_of(margins, hits)), AbsentModel(-5.0, 1.0, 0.5, 1.0)
    decision = decide(accuracy, 1.0, 1.0, absent)
    assert decision.gamma < -3
    assert decide(accuracy, 1.0, 1.0, absent._replace(retention=0.1)) == decision
    assert decide(accuracy, 1.0, 1.0, absent._replace(share=0.001)).gamma == 0


def test_nothing_recognised_is_no_reason_against_the_gap():
    """No sample is right within its group: nothing is lost, nor gained, and the gap is taken."""
    accuracy = SeenAccuracy(scan_of([3.0, 4.0], np.zeros(2, bool)))
    assert accuracy.range == (0.0, 0.0)
    assert accuracy.most == math.inf
    for gap in (5.0, -5.0):
        decision = decide(accuracy, 1.0, 1.0, AbsentModel(gap, 1.0, 0.5, 1.0))
        assert decision.gamma == pytest.approx(gap, abs=0.01)
        assert decision.gain == 0


def test_accuracy_is_a_sum_over_the_hits(rng):
    margins, hits = seen_margins(rng)
    accuracy = SeenAccuracy(scan_of(margins, hits))
    gammas = torch.linspace(-5, 15, 21, dtype=torch.float64)
    found = accuracy.at(gammas, 0.7)
    assert found.tolist() == pytest.approx([smoothed(margins, hits, float(g), 0.7) for g in gammas])
    sharp = accuracy.at(gammas, 1e-6)
    assert sharp.tolist() == pytest.approx([np.mean(hits & (margins >= float(g))) for g in gammas])
    assert accuracy.range == (margins[hits].min(), margins[hits].max())


def test_masked_margins_count_as_mistakes():
    logits = torch.tensor([[5.0, 1.0, 0.0], [6.0, 1.0, 2.0], [4.0, 0.0, -math.inf], [-math.inf, 3.0, 1.0]])
    accuracy = SeenAccuracy(scan_labelled(logits, [0, 0, 0, 0], [True, True, False]))
    assert accuracy.range == (4.0, 5.0)
    assert float(accuracy.at(torch.tensor([-9.0]), 0.01)) == pytest.approx(0.5)


def test_many_margins_are_represented_by_evenly_spaced_ones(rng):
    margins = rng.normal(6, 3, 20_000)
    gammas = torch.linspace(-2, 12, 15, dtype=torch.float64)
    found = SeenAccuracy(scan_of(margins)).at(gammas, 0.3)
    exact = [float((1 / (1 + np.exp((float(g) - margins) / 0.3))).mean()) for g in gammas]
    assert found.tolist() == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("n", [0, 1, 4, 5, 13, 1000])
def test_evenly_spaced_values_are_the_middles_of_equal_parts(n):
    ordered = torch.arange(n, dtype=torch.float64)
    found = pick_evenly(ordered, 5)
    expected = list(range(n)) if n <= 5 else [math.floor((i + 0.5) * n / 5) for i in range(5)]
    assert found.tolist() == expected


def test_every_device_and_dtype(rng, device, dtype):
    """Margins of a coarse dtype are those of its numbers."""
    margins, hits = seen_margins(rng)
    absent = AbsentModel(4.0, 0.8, 0.5, 0.9)
    scan = scan_of(margins, hits, device, dtype)
    gamma, value, step = brute_force(scan.margin.double().tolist(), hits, 1.0, 0.5, absent)
    decision = decide(SeenAccuracy(scan), 1.0, 0.5, absent)
    assert decision.gamma == pytest.approx(gamma, abs=2 * step)
    assert expected(scan.margin.double().tolist(), hits, decision.gamma, 1.0, 0.5, absent) >= value - 1e-6
