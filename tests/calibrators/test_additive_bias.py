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


def assigned(calibrator):
    calibrator.seen_mask = OTHER_MASK.clone()


def set_item(calibrator):
    calibrator.seen_mask[1], calibrator.seen_mask[2], calibrator.seen_mask[4] = True, False, True


def reloaded(calibrator):
    calibrator.load_state_dict({**calibrator.state_dict(), "seen_mask": OTHER_MASK.clone()}, assign=True)


CHANGES = {
    "item": set_item,
    "copy": lambda calibrator: calibrator.seen_mask.copy_(OTHER_MASK),
    "assignment": assigned,
    "buffer": lambda calibrator: calibrator.register_buffer("seen_mask", OTHER_MASK.clone()),
    "state": reloaded,
}
WITH_A_MASK = ("AdditiveBias", "GroupTemperature")


@pytest.mark.parametrize("duplicate", [lambda c: c, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), copy.copy])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", WITH_A_MASK)
def test_forward_follows_the_mask(name, change, duplicate):
    calibrator = make(name)
    calibrator(LOGITS)
    twin = duplicate(calibrator)
    CHANGES[change](twin)
    expected = getattr(finecal, name)(OTHER_MASK, *ARGUMENTS[name][1:])
    assert torch.equal(twin.state_dict()["seen_mask"], OTHER_MASK)
    assert repr(twin) == repr(expected)
    for _ in range(2):
        assert torch.equal(twin(LOGITS), expected(LOGITS))
        assert torch.equal(twin(LOGITS.half()), expected(LOGITS.half()))
    if duplicate(calibrator) is not calibrator and duplicate is not copy.copy:
        assert torch.equal(calibrator(LOGITS), make(name)(LOGITS))


@pytest.mark.parametrize("name", WITH_A_MASK)
def test_a_copy_counts_its_changes_anew(name):
    calibrator = make(name)
    for _ in range(3):
        calibrator.seen_mask.copy_(MASK)
    calibrator(LOGITS)
    twin = copy.deepcopy(calibrator)
    twin.seen_mask[0] = False
    twin.seen_mask[1] = False
    twin.seen_mask[3] = True
    expected = getattr(finecal, name)(twin.seen_mask, *ARGUMENTS[name][1:])
    assert torch.equal(twin(LOGITS), expected(LOGITS))


@pytest.mark.parametrize("name", WITH_A_MASK)
def test_forward_follows_a_mask_of_inference_mode(name):
    with torch.inference_mode():
        calibrator = make(name)
        calibrator(LOGITS)
        calibrator.seen_mask.copy_(OTHER_MASK)
        expected = getattr(finecal, name)(OTHER_MASK, *ARGUMENTS[name][1:])
        assert torch.equal(calibrator(LOGITS), expected(LOGITS))
    assert torch.equal(calibrator(LOGITS), expected(LOGITS))


