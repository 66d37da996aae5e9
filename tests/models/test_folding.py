import copy
import io
import json
import pickle

import pytest
import torch
from torch import nn

import finecal
from finecal.models.fold_record import is_folded

C = 6
MASK = torch.tensor([True, False, True, True, False, True])
BIAS = torch.tensor([0.5, -1.0, 0.25, 3.0, 0.0, -0.125])
CALIBRATORS = {
    "gamma": (finecal.AdditiveBias(MASK, 1.7), 1.7 * ~MASK),
    "per class": (finecal.ClassBias(BIAS), BIAS),
    "both": (
        nn.Sequential(finecal.AdditiveBias(MASK, -0.5), nn.Sequential(finecal.ClassBias(BIAS))),
        BIAS - 0.5 * ~MASK,
    ),
}


class Config:
    """As Hugging Face's: attributes that `save_pretrained` writes as JSON."""

    def save_pretrained(self):
        return json.dumps(vars(self))

    @classmethod
    def from_pretrained(cls, text):
        config = cls()
        vars(config).update(json.loads(text))
        return config


class Classifier(nn.Module):
    def __init__(self, config=None, classes=C):
        super().__init__()
        self.config = config
        self.body = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, classes)

    def forward(self, x):
        return self.classifier(self.body(x).relu())


class Distilled(Classifier):
    def __init__(self):
        super().__init__()
        self.head = self.classifier
        self.head_dist = nn.Linear(8, C)

    def get_classifier(self):
        return self.head, self.head_dist

    def forward(self, x):
        return (self.head(x) + self.head_dist(x)) / 2


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)


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


def test_a_config_carries_the_record(calibrator):
    model = finecal.fold_into_head(Classifier(Config()), calibrator)
    again = Classifier(Config.from_pretrained(model.config.save_pretrained()))
    again.load_state_dict(model.state_dict())
    assert is_folded(again)
    with pytest.raises(ValueError, match="already: use the model as it is, or take it out with unfold_from_head"):
        finecal.fold_into_head(again, calibrator)
    finecal.unfold_from_head(again, calibrator)
    assert not is_folded(again)
    assert vars(again.config) == {}


def test_a_record_about_a_head_since_replaced_is_stale(calibrator):
    config = finecal.fold_into_head(Classifier(Config()), calibrator).config
    other = Classifier(config, classes=2)
    assert not is_folded(other)
    finecal.fold_into_head(other, finecal.AdditiveBias([True, False], 1.0))
    assert config.finecal_folded["num_classes"] == 2


def test_only_the_config_that_is_saved_with_the_head_is_used(calibrator):
    encoder = nn.Module()
    encoder.config = Config()
    model = nn.Sequential(encoder, nn.Linear(8, C))
    finecal.fold_into_head(model, calibrator)
    assert vars(encoder.config) == {}
    assert is_folded(model)


def test_a_state_dict_carries_the_bias_but_the_record_only_by_its_looks(calibrator):
    state = io.BytesIO()
    torch.save(finecal.fold_into_head(Classifier(), calibrator).state_dict(), state)
    state.seek(0)
    again = Classifier()
    again.load_state_dict(torch.load(state, weights_only=True))
    once = again.classifier.bias.detach().clone()
    assert not is_folded(again)
    with pytest.raises(ValueError, match="nothing is recorded as folded"):
        finecal.unfold_from_head(again, calibrator)
    with pytest.warns(finecal.FinecalWarning, match=r"looks as if .* had been folded before .*unfold_from_head"):
        finecal.fold_into_head(again, calibrator)
    torch.testing.assert_close(finecal.unfold_from_head(again, calibrator).classifier.bias, once)


def test_gives_no_warning_for_biases_that_merely_lean(calibrator):
    linear = nn.Linear(8, C)
    nn.init.normal_(linear.bias)
    linear.bias.data[~MASK] += 0.5
    finecal.fold_into_head(linear, calibrator)
    finecal.fold_into_head(nn.Linear(8, C), finecal.ClassBias(torch.ones(C)))


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


def test_what_is_more_than_a_bias_is_refused():
    for part in (finecal.Temperature(2.0), finecal.GroupTemperature(MASK, 1.0, 2.0), nn.Identity()):
        calibrator = nn.Sequential(part, finecal.AdditiveBias(MASK, 1.7))
        with pytest.raises(ValueError, match=f"calibrator holds {type(part).__name__}.* CalibratedModel"):
            finecal.fold_into_head(Classifier(), calibrator)
    with pytest.raises(TypeError, match=r"calibrator is a float; pass an AdditiveBias"):
        finecal.fold_into_head(Classifier(), 1.7)


def test_a_head_without_bias_is_refused(calibrator):
    model = Classifier()
    model.classifier = nn.Linear(8, C, bias=False)
    with pytest.raises(ValueError, match=r"the head classifier has no bias, .* dropped .* CalibratedModel\(model, cal"):
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
    with pytest.raises(ValueError, match="on meta; fold before the model is quantised or offloaded"):
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
