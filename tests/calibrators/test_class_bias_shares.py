import math

import numpy as np
import pytest
import torch

import finecal
from finecal.calibrators import class_bias_from_shares
from problems import MASK, doubtful_problem

COUNTS = np.array([5.0, 1.0, 3.0, 8.0, 2.0, 2.0, 4.0])


@pytest.fixture
def held_out(rng):
    return doubtful_problem(rng, 200)


def temperature_of(logits, labels):
    """The unit of log-odds, by a search over the NLL of the seen columns and the prior of `residual_gap`."""
    seen = np.flatnonzero(MASK)
    z, y = torch.as_tensor(logits[:, seen]).double(), torch.as_tensor(np.searchsorted(seen, labels))
    grid = np.exp(np.linspace(-1.5, 1.5, 6001))
    loss = [float(torch.nn.functional.cross_entropy(z / t, y)) + math.log(t) ** 2 / 200 for t in grid]
    return grid[int(np.argmin(loss))]


def test_is_bayes_rule_within_the_groups(held_out):
    bias = class_bias_from_shares(*held_out, MASK, COUNTS, gamma=3.0).bias.numpy()
    t = temperature_of(*held_out)
    for c in range(len(MASK)):
        group = [k for k in range(len(MASK)) if MASK[k] == MASK[c]]
        mean = sum(COUNTS[k] for k in group) / len(group)
        assert bias[c] == pytest.approx((not MASK[c]) * 3.0 + t * math.log(COUNTS[c] / mean), abs=2e-3)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e5])
def test_counts_are_shares(held_out, scale):
    expected = class_bias_from_shares(*held_out, MASK, COUNTS / COUNTS.sum(), gamma=3.0).bias
    assert torch.allclose(class_bias_from_shares(*held_out, MASK, scale * COUNTS, gamma=3.0).bias, expected, atol=1e-5)


def test_equal_frequencies_within_the_groups_are_gamma(held_out):
    shares = np.where(MASK, 0.2, 0.05)
    bias = class_bias_from_shares(*held_out, MASK, shares).bias
    gamma = finecal.estimate_gamma(MASK, held_out=held_out, seen_share=shares[MASK].sum() / shares.sum()).gamma
    assert bias.tolist() == pytest.approx(np.where(MASK, 0.0, gamma), abs=1e-5)


def test_an_estimate_is_a_gamma_and_samples_are_arguments(held_out):
    estimate = finecal.estimate_gamma(MASK, held_out=held_out, seen_share=0.3)
    own = class_bias_from_shares(finecal.Samples(*held_out), MASK, COUNTS, estimate)
    assert torch.equal(own.bias, class_bias_from_shares(*held_out, MASK, COUNTS, estimate.gamma).bias)
    assert own.method == "class_bias_from_shares"


def test_frequencies_that_are_none(held_out):
    with pytest.raises(ValueError, match="class_shares is 0 for class 1 .* must be finite and positive"):
        class_bias_from_shares(*held_out, MASK, np.where(np.arange(7) == 1, 0, COUNTS))
    with pytest.raises(ValueError, match="class_shares has 6 numbers for 7 classes"):
        class_bias_from_shares(*held_out, MASK, COUNTS[:6])
