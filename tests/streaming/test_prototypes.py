"""Sums for prototypes: any batches, merged in any order, give the whole."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal.streaming import PrototypeSums
from finecal.streaming import _prototypes as prototypes
from naive_prototypes import clusters, keys_of, naive, with_features
from profiles import examples
from streams import batches

GAMMA = 4.0


def sums(mask, width=8):
    return PrototypeSums(mask, GAMMA, width)


def assert_close(found, expected):
    """Sums of products in float32 depend on the batches by their rounding, and counts do not."""
    for name, value in expected._asdict().items():
        if name in ("samples", "changed"):
            assert getattr(found, name) == value
        else:
            torch.testing.assert_close(
                torch.as_tensor(getattr(found, name)), torch.as_tensor(value), rtol=1e-4, atol=1e-4, msg=name
            )


# --- the whole --------------------------------------------------------------------------------------------------------


@examples(30)
@given(seed=st.integers(0, 2**32 - 1))
def test_batches_merged_in_any_order_are_the_whole(seed):
    rng = np.random.default_rng(seed)
    logits, features, _, mask = clusters(seed % 1000, n=60)
    logits[3], logits[5, 1] = -math.inf, -math.inf
    whole = sums(mask).update(with_features(logits, features))
    parts = batches(rng, len(logits))
    one_by_one = sums(mask)
    for part in parts:
        assert one_by_one.update(with_features(logits[part], features[part])) is one_by_one
    states = [sums(mask).update(with_features(logits[part], features[part])) for part in parts]
    while len(states) > 1:
        i, j = rng.choice(len(states), 2, replace=False)
        assert states[i].merge(states[j]) is states[i]
        del states[j]
    for found in (one_by_one, states[0]):
        assert_close(found.compute(), whole.compute())
        assert torch.equal(found.state_dict()["kept_keys"], whole.state_dict()["kept_keys"])


@pytest.mark.parametrize("seed", range(3))
def test_equals_numpy(seed):
    logits, features, _, mask = clusters(seed)
    found = sums(mask).update(with_features(logits, features)).compute()
    expected = naive(logits, features, mask, GAMMA)
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.center, expected.center, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.class_counts, expected.counts, rtol=1e-5, atol=1e-4)
    assert found.changed == expected.changed
    for name in ("trust", "scale", "explained"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4), name
    assert found.class_counts.sum() == pytest.approx(len(logits), rel=1e-5)


def test_batches_are_the_fit():
    logits, features, _, mask = clusters()
    state = sums(mask)
    for rows in torch.arange(240).split(70):
        state = state.update(with_features(logits[rows], features[rows]))
    found, expected = (
        finecal.calibrators.Prototypes.from_sums(state),
        finecal.calibrators.fit_prototypes(with_features(logits, features), mask, GAMMA),
    )
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-5)
    assert found.method == "PrototypeSums"
    assert found.report.n == expected.report.n == 240


# --- which samples are in which half, and which are kept --------------------------------------------------------------


def test_keys_are_a_hash_of_the_features(device):
    features = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * 100
    keys = prototypes._keys(features.to(device)).cpu()
    assert keys.tolist() == keys_of(features).tolist()
    assert len(set(keys.tolist())) == 300
    assert int(keys.min()) >= 0
    assert int(keys.max()) < prototypes._NO_KEY
    assert 110 < int((keys % 2).sum()) < 190
    order = torch.randperm(300)
    assert torch.equal(prototypes._keys(features[order]), keys[order])
    assert not torch.equal(prototypes._keys(features.flip(1)), keys)  # nor is it a plain sum over them
    assert torch.equal(prototypes._keys(torch.full((2, 3), -0.0)), prototypes._keys(torch.zeros(2, 3)))
    assert torch.equal(prototypes._keys(features.T.contiguous().T), keys)


def test_of_many_samples_those_with_the_smallest_keys_are_kept():
    n = 3 * prototypes._KEPT
    logits, features, _, mask = clusters(n=n, width=2)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    expected = np.sort(keys_of(features))[: prototypes._KEPT]
    for rows in (torch.arange(n), order):
        for size in (n, 500):
            state = sums(mask, 2)
            for part in rows.split(size):
                state.update(with_features(logits[part], features[part]))
            kept = state.state_dict()
            assert kept["kept_keys"].tolist() == expected.tolist()
            found = torch.tensor(keys_of(kept["kept_features"]))
            assert torch.equal(found, kept["kept_keys"])
            place = {tuple(f): z for f, z in zip(features.tolist(), logits.tolist(), strict=True)}
            assert place[tuple(kept["kept_features"][7].tolist())] == kept["kept_logits"][7].tolist()
    assert state.compute().samples == n


def test_blocks_of_rows_are_one_batch(monkeypatch):
    logits, features, _, mask = clusters()
    whole = sums(mask).update(with_features(logits, features)).compute()
    monkeypatch.setattr(prototypes, "_BLOCK", 100)
    assert_close(sums(mask).update(with_features(logits, features)).compute(), whole)


# --- input ------------------------------------------------------------------------------------------------------------


def test_dtypes_devices_and_kinds_of_arrays(device, dtype):
    logits, features, _, mask = clusters(dtype=dtype)
    expected = sums(mask).update(with_features(logits.float(), features.float())).compute()
    crossed = sums(mask).update(with_features(logits.to(device), features.to(device)))
    there = sums(mask).to(device).update(with_features(logits.to(device), features.to(device)))
    assert crossed.device.type == "cpu"
    assert there.device.type == device.type
    assert {value.device.type for value in there.state_dict().values()} == {device.type}
    for state in (crossed, there):
        assert_close(type(expected)(*(v.cpu() if torch.is_tensor(v) else v for v in state.compute())), expected)
    if device.type == "cpu":
        assert torch.equal(crossed.compute().weight, expected.weight)
        if dtype != torch.bfloat16:
            arrays = sums(mask.numpy()).update(with_features(logits.numpy(), features.numpy()))
            assert torch.equal(arrays.compute().weight, expected.weight)
        wide = [logits.double().tolist(), features.double().tolist()]
        assert torch.equal(sums(mask.tolist()).update(with_features(*wide)).compute().weight, expected.weight)


def test_inputs_stay_and_no_gradient_flows():
    logits, features, _, mask = clusters()
    pair = logits.clone().requires_grad_(), features.clone().requires_grad_()
    state = sums(mask).update(with_features(*pair))
    assert torch.equal(pair[0], logits)
    assert torch.equal(pair[1], features)
    assert not any(value.requires_grad for value in state.state_dict().values())


def test_autocast_rounds_no_sums():
    logits, features, _, mask = clusters()
    expected = sums(mask).update(with_features(logits, features)).compute()
    with torch.autocast("cpu", torch.bfloat16):
        found = sums(mask).update(with_features(logits, features))
    assert torch.equal(found.compute().weight, expected.weight)


def test_empty_batches_and_masked_rows_do_not_count():
    logits, features, _, mask = clusters()
    expected = sums(mask).update(with_features(logits, features))
    state = sums(mask).update(with_features(logits[:0], features[:0])).update(with_features(logits, features))
    state.update(with_features(torch.full((5, 6), -math.inf), torch.randn(5, 8)))
    assert torch.equal(state.compute().weight, expected.compute().weight)
    assert state.compute().samples == 240


NOTHING = "no logits were given, or none but rows of -inf, so there is nothing to make prototypes of; pass unlabelled"


def test_without_samples(rng):
    mask = [True, False, False]
    for state in (sums(mask), sums(mask).update(with_features(np.full((4, 3), -math.inf), rng.normal(size=(4, 8))))):
        for use in (state.compute, lambda state=state: finecal.calibrators.Prototypes.from_sums(state)):
            with pytest.raises(ValueError, match=f"^{NOTHING}"):
                use()


F = np.random.default_rng(0).normal(size=(4, 8))
Z = F[:, :3]
WRONG = {
    "NaN": ((np.full((4, 3), math.nan), F), ValueError, "logits contain NaN"),
    "inf": ((np.full((4, 3), math.inf), F), ValueError, r"logits contain \+inf"),
    "probabilities": ((np.full((4, 3), 1 / 3), F), ValueError, "logits look like probabilities"),
    "integers": ((Z.astype(int), F), TypeError, "logits has dtype int64"),
    "classes": ((F, F), ValueError, "seen_mask has 3 entries for logits of 8 classes"),
    "huge": ((Z * 1e300, F), ValueError, "logits are too large for float32, in which they are summed up; divide"),
    "NaN features": ((Z, F * math.nan), ValueError, "features contain NaN or infinity"),
    "integer features": ((Z, F.astype(int)), TypeError, "features have dtype int64; pass floating-point features"),
    "rows": ((Z, F[:3]), ValueError, r"features have shape \(3, 8\); expected \(4, D\)"),
    "columns": ((Z, F[:, :5]), ValueError, "features have 5 columns, but num_features is 8"),
    "no columns": ((Z, F[:, :0]), ValueError, r"features have shape \(4, 0\)"),
    "huge features": ((Z, F * 1e300), ValueError, "features are too large for float32"),
    "device": ((torch.tensor(Z), torch.tensor(F, device="meta")), ValueError, "features is on the meta device"),
}


@pytest.mark.parametrize(("pair", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_batches_are_refused_and_leave_no_trace(pair, error, message):
    state = sums([True, False, False]).update(with_features(Z, F))
    before = {name: value.clone() for name, value in state.state_dict().items()}
    with pytest.raises(error, match=message):
        state.update(with_features(*pair))
    assert all(torch.equal(value, before[name]) for name, value in state.state_dict().items())


@pytest.mark.parametrize("size", [1e-42, 1e37])
def test_features_whose_weight_float32_cannot_hold(size):
    logits, features, _, mask = clusters()
    with pytest.raises(ValueError, match="features are too small or too large for the weight of prototypes of them"):
        sums(mask).update(with_features(logits, features * size)).compute()


SETTINGS = {
    "mask": (([0, 1], 1.0, 8), TypeError, "seen_mask has dtype int64"),
    "all seen": (([True, True], 1.0, 8), ValueError, "seen_mask has no absent class"),
    "gamma": (([True, False], True, 8), TypeError, "gamma is a bool"),
    "NaN": (([True, False], math.nan, 8), ValueError, "gamma is nan; it must be finite"),
    "large": (([True, False], 1e39, 8), ValueError, r"gamma is 1e\+39, which float32 cannot hold"),
    "none": (([True, False], 1.0, 0), ValueError, "num_features is 0; pass D, the width of the features"),
    "half": (([True, False], 1.0, 1.5), TypeError, "num_features is a float; pass an integer"),
    "bool": (([True, False], 1.0, True), TypeError, "num_features is a bool; pass an integer"),
    "negative": (([True, False], 1.0, -1), ValueError, "num_features is -1"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), SETTINGS.values(), ids=SETTINGS)
def test_wrong_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        PrototypeSums(*arguments)


def test_gamma():
    for gamma in (4, 4.0, np.float32(4), torch.tensor(4.0), finecal.GammaEstimate(4.0, "by hand", "data", 3)):
        assert PrototypeSums([True, False], gamma, 3).gamma == 4.0
    torch.set_default_dtype(torch.float64)
    try:
        assert PrototypeSums([True, False], 0.1, 3).state_dict()["gamma"].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# --- as a state -------------------------------------------------------------------------------------------------------


@pytest.fixture
def started():
    """An empty state, and the samples for it."""
    logits, features, _, mask = clusters()
    return sums(mask), logits, features


def test_state_dict(started):
    empty, logits, features = started
    state = empty.emptied().update(with_features(logits[:100], features[:100]))
    taken = state.state_dict()
    kept = {name: value.clone() for name, value in taken.items()}
    state.update(with_features(logits[100:], features[100:]))
    assert all(torch.equal(taken[name], kept[name]) for name in kept)  # a snapshot stays as it was
    file = io.BytesIO()
    torch.save(taken, file)
    file.seek(0)
    resumed = empty.emptied()
    assert resumed.load_state_dict(torch.load(file, weights_only=True)) is resumed
    again = empty.emptied().load_state_dict({name: value.numpy() for name, value in kept.items()})
    for other in (resumed, again):
        other.update(with_features(logits[100:], features[100:]))
    twins = resumed, again, copy.deepcopy(state), pickle.loads(pickle.dumps(state)), empty.emptied().merge(state)
    for twin in twins:
        assert torch.equal(twin.compute().weight, state.compute().weight)
        assert twin.compute()[3:] == state.compute()[3:]
    stored = {value.data_ptr() for value in taken.values()}
    assert len(stored) == len(taken)  # safetensors refuses tensors that share memory


def test_emptied(started):
    empty, logits, features = started
    state = empty.emptied().update(with_features(logits[:100], features[:100]))
    part = state.emptied().update(with_features(logits[100:], features[100:]))
    assert all(torch.equal(value, empty.state_dict()[name]) for name, value in state.emptied().state_dict().items())
    assert_close(state.merge(part).compute(), empty.emptied().update(with_features(logits, features)).compute())


def test_results_are_the_callers_own(started):
    empty, logits, features = started
    state = empty.emptied().update(with_features(logits, features))
    expected = state.compute()
    for value in state.compute():
        if torch.is_tensor(value):
            value.zero_()
    assert torch.equal(state.compute().weight, expected.weight)
    assert torch.equal(state.compute().class_counts, expected.class_counts)
    assert torch.equal(state.update(with_features(logits[:9], features[:9])).compute().center, state.compute().center)


def test_another_device(started, device):
    empty, logits, features = started
    here = empty.emptied().update(with_features(logits, features))
    there = copy.deepcopy(empty).to(device).update(with_features(logits.to(device), features.to(device)))
    assert there.compute().weight.device.type == device.type
    torch.testing.assert_close(there.compute().weight.cpu(), here.compute().weight, rtol=1e-4, atol=1e-5)
    assert there.to("cpu").update(with_features(logits, features)).compute().samples == 480


def test_settings_do_not_mix():
    logits, features, _, mask = clusters()
    first = sums(mask).update(with_features(logits, features))
    for change, arguments in {
        "num_features": (mask, GAMMA, 7), "gamma": (mask, 4.5, 8), "seen_mask": (~mask, GAMMA, 8),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{change} differs between the two states; construct both"):
            PrototypeSums(*arguments).merge(first)
        with pytest.raises(ValueError, match=f"{change} differs between the two states; construct both"):
            PrototypeSums(*arguments).load_state_dict(first.state_dict())
    with pytest.raises(TypeError, match="other is a dict; a PrototypeSums can be merged"):
        first.merge({})


@pytest.mark.parametrize("name", ["samples", "assigned", "kept_keys", "kept_features"])
def test_entries_of_other_shapes_are_refused(name):
    logits, features, _, mask = clusters()
    taken = sums(mask).update(with_features(logits, features)).state_dict()
    for wrong in (torch.zeros(2, 3, 4, 5, dtype=taken[name].dtype), taken[name].to(torch.complex64)):
        with pytest.raises(ValueError, match=f"state_dict has {name} of shape"):
            sums(mask).load_state_dict({**taken, name: wrong})


def test_what_is_no_samples_with_features():
    state = sums([True, False, False])
    with pytest.raises(TypeError, match=r"^samples is a ndarray; pass samples=Samples\(logits, features=\.\.\.\)$"):
        state.update(Z)
    with pytest.raises(TypeError, match=r"^samples has no features; pass samples=Samples\(logits, features=\.\.\.\)$"):
        state.update(finecal.Samples(Z))
