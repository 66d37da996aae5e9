"""Heads of any kind, which are found by running the model."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import finecal
from finecal._models.fold import is_folded
from finecal._models.heads import find_head
from foldable_models import MASK, Classifier, Config, UNet

C = 6
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
PICTURES = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(2))


class GraphLayer(nn.Module):
    """As PyTorch Geometric's: a linear map without a bias, an average over neighbours, and a bias of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.lin = nn.ParameterDict({"weight": torch.randn(outputs, inputs)})
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return F.linear(x, self.lin["weight"]).roll(1, 0) + self.bias


class Variable:
    """As Keras's."""

    def __init__(self, value):
        self.value = nn.Parameter(value)


class Dense(nn.Module):
    """As Keras's on torch: the parameters are values of variables, and listed beside."""

    def __init__(self, inputs, outputs, name):
        super().__init__()
        self.kernel, self.bias = Variable(torch.randn(inputs, outputs)), Variable(torch.randn(outputs))
        self.listed = nn.ParameterDict({f"{name}/bias": self.bias.value, f"{name}/kernel": self.kernel.value})

    def forward(self, x):
        return x @ self.kernel.value + self.bias.value


class KerasLike(nn.Module):
    """Lists the parameters of its layers, which are no children of its own, and has a part that lists them again."""

    def __init__(self):
        super().__init__()
        self.layers = [Dense(8, C, "first"), Dense(C, C, "last")]
        listed = {key: value for layer in self.layers for key, value in layer.listed.items()}
        self.inner = nn.ParameterDict(listed)
        self.listed = nn.ParameterDict(listed)

    def forward(self, x):
        return self.layers[1](self.layers[0](x).relu())


class Activation(nn.Module):
    """As segmentation_models_pytorch's."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return self.activation(x)


class DeepUNet(UNet):
    """As MONAI's DynUNet: the last convolution is followed by modules that are for training only."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv2d(8, C, 1), nn.Conv2d(8, C, 1)])
        self.skips = nn.ModuleDict({"norm": nn.BatchNorm2d(C)})


class Net(nn.Module):
    def __init__(self, *layers, after=lambda z: z):
        super().__init__()
        self.layers, self.after = nn.ModuleList(layers), after

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.after(self.layers[-1](x))


class Shift(nn.Module):
    """A cosine head with a bias behind it, and a scale with as many entries."""

    def __init__(self):
        super().__init__()
        self.head, self.offset = nn.Linear(8, C), nn.Parameter(torch.zeros(C))
        self.scale = nn.Parameter(torch.full((C,), 20.0))

    def forward(self, x):
        return self.scale * F.linear(F.normalize(x), F.normalize(self.head.weight)) + self.offset


def in_last_block():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, C, 1), Activation(nn.Identity())))


FOUND = {
    "graph": (lambda: Net(GraphLayer(8, 16), GraphLayer(16, C)), X, -1, "layers.1", "bias"),
    "graph, of one size": (lambda: Net(GraphLayer(8, C), GraphLayer(C, C)), X, -1, "layers.1", "bias"),
    "Keras": (KerasLike, X, -1, "listed.last/bias", "last/bias"),
    "DynUNet": (DeepUNet, PICTURES, 1, "out", "bias"),
    "a bias behind a cosine head": (Shift, X, -1, "offset", "offset"),
    "batch norm at the end": (lambda: Net(nn.Linear(8, C), nn.BatchNorm1d(C)), X, -1, "layers.1", "bias"),
}


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


def made(kind):
    torch.manual_seed(3)
    make, x, dim, name, parameter = FOUND[kind]
    return make().eval(), x, finecal.AdditiveBias(MASK, 1.7, dim=dim), name, parameter


def assert_unchanged(model, state):
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not is_folded(model)


@pytest.mark.parametrize("kind", FOUND)
def test_a_parameter_that_is_added_to_the_logits_is_the_head(kind):
    model, x, calibrator, name, parameter = made(kind)
    before, state = model(x), copy.deepcopy(model.state_dict())
    expected = calibrator(before)
    assert finecal.fold_into_head(model, calibrator, inputs=x) is model
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    head = find_head(model)
    assert (str(head), head.parameter) == (name, parameter)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    assert all(key.endswith(parameter) for key in changed)
    torch.testing.assert_close(finecal.unfold_from_head(model, calibrator)(x), before, rtol=0, atol=1e-5)
    assert not is_folded(model)


