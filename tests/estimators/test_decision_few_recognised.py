import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from finecal._core.groups import check_groups
from finecal._estimators.decision import AbsentModel, SeenAccuracy, SmoothedAccuracy, decide
from problems import scan_labelled


def scan_of(margins, hits=None, device="cpu", dtype=torch.float64):
    """Samples of two seen classes with these margins, of which some are taken for the other seen class."""
    margins = np.asarray(margins, dtype=np.float64)
    hits = np.ones(len(margins), bool) if hits is None else hits
    logits = torch.tensor(np.stack([margins, margins * 0.99, 0 * margins], axis=1)).to(device, dtype)
    return scan_labelled(logits, torch.tensor(np.where(hits, 0, 1), device=device), [True, True, False])


def problem(rng, n, mistaken=0):
    """Positive margins of n samples that are right within their group, and of some that are not."""
    return rng.normal(12, 2, n + mistaken), np.arange(n + mistaken) < n


def steadied(margins, hits, gamma, scale):
    """Acc_{S/Y} at gamma, sample by sample."""
    of_hits = [m for m, hit in zip(margins, hits, strict=True) if hit]
    n, mean = len(of_hits), sum(of_hits) / len(of_hits)
    variance = sum((m - mean) ** 2 for m in of_hits) / n
    wide = math.sqrt(scale**2 + 3 / math.pi**2 * (1 - n / 50) * variance)
    drawn = [mean + math.sqrt(n / 50) * (m - mean) for m in of_hits]
    return sum(1 / (1 + math.exp((gamma - m) / wide)) for m in drawn) / len(margins)


GAMMAS = torch.linspace(2, 20, 19, dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 3, 15, 49])
def test_equals_the_sum_over_the_recognised(rng, n):
    margins, hits = problem(rng, n, mistaken=7)
    found = SmoothedAccuracy(scan_of(margins, hits)).at(GAMMAS, 0.7)
    assert found.tolist() == pytest.approx([steadied(margins, hits, float(g), 0.7) for g in GAMMAS])


@pytest.mark.parametrize(("n", "mistaken"), [(50, 0), (50, 30), (300, 0), (1, 4), (0, 3)])
def test_enough_samples_or_a_single_one_are_taken_as_they_are(rng, n, mistaken):
    scan = scan_of(*problem(rng, n, mistaken))
    assert torch.equal(SmoothedAccuracy(scan).at(GAMMAS, 0.7), SeenAccuracy(scan).at(GAMMAS, 0.7))


def test_equal_margins_are_taken_as_they_are():
    scan = scan_of([3.0] * 10)
    assert torch.equal(SmoothedAccuracy(scan).at(GAMMAS, 0.7), SeenAccuracy(scan).at(GAMMAS, 0.7))


@pytest.mark.parametrize("n", [2, 5, 15, 40])
def test_mean_and_variance_stay(rng, n):
    """By integrals of the curve, which is the tail of a distribution."""
    margins, hits = problem(rng, n)
    grid = torch.linspace(-90, 110, 20001, dtype=torch.float64)
    moments = []
    for accuracy in (SmoothedAccuracy(scan_of(margins, hits)), SeenAccuracy(scan_of(margins, hits))):
        density = -torch.diff(accuracy.at(grid, 0.5))
        middle = (grid[1:] + grid[:-1]) / 2
        mean = float(density @ middle)
        moments.append((mean, float(density @ (middle - mean).square())))
    assert moments[0] == pytest.approx(moments[1], rel=1e-3)


def test_the_limit_of_what_gamma_costs_stays(rng):
    margins, hits = problem(rng, 9, mistaken=2)
    scan = scan_of(margins, hits)
    assert SmoothedAccuracy(scan).most == SeenAccuracy(scan).most
    gamma = decide(SmoothedAccuracy(scan), 1.0, 1.0, AbsentModel(40.0, 4.0, 1e-6, 1.0)).gamma
    assert 2 * scan.acc_seen(gamma) >= scan.acc_seen(0.0)


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 3.0, 1e8, 1e200])
def test_units_do_not_matter(rng, scale):
    margins, hits = problem(rng, 12, mistaken=3)
    gamma = decide(SmoothedAccuracy(scan_of(margins, hits)), 1.5, 0.5, AbsentModel(7.0, 1.4, 0.4, 0.8)).gamma
    scaled = AbsentModel(scale * 7.0, scale * 1.4, 0.4, 0.8)
    found = decide(SmoothedAccuracy(scan_of(scale * margins, hits)), scale * 1.5, 0.5, scaled).gamma
    assert found == pytest.approx(scale * gamma, rel=1e-6)
    assert gamma > 0


def test_a_decision_from_few_samples_is_nearer_to_that_from_many(rng):
    """Many draws of 15 of a thousand samples; the absent classes are damaged, so that a low gamma is best."""
    margins, hits = rng.normal(9, 6, 1000), rng.random(1000) < 0.8
    absent = AbsentModel(10.0, 2.0, 0.5, 0.7)
    best = decide(SeenAccuracy(scan_of(margins, hits)), 1.0, 1.0, absent).gamma
    errors = {SmoothedAccuracy: [], SeenAccuracy: []}
    for _ in range(60):
        rows = rng.choice(1000, 15, replace=False)
        scan = scan_of(margins[rows], hits[rows])
        for kind, found in errors.items():
            found.append(decide(kind(scan), 1.0, 1.0, absent).gamma - best)
    steady, measured = (np.array(errors[kind]) for kind in (SmoothedAccuracy, SeenAccuracy))
    assert np.abs(steady).mean() < 0.9 * np.abs(measured).mean()


def test_every_device_and_dtype(rng, device, dtype):
    margins, hits = problem(rng, 12, mistaken=3)
    found = SmoothedAccuracy(scan_of(margins, hits, device, dtype)).at(GAMMAS, 0.7)
    expected = SmoothedAccuracy(scan_of(margins, hits)).at(GAMMAS, 0.7)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=0.02)


def test_samples_of_groups_count_as_independent_ones(rng):
    """Ten times as many, each margin ten times, are steadied as the first are."""
    margins, hits = problem(rng, 15, mistaken=7)
    groups = check_groups(np.repeat(np.arange(22), 10), 220)
    many = scan_of(np.repeat(margins, 10), np.repeat(hits, 10))
    found = SmoothedAccuracy(replace(many, groups=groups)).at(GAMMAS, 0.7)
    assert found.tolist() == pytest.approx(SmoothedAccuracy(scan_of(margins, hits)).at(GAMMAS, 0.7).tolist())
    assert torch.equal(SmoothedAccuracy(many).at(GAMMAS, 0.7), SeenAccuracy(many).at(GAMMAS, 0.7))


def test_samples_of_one_group_are_steadied_most(rng):
    """To the logistic curve of the same mean and variance, but for the part of one sample."""
    margins, hits = problem(rng, 300)
    one = replace(scan_of(margins, hits), groups=check_groups([0] * 300, 300))
    wide = math.sqrt(0.7**2 + 3 / math.pi**2 * (1 - 1 / 50) * margins.var())
    drawn = margins.mean() + math.sqrt(1 / 50) * (margins - margins.mean())
    expected = [(1 / (1 + np.exp((float(g) - drawn) / wide))).mean() for g in GAMMAS]
    assert SmoothedAccuracy(one).at(GAMMAS, 0.7).tolist() == pytest.approx(expected)
