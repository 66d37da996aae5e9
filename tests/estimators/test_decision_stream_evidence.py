import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finecal._core.groups import check_groups
from finecal._estimators.decision import fit_unlabelled
from profiles import examples


def density(x, kernels, scale):
    """A logistic kernel estimate, a thousandth of a thousandth of a unit above 0."""
    total = sum(math.exp(-abs(x - k) / scale) / (1 + math.exp(-abs(x - k) / scale)) ** 2 for k in kernels)
    return total / len(kernels) / scale + 1e-6 / scale


def naive(seen, unlabelled, gap, unit, share):
    """Return mean and standard deviation of the gap over a grid, step by step."""
    weight = min(60 * len(seen) / (len(seen) + 200), len(unlabelled))
    steps = []
    for step in np.linspace(-2.4, 2.4, 9):
        g = gap + 0.2 * abs(gap) * step
        pairs = [(density(m, seen, unit / 2), density(2 * g - m, seen, unit / 2)) for m in unlabelled]
        mean_log = sum(math.log(share * s + (1 - share) * u) for s, u in pairs) / len(pairs)
        steps.append((weight * mean_log - step**2, g))
    largest = max(log for log, _ in steps)
    weights = [math.exp(log - largest) for log, _ in steps]
    beliefs = [(2 / 3 * w / sum(weights), g, 0.0) for w, (_, g) in zip(weights, steps, strict=True)]
    beliefs.append((1 / 3, gap, 0.2 * gap))
    mean = sum(w * g for w, g, _ in beliefs)
    return mean, math.sqrt(sum(w * ((g - mean) ** 2 + error**2) for w, g, error in beliefs))


def margins(rng, seen, absent, gap, center=8.0):
    """Unlabelled margins: seen ones, and absent ones that are their mirror image at the gap."""
    return torch.tensor(np.concatenate([rng.normal(center, 2, seen), 2 * gap - rng.normal(center, 2, absent)])).double()


@examples(40)
@given(st.integers(0, 10_000), st.floats(-5, 8), st.floats(0.3, 3), st.floats(0.05, 0.95))
def test_equals_the_sum_over_the_grid(seed, gap, unit, share):
    rng = np.random.default_rng(seed)
    seen, both = margins(rng, 14, 0, 0), margins(rng, 8, 9, 4.0)
    found = fit_unlabelled(seen, both, gap, unit, share)
    mean, error = naive(seen.tolist(), both.tolist(), gap, unit, share)
    assert found.gap == pytest.approx(mean, abs=1e-9)
    assert found.error == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9])
def test_moves_towards_the_truth(rng, share):
    """The gap was taken for 4, and is 5."""
    seen, both = margins(rng, 1000, 0, 0), margins(rng, int(1000 * share), int(1000 * (1 - share)), 5.0)
    found = fit_unlabelled(seen, both, 4.0, 1.0, share)
    assert 4 < found.gap < 5.5
    assert found.error < 0.8


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 3.0, 1e8, 1e200])
def test_units_do_not_matter(rng, scale):
    seen, both = margins(rng, 100, 0, 0), margins(rng, 60, 60, 4.0)
    found = fit_unlabelled(seen, both, 3.0, 1.0, 0.4)
    scaled = fit_unlabelled(scale * seen, scale * both, scale * 3.0, scale, 0.4)
    assert scaled.gap == pytest.approx(scale * found.gap)
    assert scaled.error == pytest.approx(scale * found.error)


def test_order_does_not_matter_nor_does_repetition(rng):
    seen, both = margins(rng, 100, 0, 0), margins(rng, 60, 60, 4.0)
    found = fit_unlabelled(seen, both, 3.0, 1.0, 0.4)
    shuffled = fit_unlabelled(seen[torch.randperm(100)], both[torch.randperm(120)], 3.0, 1.0, 0.4)
    assert shuffled == pytest.approx(found)
    many = fit_unlabelled(seen, both.repeat(50), 3.0, 1.0, 0.4)
    assert many == pytest.approx(found, rel=0.05)  # no more than so many samples count


def test_few_samples_leave_what_was_expected(rng):
    one = fit_unlabelled(margins(rng, 1000, 0, 0), margins(rng, 1, 0, 4.0), 4.0, 1.0, 0.3)
    assert one.gap == pytest.approx(4.0, abs=0.5)


def test_margins_that_are_like_nothing_expected_are_counted(rng):
    seen = margins(rng, 200, 0, 0)
    both = torch.cat([margins(rng, 50, 50, 4.0), torch.full((100,), 1e3).double(), torch.full((50,), -1e3).double()])
    assert fit_unlabelled(seen, both, 4.0, 1.0, 0.5).outlier_share == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_finite_leaves_what_was_expected(which):
    given = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])]
    given[which] = torch.tensor([math.inf, -math.inf])
    assert fit_unlabelled(*given, -3.0, 1.0, 0.3) == (-3.0, pytest.approx(0.6), 0.0)


def test_infinite_margins_are_left_out(rng):
    seen, both = margins(rng, 50, 0, 0), margins(rng, 30, 30, 4.0)
    ends = torch.tensor([math.inf, -math.inf]).double()
    found = fit_unlabelled(torch.cat([seen, ends]), torch.cat([ends, both]), 3.0, 1.0, 0.4)
    assert found == fit_unlabelled(seen, both, 3.0, 1.0, 0.4)


def test_margins_from_nowhere_are_no_evidence(rng):
    """Far from all seen ones and from their mirror image, they say nothing of either."""
    found = fit_unlabelled(margins(rng, 100, 0, 0), margins(rng, 100, 0, 0) - 500, 4.0, 1.0, 0.3)
    assert found.gap == pytest.approx(4.0)


def test_a_gap_of_zero_stays_zero(rng):
    found = fit_unlabelled(margins(rng, 50, 0, 0), margins(rng, 30, 30, 4.0), 0.0, 1.0, 0.4)
    assert (found.gap, found.error) == (0.0, 0.0)


def test_every_device_and_dtype(rng, device, dtype):
    seen, both = margins(rng, 40, 0, 0).to(dtype), margins(rng, 30, 30, 4.0).to(dtype)
    expected = fit_unlabelled(seen.double(), both.double(), 3.0, 1.0, 0.4)
    assert fit_unlabelled(seen.to(device), both.to(device), 3.0, 1.0, 0.4) == expected


def test_samples_that_come_thrice_count_once(rng):
    """200 points or fewer stand for themselves."""
    seen, both = margins(rng, 50, 0, 0), margins(rng, 30, 30, 4.0)
    groups = [check_groups(np.repeat(np.arange(n), 3), 3 * n) for n in (50, 60)]
    found = fit_unlabelled(seen.repeat_interleave(3), both.repeat_interleave(3), 4.0, 1.0, 0.4, *groups)
    assert found == pytest.approx(fit_unlabelled(seen, both, 4.0, 1.0, 0.4))