@pytest.mark.parametrize("kind", FOUND)
def test_it_is_folded_once(kind):
    model, x, calibrator, _, _ = made(kind)
    wrapper = finecal.CalibratedModel(model, calibrator)
    expected = wrapper(x)
    wrapper.fold(x)
    with pytest.raises(ValueError, match="would be calibrated twice"):
        wrapper(x)
    twins = [model, nn.Sequential(model), nn.DataParallel(model)]
    if kind != "Keras":
        twins += [copy.deepcopy(model), torch.compile(model, backend="eager")]
    for twin in twins:
        assert is_folded(twin)
        with pytest.raises(ValueError, match=r"AdditiveBias\(gamma=1.7, .*\) is folded into .* already"):
            finecal.fold_into_head(twin, calibrator, inputs=x)
        with pytest.raises(ValueError, match="folded into the model's head already"):
            finecal.CalibratedModel(twin, calibrator)
    with pytest.raises(ValueError, match="is folded into the head .*; pass that calibrator"):
        finecal.unfold_from_head(model, finecal.AdditiveBias(MASK, 1.6))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    finecal.unfold_from_head(model, calibrator)
    torch.testing.assert_close(wrapper(x), expected, rtol=0, atol=1e-5)


def test_the_record_goes_with_pickles_and_configs(calibrator):
    model = Shift()
    model.config = Config()
    finecal.fold_into_head(model, calibrator, inputs=X)
    assert is_folded(pickle.loads(pickle.dumps(model)))
    again = Shift()
    again.config = Config.from_pretrained(model.config.save_pretrained())
    assert is_folded(again)
    again.load_state_dict(model.state_dict())
    finecal.unfold_from_head(again, calibrator)
    assert torch.equal(again.offset, torch.zeros(C))
    assert vars(again.config) == {}
    again.offset = nn.Parameter(torch.zeros(2))  # another head since
    again.config = model.config
    assert not is_folded(again)


def test_a_fold_whose_record_was_lost_is_warned_of(calibrator):
    model = Net(GraphLayer(8, C))
    nn.init.zeros_(model.layers[0].bias)
    again = copy.deepcopy(model)
    again.load_state_dict(finecal.fold_into_head(model, calibrator, inputs=X).state_dict())
    assert not is_folded(again)
    with pytest.warns(finecal.FinecalWarning, match="looks as if the calibrator had been folded into it"):
        finecal.CalibratedModel(again, calibrator)
    with pytest.warns(finecal.FinecalWarning, match="looks as if the calibrator had been folded before"):
        finecal.fold_into_head(again, calibrator, inputs=X)


@pytest.mark.parametrize("layer", [GraphLayer(8, C), Dense(8, C, "one"), nn.Bilinear(8, 8, C)])
def test_a_layer_with_a_bias_is_taken_as_it_is(layer, calibrator):
    x = (X, X) if isinstance(layer, nn.Bilinear) else (X,)
    expected = calibrator(layer(*x))
    finecal.fold_into_head(layer, calibrator)
    torch.testing.assert_close(layer(*x), expected, rtol=0, atol=1e-5)
    assert is_folded(layer)
    assert not is_folded(finecal.unfold_from_head(layer, calibrator))
    with pytest.raises(ValueError, match="has 6 outputs, the calibrator is for 3 classes"):
        finecal.fold_into_head(layer, finecal.AdditiveBias([True, True, False], 1.0))


def test_a_layer_that_is_no_child_of_its_model(calibrator):
    model = KerasLike()
    before = model(X)
    finecal.fold_into_head(model.layers[1], calibrator)
    torch.testing.assert_close(model(X), calibrator(before), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="is folded into the head .*last/bias already"):
        finecal.fold_into_head(model, calibrator, inputs=X)
    with pytest.raises(ValueError, match="folded into the model's head already"):
        finecal.CalibratedModel(model, calibrator)
    finecal.unfold_from_head(model.layers[1], calibrator)
    assert not is_folded(model)


def test_an_activation_that_does_nothing_follows_the_head():
    calibrator = finecal.AdditiveBias(MASK, 1.7, dim=1)
    model = in_last_block()
    expected = calibrator(model(PICTURES))
    finecal.fold_into_head(model, calibrator, inputs=PICTURES)
    torch.testing.assert_close(model(PICTURES), expected)
    assert find_head(model).names == ("1.0",)
    model = in_last_block()
    model[1][1].activation = nn.Sigmoid()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"(?s)the model ends in Activation.*No parameter of 6 entries that can be chan"
    ):
        finecal.fold_into_head(model, calibrator, inputs=PICTURES)
    assert_unchanged(model, state)


class Shared(Net):
    """Two layers read one bias, of which one does not run."""

    def __init__(self):
        super().__init__(GraphLayer(8, C))
        self.other = GraphLayer(8, C)
        self.other.bias = self.layers[0].bias


def computed():
    model = Net(GraphLayer(8, C))
    nn.utils.parametrize.register_parametrization(model.layers[0], "bias", nn.Tanh())
    return model


NOT_FOUND = {
    "scaled": lambda: Net(GraphLayer(8, C), after=lambda z: 30 * z),
    "softmax": lambda: Net(GraphLayer(8, C), after=lambda z: z.softmax(-1)),
    "capped below what the inputs reach": lambda: Net(GraphLayer(8, C), after=lambda z: (z + 40).relu()),
    "shared": Shared,
    "computed": computed,
}


