import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finecal._core.groups import Bootstrap, check_groups
from finecal._estimators.decision import fit_unlabelled
from profiles import examples

NONE = Bootstrap()


def density(x, kernels, scale):
    """A logistic kernel estimate, a thousandth of a thousandth of a unit above 0."""
    total = sum(math.exp(-abs(x - k) / scale) / (1 + math.exp(-abs(x - k) / scale)) ** 2 for k in kernels)
    return total / len(kernels) / scale + 1e-6 / scale


def naive(seen, unlabelled, gap, unit, expected_share, known_share=None):
    """Return mean and standard deviation of the gap, and mean of the share, over a grid, cell by cell."""
    weight = min(60 * len(seen) / (len(seen) + 200), len(unlabelled))
    cells = []
    for step in np.linspace(-2.4, 2.4, 9):
        g = gap + 0.2 * abs(gap) * step
        pairs = [(density(m, seen, unit / 2), density(2 * g - m, seen, unit / 2)) for m in unlabelled]
        for offset in np.linspace(-3.5, 3.5, 29) if known_share is None else [0.0]:
            start = expected_share if known_share is None else known_share
            share = 1 / (1 + math.exp(-offset) * (1 - start) / start)
            near, far = (math.exp(-((offset / width) ** 2) / 2) / width for width in (0.25, 1.5))
            of_share = 0.7 * near + 0.3 * far if known_share is None else 1.0
            mean_log = sum(math.log(share * s + (1 - share) * u) for s, u in pairs) / len(pairs)
            cells.append((math.log(of_share) - step**2 + weight * mean_log, g, share))
    largest = max(log for log, _, _ in cells)
    weights = [math.exp(log - largest) for log, _, _ in cells]
    beliefs = [(2 / 3 * w / sum(weights), g, 0.0, p) for w, (_, g, p) in zip(weights, cells, strict=True)]
    beliefs.append((1 / 3, gap, 0.2 * gap, expected_share if known_share is None else known_share))
    mean = sum(w * g for w, g, _, _ in beliefs)
    variance = sum(w * ((g - mean) ** 2 + error**2) for w, g, error, _ in beliefs)
    return mean, math.sqrt(variance), sum(w * p for w, _, _, p in beliefs)


def margins(rng, seen, absent, gap, center=8.0):
    """Unlabelled margins: seen ones, and absent ones that are their mirror image at the gap."""
    return torch.tensor(np.concatenate([rng.normal(center, 2, seen), 2 * gap - rng.normal(center, 2, absent)])).double()


@examples(40)
@given(
    st.integers(0, 10_000), st.floats(-5, 8), st.floats(0.3, 3), st.floats(0.1, 0.9), st.none() | st.floats(0.05, 0.95)
)
def test_equals_the_sum_over_the_grid(seed, gap, unit, expected_share, known_share):
    rng = np.random.default_rng(seed)
    seen, both = margins(rng, 14, 0, 0), margins(rng, 8, 9, 4.0)
    found = fit_unlabelled(seen, both, gap, unit, expected_share, known_share, NONE)
    mean, error, share = naive(seen.tolist(), both.tolist(), gap, unit, expected_share, known_share)
    assert found.gap == pytest.approx(mean, abs=1e-9)
    assert found.error == pytest.approx(error, abs=1e-6)
    assert found.share == pytest.approx(share)
    assert found.shares == []
    if known_share is not None:
        assert found.share == pytest.approx(known_share)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9])
def test_moves_towards_the_truth(rng, share):
    """The gap was taken for 4 and the share for a half, and they are 5 and something else."""
    seen, both = margins(rng, 1000, 0, 0), margins(rng, int(1000 * share), int(1000 * (1 - share)), 5.0)
    found = fit_unlabelled(seen, both, 4.0, 1.0, 0.5, None, NONE)
    assert 4 < found.gap < 5.5
    assert abs(found.share - share) < 0.8 * abs(0.5 - share)
    known = fit_unlabelled(seen, both, 4.0, 1.0, 0.5, share, NONE)
    assert 4 < known.gap < 5.5
    assert known.share == pytest.approx(share)
    assert known.error < 0.8


