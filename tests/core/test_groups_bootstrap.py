"""Draws with replacement, and the interval of what they give."""

import math

import numpy as np
import pytest
import torch

from finecal._core.groups import FOLDS, HELD_OUT, TRAINING, UNLABELLED, Bootstrap, check_groups, percentile_interval


def drawn(bootstrap, *args, **options):
    return [index.tolist() for index in bootstrap.indices(*args, **options)]


def test_draws_are_of_the_seed_alone(device):
    expected = drawn(Bootstrap(3, 7), 20)
    with device:  # the default of torch
        assert drawn(Bootstrap(3, 7), 20) == expected
    values = torch.arange(20.0, device=device)
    found = list(Bootstrap(3, 7).resample(values))
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
    draws = np.array([drawn(Bootstrap(200, 5), 50, substream=stream) for stream in streams]).reshape(len(streams), -1)
    correlations = np.corrcoef(draws)[~np.eye(len(streams), dtype=bool)]
    assert np.abs(correlations).max() < 0.05  # five standard errors
    assert drawn(Bootstrap(2, 5), 9, substream=HELD_OUT) == drawn(Bootstrap(2, 5), 9, substream=HELD_OUT)


def test_counts_are_of_draws_from_the_samples(device):
    draws = Bootstrap(300, 7).counts(20)
    assert draws.part.tolist() == list(range(20))
    with device:  # the default of torch
        times = torch.cat(list(Bootstrap(300, 7).counts(20)))
    assert (times.shape, times.dtype, times.device.type) == ((300, 20), torch.float64, "cpu")
    assert torch.equal(times, torch.cat(list(draws)))
    assert (times.sum(1) == 20).all()
    assert times.mean(0).numpy() == pytest.approx(np.ones(20), abs=0.3)  # five standard errors
    assert times.var() == pytest.approx(0.95, abs=0.1)  # a binomial of 20 draws


def test_of_many_samples_random_parts_are_drawn(monkeypatch):
    """A mean varies between resamplings as much as if samples were drawn, also where like samples are neighbours."""
    monkeypatch.setattr("finecal._core.groups._PARTS", 500)
    values = torch.arange(5001).double().unsqueeze(1)
    draws = Bootstrap(2000, 1).counts(5001)
    assert np.bincount(draws.part).tolist() == [11] + [10] * 499
    sums = draws.sums(torch.cat([values, torch.ones_like(values)], dim=1))
    assert sums[:, 0].sum() == values.sum()
    means = torch.cat([times @ sums for times in draws])
    error = float((means[:, 0] / means[:, 1]).std())
    assert error == pytest.approx(float(values.std(correction=0)) / math.sqrt(5001), rel=0.15)


def test_means_are_those_of_the_drawn_values(device):
    values = torch.tensor([1.0, -2.0, 4.0], device=device)
    times = torch.cat(list(Bootstrap(20, 1).counts(3)))
    expected = [np.repeat([1.0, -2.0, 4.0], row.long()).mean() for row in times]
    assert Bootstrap(20, 1).counts(3).means(values) == pytest.approx(expected)
    assert Bootstrap().counts(3).means(values) == []


def test_sums_are_those_of_each_part(device):
    draws = Bootstrap(1).counts(4)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], device=device)
    assert draws.sums(values).tolist() == values.tolist()


def test_none_are_drawn_by_default():
    assert list(Bootstrap().counts(3)) == []
    assert drawn(Bootstrap(), 10) == []
    assert list(Bootstrap().resample(torch.ones(3))) == []


def test_arguments_are_checked():
    assert Bootstrap.from_arguments(9, 2) == (9, 2)
    with pytest.raises(ValueError, match="n_bootstrap is -1"):
        Bootstrap.from_arguments(-1, 0)
    with pytest.raises(TypeError, match="seed is a float"):
        Bootstrap.from_arguments(1, 0.5)


