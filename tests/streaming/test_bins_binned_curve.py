import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal.streaming import BestGamma, MarginBins
from finecal.streaming._bins import bin_edges
from profiles import examples
from streams import tied

OBJECTIVES = {
    "overall": lambda report: report.acc_all,
    "balanced": lambda report: report.balanced,
    "harmonic": lambda report: report.harmonic_mean,
    "absent": lambda report: report.acc_absent,
}
INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")  # of few classes, by chance


problems = given(
    seed=st.integers(0, 2**32 - 1),
    rounded=st.booleans(),
    masked=st.booleans(),
    bins=st.sampled_from([(2, 16.0), (3, 2.0), (8, 1.0), (64, 5.0), (1 << 16, 16.0)]),
)


@problems
@examples(60)
def test_counts_are_exact_at_the_edges(seed, rounded, masked, bins):
    logits, labels, mask = tied(seed, rounded, masked)
    exact = finecal.tradeoff_curve(logits, labels, mask)
    curve = MarginBins(mask, *bins).update(logits, labels).compute()
    for point in range(1, bins[0], max(1, bins[0] // 16)):
        report = exact.at(curve.gamma[point])
        assert (curve.acc_seen[point], curve.acc_absent[point]) == (report.acc_seen, report.acc_absent)
        assert curve.acc_all[point] == report.acc_all
    assert (curve.seen_correct[0], curve.absent_correct[0]) == (exact.seen_correct[0], exact.absent_correct[0])
    assert (curve.seen_correct[-1], curve.absent_correct[-1]) == (exact.seen_correct[-1], exact.absent_correct[-1])
    within = exact.acc_seen_within, exact.acc_absent_within
    assert (curve.acc_seen_within, curve.acc_absent_within) == pytest.approx(within, rel=1e-15)


@problems
@examples(60)
def test_bounds_hold_and_the_second_pass_is_exact(seed, rounded, masked, bins):
    logits, labels, mask = tied(seed, rounded, masked)
    exact = finecal.tradeoff_curve(logits, labels, mask)
    state = MarginBins(mask, *bins).update(logits, labels)
    curve = state.compute()
    assert abs(curve.ausuc - exact.ausuc) <= curve.ausuc_error + 1e-12
    for objective, value in OBJECTIVES.items():
        best = exact.best(objective)
        assert BestGamma(state, objective).update(logits, labels).compute() == best
        edge = curve.best(objective)
        assert edge in curve.gamma[1:-1]
        assert 0 <= curve.shortfall(objective) <= 1
        assert value(exact.at(best)) <= value(exact.at(edge)) + curve.shortfall(objective) + 1e-12


def test_bounds_are_tight_by_hand():
    """One bin holds a seen and an absent hit: the curve may be either staircase, half a unit square off the middle."""
    mask = np.array([True, False])
    curve = MarginBins(mask, 2).update(np.array([[3.0, 1.0], [1.0, 0.5]]), [0, 1]).compute()
    assert curve.gamma.tolist() == [-INF, 0.0, INF]
    assert (curve.seen_correct.tolist(), curve.absent_correct.tolist()) == ([1, 1, 0], [0, 0, 1])
    assert (curve.ausuc, curve.ausuc_error) == (0.5, 0.5)
    assert curve.windows().tolist() == [True, True]
    assert [curve.shortfall(objective) for objective in OBJECTIVES] == [0.5, 0.5, 1.0, 1.0]
    assert curve.best() == 0.0


def test_edges_hold_every_margin_and_are_narrow_near_zero():
    edges = bin_edges(1 << 16, 16.0)
    assert edges[[0, 1 << 15, -1]].tolist() == [-INF, 0.0, INF]
    assert torch.equal(edges, edges.float().double())
    assert torch.equal(edges.flip(0), -edges)
    width = edges.diff()
    assert bool((width > 0).all())
    for margin in (0.0, 10.0, -50.0):
        place = int(torch.searchsorted(edges, margin, right=True)) - 1
        assert float(width[place]) == pytest.approx(2 * (16 + abs(margin)) ** 2 / (16 * 65536), rel=2e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_on_every_device_and_dtype(device, dtype):
    logits, labels, mask = tied(3)
    x, y, m = (
        torch.tensor(logits).to(device, dtype),
        torch.tensor(labels, device=device),
        torch.tensor(mask, device=device),
    )
    state = MarginBins(m).update(x, y)
    exact = finecal.tradeoff_curve(x, y, m)
    assert abs(state.compute().ausuc - exact.ausuc) <= state.compute().ausuc_error + 1e-12
    assert BestGamma(state).update(x, y).compute() == exact.best()
    assert state.compute().gamma.device == x.device


def test_more_bins_tell_more(rng):
    logits = rng.normal(size=(4000, 6)).astype(np.float32) * 3
    labels, mask = rng.integers(0, 6, 4000), np.arange(6) < 3
    errors = [MarginBins(mask, bins).update(logits, labels).compute().ausuc_error for bins in (64, 1024, 16384)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] > 0


def test_what_a_group_without_samples_leaves_undefined():
    mask = np.array([True, True, False])
    state = MarginBins(mask)
    assert math.isnan(state.compute().ausuc)
    state.update(np.array([[3.0, 1.0, 2.0]]), [0])
    curve = state.compute()
    assert math.isnan(curve.ausuc)
    assert math.isnan(curve.ausuc_error)
    assert bool(curve.acc_absent.isnan().all())
    for refuse in (curve.best, curve.shortfall, curve.windows, lambda: BestGamma(state)):
        with pytest.raises(ValueError, match="labels are of seen classes only"):
            refuse()