def test_a_wrong_known_share_stays(rng):
    seen, both = margins(rng, 300, 0, 0), margins(rng, 200, 200, 4.0)
    found = fit_unlabelled(seen, both, 4.0, 1.0, 0.5, 0.01, Bootstrap(3))
    assert (found.share, found.shares) == (pytest.approx(0.01), pytest.approx([0.01] * 3))


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 3.0, 1e8, 1e200])
def test_units_do_not_matter(rng, scale):
    seen, both = margins(rng, 100, 0, 0), margins(rng, 60, 60, 4.0)
    found = fit_unlabelled(seen, both, 3.0, 1.0, 0.4, None, NONE)
    scaled = fit_unlabelled(scale * seen, scale * both, scale * 3.0, scale, 0.4, None, NONE)
    assert scaled.gap == pytest.approx(scale * found.gap)
    assert scaled.error == pytest.approx(scale * found.error)
    assert scaled.share == pytest.approx(found.share)


def test_swapped_groups_are_the_other_share(rng):
    """Mirrored at the gap, seen samples are absent ones."""
    seen = margins(rng, 100, 0, 0)
    both = margins(rng, 30, 70, 4.0)
    found = fit_unlabelled(seen, both, 4.0, 1.0, 0.5, None, NONE)
    known = fit_unlabelled(seen, both, 4.0, 1.0, 0.5, 0.3, NONE)
    negated = fit_unlabelled(-seen, -both, -4.0, 1.0, 0.5, None, NONE)
    assert negated.gap == pytest.approx(-found.gap)
    assert negated.share == pytest.approx(found.share)
    assert abs(found.gap - 4) < 0.8
    assert abs(known.gap - 4) < 0.8


def test_order_does_not_matter_nor_does_repetition(rng):
    seen, both = margins(rng, 100, 0, 0), margins(rng, 60, 60, 4.0)
    found = fit_unlabelled(seen, both, 3.0, 1.0, 0.4, None, NONE)
    shuffled = fit_unlabelled(seen[torch.randperm(100)], both[torch.randperm(120)], 3.0, 1.0, 0.4, None, NONE)
    assert shuffled[:3] == pytest.approx(found[:3])
    many = fit_unlabelled(seen, both.repeat(50), 3.0, 1.0, 0.4, None, NONE)
    assert many[:3] == pytest.approx(found[:3], rel=0.05)  # no more than so many samples count


def test_few_samples_leave_what_was_expected(rng):
    seen = margins(rng, 1000, 0, 0)
    one = fit_unlabelled(seen, margins(rng, 1, 0, 4.0), 4.0, 1.0, 0.3, None, NONE)
    assert one.share == pytest.approx(0.3, abs=0.15)
    assert one.gap == pytest.approx(4.0, abs=0.5)
    few = fit_unlabelled(seen[:2], margins(rng, 100, 0, 4.0), 4.0, 1.0, 0.3, None, NONE)
    assert few.share == pytest.approx(0.3, abs=0.15)


def test_margins_that_are_like_nothing_expected_are_counted(rng):
    seen = margins(rng, 200, 0, 0)
    both = torch.cat([margins(rng, 50, 50, 4.0), torch.full((100,), 1e3).double(), torch.full((50,), -1e3).double()])
    assert fit_unlabelled(seen, both, 4.0, 1.0, 0.5, None, NONE).outlier_share == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_finite_leaves_what_was_expected(which):
    given = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])]
    given[which] = torch.tensor([math.inf, -math.inf])
    found = fit_unlabelled(*given, -3.0, 1.0, 0.3, None, Bootstrap(2))
    assert found == (-3.0, pytest.approx(0.6), 0.3, [0.3, 0.3], 0.0)
    assert fit_unlabelled(*given, -3.0, 1.0, 0.3, 0.8, NONE).share == 0.8


def test_infinite_margins_are_left_out(rng):
    seen, both = margins(rng, 50, 0, 0), margins(rng, 30, 30, 4.0)
    ends = torch.tensor([math.inf, -math.inf]).double()
    found = fit_unlabelled(torch.cat([seen, ends]), torch.cat([ends, both]), 3.0, 1.0, 0.4, None, NONE)
    assert found == fit_unlabelled(seen, both, 3.0, 1.0, 0.4, None, NONE)


