import copy
import pickle

import pytest
import torch
from torch import nn

import finecal
from finecal.models.fold_record import is_folded
from foldable_models import BIAS, MASK, C, Classifier, Distilled

CALIBRATORS = {
    "gamma": (finecal.AdditiveBias(MASK, 1.7), 1.7 * ~MASK),
    "per class": (finecal.ClassBias(BIAS), BIAS),
    "both": (
        nn.Sequential(finecal.AdditiveBias(MASK, -0.5), nn.Sequential(finecal.ClassBias(BIAS))),
        BIAS - 0.5 * ~MASK,
    ),
}


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


@pytest.mark.parametrize("kind", CALIBRATORS)
@pytest.mark.parametrize("build", [Classifier, Distilled, lambda: nn.Linear(8, C)])
def test_logits_are_those_of_the_calibrator(kind, build, device, dtype):
    calibrator, shift = CALIBRATORS[kind]
    model, x = build().to(device, dtype), torch.randn(5, 8).to(device, dtype)
    expected = model(x).double() + shift.double().to(device)
    assert finecal.fold_into_head(model, copy.deepcopy(calibrator).to(device)) is model
    torch.testing.assert_close(model(x).double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_rounds_the_bias_once(dtype, calibrator):
    linear = nn.Linear(8, C).to(dtype)
    before = linear.bias.detach().clone()
    gamma = calibrator.gamma.double()
    expected = torch.where(MASK, before.double(), before.double() + gamma).to(dtype)
    assert torch.equal(finecal.fold_into_head(linear, calibrator).bias, expected)
    assert linear.bias.dtype == dtype
    assert linear.bias.requires_grad
    step = torch.finfo(dtype).eps * 2  # of numbers between 1 and 4
    torch.testing.assert_close(finecal.unfold_from_head(linear, calibrator).bias, before, rtol=0, atol=step)
    assert torch.equal(linear.bias[MASK], before[MASK])


def test_is_not_done_twice(calibrator):
    model = finecal.fold_into_head(Classifier(), calibrator)
    folded = model.classifier.bias.clone()
    again = pickle.loads(pickle.dumps(model))
    for twin in (model, copy.deepcopy(model), again, model.classifier):
        assert is_folded(twin)
        with pytest.raises(ValueError, match=r"AdditiveBias\(gamma=1.7, seen=4, absent=2\) is folded into .* already"):
            finecal.fold_into_head(twin, finecal.ClassBias(BIAS))
    assert torch.equal(model.classifier.bias, folded)
    assert not is_folded(finecal.unfold_from_head(model, calibrator))
    finecal.fold_into_head(model, calibrator)


def test_takes_out_only_what_was_folded(calibrator):
    model = finecal.fold_into_head(Classifier(), calibrator)
    for other in (finecal.AdditiveBias(MASK, 1.6), finecal.AdditiveBias(~MASK, 1.7), finecal.ClassBias(BIAS)):
        with pytest.raises(
            ValueError, match=r"AdditiveBias\(gamma=1.7.* is folded into the head classifier; pass that"
        ):
            finecal.unfold_from_head(model, other)
    same = finecal.ClassBias(calibrator(torch.zeros(6)))  # what it adds counts, not its kind
    finecal.unfold_from_head(model, same)
    assert not is_folded(model)


def test_two_heads_are_changed_both_or_neither(calibrator):
    model = Distilled()
    model.head_dist.bias = None
    before = model.head.bias.detach().clone()
    with pytest.raises(ValueError, match="the head head_dist has no bias"):
        finecal.fold_into_head(model, calibrator)
    assert torch.equal(model.head.bias, before)


def test_gamma_follows_the_model_to_the_optimizer_and_the_compiler(calibrator):
    model, x = Classifier(), torch.randn(4, 8)
    model(x).sum().backward()
    expected = calibrator(model(x))
    finecal.fold_into_head(model, calibrator)
    assert model.classifier.bias.is_leaf
    assert set(model.state_dict()) == set(Classifier().state_dict())
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
