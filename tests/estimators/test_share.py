import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finecal._core.groups import Bootstrap, check_groups
from finecal._estimators.share import estimate_share
from finecal._estimators.unlabelled import best_bin_share
from profiles import examples

NONE = Bootstrap()


def evidence(gap=4.0, unit=1.0, gap_weight=1.0):
    """What `estimate_share` reads of the evidence of labelled samples."""
    return SimpleNamespace(gap=gap, unit=unit, gap_weight=gap_weight)


def margins(rng, seen, absent, gap, center=8.0):
    """Unlabelled margins: seen ones, and absent ones that are their mirror image at the gap."""
    return torch.tensor(np.concatenate([rng.normal(center, 2, seen), 2 * gap - rng.normal(center, 2, absent)])).double()


def calibrated(rng, n, share, spread=2.0):
    """Margins that are log-odds of belonging to the seen classes where both groups are as frequent."""
    center = spread**2 / 2
    signs = np.where(rng.random(n) < share, 1, -1)
    return torch.tensor(rng.normal(signs * center, spread))


def log_odds(share):
    return math.log(share / (1 - share))


def density(x, kernels, scale):
    """A logistic kernel estimate, a thousandth of a thousandth of a unit above 0."""
    total = sum(math.exp(-abs(x - k) / scale) / (1 + math.exp(-abs(x - k) / scale)) ** 2 for k in kernels)
    return total / len(kernels) / scale + 1e-6 / scale


def naive_median(seen, unlabelled, gap, unit):
    """Return the posterior median of the log-odds, cell by cell."""
    weight = min(60 * len(seen) / (len(seen) + 200), len(unlabelled))
    center, error = sum(seen) / len(seen), max(0.2 * abs(gap), unit / 2)
    grid, logs = np.linspace(-4, 4, 41), []
    of_seen = [density(m, seen, unit / 2) for m in unlabelled]
    for width in (0.7, 1, 1.5):
        kernels = [center + width * (k - center) for k in seen]
        for step in np.linspace(-2.4, 2.4, 9):
            of_absent = [density(2 * (gap + error * step) - m, kernels, unit / 2) for m in unlabelled]
            for odds in grid:
                p = 1 / (1 + math.exp(-odds))
                mean = np.mean([math.log(p * s + (1 - p) * u) for s, u in zip(of_seen, of_absent, strict=True)])
                logs.append(weight * mean - step**2 / 2)
    belief = np.exp(np.array(logs) - max(logs)).reshape(-1, 41).sum(0)
    up_to = np.concatenate([[0.0], np.cumsum(belief) / belief.sum()])
    return float(np.interp(0.5, up_to, np.append(grid, 4.2) - 0.1))


def naive_shift(unlabelled, unit, prior):
    """Return the log-odds of the share at which a calibrated model predicts this share: by bisection."""

    def excess(odds):
        moved = odds - log_odds(prior)
        return np.mean(1 / (1 + np.exp(-(np.asarray(unlabelled) / unit + moved)))) - 1 / (1 + math.exp(-odds))

    grid = np.linspace(-4, 4, 4001)
    signs = np.sign([excess(odds) for odds in grid])
    falls = np.flatnonzero((signs[:-1] > 0) & (signs[1:] <= 0))
    return float(grid[falls[0]]) if len(falls) else 4.0 * (1 if signs.mean() > 0 else -1)


@examples(15)
@given(st.integers(0, 10_000), st.floats(-5, 8), st.floats(0.5, 3))
def test_equals_its_formula(seed, gap, unit):
    rng = np.random.default_rng(seed)
    seen, both = margins(rng, 14, 0, 0), margins(rng, 8, 9, 4.0)
    share, drawn = estimate_share(evidence(gap, unit), seen, both, 0.4, NONE)
    shown = (log_odds(best_bin_share(seen, both)) + naive_median(seen.tolist(), both.tolist(), gap, unit)) / 2
    assert log_odds(share) == pytest.approx(0.75 * shown + 0.25 * log_odds(0.4), abs=1e-6)
    assert drawn == []


@examples(15)
@given(st.integers(0, 10_000), st.floats(0.2, 0.8), st.floats(0.1, 0.9), st.floats(0.5, 3))
def test_without_a_gap_the_nearer_of_two_counts(seed, prior, share, unit):
    rng = np.random.default_rng(seed)
    seen, both = unit * calibrated(rng, 40, 1.0), unit * (calibrated(rng, 60, share) + log_odds(prior))
    found, _ = estimate_share(evidence(0.0, unit, 0.0), seen, both, prior, NONE)
    moved = [
        of - log_odds(prior)
        for of in (naive_median(seen.tolist(), both.tolist(), 0.0, unit), naive_shift(both.tolist(), unit, prior))
    ]
    nearer = min(moved, key=abs) if moved[0] * moved[1] > 0 else 0.0
    assert log_odds(found) - log_odds(prior) == pytest.approx(nearer, abs=0.01)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("gap_weight", [0.0, 0.5, 1.0])
