import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import finecal
from finecal._models.fold import is_folded
from foldable_models import BIAS, MASK, C, Classifier, Config, Distilled

CALIBRATORS = {
    "gamma": (finecal.AdditiveBias(MASK, 1.7), 1.7 * ~MASK),
    "per class": (finecal.calibrators.ClassBias(BIAS), BIAS),
    "both": (
        nn.Sequential(finecal.AdditiveBias(MASK, -0.5), nn.Sequential(finecal.calibrators.ClassBias(BIAS))),
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
            finecal.fold_into_head(twin, finecal.calibrators.ClassBias(BIAS))
    assert torch.equal(model.classifier.bias, folded)
    assert not is_folded(finecal.unfold_from_head(model, calibrator))
    finecal.fold_into_head(model, calibrator)


def test_takes_out_only_what_was_folded(calibrator):
    model = finecal.fold_into_head(Classifier(), calibrator)
    for other in (
        finecal.AdditiveBias(MASK, 1.6),
        finecal.AdditiveBias(~MASK, 1.7),
        finecal.calibrators.ClassBias(BIAS),
    ):
        with pytest.raises(
            ValueError, match=r"AdditiveBias\(gamma=1.7.* is folded into the head classifier; pass that"
        ):
            finecal.unfold_from_head(model, other)
    same = finecal.calibrators.ClassBias(calibrator(torch.zeros(6)))  # what it adds counts, not its kind
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


# --- what is checked --------------------------------------------------------------------------------------------------


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
        "no row with finite logits of both seen and absent classes, so they show nothing",
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
    if kind == "softmax":
        with pytest.warns(finecal.FinecalWarning, match="logits look like probabilities"):
            assert torch.equal(calibrated(X), calibrator(model(X)))
    elif kind != "two of three":
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
def test_a_checked_fold_calibrates(kind, calibrator, device):
    model, x = PROVEN[kind]().eval().requires_grad_(False), X.to(device)
    expected = calibrator(model(X))
    assert finecal.fold_into_head(model.to(device), copy.deepcopy(calibrator).to(device), inputs=X) is model
    actual, finite = model(x).cpu(), expected.isfinite().all(0)
    difference = (actual - expected)[:, finite]
    difference = difference - difference.mean(1, keepdim=True)
    tolerance = 2e-2 if kind == "mixed precision" else 1e-6 * float(expected[:, finite].abs().max())
    assert float(difference.abs().max()) <= tolerance


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_every_dtype_and_calibrator_can_be_checked(kind, dtype):
    calibrator, _ = CALIBRATORS[kind]
    model, twin = Classifier().to(dtype), Classifier().to(dtype)
    twin.load_state_dict(model.state_dict())
    finecal.fold_into_head(model, calibrator, inputs=X.to(dtype))
    assert torch.equal(model.classifier.bias, finecal.fold_into_head(twin, calibrator).classifier.bias)
    nothing = finecal.calibrators.ClassBias(torch.zeros(C))
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


# --- prototypes: weight and bias --------------------------------------------------------------------------------------

WEIGHT = torch.randn(C, 8, generator=torch.Generator().manual_seed(5)) / 4
CENTER = torch.randn(8, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def prototypes():
    return finecal.calibrators.Prototypes(MASK, 1.7, WEIGHT, CENTER)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model, state):
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not is_folded(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_prototypes_by_hand():
    """W + A, and b + gamma u - A f for the center f: here A f = (1, 4)."""
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        linear.bias.copy_(torch.tensor([-0.5, 0.5]))
    calibrator = finecal.calibrators.Prototypes([True, False], 2.0, [[1.0, 0.0], [0.0, 2.0]], [1.0, 2.0])
    finecal.fold_into_head(linear, calibrator)
    assert linear.weight.tolist() == [[2.0, 2.0], [3.0, 6.0]]
    assert linear.bias.tolist() == [-1.5, -1.5]
    assert "Prototypes(gamma=2, features=2" in linear.finecal_folded["calibrator"]
    finecal.unfold_from_head(linear, calibrator)
    assert linear.weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert linear.bias.tolist() == [-0.5, 0.5]
    assert not is_folded(linear)


@pytest.mark.parametrize("inputs", [None, X])
@pytest.mark.parametrize("build", [Classifier, lambda: nn.Linear(8, C), lambda: nn.Sequential(nn.Linear(8, C))])
def test_folded_prototypes_give_the_logits_of_the_wrapper(build, inputs, device, dtype, prototypes):
    model, x = build().to(device, dtype).eval(), X.to(device, dtype)
    expected = finecal.CalibratedModel(copy.deepcopy(model), copy.deepcopy(prototypes).to(device))(x)
    names = set(model.state_dict())
    folded = finecal.fold_into_head(
        model, copy.deepcopy(prototypes).to(device), inputs=None if inputs is None else x.cpu()
    )
    assert folded is model
    assert set(model.state_dict()) == names
    step = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # of the prototypes
    torch.testing.assert_close(model(x), expected, rtol=8 * step, atol=16 * step)
    assert not any(module._forward_pre_hooks for module in model.modules())
    linear = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))
    assert linear.weight.dtype == dtype
    assert linear.weight.requires_grad


def test_prototypes_round_weight_and_bias_once(dtype, prototypes):
    linear = nn.Linear(8, C).to(dtype)
    weight, bias = (parameter.detach().clone().double() for parameter in (linear.weight, linear.bias))
    finecal.fold_into_head(linear, prototypes)
    step = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) / 2
    torch.testing.assert_close(linear.weight.double(), weight + WEIGHT.double(), rtol=1.01 * step, atol=0)
    added = 1.7 * ~MASK - WEIGHT.double() @ CENTER.double()
    torch.testing.assert_close(linear.bias.double(), bias + added, rtol=step, atol=1e-6)
    finecal.unfold_from_head(linear, prototypes)
    step = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(linear.weight.double(), weight, rtol=0, atol=step)
    torch.testing.assert_close(linear.bias.double(), bias, rtol=0, atol=step)