def test_margins_from_nowhere_are_no_evidence(rng):
    """Far from all seen ones and from their mirror image, they say nothing of either."""
    found = fit_unlabelled(margins(rng, 100, 0, 0), margins(rng, 100, 0, 0) - 500, 4.0, 1.0, 0.3, None, NONE)
    assert found.share == pytest.approx(fit_unlabelled(*[torch.ones(1)] * 2, 4.0, 1e9, 0.3, None, NONE).share, abs=0.01)
    assert found.gap == pytest.approx(4.0)


def test_a_gap_of_zero_stays_zero(rng):
    found = fit_unlabelled(margins(rng, 50, 0, 0), margins(rng, 30, 30, 4.0), 0.0, 1.0, 0.4, None, NONE)
    assert (found.gap, found.error) == (0.0, 0.0)
    assert 0 < found.share < 1


def test_resamplings_scatter_about_the_share(rng):
    seen, both = margins(rng, 200, 0, 0), margins(rng, 60, 60, 4.0)
    found = fit_unlabelled(seen, both, 4.0, 1.0, 0.4, None, Bootstrap(40, 3))
    assert len(found.shares) == 40
    assert min(found.shares) < found.share < max(found.shares)
    assert np.mean(found.shares) == pytest.approx(found.share, abs=0.03)
    assert found.shares == fit_unlabelled(seen, both, 4.0, 1.0, 0.4, None, Bootstrap(40, 3)).shares
    assert found.shares != fit_unlabelled(seen, both, 4.0, 1.0, 0.4, None, Bootstrap(40, 4)).shares


def test_every_device_and_dtype(rng, device, dtype):
    seen, both = margins(rng, 40, 0, 0).to(dtype), margins(rng, 30, 30, 4.0).to(dtype)
    expected = fit_unlabelled(seen.double(), both.double(), 3.0, 1.0, 0.4, None, Bootstrap(3))
    assert fit_unlabelled(seen.to(device), both.to(device), 3.0, 1.0, 0.4, None, Bootstrap(3)) == expected


def test_groups_of_one_sample_are_none(rng):
    seen, both = margins(rng, 120, 0, 0), margins(rng, 60, 40, 4.0)
    groups = check_groups(rng.permutation(120), 120), check_groups(rng.permutation(100), 100)
    expected = fit_unlabelled(seen, both, 4.0, 1.0, 0.4, None, Bootstrap(40, 3))
    found = fit_unlabelled(seen, both, 4.0, 1.0, 0.4, None, Bootstrap(40, 3), *groups)
    assert found._replace(shares=[]) == expected._replace(shares=[])
    assert np.quantile(found.shares, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(expected.shares, [0.1, 0.5, 0.9]), abs=0.02
    )


def test_samples_that_come_thrice_count_once(rng):
    """200 points or fewer stand for themselves."""
    seen, both = margins(rng, 50, 0, 0), margins(rng, 30, 30, 4.0)
    groups = [check_groups(np.repeat(np.arange(n), 3), 3 * n) for n in (50, 60)]
    thrice = seen.repeat_interleave(3), both.repeat_interleave(3)
    found = fit_unlabelled(*thrice, 4.0, 1.0, 0.4, None, Bootstrap(200), *groups)
    expected = fit_unlabelled(seen, both, 4.0, 1.0, 0.4, None, Bootstrap(200))
    assert (found.gap, found.error, found.share) == pytest.approx((expected.gap, expected.error, expected.share))
    assert np.std(found.shares) == pytest.approx(np.std(expected.shares), rel=0.2)
    assert np.std(fit_unlabelled(*thrice, 4.0, 1.0, 0.4, None, Bootstrap(200)).shares) < 0.75 * np.std(expected.shares)


def test_groups_leave_out_what_is_infinite(rng):
    seen, both, ends = margins(rng, 50, 0, 0), margins(rng, 250, 250, 3.0), torch.tensor([-math.inf, math.inf])
    groups = np.arange(502) // 7
    found = fit_unlabelled(
        seen, torch.cat([ends, both]), 3.0, 1.0, 0.4, None, Bootstrap(5), None, check_groups(groups, 502)
    )
    without = fit_unlabelled(seen, both, 3.0, 1.0, 0.4, None, Bootstrap(5), None, check_groups(groups[2:], 500))
    assert found == without
