"""Gaps batch by batch."""

import math

import numpy as np
import pytest
import torch

import finecal
from finecal.streaming import GapSums
from streams import quietly, samples

INF = math.inf


def test_gaps_equal_the_functions(rng, dtype):
    logits, labels, mask = samples(rng, 50)
    tensor = torch.tensor(logits).to(dtype)
    estimates = quietly(GapSums(mask).update(tensor, labels).compute)
    for estimate, function in zip(
        estimates, (finecal.estimators.average_logit_gap, finecal.estimators.max_logit_gap), strict=True
    ):
        whole = quietly(function, tensor, labels, mask)
        assert estimate.gamma == pytest.approx(whole.gamma, rel=1e-12)
        assert (estimate.method, estimate.n, estimate.data) == (whole.method, whole.n, whole.data)
        assert estimate.acc_seen_at_zero == pytest.approx(whole.acc_seen_at_zero)
        assert estimate.acc_seen_at_gamma is None


def test_gaps_warn_as_the_functions():
    state = GapSums([True, True, False]).update(np.array([[1.0, 2, 5], [2, 1, -INF]]), [0, 0])
    with pytest.warns(finecal.FinecalWarning) as record:
        estimates = state.compute()
    assert len(record) == 4
    for estimate in estimates:
        assert "1 of 2 samples were left out" in estimate.warnings[0]
        assert "the gap is -3" in estimate.warnings[1]
    logits = np.tile(5 * np.eye(6)[[1, 2, 3, 4, 0]] + [0, 0, 0, 0, 0, -1], (4, 1))
    with pytest.warns(finecal.FinecalWarning, match="only 0.0 % of 20 samples are told apart within their own group"):
        GapSums(np.arange(6) < 5).update(logits, np.tile(np.arange(5), 4)).compute()


def test_a_seen_class_wins_a_tie():
    state = GapSums([True, True, False]).update(np.array([[2.0, 1, 2]]), [0])
    assert quietly(state.compute).average.acc_seen_at_zero == 1


def test_gaps_need_samples_and_two_seen_classes():
    with pytest.raises(ValueError, match=r"logits are empty \(0 samples\); GapSums has nothing"):
        GapSums([True, True, False]).compute()
    with pytest.raises(ValueError, match="seen_mask has one seen class; GapSums compares"):
        GapSums([True, False, False])
    with pytest.raises(ValueError, match="average_logit_gap has nothing to estimate from"):
        GapSums([True, True, False]).update(np.array([[1.0, 2, -INF]]), [0]).compute()


def test_one_gap_by_name():
    state = GapSums([True, True, False]).update(np.array([[9.0, 4, 1], [2, 9, 1]]), [0, 1])
    assert state.estimate() == state.compute().maximum
    assert state.estimate("average_logit_gap") == state.compute().average
    with pytest.raises(ValueError, match="method is 'mean'; choose one of 'average_logit_gap', 'max_logit_gap'"):
        state.estimate("mean")
