import math

import numpy as np
import pytest
import torch
from scipy import stats

import reference
from finecal.gamma.seen_share import EstimatedShares, best_bin_share, confusion_share, estimated_shares, normal_share

SHARES = [0.1, 0.3, 0.5, 0.75, 0.9]


def margins(rng, seen, absent):
    """Seen margins around 8, absent ones around 2."""
    return torch.tensor(np.concatenate([rng.normal(8, 2, seen), rng.normal(2, 2, absent)]))


@pytest.mark.parametrize("share", SHARES)
def test_all_three_find_the_share(rng, share):
    held_out, unlabelled = margins(rng, 2000, 0), margins(rng, int(4000 * share), int(4000 * (1 - share)))
    shares = estimated_shares(held_out, unlabelled, gamma=5.0, expected=0.5)
    assert shares == pytest.approx((share, share, share), abs=0.05)
    assert shares.median == sorted(shares)[1]


def test_few_samples_leave_the_share_near_the_expected_one():
    """As the odds of a Beta prior of ten samples, in logarithms: 2/3 of the way with twenty samples."""
    shares = EstimatedShares(0.9, 0.1, 0.8)
    odds = (0.8 / 0.2) ** (2 / 3) * (0.3 / 0.7) ** (1 / 3)
    assert shares.likeliest(0.3, 20) == pytest.approx(odds / (1 + odds))
    assert shares.likeliest(0.3, 0) == pytest.approx(0.3)
    assert shares.likeliest(0.3, 10**9) == pytest.approx(0.8)


def test_best_bin_of_margins_that_tie_with_the_thresholds():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        seen, both = rng.integers(2, 6, rng.integers(2, 60)), rng.integers(0, 6, 50)
        share = best_bin_share(torch.tensor(seen), torch.tensor(both))
        assert share == pytest.approx(reference.best_bin_share(seen, both), rel=1e-12)


# With 5, 6 or 11 samples a threshold falls on one of them, up to rounding, and either side is right.
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 10, 12])
def test_best_bin_from_a_handful_of_samples(rng, n):
    seen, both = rng.normal(1, 1, n), rng.normal(0, 1, 5000)
    share = best_bin_share(torch.tensor(seen), torch.tensor(both))
    assert share == pytest.approx(reference.best_bin_share(seen, both), rel=1e-12)


def test_confusion_by_hand():
    """A quarter of the seen samples is below gamma, so 1/12 of the absent ones above it, as 1/4 are expected seen."""
    seen = torch.tensor([1.0, 2.0, 2.0, 2.0])
    unlabelled = torch.tensor([2.0] * 30 + [1.0] * 70)
    expected = (0.3 - 1 / 12) / (1 - 1 / 4 - 1 / 12)
    assert confusion_share(seen, unlabelled, gamma=1.5, expected=0.25) == pytest.approx(expected)
    assert confusion_share(seen, torch.tensor([1.0]), gamma=1.5, expected=0.25) == 0.02
    assert confusion_share(seen, torch.tensor([2.0]), gamma=1.5, expected=0.25) == 0.98


def test_a_sample_at_gamma_is_seen():
    """As everywhere: a sample is absent if its margin is below gamma."""
    seen, unlabelled = torch.tensor([2.0] * 10), torch.tensor([2.0] * 3 + [1.0] * 7)
    assert confusion_share(seen, unlabelled, gamma=2.0, expected=0.5) == pytest.approx(0.3)


def test_normal_maximises_the_likelihood(rng):
    """The share, mean and width that EM ends at are no worse than any others nearby."""
    seen, unlabelled = margins(rng, 256, 0), margins(rng, 400, 600)
    share = normal_share(seen, unlabelled, start=0.5, expected=0.4)
    x, kernels = unlabelled.numpy(), seen.numpy()
    spread = min(kernels.std(), (np.quantile(kernels, 0.75) - np.quantile(kernels, 0.25)) / 1.34)
    density = stats.norm.pdf((x[:, None] - kernels) / (0.9 * spread * 256**-0.2)).mean(1) / (0.9 * spread * 256**-0.2)

    def loss(p):
        normal = min(
            -np.log(p * density + (1 - p) * stats.norm.pdf(x, mean, width)).sum()
            for mean in np.linspace(1, 3, 21)
            for width in np.linspace(1.4, 2.6, 13)
        )
        return normal - 10 * (0.4 * math.log(p) + 0.6 * math.log(1 - p))

    grid = np.linspace(0.3, 0.5, 21)
    assert share == pytest.approx(grid[np.argmin([loss(p) for p in grid])], abs=0.015)


def test_normal_leans_on_what_is_expected_where_there_is_little(rng):
    seen, unlabelled = margins(rng, 100, 0), margins(rng, 2, 2)
    low, high = (normal_share(seen, unlabelled, start=0.5, expected=expected) for expected in (0.1, 0.9))
    assert low < 0.3 < 0.7 < high


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_units_do_not_matter(rng, scale):
    held_out, unlabelled = margins(rng, 300, 0), margins(rng, 100, 200)
    shares = estimated_shares(held_out, unlabelled, 5.0, 0.5)
    assert estimated_shares(held_out * scale, unlabelled * scale, 5.0 * scale, 0.5) == pytest.approx(shares, abs=1e-6)


def test_many_samples_are_represented_by_quantiles(rng):
    seen, unlabelled = margins(rng, 256, 0), margins(rng, 300, 724)
    few = normal_share(seen, unlabelled, 0.5, 0.5)
    many = normal_share(seen.repeat(40), unlabelled.repeat(40), 0.5, 0.5)
    assert many == pytest.approx(few, abs=0.01)  # the prior weighs less


@pytest.mark.parametrize(
    ("seen", "unlabelled"),
    [
        ([1.0], [2.0]),
        ([1.0, 1.0], [2.0, 2.0, 2.0]),
        ([math.inf, math.inf], [1.0, 2.0]),
        ([1.0, 2.0], [-math.inf, math.inf]),
        ([3.0, -math.inf], [math.inf, 2.0, 3.0, -math.inf]),
        ([5.0], [1.0, 2.0, 3.0]),
    ],
)
def test_is_a_share_whatever_comes(seen, unlabelled):
    shares = estimated_shares(torch.tensor(seen), torch.tensor(unlabelled), 1.5, 0.5)
    assert all(0.02 <= share <= 0.98 for share in shares)


def test_every_device_and_dtype(rng, device, dtype):
    held_out, unlabelled = margins(rng, 200, 0).to(dtype), margins(rng, 100, 100).to(dtype)
    expected = estimated_shares(held_out, unlabelled, 5.0, 0.5)
    assert estimated_shares(held_out.to(device), unlabelled.to(device), 5.0, 0.5) == pytest.approx(expected, abs=1e-6)
