import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import finecal
from finecal.models.fold_record import is_folded
from foldable_models import BIAS, MASK, C, Classifier, Config, Distilled

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


def test_what_a_bias_of_its_dtype_does_not_change_by_is_warned_of():
    linear = torch.nn.Linear(4, 3).half()
    with torch.no_grad():
        linear.bias.fill_(3000.0)
    with pytest.warns(
        finecal.FinecalWarning, match=r"class 2 changes by 0 in place of 0.75; unfold_from_head takes it"
    ):
        finecal.fold_into_head(linear, finecal.AdditiveBias([True, True, False], 0.75))
    finecal.fold_into_head(torch.nn.Linear(4, 3).half(), finecal.AdditiveBias([True, True, False], 0.75))


# --- what is proven ---------------------------------------------------------------------------------------------------


class Cosine(nn.Module):
    """A head with weights of its own."""

    def __init__(self, transposed=False):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(8, C) if transposed else torch.randn(C, 8))
        self.transposed = transposed

    def forward(self, x):
        return 5 * F.linear(x, self.rows.T if self.transposed else self.rows)


class Leftover(nn.Module):
    """A backbone's own classifier stays where it was, and another layer gives the logits."""

    def __init__(self, head):
        super().__init__()
        self.body, self.fc, self.last = nn.Linear(8, 8), nn.Linear(8, C), head

    def forward(self, x):
        return self.last(self.body(x).relu())


class Followed(nn.Module):
    """A head and what is done with it."""

    def __init__(self, forward):
        super().__init__()
        self.drop, self.head, self.apply_head = nn.Dropout(), nn.Linear(8, C), forward

    def forward(self, x):
        return self.apply_head(self.head, self.drop(x))


def mixed_precision(head, x):
    with torch.autocast("cpu", torch.bfloat16):
        return head(x).float()


X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
UNREAD = "the logits stay as they are, so the layer does not run, or its bias is not read"
REFUSED = {
    "never runs": (lambda: Leftover(Cosine()), UNREAD),
    "bias never read": (lambda: Followed(lambda head, x: F.linear(x, 4 * F.normalize(head.weight))), UNREAD),
    "scaled": (lambda: Followed(lambda head, x: 20 * head(x)), "gain 20 times what is added to the bias, so something"),
    "nearly": (lambda: Followed(lambda head, x: 1.01 * head(x)), "gain 1.01 times what is added"),
    "negated": (lambda: Followed(lambda head, x: -head(x)), "gain -1 times"),
    "capped": (lambda: Followed(lambda head, x: 3 * torch.tanh(head(x) / 3)), "miss what is added to the bias by up"),
    "softmax": (lambda: Followed(lambda head, x: head(x).softmax(1)), "miss what is added"),
    "two of three": (
        lambda: Followed(lambda head, x: head(x)[:, :4]),
        r"but the model returned logits of shape \(5, 4",
    ),
    "masked": (
        lambda: Followed(lambda head, x: head(x).masked_fill(~MASK, -torch.inf)),
        "no row with finite logits of both seen and absent classes, so they prove nothing",
    ),
}


@pytest.mark.parametrize("size", [1.7, 1e-9])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_fold_that_does_not_calibrate_is_refused_and_leaves_no_trace(kind, size):
    make, message = REFUSED[kind]
    model, calibrator = make(), finecal.AdditiveBias(MASK, size)
    model.eval().get_submodule("").training = True  # some parts in eval mode, some not
    modes = {name: module.training for name, module in model.named_modules()}
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    if not (kind == "masked" and size < 1):  # what is tried in its place differs within the groups too
        with pytest.raises(ValueError, match=f"(?s){message}.*CalibratedModel\\(model, calibrator\\)"):
            finecal.fold_into_head(model, calibrator, inputs=X)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not is_folded(model)
    model.eval()
    calibrated = finecal.CalibratedModel(model, calibrator)
    if kind != "two of three":
        assert torch.equal(calibrated(X), calibrator(model(X)))


PROVEN = {
    "plain": lambda: Followed(lambda head, x: head(x)),
    "log-softmax": lambda: Followed(lambda head, x: head(x).log_softmax(1)),
    "one class masked": lambda: Followed(lambda head, x: head(x).masked_fill(torch.arange(C) == 1, -torch.inf)),
    "mixed precision": lambda: Followed(mixed_precision),
    "distilled": Distilled,
    "large logits": lambda: Followed(lambda head, x: head(1e4 * x)),
}


