"""Gamma added to the absent classes."""

import copy
import pickle

import pytest
import torch
from torch import nn

import finecal

MASK = torch.tensor([True, False, True, False, False])
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def test_other_gammas_make_it_forget_its_estimate():
    estimate = finecal.GammaEstimate(1.5, "by hand", "data", 3)
    model = nn.Sequential(nn.Linear(2, 5), finecal.AdditiveBias(torch.arange(5) < 2, estimate))
    model.load_state_dict(model.state_dict())
    assert model[1].estimate == estimate
    model.load_state_dict({**model.state_dict(), "1.gamma": torch.tensor(2.0)})
    assert model[1].estimate is None
    assert repr(model[1]) == "AdditiveBias(gamma=2, seen=2, absent=3)"
    other_mask = finecal.AdditiveBias(torch.arange(5) < 2, estimate)
    other_mask.load_state_dict(finecal.AdditiveBias(torch.arange(5) < 3, estimate).state_dict())
    assert other_mask.estimate is None


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


@pytest.fixture
def estimate():
    return finecal.GammaEstimate(2.0, "by hand", "nothing", 0)


def test_equals_calibrate_logits(device, dtype, calibrator):
    logits = LOGITS.to(device, dtype)
    out = calibrator.to(device)(logits)
    assert torch.equal(out, finecal.calibrate_logits(logits, MASK, float(calibrator.gamma)))


def test_state_is_the_mask_and_gamma(calibrator):
    assert set(calibrator.state_dict()) == {"seen_mask", "gamma"}


def test_repr_shows_gamma_method_and_class_counts(calibrator, estimate):
    assert repr(calibrator) == "AdditiveBias(gamma=1.7, seen=2, absent=3)"
    estimated = finecal.AdditiveBias(MASK.numpy(), estimate)
    assert repr(estimated) == "AdditiveBias(gamma=2, method='by hand', seen=2, absent=3)"
    assert repr(estimated.to("meta")) == "AdditiveBias(gamma on the meta device, method='by hand', classes=5)"


def test_keeps_the_estimate(calibrator, estimate):
    assert calibrator.estimate is None
    assert calibrator.method is None
    estimated = finecal.AdditiveBias(MASK, estimate)
    assert estimated.estimate is estimate
    assert estimated.method == "by hand"
    assert set(estimated.state_dict()) == {"seen_mask", "gamma"}
    for twin in (copy.deepcopy(estimated), pickle.loads(pickle.dumps(estimated)), estimated.half()):
        assert twin.estimate == estimate


def test_gamma_is_a_number_that_float32_can_hold():
    with pytest.raises(ValueError, match="gamma is 1e\\+39, which float32 cannot hold"):
        finecal.AdditiveBias(MASK, 1e39)
    finecal.AdditiveBias(MASK, torch.finfo(torch.float32).max)
    assert finecal.AdditiveBias(MASK, torch.tensor(1.5, requires_grad=True)).gamma == 1.5


# --- the mask that forward follows ------------------------------------------------------------------------------------