def test_prototypes_are_folded_once_and_only_they_are_taken_out(prototypes, calibrator):
    model = finecal.fold_into_head(Classifier(Config()), prototypes)
    state = state_of(model)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for other in (prototypes, calibrator):
            with pytest.raises(ValueError, match=r"Prototypes\(gamma=1.7, features=8.* is folded into .* already"):
                finecal.fold_into_head(twin, other)
    others = (
        calibrator,
        finecal.calibrators.Prototypes(MASK, 1.6, WEIGHT, CENTER),
        finecal.calibrators.Prototypes(MASK, 1.7, 0 * WEIGHT, CENTER),
        finecal.calibrators.Prototypes(MASK, 1.7, WEIGHT, CENTER + 1),
        finecal.calibrators.ClassBias(prototypes(torch.zeros(C), torch.zeros(8))),  # the same bias, and no weight
    )
    for other in others:
        with pytest.raises(ValueError, match="is folded into the head classifier; pass that calibrator"):
            finecal.unfold_from_head(model, other)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    json.dumps(model.config.finecal_folded)
    finecal.unfold_from_head(model, copy.deepcopy(prototypes))
    assert not is_folded(model)


def test_prototypes_that_were_left_alone_are_gamma(calibrator):
    alone = finecal.calibrators.Prototypes(MASK, 1.7, 0 * WEIGHT, CENTER)
    for inputs in (None, X):
        model, twin = Classifier(), Classifier()
        twin.load_state_dict(model.state_dict())
        finecal.fold_into_head(model, alone, inputs=inputs)
        finecal.fold_into_head(twin, calibrator, inputs=inputs)
        assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


WEIGHT_REFUSED = {
    "a cosine head with a bias": (
        lambda: Followed(lambda head, x: F.linear(x, 4 * F.normalize(head.weight), head.bias) + 0 * head(x)),
        X,
        "the weight of the head does not act on the logits as the calibrator does",
    ),
    "a head that is not called": (
        lambda: Followed(lambda head, x: F.linear(x, head.weight, head.bias)),
        X,
        "the final linear layer ran 0 times for one batch",
    ),
    "another layer's features": (
        lambda: Followed(lambda head, x: head(x) + F.linear(x, head.weight)),
        X,
        "the logits gain 2 times what is added to the weight",
    ),
    "the weight is not read": (
        lambda: Followed(lambda head, x: F.linear(x, torch.eye(C, 8)) + 0 * head(x) + head.bias),
        X,
        "the logits stay as they are, so the layer does not run, or its weight is not read",
    ),
    "scaled": (lambda: Followed(lambda head, x: 20 * head(x)), X, "gain 20 times what is added to the bias"),
    "runs twice": (
        lambda: Followed(lambda head, x: (head(x) + head(2 * x)) / 2),
        X,
        "the final linear layer ran 2 times for one batch",
    ),
    "of tokens": (
        lambda: Followed(lambda head, x: head(x).mean(1)),
        X[:, None].repeat(1, 7, 1),
        r"takes \(5, 7, 8\) for logits of shape \(5, 6\), so there is no one row of features per sample",
    ),
    "no features": (lambda: Followed(lambda head, x: head(x)), 0 * X, "so they show nothing"),
}


@pytest.mark.parametrize("kind", WEIGHT_REFUSED)
def test_prototypes_that_a_head_does_not_take_leave_no_trace(kind, prototypes):
    make, inputs, message = WEIGHT_REFUSED[kind]
    model = make()
    state = state_of(model)
    with pytest.raises(ValueError, match=message):
        finecal.fold_into_head(model, prototypes, inputs=inputs)
    assert_untouched(model, state)
    assert model.training


