"""What holds for every state: batches in any order give the whole, and a state is saved, merged and checked."""

import copy
import io
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal import streaming
from finecal._core import calibrate as dense
from finecal.streaming import (
    AccuracySums,
    ClassSums,
    GapSums,
    IoUBins,
    IoUSums,
    MarginBins,
    MarginRows,
    ProbabilitySums,
)
from profiles import examples
from streams import assert_equal, batches, quietly, samples

EDGES = [0.0, 0.3, 0.4, 0.7, 1.0]
KINDS = {
    "gaps": GapSums,
    "accuracies": partial(AccuracySums, gamma=0.5),
    "classes": ClassSums,
    "probabilities": partial(ProbabilitySums, gamma=0.5, n_bins=7, mass_edges=EDGES),
    "margins": partial(MarginRows, keep_labels=True),
    "bins": partial(MarginBins, n_bins=50, scale=4.0),
    "IoU": partial(IoUSums, gamma=0.5),
    "IoU bins": partial(IoUBins, n_bins=50, scale=4.0),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@every_kind
@examples(30)
@given(seed=st.integers(0, 2**32 - 1))
def test_batches_merged_in_any_order_are_the_whole(make, seed):
    rng = np.random.default_rng(seed)
    logits, labels, mask = samples(rng)
    whole = make(mask).update(logits, labels)
    parts = batches(rng, len(labels))
    order = np.concatenate(parts)
    one_by_one = make(mask)
    for part in parts:
        assert one_by_one.update(logits[part], labels[part]) is one_by_one
    states = [make(mask).update(logits[part], labels[part]) for part in parts]
    while len(states) > 1:
        i, j = rng.choice(len(states), 2, replace=False)
        states[i] = states[i].merge(states[j])
        del states[j]
    if isinstance(whole, MarginRows):
        rows = whole.compute()
        streamed = one_by_one.compute()
        for name, value in vars(rows).items():
            assert torch.equal(getattr(streamed, name), value[order]), name
        assert torch.equal(states[0].compute().margin.sort().values, rows.margin.sort().values)
        assert torch.equal(states[0].compute().curve().acc_all, rows.curve().acc_all)
    else:
        assert_equal(quietly(one_by_one.compute), quietly(whole.compute))
        assert_equal(quietly(states[0].compute), quietly(whole.compute))


@every_kind
def test_samples_in_place_of_logits_and_labels(make, rng):
    logits, labels, mask = samples(rng)
    expected = make(mask).update(logits, labels)
    given, known = finecal.Samples(logits, labels), finecal.Samples(logits, labels)
    quietly(known.margins, mask)
    for batch in (given, known):
        found = make(mask).update(batch)
        with pytest.raises(TypeError, match="^logits is a Samples, which has its labels"):
            found.update(batch, labels)
        for unlabelled in (logits, finecal.Samples(logits)):
            with pytest.raises(TypeError, match="^logits has no labels; pass Samples"):
                found.update(unlabelled)
        for name, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name


@every_kind
def test_state_dict(make, rng):
    logits, labels, mask = samples(rng)
    state = make(mask).update(logits[:20], labels[:20])
    taken = state.state_dict()
    kept = {name: value.clone() for name, value in taken.items()}
    state.update(logits[20:], labels[20:])
    assert all(torch.equal(taken[name], kept[name]) for name in kept)  # a snapshot stays as it was
    file = io.BytesIO()
    torch.save(taken, file)
    file.seek(0)
    resumed = make(mask)
    assert resumed.load_state_dict(torch.load(file, weights_only=True)) is resumed
    assert_equal(quietly(resumed.update(logits[20:], labels[20:]).compute), quietly(state.compute))
    assert_equal(quietly(copy.deepcopy(state).compute), quietly(state.compute))
    assert_equal(quietly(make(mask).merge(state).compute), quietly(state.compute))


@every_kind
def test_state_dicts_as_other_formats_keep_them(make, rng):
    logits, labels, mask = samples(rng)
    tensors = list(make(mask).state_dict().values())
    stored = {value.data_ptr() for value in tensors if value.numel()}
    assert len(stored) == sum(value.numel() > 0 for value in tensors)  # safetensors refuses tensors that share memory
    state = make(mask).update(logits, labels)
    arrays = {name: value.numpy() for name, value in state.state_dict().items()}
    assert_equal(quietly(make(mask).load_state_dict(arrays).compute), quietly(state.compute))


@every_kind
def test_results_are_the_callers_own(make, rng):
    logits, labels, mask = samples(rng)
    state, untouched = (make(mask).update(logits, labels) for _ in range(2))

    def spoil(result):
        if isinstance(result, torch.Tensor):
            result.zero_()
        elif not isinstance(result, (str, int, float, type(None), finecal.GammaEstimate)):
            for part in result if isinstance(result, tuple) else vars(result).values():
                spoil(part)

    spoil(quietly(state.compute))
    assert_equal(quietly(state.update(logits, labels).compute), quietly(untouched.update(logits, labels).compute))


@every_kind
def test_emptied(make, rng):
    logits, labels, mask = samples(rng)
    state = make(mask).update(logits[:20], labels[:20])
    untouched = state.state_dict()
    parts = state.emptied().update(logits[20:], labels[20:]), state.emptied().emptied()
    nothing = make(mask).state_dict()
    assert all(torch.equal(value, nothing[name]) for name, value in parts[1].state_dict().items())
    assert all(torch.equal(value, untouched[name]) for name, value in state.state_dict().items())
    for part in parts:
        state.merge(part)
    assert_equal(quietly(state.compute), quietly(make(mask).update(logits, labels).compute))


@every_kind
def test_state_dict_is_checked(make, rng):
    logits, labels, mask = samples(rng)
    state = make(mask).update(logits, labels)
    taken = state.state_dict()
    name = list(taken)[-1]
    with pytest.raises(ValueError, match="seen_mask differs between the two states"):
        make(np.roll(mask, 1)).load_state_dict(taken)
    with pytest.raises(ValueError, match="state_dict has the entries"):
        make(mask).load_state_dict({k: v for k, v in taken.items() if k != name})
    with pytest.raises(ValueError, match=f"state_dict has {name} of shape"):
        make(mask).load_state_dict({**taken, name: torch.zeros(2, 3, 4, dtype=taken[name].dtype)})
    with pytest.raises(ValueError, match="state_dict has .*1"):
        make(mask).load_state_dict({**taken, 1: taken[name]})
    with pytest.raises(TypeError, match="state_dict is a NoneType; pass what state_dict.. returned"):
        make(mask).load_state_dict(None)
    with pytest.raises(TypeError, match=rf"state_dict\['{name}'\] is None"):
        make(mask).load_state_dict({**taken, name: None})
    with pytest.raises(ValueError, match=f"state_dict has {name} of shape .* and dtype complex64"):
        make(mask).load_state_dict({**taken, name: taken[name].to(torch.complex64)})


@every_kind
def test_merge_is_checked(make, rng):
    logits, labels, mask = samples(rng)
    state = make(mask).update(logits, labels)
    with pytest.raises(TypeError, match="other is a dict; a"):
        state.merge({})
    with pytest.raises(TypeError, match="can be merged with a"):
        state.merge(GapSums(mask) if not isinstance(state, GapSums) else ClassSums(mask))
    with pytest.raises(ValueError, match="seen_mask differs between the two states"):
        state.merge(make(np.roll(mask, 1)))


@every_kind
def test_devices(make, rng, device):
    logits, labels, mask = samples(rng)
    here = make(mask).update(logits, labels)
    there = make(mask).to(device).update(torch.tensor(logits, device=device), torch.tensor(labels, device=device))
    crossed = make(mask).update(torch.tensor(logits, device=device), torch.tensor(labels, device=device))
    assert there.device.type == there.seen_mask.device.type == device.type
    assert all(value.device.type == device.type for value in there.state_dict().values())
    assert crossed.device.type == "cpu"
    assert_equal(quietly(make(mask).merge(there).compute), quietly(here.compute))
    assert_equal(quietly(crossed.compute), quietly(here.compute))


@every_kind
def test_input_is_checked(make):
    state = make([True, True, False])
    with pytest.raises(ValueError, match="labels contain 3"):
        state.update(np.ones((1, 3)), [3])
    with pytest.raises(ValueError, match="logits contain NaN"):
        state.update(np.array([[math.nan, 1, 2]]), [0])
    with pytest.raises(ValueError, match="seen_mask has 3 entries for logits of 4 classes"):
        state.update(np.ones((1, 4)), [0])
    with pytest.raises(TypeError, match="seen_mask has dtype int64"):
        make([0, 1])
    with pytest.raises(ValueError, match="seen_mask has no absent class"):
        make([True, True, True])


@pytest.mark.parametrize("make", [GapSums, ClassSums])
def test_seen_samples_only(make):
    state = make([True, True, False])
    with pytest.raises(ValueError, match=f"labels contain absent class 2 .*; {make.__name__} needs seen-class samples"):
        state.update(np.zeros((2, 3)), [0, 2])


@every_kind
@pytest.mark.parametrize(("dim", "shape"), [(1, (2, 6, 4, 5)), (-1, (2, 20, 6)), (0, (6, 40)), (2, (2, 4, 6, 5))])
def test_dense_batches_are_taken_whole(make, rng, dim, shape, monkeypatch):
    monkeypatch.setitem(dense._PIECE_ELEMENTS, "cpu", 100)  # several pieces a picture
    logits, labels, mask = samples(rng)
    rows = make(mask).update(logits[:30], labels[:30])
    positions = [size for axis, size in enumerate(shape) if axis != dim % len(shape)]
    whole = np.moveaxis(logits.reshape(*positions, 6), -1, dim)
    assert whole.shape == shape
    own = np.where(np.arange(40) < 30, labels, 255).reshape(positions)
    state = make(mask, dim=dim, ignore_index=255)
    assert (state.dim, state.ignore_index) == (dim, 255)
    parts = (0, 1) if dim else (0,)
    for part in parts:  # a picture at a time
        state.update(whole[[part]] if dim else whole, own[[part]] if dim else own)
    assert_equal(quietly(state.compute), quietly(rows.compute))
    assert_empty(make(mask, dim=dim, ignore_index=255).update(whole, np.full(positions, 255)))
    if dim in (1, 2):
        assert_empty(make(mask, dim=dim).update(whole[..., :0], own[..., :0]))


def assert_empty(state):
    assert_equal(tuple(state.state_dict().values()), tuple(state.emptied().state_dict().values()))


@every_kind
def test_after_an_error_a_state_is_as_it_was(make, rng, monkeypatch):
    monkeypatch.setitem(dense._PIECE_ELEMENTS, "cpu", 100)
    logits, labels, mask = samples(rng)
    state = make(mask, dim=1).update(logits[..., None], labels[:, None])
    before = {name: value.clone() for name, value in state.state_dict().items()}
    labels[-1] = 6
    with pytest.raises(ValueError, match="labels contain 6"):
        state.update(logits[..., None], labels[:, None])
    assert all(torch.equal(value, before[name]) for name, value in state.state_dict().items())


def test_memory_beyond_dense_logits_is_that_of_a_piece():
    """Where pieces are copied, and where kernels look at them, no allocation is as large as a picture."""
    logits = torch.randn(1, 50, 500, 400, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(50, (1, 500, 400), generator=torch.Generator().manual_seed(1))
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        AccuracySums(torch.arange(50) < 25, dim=1, ignore_index=255).update(logits, labels)
    allocated = [event.cpu_memory_usage for event in profile.events()]
    assert 0 < max(allocated) < logits.nbytes / 2


def test_reference_has_each_public_name_once():
    text = (Path(__file__).parents[2] / "docs" / "api" / "streaming.rst").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. autoclass:: finecal\.streaming\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == streaming.__all__
