import copy
import dataclasses
import io
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal import streaming
from finecal.streaming import AccuracySums, ClassSums, GapSums, MarginBins, MarginRows, ProbabilitySums
from profiles import examples

INF = math.inf
EDGES = [0.0, 0.3, 0.4, 0.7, 1.0]
KINDS = {
    "gaps": GapSums,
    "accuracies": lambda mask: AccuracySums(mask, 0.5),
    "classes": ClassSums,
    "probabilities": lambda mask: ProbabilitySums(mask, 0.5, 7, EDGES),
    "margins": lambda mask: MarginRows(mask, keep_labels=True),
    "bins": lambda mask: MarginBins(mask, 50, 4.0),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def samples(rng, n=40, classes=6, masked=True, only_seen=True):
    """Return logits, some of them -inf, labels and a mask with at least two seen classes."""
    mask = rng.permutation(np.arange(classes) < rng.integers(2, classes))
    labels = rng.choice(np.flatnonzero(mask), n) if only_seen else rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)).astype(np.float32) * 3 + 5
    if masked:
        logits[rng.random(logits.shape) < 0.1] = -INF
    logits[np.arange(n), labels] = 9
    return logits, labels, mask


def batches(rng, n):
    """Cut a random order of n samples into batches, of which some may be empty."""
    order = rng.permutation(n)
    return np.split(order, np.sort(rng.integers(0, n + 1, int(rng.integers(0, 6)))))


def flat(result):
    """Return all numbers of a result in one list, and all its counts in another."""
    if isinstance(result, finecal.GammaEstimate):
        return [result.gamma], [result.n, result.acc_seen_before]
    if isinstance(result, (str, type(None))):
        return [], [result]
    if isinstance(result, (float, int)):
        return ([result], []) if isinstance(result, float) else ([], [result])
    if isinstance(result, torch.Tensor):
        return (result.flatten().tolist(), []) if result.is_floating_point() else ([], result.flatten().tolist())
    parts = [flat(part) for part in (result if isinstance(result, tuple) else vars(result).values())]
    return [x for sums, _ in parts for x in sums], [x for _, counts in parts for x in counts]


def assert_equal(one, other):
    (sums, counts), (other_sums, other_counts) = flat(one), flat(other)
    assert counts == other_counts
    assert sums == pytest.approx(other_sums, rel=1e-12, abs=1e-12, nan_ok=True)


