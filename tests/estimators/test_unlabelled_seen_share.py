import math

import numpy as np
import pytest
import torch

import reference
from finecal._estimators.unlabelled import best_bin_share

SHARES = [0.1, 0.3, 0.5, 0.75, 0.9]


def margins(rng, seen, absent):
    """Seen margins around 8, absent ones around 2."""
    return torch.tensor(np.concatenate([rng.normal(8, 2, seen), rng.normal(2, 2, absent)]))


@pytest.mark.parametrize("share", SHARES)
def test_finds_the_share(rng, share):
    held_out, unlabelled = margins(rng, 2000, 0), margins(rng, int(4000 * share), int(4000 * (1 - share)))
    assert best_bin_share(held_out, unlabelled) == pytest.approx(share, abs=0.05)


def test_margins_that_tie_with_the_thresholds():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        seen, both = rng.integers(2, 6, rng.integers(2, 60)), rng.integers(0, 6, 50)
        share = best_bin_share(torch.tensor(seen), torch.tensor(both))
        assert share == pytest.approx(reference.best_bin_share(seen, both), rel=1e-12)


# With 5, 6 or 11 samples a threshold falls on one of them, up to rounding, and either side is right.
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 10, 12])
def test_a_handful_of_samples(rng, n):
    seen, both = rng.normal(1, 1, n), rng.normal(0, 1, 5000)
    share = best_bin_share(torch.tensor(seen), torch.tensor(both))
    assert share == pytest.approx(reference.best_bin_share(seen, both), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_units_do_not_matter(rng, scale):
    held_out, unlabelled = margins(rng, 300, 0), margins(rng, 100, 200)
    expected = best_bin_share(held_out, unlabelled)
    assert best_bin_share(held_out * scale, unlabelled * scale) == pytest.approx(expected, abs=1e-6)


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
    assert 0.02 <= best_bin_share(torch.tensor(seen), torch.tensor(unlabelled)) <= 0.98


def test_every_device_and_dtype(rng, device, dtype):
    held_out, unlabelled = margins(rng, 200, 0).to(dtype), margins(rng, 100, 100).to(dtype)
    expected = best_bin_share(held_out, unlabelled)
    assert best_bin_share(held_out.to(device), unlabelled.to(device)) == pytest.approx(expected, abs=1e-6)
