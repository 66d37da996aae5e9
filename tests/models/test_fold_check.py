"""What can be folded into which head."""

import copy

import pytest
import torch
from torch import nn

import finecal
from finecal._models.fold import is_folded
from foldable_models import MASK, C, Classifier


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


def test_gives_no_warning_for_biases_that_merely_lean(calibrator):
    linear = nn.Linear(8, C)
    nn.init.normal_(linear.bias)
    linear.bias.data[~MASK] += 0.5
    finecal.fold_into_head(linear, calibrator)
    finecal.fold_into_head(nn.Linear(8, C), finecal.calibrators.ClassBias(torch.ones(C)))


def test_what_is_more_than_a_bias_is_refused():
    for part in (finecal.Temperature(2.0), finecal.calibrators.GroupTemperature(MASK, 1.0, 2.0), nn.Identity()):
        calibrator = nn.Sequential(part, finecal.AdditiveBias(MASK, 1.7))
        with pytest.raises(ValueError, match=f"calibrator holds {type(part).__name__}.* CalibratedModel"):
            finecal.fold_into_head(Classifier(), calibrator)
    with pytest.raises(TypeError, match=r"calibrator is a float; pass an AdditiveBias"):
        finecal.fold_into_head(Classifier(), 1.7)


def test_a_head_without_bias_is_refused(calibrator):
    model = Classifier()
    model.classifier = nn.Linear(8, C, bias=False)
    with pytest.raises(ValueError, match=r"the head classifier has no bias; .*inputs=.* CalibratedModel\(model, cal"):
        finecal.fold_into_head(model, calibrator)
    assert model.classifier.bias is None


def test_another_number_of_classes_is_refused(calibrator):
    with pytest.raises(ValueError, match="the head classifier has 9 outputs, the calibrator is for 6 classes"):
        finecal.fold_into_head(Classifier(classes=9), calibrator)


def test_a_calibrated_model_is_refused(calibrator):
    for model in (finecal.CalibratedModel(Classifier(), calibrator), nn.Sequential(nn.Linear(8, C), calibrator)):
        with pytest.raises(ValueError, match="model is calibrated already: it holds"):
            finecal.fold_into_head(model, calibrator)
    with pytest.raises(ValueError, match="folded into the model's head already"):
        finecal.CalibratedModel(finecal.fold_into_head(Classifier(), calibrator), calibrator)


@pytest.mark.parametrize("function", [finecal.fold_into_head, finecal.unfold_from_head])
def test_other_models_are_refused(function, calibrator):
    with pytest.raises(TypeError, match="model is a int; pass the torch.nn.Module that gives the logits"):
        function(1, calibrator)
    with pytest.raises(TypeError, match="model is the calibrator AdditiveBias.*; pass the model first, which gives"):
        function(finecal.AdditiveBias(MASK, 1.0), calibrator)
    with pytest.raises(ValueError, match="uncalibrated model, which a CalibratedModel has as its attribute `model`"):
        function(finecal.CalibratedModel(Classifier(), calibrator), calibrator)


def test_biases_that_cannot_be_changed_are_refused(calibrator):
    computed = nn.Linear(8, C)
    nn.utils.parametrize.register_parametrization(computed, "bias", nn.Tanh())
    with pytest.raises(ValueError, match="computes its bias"):
        finecal.fold_into_head(computed, calibrator)
    shared = nn.Sequential(nn.Linear(8, C), nn.Linear(C, C))
    shared[1].bias = shared[0].bias
    with pytest.raises(ValueError, match="the head 1 shares its bias with 0"):
        finecal.fold_into_head(shared, calibrator)
    with pytest.raises(ValueError, match="is on the meta device and has no values; load the weights first"):
        finecal.fold_into_head(nn.Linear(8, C, device="meta"), calibrator)
    with pytest.raises(ValueError, match="calibrator is on the meta device and has no values"):
        finecal.fold_into_head(nn.Linear(8, C), copy.deepcopy(calibrator).to("meta"))
    narrow = nn.Linear(8, C).half()
    before = narrow.bias.detach().clone()
    with pytest.raises(ValueError, match="not finite in float16 once folded"):
        finecal.fold_into_head(narrow, finecal.AdditiveBias(MASK, 1e5))
    assert torch.equal(narrow.bias, before)
    assert not is_folded(narrow)


def test_a_computed_weight_is_no_obstacle(calibrator):
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(8, C))
    x = torch.randn(2, 8)
    expected = calibrator(linear(x))
    torch.testing.assert_close(finecal.fold_into_head(linear, calibrator)(x), expected)
