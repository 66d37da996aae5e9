"""Prototypes as a module: what it adds, what it takes, and what it says of itself."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import finecal
import finecal.streaming
from naive_prototypes import clusters, with_features

MASK = torch.tensor([True, True, False])
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, -2.0], [0.5, 0.25]])
CENTER = torch.tensor([1.0, -1.0])
LOGITS = torch.tensor([[4.0, 1.0, 3.0], [0.0, -math.inf, 2.0]])
FEATURES = torch.tensor([[3.0, 1.0], [1.0, -1.0]])


@pytest.fixture
def prototypes():
    return finecal.calibrators.Prototypes(MASK, 1.5, WEIGHT, CENTER)


@pytest.fixture(scope="module")
def fitted():
    logits, features, _, mask = clusters()
    estimate = finecal.GammaEstimate(4.0, "by hand", "data", 3)
    return finecal.calibrators.fit_prototypes(with_features(logits, features), mask, estimate)


def test_by_hand(prototypes):
    """Features (3, 1) are (2, 2) off the center: the classes gain 2, -4 and 1.5, the absent one 1.5 more."""
    assert prototypes(LOGITS, FEATURES).tolist() == [[6.0, -3.0, 6.0], [0.0, -math.inf, 3.5]]


def test_dtypes_and_devices(dtype, device, prototypes):
    logits, features = torch.randn(50, 3).to(device, dtype), torch.randn(50, 2).to(device, dtype)
    out = prototypes.to(device, torch.float16)(logits, features)
    wide = logits.double() + 1.5 * ~MASK.to(device)
    wide += (features.double() - CENTER.to(device)) @ WEIGHT.to(device).double().T
    assert out.dtype == dtype
    assert out.device.type == device.type
    torch.testing.assert_close(out.double(), wide, rtol=torch.finfo(dtype).eps, atol=1e-6)
    mixed = prototypes(logits, features.double())
    assert mixed.dtype == dtype


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 4), (2, 0, 3)])
def test_any_batch(shape, prototypes):
    logits, features = torch.randn(*shape, 3), torch.randn(*shape, 2)
    out = prototypes(logits, features)
    assert out.shape == logits.shape
    torch.testing.assert_close(out.reshape(-1, 3), prototypes(logits.reshape(-1, 3), features.reshape(-1, 2)))


def test_without_a_weight_it_is_gamma_alone():
    alone = finecal.calibrators.Prototypes(MASK, 1.7, torch.zeros(3, 2), CENTER)
    logits = torch.randn(20, 3)
    assert torch.equal(alone(logits, torch.randn(20, 2)), finecal.AdditiveBias(MASK, 1.7)(logits))


def test_nan_stays_where_it_is(prototypes):
    logits = LOGITS.clone()
    logits[0, 1] = math.nan
    out = prototypes(logits, FEATURES)
    assert out[0].isnan().tolist() == [False, True, False]
    assert torch.equal(out[1], prototypes(LOGITS, FEATURES)[1])


def test_gradients_flow_to_both(prototypes):
    pair = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(prototypes, (pair[0], pair[1].requires_grad_()))
    assert not list(prototypes.parameters())


def test_casts_never_round():
    third = finecal.calibrators.Prototypes(MASK, 1 / 3, WEIGHT / 3, CENTER / 3)
    expected = copy.deepcopy(third.state_dict())
    for cast in ("half", "bfloat16", "double", "float"):
        state = getattr(third, cast)().state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())
        assert {value.dtype for value in state.values()} == {torch.bool, torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_and_exports(dtype, prototypes):
    pair = LOGITS.repeat(3, 1).to(dtype), FEATURES.repeat(3, 1).to(dtype)
    expected = prototypes(*pair)
    assert torch.equal(torch.compile(prototypes, fullgraph=True, backend="aot_eager")(*pair), expected)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(prototypes, pair, dynamic_shapes=({0: batch}, {0: batch})).module()
    assert torch.equal(exported(*pair), expected)
    assert torch.equal(exported(pair[0][:2], pair[1][:2]), expected[:2])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traces(prototypes):
    traced = torch.jit.trace(prototypes, (torch.zeros(4, 3), torch.zeros(4, 2)))
    assert torch.equal(traced(LOGITS, FEATURES), prototypes(LOGITS, FEATURES))


def test_autocast_does_not_round(device, prototypes):
    prototypes = prototypes.to(device)
    logits, features = torch.randn(20, 3, device=device), torch.randn(20, 2, device=device)
    expected = prototypes(logits, features)
    compiled = torch.compile(prototypes, fullgraph=True, backend="aot_eager")
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(prototypes(logits, features), expected)
        assert torch.equal(compiled(logits, features), expected)


def test_shapes_alone(prototypes):
    out = prototypes.to("meta")(LOGITS.to("meta"), FEATURES.to("meta"))
    assert out.is_meta
    assert out.shape == LOGITS.shape
    assert repr(prototypes) == "Prototypes(prototypes on the meta device, classes=3)"


# --- what it says of itself -------------------------------------------------------------------------------------------


def test_repr(prototypes, fitted):
    assert repr(prototypes) == "Prototypes(gamma=1.5, features=2, seen=2, absent=1)"
    assert repr(fitted) == "Prototypes(gamma=4, features=8, method='fit_prototypes', seen=3, absent=3)"


def test_accounts_stay_with_it_until_other_values_come(fitted, prototypes):
    assert (prototypes.report, prototypes.estimate, prototypes.method) == (None, None, None)
    assert set(fitted.state_dict()) == {"seen_mask", "gamma", "weight", "center"}
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted).half()):
        assert (twin.report, twin.estimate, twin.method) == (fitted.report, fitted.estimate, "fit_prototypes")
        twin.load_state_dict(fitted.state_dict())
        assert twin.report == fitted.report
        state = {**fitted.state_dict(), "weight": fitted.weight * 2}
        twin.load_state_dict(state)
        assert (twin.report, twin.estimate, twin.method) == (None, None, None)
        assert torch.equal(twin.weight, fitted.weight * 2)


def test_report(fitted):
    report = fitted.report
    assert report.n == 240
    assert sum(report.class_counts) == pytest.approx(240, rel=1e-5)
    assert len(report.class_counts) == 6
    assert 0 < report.trust < 1
    assert (report.acc_seen_within, report.acc_seen_within_before) == (None, None)
    assert "held-out" not in str(report)
    assert report._repr_html_()


# --- what is refused --------------------------------------------------------------------------------------------------

ARGUMENTS = {"seen_mask": MASK, "gamma": 1.5, "weight": WEIGHT, "center": CENTER}
REFUSED = {
    "indices": ({"seen_mask": [0, 1]}, TypeError, "seen_mask has dtype int64"),
    "all seen": ({"seen_mask": [True] * 3}, ValueError, "seen_mask has no absent class"),
    "gamma": ({"gamma": "1"}, TypeError, "gamma is a str"),
    "NaN gamma": ({"gamma": math.nan}, ValueError, "gamma is nan; it must be finite"),
    "large gamma": ({"gamma": 1e39}, ValueError, r"gamma is 1e\+39, which float32 cannot hold"),
    "integers": ({"weight": WEIGHT.long()}, TypeError, "weight has dtype int64; pass floating-point numbers"),
    "integer center": ({"center": [1, 2]}, TypeError, "center has dtype int64; pass floating-point numbers"),
    "NaN": ({"weight": WEIGHT * math.nan}, ValueError, "weight has values that are not finite in float32"),
    "overflow": ({"center": CENTER.double() * 1e39}, ValueError, "center has values that are not finite in float32"),
    "transposed": ({"weight": WEIGHT.T}, ValueError, r"weight has shape \(2, 3\) and center \(2,\); expected \(3, D\)"),
    "center": ({"center": CENTER[:1]}, ValueError, r"weight has shape \(3, 2\) and center \(1,\); expected \(3, D\)"),
    "vector": ({"weight": WEIGHT[:, 0]}, ValueError, r"weight has shape \(3,\) and center \(2,\)"),
    "half on meta": ({"center": CENTER.to("meta")}, ValueError, "center is on the meta device and has no values, but"),
    "classes": ({"seen_mask": [True, False]}, ValueError, r"weight has shape \(3, 2\) .* expected \(2, D\)"),
}


@pytest.mark.parametrize(("given", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_parts(given, error, message):
    with pytest.raises(error, match=f"^{message}"):
        finecal.calibrators.Prototypes(**ARGUMENTS | given)


CALLS = {
    "integers": (
        (LOGITS, FEATURES.long()),
        TypeError,
        "features have dtype int64; pass the floating-point tensor that",
    ),
    "complex": ((LOGITS, FEATURES + 0j), TypeError, "features have dtype complex64"),
    "array": ((LOGITS, FEATURES.numpy()), TypeError, "features are a ndarray; pass the floating-point tensor that the"),
    "float8": (
        (LOGITS, FEATURES.to(torch.float8_e4m3fn)),
        TypeError,
        "features have dtype float8_e4m3fn; pass the flo",
    ),
    "none": ((LOGITS, None), TypeError, "features are a NoneType"),
    "logits": ((LOGITS.long(), FEATURES), TypeError, "logits has dtype int64"),
    "classes": ((LOGITS[:, :2], FEATURES), ValueError, "seen_mask has 3 entries for logits of 2 classes"),
    "width": (
        (LOGITS, LOGITS),
        ValueError,
        r"features have shape \(2, 3\) for logits of shape \(2, 3\); expected \(2, ",
    ),
    "rows": ((LOGITS, FEATURES[:1]), ValueError, r"features have shape \(1, 2\) for logits of shape \(2, 3\); exp"),
    "tokens": ((LOGITS, FEATURES[None]), ValueError, r"features have shape \(1, 2, 2\) for logits of shape \(2, 3\)"),
    "device": ((LOGITS, FEATURES.to("meta")), ValueError, "the calibrator is on cpu, features on meta; move it"),
}


@pytest.mark.parametrize(("pair", "error", "message"), CALLS.values(), ids=CALLS)
def test_wrong_calls(pair, error, message, prototypes):
    with pytest.raises(error, match=f"^{message}"):
        prototypes(*pair)


def test_arrays_and_lists_make_the_same(prototypes):
    for convert in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.double):
        other = finecal.calibrators.Prototypes(convert(MASK) if convert is not torch.Tensor.double else MASK, 1.5, *(
            convert(part) for part in (WEIGHT, CENTER)
        ))  # fmt: skip
        assert torch.equal(other(LOGITS, FEATURES), prototypes(LOGITS, FEATURES))
    given = WEIGHT.clone().requires_grad_()
    own = finecal.calibrators.Prototypes(MASK, np.float32(1.5), given, CENTER)
    with torch.no_grad():
        given.zero_()
    assert torch.equal(own.weight, WEIGHT)
    assert not own.weight.requires_grad


def test_wrong_shapes_are_not_loaded(prototypes):
    before = copy.deepcopy(prototypes.state_dict())
    for name, value in {"weight": WEIGHT[:, :1], "center": torch.ones(3), "seen_mask": MASK[:2]}.items():
        with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
            prototypes.load_state_dict({**before, name: value})
    with pytest.raises(RuntimeError, match="Missing key"):
        prototypes.load_state_dict({"weight": WEIGHT})
    with pytest.raises(RuntimeError, match="weight has values that are not finite"):
        prototypes.load_state_dict({**before, "weight": WEIGHT * math.nan})
    assert torch.equal(prototypes(LOGITS, FEATURES), finecal.calibrators.Prototypes(**ARGUMENTS)(LOGITS, FEATURES))


def test_from_sums_is_checked():
    with pytest.raises(TypeError, match="^sums is a GapSums; pass a finecal.streaming.PrototypeSums$"):
        finecal.calibrators.Prototypes.from_sums(finecal.streaming.GapSums(MASK))


def test_in_a_sequence_it_lacks_the_features(prototypes):
    with pytest.raises(TypeError, match="features"):
        nn.Sequential(prototypes)(LOGITS)