def test_interval_by_hand():
    """95 % of 0, 1, ..., 40 lie from 1 to 39."""
    assert percentile_interval([float(value) for value in range(41)]) == (1.0, 39.0)
    assert percentile_interval([3.0]) == (3.0, 3.0)
    assert percentile_interval([0.0, 1.0]) == pytest.approx((0.025, 0.975))


def test_interval_is_of_the_finite_replicates():
    assert percentile_interval([math.nan, math.inf, 2.0, -math.inf]) == (2.0, 2.0)
    assert percentile_interval([math.nan, math.inf]) is percentile_interval([]) is None


PICTURES = check_groups(np.repeat([5, -2, 9, 1], [3, 1, 2, 4]), 10)


def test_whole_groups_are_drawn(device):
    draws = list(Bootstrap(50, 3).indices(10, groups=PICTURES))
    numbers = drawn(Bootstrap(50, 3), 4)  # of the groups themselves
    for index, picture in zip(draws, numbers, strict=True):
        assert index.tolist() == [i for number in picture for i in np.flatnonzero(PICTURES.index == number)]
    values = torch.arange(10.0, device=device)
    found = list(Bootstrap(50, 3).resample(values, groups=PICTURES))
    assert [resample.tolist() for resample in found] == [index.tolist() for index in draws]
    assert [len(set(PICTURES.index[index].tolist())) for index in Bootstrap(9).indices(10, 1, groups=PICTURES)] == [
        1
    ] * 9


def test_counts_of_groups_are_those_of_their_samples():
    draws = Bootstrap(300, 7).counts(10, groups=PICTURES)
    assert torch.equal(draws.part, PICTURES.index)
    assert torch.equal(torch.cat(list(draws)), torch.cat(list(Bootstrap(300, 7).counts(4))))


def test_groups_of_one_sample_are_none(monkeypatch):
    names = check_groups(np.random.default_rng(1).permutation(100), 100)
    values = torch.arange(100.0)
    assert drawn(Bootstrap(5, 2), 100, groups=names) == drawn(Bootstrap(5, 2), 100)
    for parts in (2048, 30):
        monkeypatch.setattr("finecal._core.groups._PARTS", parts)
        assert Bootstrap(9).counts(100, groups=names).means(values) == Bootstrap(9).counts(100).means(values)


def test_samples_that_come_thrice_tell_no_more(rng):
    values = torch.tensor(rng.normal(size=40))
    names = check_groups(np.repeat(np.arange(40), 3), 120)
    found = Bootstrap(30, 1).counts(120, groups=names).means(values.repeat_interleave(3))
    assert found == pytest.approx(Bootstrap(30, 1).counts(40).means(values), rel=1e-12)


def test_of_many_groups_random_unions_are_drawn(monkeypatch, rng):
    """A mean varies between resamplings as much as those of pictures do, whose samples are alike."""
    monkeypatch.setattr("finecal._core.groups._PARTS", 200)
    names, level = check_groups(np.repeat(np.arange(1500), 4), 6000), rng.normal(size=1500)
    draws = Bootstrap(2000, 1).counts(6000, groups=names)
    assert len(draws.part.unique()) == 200
    error = np.std(draws.means(torch.tensor(np.repeat(level, 4))))
    assert error == pytest.approx(level.std() / math.sqrt(1500), rel=0.15)


def test_tallies_count_the_samples_of_each_part_and_column():
    column = torch.tensor([0, 1, 1, 2, 0, 0, 2, 2, 2, 1])
    assert Bootstrap().counts(10, groups=PICTURES).tallies(column, 3).tolist() == [
        [1.0, 2.0, 0.0],
        [0.0, 0.0, 1.0],
        [2.0, 0.0, 0.0],
        [0.0, 1.0, 3.0],
    ]


def test_one_group_is_not_resampled():
    one = check_groups([4, 4, 4], 3)
    with pytest.raises(ValueError, match="groups are all the same"):
        list(Bootstrap(2).indices(3, groups=one))
    with pytest.raises(ValueError, match="groups are all the same"):
        Bootstrap(2).counts(3, groups=one)
    assert Bootstrap().counts(3, groups=one).means(torch.ones(3)) == []