def quietly(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        return function(*args)


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
    with pytest.raises(TypeError, match="merge got a dict"):
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


# --- each against the function, or against a loop ---------------------------------------------------------------------


def test_gaps_equal_the_functions(rng, dtype):
    logits, labels, mask = samples(rng, 50)
    tensor = torch.tensor(logits).to(dtype)
    estimates = quietly(GapSums(mask).update(tensor, labels).compute)
    for estimate, function in zip(estimates, (finecal.average_logit_gap, finecal.max_logit_gap), strict=True):
        whole = quietly(function, tensor, labels, mask)
        assert estimate.gamma == pytest.approx(whole.gamma, rel=1e-12)
        assert (estimate.method, estimate.n, estimate.data) == (whole.method, whole.n, whole.data)
        assert estimate.acc_seen_before == pytest.approx(whole.acc_seen_before)
        assert estimate.expected_acc_seen is None


def test_gaps_warn_as_the_functions():
    state = GapSums([True, True, False]).update(np.array([[1.0, 2, 5], [2, 1, -INF]]), [0, 0])
    with pytest.warns(finecal.FinecalWarning) as record:
        estimates = state.compute()
    assert len(record) == 4
    for estimate in estimates:
        assert "1 of 2 samples were left out" in estimate.warnings[0]
        assert "the gap is -3" in estimate.warnings[1]
    logits = 5 * np.eye(6)[[1, 2, 3, 4, 0]] + [0, 0, 0, 0, 0, -1]
    with pytest.warns(finecal.FinecalWarning, match="only 0.0 % of the seen samples given are told apart"):
        GapSums(np.arange(6) < 5).update(logits, np.arange(5)).compute()


def test_a_seen_class_wins_a_tie():
    state = GapSums([True, True, False]).update(np.array([[2.0, 1, 2]]), [0])
    assert quietly(state.compute).average.acc_seen_before == 1


def test_gaps_need_samples_and_two_seen_classes():
    with pytest.raises(ValueError, match=r"logits are empty \(0 samples\); GapSums has nothing"):
        GapSums([True, True, False]).compute()
    with pytest.raises(ValueError, match="seen_mask has one seen class; GapSums compares"):
        GapSums([True, False, False])
    with pytest.raises(ValueError, match="average_logit_gap has nothing to estimate from"):
        GapSums([True, True, False]).update(np.array([[1.0, 2, -INF]]), [0]).compute()


def test_one_gap_by_name():
    state = GapSums([True, True, False]).update(np.array([[9.0, 4, 1], [2, 9, 1]]), [0, 1])
    assert state.estimate() == state.compute().maximum
    assert state.estimate("average_logit_gap") == state.compute().average
    with pytest.raises(ValueError, match="method is 'mean'; choose one of 'average_logit_gap', 'max_logit_gap'"):
        state.estimate("mean")


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("gamma", [-2.5, 0.0, 1.0])
def test_accuracies_equal_the_function(rng, dtype, gamma, average):
    logits, labels, mask = samples(rng, 80, only_seen=False)
    logits[np.arange(80), labels] = np.round(logits.max(1)) - rng.integers(-2, 3, 80)
    tensor = torch.tensor(logits).to(dtype)
    state = AccuracySums(mask, gamma)
    for part in batches(rng, 80):
        state.update(tensor[part], labels[part])
    found, whole = state.compute(average), finecal.evaluate(tensor, labels, mask, gamma, average)
    assert math.isnan(found.ausuc)
    assert found.samples is None
    assert_equal(*map(dataclasses.astuple, (found, dataclasses.replace(whole, ausuc=math.nan))))
    if average == "micro":
        assert (found.acc_all, found.acc_seen, found.acc_absent) == (whole.acc_all, whole.acc_seen, whole.acc_absent)


def test_accuracies_of_one_group_or_none():
    state = AccuracySums([True, True, False])
    assert math.isnan(state.compute().acc_all)
    assert math.isnan(state.compute("macro").acc_seen)
    report = state.update(np.array([[2.0, 1, 0]]), [0]).compute()
    assert (report.acc_seen, report.n_seen, report.n_absent) == (1, 1, 0)
    assert math.isnan(report.acc_absent)
    assert math.isnan(report.harmonic_mean)
    assert AccuracySums([True, False]).update(np.array([[2.0, 1], [2, 1]]), [1, 0]).compute().harmonic_mean == 0
    with pytest.raises(ValueError, match="average is 'weighted'"):
        state.compute("weighted")
    with pytest.raises(ValueError, match="gamma differs"):
        state.merge(AccuracySums([True, True, False], 1.0))


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_class_moments_equal_a_loop(rng, offset, device):
    logits, labels, mask = samples(rng, 60)
    logits = logits.astype(np.float64) + offset
    logits[:, 1] = -INF
    state = ClassSums(mask).to(device)
    for part in batches(rng, 60):
        state.update(torch.tensor(logits[part], device=device), torch.tensor(labels[part], device=device))
    loc, scale, counts = (value.cpu() for value in state.compute())
    for c in range(6):
        values = logits[(labels != c) & (logits[:, c] > -INF), c] - offset
        assert counts[c] == len(values)
        if len(values):
            assert loc[c] - offset == pytest.approx(values.mean(), abs=1e-6 if offset else 1e-12)
            assert scale[c] == pytest.approx(values.std(), rel=1e-6 if offset else 1e-12)
    assert counts[1] == 0
    assert loc[1].isnan()
    assert scale[1].isnan()


def test_class_moments_of_many_tiles(rng):
    labels = rng.integers(0, 300, 3000)
    logits = rng.normal(size=(3000, 600)).astype(np.float32) * 5
    logits[np.arange(3000), labels] = 1e30
    loc, scale, counts = ClassSums(np.arange(600) < 300).update(logits, labels).compute()
    others = np.ma.masked_greater(logits.astype(np.float64), 1e29)
    assert (counts.numpy() == others.count(0)).all()
    assert loc.numpy() == pytest.approx(others.mean(0).data, rel=1e-12, abs=1e-14)
    assert scale.numpy() == pytest.approx(others.std(0).data, rel=1e-12)


def test_class_moments_of_no_samples():
    loc, scale, counts = ClassSums([True, False]).compute()
    assert loc.isnan().all()
    assert scale.isnan().all()
    assert counts.tolist() == [0, 0]


def test_probabilities_equal_the_function(rng, dtype):
    logits, labels, mask = samples(rng, 80, only_seen=False)
    tensor = torch.tensor(logits).to(dtype)
    whole = finecal.evaluate_probabilities(tensor, labels, mask, 0.7, 6)
    state = ProbabilitySums(mask, 0.7, 6, whole.all.equal_mass_bins.edges)
    for part in batches(rng, 80):
        state.update(tensor[part], labels[part])
    assert_equal(state.compute(), whole)
    without = ProbabilitySums(mask, 0.7, 6).update(tensor, labels).compute()
    assert without.all.ece == whole.all.ece
    assert without.all.ece_equal_mass == pytest.approx(abs(whole.all.accuracy - whole.all.confidence))


def test_probabilities_of_no_samples():
    scores = ProbabilitySums([True, False]).compute().all
    assert scores.n == 0
    assert math.isnan(scores.nll)
    assert math.isnan(scores.classwise_ece)


@pytest.mark.parametrize(
    ("edges", "match"),
    [
        ([0.0, 0.7, 0.2, 1.0], "must ascend from 0 to 1"),
        ([0.1, 1.0], "they run from 0.1 to 1"),
        ([0.0, math.nan, 1.0], "must ascend"),
        ([1.0], "expected .B . 1,., the edges of B bins"),
    ],
)
def test_edges_are_checked(edges, match):
    with pytest.raises(ValueError, match=match):
        ProbabilitySums([True, False], mass_edges=edges)


def test_other_settings_do_not_merge():
    state = ProbabilitySums([True, False])
    with pytest.raises(ValueError, match="gamma differs"):
        state.merge(ProbabilitySums([True, False], gamma=1.0))
    with pytest.raises(ValueError, match="width_edges differs"):
        state.merge(ProbabilitySums([True, False], n_bins=3))


def test_margin_rows_equal_margins(rng, dtype):
    logits, labels, mask = samples(rng, 50, only_seen=False)
    tensor = torch.tensor(logits).to(dtype)
    whole = finecal.margins(tensor, labels, mask)
    state = MarginRows(mask, keep_labels=True)
    for rows in np.array_split(np.arange(50), 7):
        state.update(tensor[rows], labels[rows])
    streamed = state.compute()
    for name, value in vars(whole).items():
        assert torch.equal(getattr(streamed, name), value), name
        assert getattr(streamed, name).dtype == value.dtype
    assert torch.equal(streamed.curve("macro").acc_all, whole.curve("macro").acc_all)


def test_margin_rows_take_five_bytes(rng):
    logits, labels, mask = samples(rng, 50)
    state = MarginRows(mask).update(logits, labels)
    rows = {name: value for name, value in state.state_dict().items() if name != "seen_mask"}
    assert sum(value.nbytes for value in rows.values()) == 5 * 50
    streamed = state.compute()
    assert streamed.label is None
    assert torch.equal(streamed.curve().acc_seen, finecal.margins(torch.tensor(logits), labels, mask).curve().acc_seen)
    with pytest.raises(
        ValueError, match=r"without labels, which average='macro' needs: MarginRows\(keep_labels=True\)"
    ):
        streamed.curve("macro")


def test_margins_rounded_to_half_are_refused(rng):
    logits, labels, mask = samples(rng)
    taken = MarginRows(mask).update(logits, labels).state_dict()
    assert (
        MarginRows(mask).load_state_dict({**taken, "margin": taken["margin"].double()}).compute().margin.itemsize == 8
    )
    with pytest.raises(ValueError, match="state_dict has margin of .* dtype bfloat16; this MarginRows needs"):
        MarginRows(mask).load_state_dict({**taken, "margin": taken["margin"].bfloat16()})
    with pytest.raises(ValueError, match=r"state_dict has margin of shape \(\)"):
        MarginRows(mask).load_state_dict({**taken, "margin": taken["margin"][0]})


def test_single_samples_leave_few_blocks(rng):
    logits, labels, mask = samples(rng, 200)
    state = MarginRows(mask)
    for i in range(200):
        state.update(logits[i : i + 1], labels[i : i + 1]).update(logits[:0], labels[:0])
    assert len(state._blocks) < 10
    assert torch.equal(state.compute().margin, MarginRows(mask).update(logits, labels).compute().margin)


def test_margin_rows_with_and_without_labels_do_not_merge():
    with pytest.raises(ValueError, match=r"the other state has the entries \['flags', 'margin'\]; this MarginRows has"):
        MarginRows([True, False], keep_labels=True).merge(MarginRows([True, False]))


def test_margin_rows_of_one_length():
    state = MarginRows([True, False])
    entries = {**state.state_dict(), "margin": torch.zeros(3)}
    with pytest.raises(
        ValueError, match=r"state_dict has flags of shape \(0,\) and dtype uint8; .* needs shape \(3,\)"
    ):
        state.load_state_dict(entries)


def test_batches_alone_do_not_look_re_indexed():
    """A batch with the labels 0 and 1 says nothing; samples of these labels alone do."""
    state = MarginRows([False, False, True, True], keep_labels=True)
    state.update(np.eye(4)[:2] * 3, [0, 1])
    with pytest.warns(finecal.FinecalWarning, match="they look re-indexed"):
        state.compute()
    state.update(np.eye(4)[2:] * 3, [2, 3]).compute()


def test_no_margins():
    assert len(MarginRows([True, False]).compute()) == 0


def test_reference_has_each_public_name_once():
    text = (Path(__file__).parents[2] / "docs" / "api" / "streaming.rst").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. autoclass:: finecal\.streaming\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == streaming.__all__