@pytest.mark.parametrize("kind", PROVEN)
def test_a_proven_fold_calibrates(kind, calibrator, device):
    model, x = PROVEN[kind]().eval().requires_grad_(False), X.to(device)
    expected = calibrator(model(X))
    assert finecal.fold_into_head(model.to(device), copy.deepcopy(calibrator).to(device), inputs=X) is model
    actual, finite = model(x).cpu(), expected.isfinite().all(0)
    difference = (actual - expected)[:, finite]
    difference = difference - difference.mean(1, keepdim=True)
    tolerance = 2e-2 if kind == "mixed precision" else 1e-6 * float(expected[:, finite].abs().max())
    assert float(difference.abs().max()) <= tolerance


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_every_dtype_and_calibrator_can_be_proven(kind, dtype):
    calibrator, _ = CALIBRATORS[kind]
    model, twin = Classifier().to(dtype), Classifier().to(dtype)
    twin.load_state_dict(model.state_dict())
    finecal.fold_into_head(model, calibrator, inputs=X.to(dtype))
    assert torch.equal(model.classifier.bias, finecal.fold_into_head(twin, calibrator).classifier.bias)
    nothing = finecal.ClassBias(torch.zeros(C))
    finecal.fold_into_head(Classifier().to(dtype), nothing, inputs=X.to(dtype))
    with pytest.raises(ValueError, match="does not run"):
        finecal.fold_into_head(Leftover(Cosine()).to(dtype), nothing, inputs=X.to(dtype))


def test_inputs_are_those_of_the_model(calibrator):
    class Pair(Classifier):
        def forward(self, x, *, scale):
            return {"loss": None, "logits": super().forward(x * scale)}

    class Twice(Classifier):
        def forward(self, x, y):
            return super().forward(x + y)

    finecal.fold_into_head(Pair(), calibrator, inputs={"x": X, "scale": 2.0})
    finecal.fold_into_head(Twice(), calibrator, inputs=(X, X))
    finecal.fold_into_head(nn.Linear(8, C), calibrator, inputs=X)
    with pytest.raises(TypeError, match="NumPy array in place of tensors, which Classifier does not take"):
        finecal.fold_into_head(Classifier(), calibrator, inputs=X.numpy())
    model = Classifier()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="with which the model fails .RuntimeError"):
        finecal.fold_into_head(model, calibrator, inputs=X[:, :3])
    assert torch.equal(model.classifier.bias, state["classifier.bias"])
    assert model.training


def test_an_error_of_the_second_run_leaves_the_bias_as_it_was(calibrator):
    class Fragile(Classifier):
        def forward(self, x):
            if not torch.equal(self.classifier.bias, self.expected):
                raise RuntimeError("changed")
            return super().forward(x)

    model = Fragile()
    model.expected = model.classifier.bias.detach().clone()
    with pytest.raises(ValueError, match="RuntimeError: changed"):
        finecal.fold_into_head(model, calibrator, inputs=X)
    model(X)
    assert not is_folded(model)


OTHERS = {
    "a parameter of its own": lambda: Leftover(Cosine()),
    "of its own, transposed": lambda: Leftover(Cosine(transposed=True)),
    "a convolution": lambda: Leftover(nn.Conv2d(8, C, 1)),
    "an embedding": lambda: Leftover(nn.Embedding(C, 8)),
    "in a Sequential": lambda: nn.Sequential(nn.Linear(8, 8), Leftover(Cosine())),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_without_inputs_a_second_layer_with_a_row_per_class_is_refused(kind, calibrator):
    model = OTHERS[kind]()
    with pytest.raises(
        ValueError, match=r"the head .*fc has a row of weights for each of 6 classes, and so has .*last"
    ):
        finecal.fold_into_head(model, calibrator)
    assert not is_folded(model)
    linear = next(module for name, module in model.named_modules() if name.endswith("fc"))
    finecal.fold_into_head(linear, calibrator)  # the user knows


ALONE = {
    "of the same size before, in a Sequential": lambda: nn.Sequential(nn.Linear(8, C), nn.ReLU(), nn.Linear(C, C)),
    "leftover before, in a Sequential": lambda: nn.Sequential(Leftover(nn.Linear(8, 8)), nn.Linear(8, C)),
    "parallel": lambda: nn.DataParallel(nn.Sequential(nn.Linear(C, C), nn.Linear(C, C))),
    "other convolutions": lambda: nn.ModuleDict({"stem": nn.Conv2d(3, C, 3), "fc": nn.Linear(8, C)}),
    "distilled": Distilled,
}


@pytest.mark.parametrize("kind", ALONE)
def test_layers_that_cannot_give_the_logits_do_not_count(kind, calibrator):
    finecal.fold_into_head(ALONE[kind](), calibrator)


def test_the_record_has_the_estimate():
    estimate = finecal.GammaEstimate(1.7, "by hand", "data", 3, warnings=("perhaps",))
    model = finecal.fold_into_head(Classifier(Config()), finecal.AdditiveBias(MASK, estimate))
    record = json.loads(json.dumps(model.config.finecal_folded))["estimate"]
    assert (record["gamma"], record["method"], record["warnings"]) == (1.7, "by hand", ["perhaps"])
    assert model.classifier.finecal_folded == model.config.finecal_folded
    finecal.unfold_from_head(model, finecal.AdditiveBias(MASK, 1.7))