@pytest.mark.parametrize("kind", sorted(PROVEN.keys() - {"distilled"}))
def test_checked_prototypes_calibrate(kind, prototypes):
    model = PROVEN[kind]().eval().requires_grad_(False)
    expected = finecal.CalibratedModel(copy.deepcopy(model), prototypes)(X)
    if kind == "large logits":
        features = 1e4 * X
        expected = prototypes(model(X), features)
    finecal.fold_into_head(model, prototypes, inputs=X)
    finite = expected.isfinite().all(0)
    difference = (model(X) - expected)[:, finite]
    difference = difference - difference.mean(1, keepdim=True)
    tolerance = 5e-2 if kind == "mixed precision" else 1e-5 * float(expected[:, finite].abs().max())
    assert float(difference.abs().max()) <= tolerance


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e3])
def test_prototypes_of_any_size_are_checked(size, prototypes):
    calibrator = finecal.calibrators.Prototypes(MASK, size, size * WEIGHT, CENTER)
    model = Classifier()
    finecal.fold_into_head(model, calibrator, inputs=X)
    assert is_folded(model)
    cosine = Followed(lambda head, x: F.linear(x, 4 * F.normalize(head.weight), head.bias) + 0 * head(x))
    with pytest.raises(ValueError, match="weight of the head does not act"):
        finecal.fold_into_head(cosine, calibrator, inputs=X)


@pytest.mark.parametrize("inputs", [None, X])
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_prototypes_that_overflow_leave_no_trace(where, inputs, prototypes):
    model = Classifier().half()
    size = {"weight": 1e6 * WEIGHT, "bias": WEIGHT}[where]
    center = {"weight": 0 * CENTER, "bias": 1e6 * CENTER}[where]
    state = state_of(model)
    calibrator = finecal.calibrators.Prototypes(MASK, 1.7, size, center)
    given = None if inputs is None else inputs.half()
    with pytest.raises(ValueError, match=f"the {where} of the head.* is not finite in float16 once folded; calibrate"):
        finecal.fold_into_head(model, calibrator, inputs=given)
    assert_untouched(model, state)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.classifier = nn.Embedding(C, 8), nn.Linear(8, C)
        self.embedding.weight = self.classifier.weight

    def forward(self, x):
        return self.classifier(x)


def without(name):
    model = Classifier()
    if name == "bias":
        model.classifier.bias = None
    else:
        nn.utils.parametrizations.weight_norm(model.classifier)
    return model


NOT_TAKEN = {
    "tied": (Tied, "the head classifier shares its weight with embedding; calibrate what comes out instead"),
    "no bias": (lambda: without("bias"), "the head classifier has no bias"),
    "computed": (lambda: without("weight"), "the head classifier computes its weight, or is quantised or offloaded"),
    "distilled": (Distilled, "the model averages the logits of head and head_dist|of classifier and head_dist"),
    "wide": (lambda: nn.Linear(9, C), "the head takes 9 features, the prototypes are of 8; if this is the wrong layer"),
    "classes": (lambda: Classifier(classes=5), "the head classifier has 5 outputs, the calibrator is for 6 classes"),
    "cosine beside it": (lambda: Leftover(Cosine()), "finecal cannot tell which gives the logits"),
}


@pytest.mark.parametrize("kind", NOT_TAKEN)
def test_heads_that_take_no_prototypes(kind, prototypes):
    make, message = NOT_TAKEN[kind]
    model = make()
    state = state_of(model)
    with pytest.raises(ValueError, match=message):
        finecal.fold_into_head(model, prototypes)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not is_folded(model)


def test_prototypes_beside_others_are_not_folded(prototypes, calibrator):
    for parts in (nn.Sequential(prototypes), nn.Sequential(calibrator, prototypes)):
        with pytest.raises(ValueError, match="calibrator holds Prototypes.*or Prototypes by themselves into a head"):
            finecal.fold_into_head(Classifier(), parts)
    with pytest.raises(ValueError, match="calibrator is on the meta device and has no values"):
        finecal.fold_into_head(Classifier(), prototypes.to("meta"))


def test_prototypes_follow_the_model_to_the_compiler(prototypes):
    model = Classifier().eval()
    expected = finecal.CalibratedModel(copy.deepcopy(model), prototypes)(X)
    finecal.fold_into_head(model, prototypes, inputs=X)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(X), expected)
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), expected)


def test_folded_prototypes_whose_record_was_lost_are_warned_of(prototypes):
    model = finecal.fold_into_head(Classifier(), prototypes)
    again = Classifier()
    again.load_state_dict(model.state_dict())
    with pytest.warns(finecal.FinecalWarning, match="looks as if the calibrator had been folded before"):
        finecal.fold_into_head(again, prototypes)
