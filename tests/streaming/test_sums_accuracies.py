"""Accuracies batch by batch."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import finecal
from finecal.streaming import AccuracySums
from streams import assert_equal, batches, samples


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("gamma", [-2.5, 0.0, 1.0])
def test_accuracies_equal_the_function(rng, dtype, gamma, average):
    logits, labels, mask = samples(rng, 80, only_seen=False)
    logits[np.arange(80), labels] = np.round(logits.max(1)) - rng.integers(-2, 3, 80)
    tensor = torch.tensor(logits).to(dtype)
    state = AccuracySums(mask, gamma)
    for part in batches(rng, 80):
        state.update(tensor[part], labels[part])
    found, whole = state.compute(average), finecal.evaluate(tensor, labels, mask, gamma, average)
    assert math.isnan(found.ausuc)
    assert found.samples is None
    assert_equal(*map(dataclasses.astuple, (found, dataclasses.replace(whole, ausuc=math.nan))))
    if average == "micro":
        assert (found.acc_all, found.acc_seen, found.acc_absent) == (whole.acc_all, whole.acc_seen, whole.acc_absent)


def test_accuracies_of_one_group_or_none():
    state = AccuracySums([True, True, False])
    assert math.isnan(state.compute().acc_all)
    assert math.isnan(state.compute("macro").acc_seen)
    report = state.update(np.array([[2.0, 1, 0]]), [0]).compute()
    assert (report.acc_seen, report.n_seen, report.n_absent) == (1, 1, 0)
    assert math.isnan(report.acc_absent)
    assert math.isnan(report.harmonic_mean)
    assert AccuracySums([True, False]).update(np.array([[2.0, 1], [2, 1]]), [1, 0]).compute().harmonic_mean == 0
    with pytest.raises(ValueError, match="average is 'weighted'"):
        state.compute("weighted")
    with pytest.raises(ValueError, match="gamma differs"):
        state.merge(AccuracySums([True, True, False], 1.0))