@pytest.mark.parametrize("size", [1.7, 1e-9])
@pytest.mark.parametrize("kind", NOT_FOUND)
def test_what_is_not_added_as_it_is_leaves_no_trace(kind, size):
    model = NOT_FOUND[kind]()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"no linear layer or convolution; pass the layer that gives the logits"):
        finecal.fold_into_head(model, finecal.AdditiveBias(MASK, size), inputs=X)
    assert_unchanged(model, state)
    assert model.training


def test_errors_of_the_model_and_the_calibrator_come_first(calibrator):
    model = Net(GraphLayer(8, C))
    with pytest.raises(ValueError, match="with which the model fails .RuntimeError"):
        finecal.fold_into_head(model, calibrator, inputs=X[:, :3])
    with pytest.raises(ValueError, match="calibrator holds Temperature"):
        finecal.fold_into_head(model, finecal.Temperature(2.0), inputs=X)
    with pytest.raises(ValueError, match="looks? for the classes along dim 1: make it with dim=0"):
        finecal.fold_into_head(
            Net(GraphLayer(8, C), after=lambda z: z.T), finecal.AdditiveBias(MASK, 1, dim=1), inputs=X
        )
    prototypes = finecal.calibrators.Prototypes(MASK, 1.7, torch.ones(C, 8), torch.zeros(8))
    with pytest.raises(ValueError, match="Net has no linear layer"):
        finecal.fold_into_head(model, prototypes, inputs=X)
    with pytest.raises(
        ValueError, match=r"With inputs=, what the model is called with, every parameter of 6 entries is"
    ):
        finecal.fold_into_head(model, calibrator)


# --- what is said where nothing was run -------------------------------------------------------------------------------


class Known(Classifier):
    """As a model of a library."""


Known.__module__ = "torchvision.models"


def test_an_unchecked_fold_says_so_where_the_code_is_not_known(calibrator):
    message = r"not checked: Classifier may do more with the outputs of the head (1\.)?classifier, .* pass inputs="
    for model in (Classifier(), nn.Sequential(nn.Identity(), Classifier())):
        with pytest.warns(finecal.FinecalWarning, match=message):
            finecal.fold_into_head(model, calibrator)


@pytest.mark.filterwarnings("error")
def test_a_fold_that_was_checked_or_needs_no_check_says_nothing(calibrator):
    finecal.fold_into_head(Classifier(), calibrator, inputs=X)
    finecal.fold_into_head(Classifier().classifier, calibrator)
    finecal.fold_into_head(nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, C), nn.Dropout())), calibrator)
    finecal.fold_into_head(nn.DataParallel(Known()), calibrator)


# --- models that are not as usual -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Classifier, lambda: Net(GraphLayer(8, C))])
def test_a_model_made_under_inference_mode(make, calibrator):
    with torch.inference_mode():
        model = make()
    with torch.no_grad():
        before = model(X)
        finecal.fold_into_head(model, calibrator, inputs=X)
        torch.testing.assert_close(model(X), calibrator(before), rtol=0, atol=1e-5)
        finecal.unfold_from_head(model, calibrator)
        torch.testing.assert_close(model(X), before, rtol=0, atol=1e-5)


def test_parameters_without_values_are_named(calibrator):
    for inputs in (None, X):
        with pytest.raises(ValueError, match="bias of the head 0, a LazyLinear, has no shape yet; run the model once"):
            finecal.fold_into_head(nn.Sequential(nn.LazyLinear(C)), calibrator, inputs=inputs)
        with pytest.raises(ValueError, match="is on the meta device and has no values; load the weights first"):
            finecal.fold_into_head(Classifier().to("meta"), calibrator, inputs=inputs)
    body = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, C))  # the run gives it a shape
    finecal.fold_into_head(body, calibrator, inputs=X)


@pytest.mark.parametrize("size", [1.7, 0.0])
def test_every_dtype(dtype, size):
    calibrator = finecal.calibrators.ClassBias(size * ~MASK)
    model = Net(GraphLayer(8, 16), GraphLayer(16, C)).to(dtype)
    expected = model(X.to(dtype)).detach().double() + size * ~MASK
    finecal.fold_into_head(model, calibrator, inputs=X.to(dtype))
    step = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(model(X.to(dtype)).double(), expected, rtol=0, atol=step)


class OwnBias(nn.Module):
    """Its only linear layer is not the head, which is two parameters."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.rows = nn.Parameter(torch.randn(10, 8))
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, x):
        return self.body(x) @ self.rows.T + self.bias


@pytest.mark.parametrize("fold", ["by the wrapper", "beside the wrapper"])
def test_a_wrapper_notices_a_fold_into_what_no_layer_is(fold):
    model, x = OwnBias(), torch.randn(4, 6)
    calibrator = finecal.AdditiveBias([True] * 5 + [False] * 5, 5.0)
    calibrated = finecal.CalibratedModel(model, calibrator)
    expected = calibrated(x)
    if fold == "by the wrapper":
        calibrated.fold(x)
    else:
        finecal.fold_into_head(model, calibrator, inputs=x)
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(ValueError, match="would be calibrated twice"):
        calibrated(x)
