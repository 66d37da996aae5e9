"""Draws with replacement, and the interval of what they give."""

import math

import numpy as np
import pytest
import torch

from finecal.gamma.bootstrap import FOLDS, HELD_OUT, TRAINING, UNLABELLED, Bootstrap, percentile_interval


def drawn(bootstrap, *args, **options):
    return [index.tolist() for index in bootstrap.indices(*args, **options)]


def test_draws_are_of_the_seed_alone(device):
    expected = drawn(Bootstrap(3, 7), 20)
    with device:  # the default of torch
        assert drawn(Bootstrap(3, 7), 20) == expected
    values = torch.arange(20.0, device=device)
    found = list(Bootstrap(3, 7).resampled(values))
    assert [resample.device.type for resample in found] == [device.type] * 3
    assert [resample.tolist() for resample in found] == expected
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert drawn(Bootstrap(3, 7), 20) == expected
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draws_are_with_replacement_and_as_many_as_asked():
    draws = drawn(Bootstrap(50), 10)
    assert [len(draw) for draw in draws] == [10] * 50
    assert set(np.concatenate(draws)) == set(range(10))
    assert any(len(set(draw)) < 10 for draw in draws)
    assert [len(draw) for draw in drawn(Bootstrap(2), 10, 3)] == [3, 3]
    assert drawn(Bootstrap(4, 1), 10)[:2] == drawn(Bootstrap(2, 1), 10)  # more draws go on where fewer end
    assert len(set(map(tuple, draws))) == 50


def test_streams_of_one_seed_are_independent():
    streams = (0, TRAINING, HELD_OUT, UNLABELLED, FOLDS)
    draws = np.array([drawn(Bootstrap(200, 5), 50, stream=stream) for stream in streams]).reshape(len(streams), -1)
    correlations = np.corrcoef(draws)[~np.eye(len(streams), dtype=bool)]
    assert np.abs(correlations).max() < 0.05  # five standard errors
    assert drawn(Bootstrap(2, 5), 9, stream=HELD_OUT) == drawn(Bootstrap(2, 5), 9, stream=HELD_OUT)


def test_none_are_drawn_by_default():
    assert drawn(Bootstrap(), 10) == []
    assert list(Bootstrap().resampled(torch.ones(3))) == []


def test_arguments_are_checked():
    assert Bootstrap.checked(9, 2) == (9, 2)
    with pytest.raises(ValueError, match="n_bootstrap is -1"):
        Bootstrap.checked(-1, 0)
    with pytest.raises(TypeError, match="seed is a float"):
        Bootstrap.checked(1, 0.5)


def test_interval_by_hand():
    """95 % of 0, 1, ..., 40 lie from 1 to 39."""
    assert percentile_interval([float(value) for value in range(41)]) == (1.0, 39.0)
    assert percentile_interval([3.0]) == (3.0, 3.0)
    assert percentile_interval([0.0, 1.0]) == pytest.approx((0.025, 0.975))


def test_interval_is_of_the_finite_replicates():
    assert percentile_interval([math.nan, math.inf, 2.0, -math.inf]) == (2.0, 2.0)
    assert percentile_interval([math.nan, math.inf]) is percentile_interval([]) is None