def test_the_share_is_found(rng, share, gap_weight):
    if gap_weight == 1:
        seen, both, gap = margins(rng, 1000, 0, 0), margins(rng, int(1000 * share), int(1000 * (1 - share)), 5.0), 4.5
    else:
        seen, both, gap = calibrated(rng, 1000, 1.0), calibrated(rng, 1000, share), 0.2
    found, _ = estimate_share(evidence(gap, 1.0, gap_weight), seen, both, 0.5, NONE)
    assert found == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 3.0, 1e8, 1e200])
@pytest.mark.parametrize("gap_weight", [0.0, 0.4, 1.0])
def test_units_do_not_matter(rng, scale, gap_weight):
    seen, both = margins(rng, 100, 0, 0), margins(rng, 60, 60, 4.0)
    found, _ = estimate_share(evidence(3.0, 1.0, gap_weight), seen, both, 0.4, NONE)
    scaled, _ = estimate_share(evidence(3.0 * scale, scale, gap_weight), scale * seen, scale * both, 0.4, NONE)
    assert scaled == pytest.approx(found)


def test_order_does_not_matter(rng):
    seen, both = margins(rng, 100, 0, 0), margins(rng, 60, 60, 4.0)
    found, _ = estimate_share(evidence(), seen, both, 0.4, NONE)
    shuffled, _ = estimate_share(evidence(), seen[torch.randperm(100)], both[torch.randperm(120)], 0.4, NONE)
    assert shuffled == pytest.approx(found)


def test_one_sample_says_little(rng):
    """The tail then says nothing, and the posterior is wide."""
    found, _ = estimate_share(evidence(), margins(rng, 1000, 0, 0), margins(rng, 1, 0, 4.0), 0.5, NONE)
    assert 0.2 < found < 0.98


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_finite_leaves_what_was_expected(which):
    given = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])]
    given[which] = torch.tensor([math.inf, -math.inf])
    assert estimate_share(evidence(-3.0), *given, 0.3, Bootstrap(2)) == (0.3, [0.3, 0.3])


def test_infinite_margins_are_left_out(rng):
    seen, both = margins(rng, 50, 0, 0), margins(rng, 30, 30, 4.0)
    ends = torch.tensor([math.inf, -math.inf]).double()
    found = estimate_share(evidence(), torch.cat([seen, ends]), torch.cat([ends, both]), 0.4, NONE)
    assert found == estimate_share(evidence(), seen, both, 0.4, NONE)


@pytest.mark.parametrize("gap_weight", [0.0, 0.5, 1.0])
def test_resamplings_scatter_about_the_share(rng, gap_weight):
    seen, both = margins(rng, 200, 0, 0), margins(rng, 60, 60, 4.0)
    found = evidence(gap_weight=gap_weight)
    share, drawn = estimate_share(found, seen, both, 0.4, Bootstrap(40, 3))
    assert len(drawn) == 40
    assert min(drawn) < share < max(drawn)
    assert np.mean(drawn) == pytest.approx(share, abs=0.03)
    assert drawn == estimate_share(found, seen, both, 0.4, Bootstrap(40, 3))[1]
    assert drawn != estimate_share(found, seen, both, 0.4, Bootstrap(40, 4))[1]


def test_every_device_and_dtype(rng, device, dtype):
    seen, both = margins(rng, 40, 0, 0).to(dtype), margins(rng, 30, 30, 4.0).to(dtype)
    expected = estimate_share(evidence(), seen.double(), both.double(), 0.4, Bootstrap(3))
    assert estimate_share(evidence(), seen.to(device), both.to(device), 0.4, Bootstrap(3)) == expected


def test_samples_that_come_thrice_count_once(rng):
    """200 points or fewer stand for themselves."""
    seen, both = margins(rng, 50, 0, 0), margins(rng, 30, 30, 4.0)
    groups = [check_groups(np.repeat(np.arange(n), 3), 3 * n) for n in (50, 60)]
    thrice = seen.repeat_interleave(3), both.repeat_interleave(3)
    share, drawn = estimate_share(evidence(), *thrice, 0.4, Bootstrap(200), *groups)
    expected, others = estimate_share(evidence(), seen, both, 0.4, Bootstrap(200))
    assert share == pytest.approx(expected, abs=0.01)
    assert np.std(drawn) == pytest.approx(np.std(others), rel=0.2)
    assert np.std(estimate_share(evidence(), *thrice, 0.4, Bootstrap(200))[1]) < 0.75 * np.std(others)
