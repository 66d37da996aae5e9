"""Scores of probabilities batch by batch."""

import math

import pytest
import torch

import finecal
from finecal.streaming import ProbabilitySums
from streams import assert_equal, batches, samples


def test_probabilities_equal_the_function(rng, dtype):
    logits, labels, mask = samples(rng, 80, only_seen=False)
    tensor = torch.tensor(logits).to(dtype)
    whole = finecal.probabilities.evaluate_probabilities(tensor, labels, mask, 0.7, 6)
    state = ProbabilitySums(mask, 0.7, 6, whole.all.equal_mass_bins.edges)
    for part in batches(rng, 80):
        state.update(tensor[part], labels[part])
    assert_equal(state.compute(), whole)
    without = ProbabilitySums(mask, 0.7, 6).update(tensor, labels).compute()
    assert without.all.ece == whole.all.ece
    assert without.all.ece_equal_mass == pytest.approx(abs(whole.all.accuracy - whole.all.confidence))


def test_probabilities_of_no_samples():
    scores = ProbabilitySums([True, False]).compute().all
    assert scores.n == 0
    assert math.isnan(scores.nll)
    assert math.isnan(scores.classwise_ece)


@pytest.mark.parametrize(
    ("edges", "match"),
    [
        ([0.0, 0.7, 0.2, 1.0], "must ascend from 0 to 1"),
        ([0.1, 1.0], "they run from 0.1 to 1"),
        ([0.0, math.nan, 1.0], "must ascend"),
        ([1.0], "expected .B . 1,., the edges of B bins"),
    ],
)
def test_edges_are_checked(edges, match):
    with pytest.raises(ValueError, match=match):
        ProbabilitySums([True, False], mass_edges=edges)


def test_other_settings_do_not_merge():
    state = ProbabilitySums([True, False])
    with pytest.raises(ValueError, match="gamma differs"):
        state.merge(ProbabilitySums([True, False], gamma=1.0))
    with pytest.raises(ValueError, match="width_edges differs"):
        state.merge(ProbabilitySums([True, False], n_bins=3))