@pytest.mark.parametrize("name", WITH_A_MASK)
def test_compiled_and_exported_modules_follow_the_mask(name):
    calibrator, expected = make(name), getattr(finecal, name)(OTHER_MASK, *ARGUMENTS[name][1:])
    compiled = torch.compile(calibrator, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(calibrator, (LOGITS,)).module()
    for module in (compiled, exported, calibrator):
        assert torch.equal(module(LOGITS), make(name)(LOGITS))
    calibrator.seen_mask.copy_(OTHER_MASK)
    exported.load_state_dict(calibrator.state_dict())
    for module in (compiled, exported, calibrator):
        assert torch.equal(module(LOGITS), expected(LOGITS))


@pytest.mark.parametrize("name", WITH_A_MASK)
def test_a_mask_of_a_functional_call_is_of_that_call(name):
    calibrator = make(name)
    before = calibrator(LOGITS)
    called = torch.func.functional_call(calibrator, {"seen_mask": OTHER_MASK}, (LOGITS,))
    assert torch.equal(called, getattr(finecal, name)(OTHER_MASK, *ARGUMENTS[name][1:])(LOGITS))
    assert torch.equal(calibrator(LOGITS), before)


def test_buffers_are_the_state(any_calibrator):
    any_calibrator(LOGITS)
    assert dict(any_calibrator.named_buffers()).keys() == any_calibrator.state_dict().keys()


def test_a_pickle_of_earlier_code_with_a_second_buffer_runs(calibrator):
    state = calibrator.__getstate__()
    state["_buffers"] = {**state["_buffers"], "_absent": torch.zeros(5)}
    state = {key: value for key, value in state.items() if key not in ("_absent", "_made_of", "_made_at")}
    again = finecal.AdditiveBias.__new__(finecal.AdditiveBias)
    again.__setstate__(state)
    assert torch.equal(again(LOGITS), calibrator(LOGITS))


# --- made on the meta device ------------------------------------------------------------------------------------------


def on_meta(name, arguments=ARGUMENTS):
    with torch.device("meta"):
        return getattr(finecal, name)(*(torch.as_tensor(a).to("meta") for a in arguments[name]))


def test_calibrators_can_be_made_on_the_meta_device_and_loaded(any_calibrator):
    name = type(any_calibrator).__name__
    empty = on_meta(name, OTHER_ARGUMENTS)
    assert all(buffer.is_meta for buffer in empty.buffers())
    assert describe_kinds(empty) == describe_kinds(any_calibrator)
    assert "on the meta device" in repr(empty)
    empty.method = "another fit"
    empty.load_state_dict(any_calibrator.state_dict(), assign=True)
    assert repr(empty) == repr(any_calibrator)
    assert torch.equal(empty(LOGITS), any_calibrator(LOGITS))
    other = on_meta(name).to_empty(device="cpu")
    other.load_state_dict(any_calibrator.state_dict())
    assert torch.equal(other(LOGITS), any_calibrator(LOGITS))


def describe_kinds(module):
    return {key: (value.dtype, value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_numbers_and_lists_can_be_given_on_the_meta_device(name):
    arguments = [a.tolist() if isinstance(a, torch.Tensor) else a for a in OTHER_ARGUMENTS[name]]
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 5), getattr(finecal, name)(*arguments))
    full = nn.Sequential(nn.Linear(3, 5), make(name))
    model.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(2, 3)
    assert torch.equal(model(x), full(x))


def test_gamma_may_be_an_estimate_on_the_meta_device(estimate):
    with torch.device("meta"):
        calibrator = finecal.AdditiveBias(torch.ones(5, dtype=torch.bool), estimate)
        assert finecal.AdditiveBias(MASK, torch.tensor(1.0)).gamma.is_meta
    calibrator.load_state_dict(finecal.AdditiveBias(MASK, 1.7).state_dict(), assign=True)
    assert repr(calibrator) == "AdditiveBias(gamma=1.7, seen=2, absent=3)"  # the estimate was of other values


WRONG_STATES = {
    "all seen": ("AdditiveBias", {"seen_mask": torch.ones(5, dtype=torch.bool)}, "seen_mask has no absent class"),
    "gamma": ("AdditiveBias", {"gamma": torch.tensor(float("nan"))}, "gamma is nan; it must be finite"),
    "none seen": ("GroupTemperature", {"seen_mask": torch.zeros(5, dtype=torch.bool)}, "seen_mask has no seen class"),
    "cold": ("GroupTemperature", {"absent_temperature": torch.tensor(-1.0)}, "absent_temperature is -1.0; it must be"),
    "zero": ("Temperature", {"temperature": torch.tensor(0.0)}, "temperature is 0.0; it must be positive"),
    "bias": ("ClassBias", {"bias": torch.full((5,), float("inf"))}, "bias is inf for class 0"),
    "scale": ("NormalizedLogits", {"scale": -VALUES}, "scale is -1 for class 0"),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", WRONG_STATES)
def test_values_are_checked_when_they_are_loaded(kind, assign):
    name, wrong, message = WRONG_STATES[kind]
    calibrator = make(name)
    before = describe(calibrator.state_dict())
    state = {**calibrator.state_dict(), **wrong}
    with pytest.raises(RuntimeError, match=f"{name} cannot hold what was given: {message}"):
        calibrator.load_state_dict(state, assign=assign)
    assert describe(calibrator.state_dict()) == before
    model = nn.Sequential(nn.Identity(), on_meta(name))
    with pytest.raises(RuntimeError, match=rf"1\.{name} cannot hold what was given: {message}"):
        model.load_state_dict({f"1.{key}": value for key, value in state.items()}, assign=True)


def test_an_assigned_state_of_another_dtype_takes_the_calibrators(any_calibrator):
    state = {key: value.double() for key, value in any_calibrator.state_dict().items()}
    again = on_meta(type(any_calibrator).__name__)
    again.load_state_dict(state, assign=True)
    assert describe(again.state_dict()) == describe(any_calibrator.state_dict())
    assert torch.equal(again(LOGITS), any_calibrator(LOGITS))


def test_missing_and_misshapen_entries_are_named_by_torch(any_calibrator):
    key = next(iter(any_calibrator.state_dict()))
    with pytest.raises(RuntimeError, match="Missing key"):
        any_calibrator.load_state_dict({})
    with pytest.raises(RuntimeError, match=f"size mismatch for {key}"):
        any_calibrator.load_state_dict({**any_calibrator.state_dict(), key: torch.ones(7)})
