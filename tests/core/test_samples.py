"""Samples: what is taken, what is kept, and that whichever function asks finds the same."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

import finecal
import finecal._core.samples as module
from finecal._core.logits_file import LogitsFile, write_logits
from finecal._core.samples import labelled_samples, samples_of, samples_with, unlabelled_samples
from finecal._core.warning import without_warnings
from problems import MASK, doubtful_problem, scan_labelled, seen_problem
from public_names import public

INF = math.inf
FIELDS = ("logits", "labels", "features", "groups", "pretrained_logits", "pretrained_features")


def fields_of(rng, n=20, logits_dtype=np.float32):
    return {
        "logits": rng.normal(size=(n, 7)).astype(logits_dtype),
        "labels": rng.integers(7, size=n).astype(np.int32),
        "features": rng.normal(size=(n, 3)).astype(np.float32),
        "groups": 9 - rng.integers(5, size=n) * 7,
        "pretrained_logits": rng.normal(size=(n, 7)),
        "pretrained_features": rng.normal(size=(n, 2)).astype(np.float16),
    }


@pytest.fixture
def given(rng):
    return fields_of(rng)


@pytest.fixture
def samples(given):
    return finecal.Samples(**given)


def same(first, second):
    """Whether two samples hold the same numbers, in the same dtypes and on the same devices, and lack the same."""
    for name in FIELDS:
        one, other = (getattr(samples, name) for samples in (first, second))
        if (one is None) != (other is None):
            return False
        if one is not None:
            one, other = torch.as_tensor(one), torch.as_tensor(other)
            if (one.dtype, one.device, one.shape) != (other.dtype, other.device, other.shape):
                return False
            if not torch.equal(one, other):
                return False
    return True


def quietly(function, *args, **options):
    with without_warnings():
        return function(*args, **options)


# --- fields -----------------------------------------------------------------------------------------------------------


def test_arrays_come_back_as_they_were_given(given, samples):
    for name, value in given.items():
        found = getattr(samples, name)
        assert type(found) is np.ndarray
        assert np.array_equal(found, value)
        assert found.dtype == (np.int64 if name in ("labels", "groups") else value.dtype)
    assert np.shares_memory(samples.logits, given["logits"])
    assert (len(samples), samples.num_classes) == (20, 7)
    assert samples.groups.min() < 0  # as they were given, not numbered anew


def test_tensors_come_back_as_they_were_given(given, device, dtype):
    tensors = {name: torch.as_tensor(value, device=device) for name, value in given.items()}
    tensors["logits"] = tensors["logits"].to(dtype)
    samples = finecal.Samples(**tensors)
    for name, value in tensors.items():
        found = getattr(samples, name)
        assert type(found) is torch.Tensor
        assert torch.equal(found, value.to(torch.int64) if name in ("labels", "groups") else value)
        assert found.device.type == device.type
    assert samples.logits.dtype == dtype


def test_lists_give_arrays():
    samples = finecal.Samples([[1.0, 2.0], [3.0, 4.0]], [0, 1], groups=[7, 7])
    assert (samples.logits.dtype, samples.logits.tolist()) == (np.float64, [[1.0, 2.0], [3.0, 4.0]])
    assert (samples.labels.dtype, samples.labels.tolist()) == (np.int64, [0, 1])
    assert (samples.groups.dtype, samples.groups.tolist()) == (np.int64, [7, 7])


def test_what_is_not_given_is_none():
    samples = finecal.Samples(np.zeros((2, 3)))
    assert [getattr(samples, name) for name in FIELDS[1:]] == [None] * 5


def test_the_kind_of_the_logits_is_that_of_all(given):
    mixed = finecal.Samples(torch.from_numpy(given["logits"]), given["labels"], groups=given["groups"].tolist())
    assert {type(getattr(mixed, name)) for name in ("logits", "labels", "groups")} == {torch.Tensor}


def test_gradients_are_not_tracked():
    logits, features = torch.ones(2, 3, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    samples = finecal.Samples(logits, features=features, pretrained_logits=logits, pretrained_features=features)
    assert not any(getattr(samples, name).requires_grad for name in FIELDS if getattr(samples, name) is not None)


def test_repr_names_what_there_is(given, samples):
    assert repr(samples) == ("Samples(20 x 7 logits, labels, features, pretrained_logits, pretrained_features, groups)")
    assert repr(finecal.Samples(given["logits"])) == "Samples(20 x 7 logits)"


def test_are_neither_a_sequence_nor_a_pair(samples):
    with pytest.raises(TypeError, match="not iterable"):
        iter(samples)
    with pytest.raises(TypeError):
        finecal.evaluate(*samples, MASK)


def test_copies_and_pickles_are_the_same(samples):
    quietly(samples.margins, MASK)
    for other in (copy.deepcopy(samples), pickle.loads(pickle.dumps(samples)), copy.copy(samples)):
        assert same(other, samples)
        assert type(other.logits) is np.ndarray


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": np.zeros(20)}, ValueError, r"logits has shape \(20,\); expected \(N, C\)"),
        ({"logits": np.zeros((20, 7), int)}, TypeError, "logits has dtype int64"),
        ({"logits": None}, TypeError, "logits is None"),
        ({"labels": [0, 1]}, ValueError, r"labels have shape \(2,\) for 20 rows of logits; expected \(20,\)"),
        ({"labels": np.full(20, 7)}, ValueError, r"labels contain 7, outside \[0, 7\) \(7 is the number of columns of"),
        ({"labels": np.full(20, -1)}, ValueError, r"labels contain -1, outside \[0, 7\)"),
        ({"labels": np.zeros(20)}, TypeError, "labels have dtype float64; expected integer class indices"),
        ({"labels": np.zeros(20, bool)}, TypeError, "labels have dtype bool"),
        ({"labels": ["cat"] * 20}, TypeError, "labels hold class names, such as 'cat'; pass the index of each"),
        ({"features": np.zeros((20, 3), int)}, TypeError, "features have dtype int64; pass floating-point features"),
        ({"features": np.zeros((19, 3))}, ValueError, r"features have shape \(19, 3\)"),
        ({"features": np.zeros(20)}, ValueError, r"features have shape \(20,\)"),
        ({"features": np.full((20, 3), np.nan)}, ValueError, "features contain NaN"),
        ({"features": np.full((20, 3), np.inf)}, ValueError, "features contain "),
        ({"pretrained_features": np.full((20, 3), np.nan)}, ValueError, "pretrained_features contain NaN"),
        ({"pretrained_features": np.zeros((2, 3))}, ValueError, r"pretrained_features have shape \(2, 3\)"),
        ({"groups": np.arange(19)}, ValueError, r"groups have shape \(19,\) for 20 rows of logits; expected \(20,\)"),
        ({"groups": np.zeros(20)}, TypeError, "groups have dtype float64; expected an integer per sample"),
        ({"groups": ["a"] * 20}, TypeError, "groups hold names, such as 'a'; pass a number for each: numpy.unique"),
        (
            {"pretrained_logits": np.zeros((19, 7))},
            ValueError,
            r"pretrained_logits have shape \(19, 7\), logits \(20, 7\); pass those of the same samples, in the same",
        ),
        ({"pretrained_logits": np.ones((20, 7), int)}, TypeError, "pretrained_logits has dtype int64"),
    ],
)
def test_what_is_wrong_is_refused_by_name(given, change, error, message):
    with pytest.raises(error, match=f"^{message}"):
        finecal.Samples(**given | change)


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("logits", "groups")])
def test_everything_is_on_the_device_of_the_logits(given, name, monkeypatch):
    tensors = {field: torch.as_tensor(value) for field, value in given.items()}
    with pytest.raises(ValueError, match=f"^{name} (is|are) on (the )?meta"):
        finecal.Samples(**tensors | {name: tensors[name].to("meta")})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", FIELDS[1:])
def test_groups_alone_may_be_elsewhere(given, name):
    tensors = {field: torch.as_tensor(value, device="cuda") for field, value in given.items()}
    moved = tensors | {name: tensors[name].cpu()}
    if name == "groups":
        assert torch.equal(finecal.Samples(**moved).groups, tensors["groups"])
        return
    with pytest.raises(ValueError, match=f"^{name} are on cpu, logits on cuda"):
        finecal.Samples(**moved)


@pytest.mark.parametrize(("number", "what"), [(math.nan, "NaN"), (math.inf, r"\+inf")])
def test_values_of_logits_are_checked_when_they_are_read(rng, number, what):
    logits, labels = seen_problem(rng)
    wrong = logits.copy()
    wrong[3, 4] = number
    samples = finecal.Samples(wrong, labels)
    for call in (samples.margins, samples.margin, samples.scan):
        with pytest.raises(ValueError, match=f"^logits contain {what}"):
            call(MASK)
        with pytest.raises(ValueError, match=f"^train: logits contain {what}"):
            getattr(samples.named("train"), call.__name__)(MASK)
    before = finecal.Samples(logits, labels, pretrained_logits=wrong)
    with pytest.raises(ValueError, match=f"^pretrained_logits contain {what}"):
        before.check_pretrained()
    with pytest.raises(ValueError, match=f"^held_out: pretrained_logits contain {what}"):
        before.named("held_out").check_pretrained()
    right = finecal.Samples(logits, pretrained_logits=logits.tolist())
    assert right.pretrained_tensor.tolist() == logits.tolist()


def test_labels_are_asked_for_where_they_are_needed(rng):
    samples = finecal.Samples(seen_problem(rng)[0])
    for call in (samples.margins, samples.scan, lambda mask: finecal.evaluate(samples, mask)):
        with pytest.raises(TypeError, match=r"^logits has no labels; pass Samples\(logits, labels\)$"):
            call(MASK)
    with pytest.raises(TypeError, match=r"^train has no labels; pass Samples\(logits, labels\)$"):
        finecal.estimate_gamma(MASK, train=samples)
    assert samples.margin(MASK).shape == (60,)


# --- some of them -----------------------------------------------------------------------------------------------------


ROWS = {
    "slice": slice(3, 15, 2),
    "empty slice": slice(5, 5),
    "whole": slice(None),
    "backwards": np.arange(20)[::-1],
    "mask": np.arange(20) % 3 == 1,
    "list of flags": (np.arange(20) % 3 == 1).tolist(),
    "tensor mask": torch.arange(20) % 3 == 1,
    "indices": np.array([4, 4, 0, -1]),
    "list": [2, 19, -20],
    "tensor": torch.tensor([7, 1], dtype=torch.int32),
    "none": [],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_are_those_of_every_field(given, samples, rows):
    index = rows if isinstance(rows, slice) else np.asarray(rows, dtype=None if len(rows) else int)
    some = samples[rows]
    assert same(some, finecal.Samples(**{name: value[index] for name, value in given.items()}))
    assert type(some.logits) is np.ndarray
    assert len(some) == len(given["labels"][index])
    tensors = finecal.Samples(**{name: torch.as_tensor(value) for name, value in given.items()})
    assert same(tensors[rows], some)
    assert type(tensors[rows].groups) is torch.Tensor


def test_a_slice_is_no_copy(given, samples):
    assert np.shares_memory(samples[2:7].logits, given["logits"])


def test_rows_of_tensors_may_be_on_any_device(given, device):
    tensors = finecal.Samples(**{name: torch.as_tensor(value, device=device) for name, value in given.items()})
    for rows in (torch.arange(20) % 2 == 0, torch.tensor([3, 1])):
        assert same(tensors[rows], tensors[rows.to(device)])
        assert tensors[rows].logits.device.type == device.type


@pytest.mark.parametrize("one", [3, np.int64(3), np.array(3), torch.tensor(3), True, np.True_])
def test_one_row_is_refused(samples, one):
    with pytest.raises(TypeError, match=r"^rows is one \w+; pass a slice, a mask or indices: samples\[i : i \+ 1\]$"):
        samples[one]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.ones(19, bool), ValueError, "rows has 19 booleans for 20 samples; pass one for each"),
        ([0, 20], ValueError, "rows contain 20, but there are 20 samples"),
        ([-21], ValueError, "rows contain -21, but there are 20 samples"),
        ([0.0, 1.0], TypeError, "rows has dtype float64; pass a boolean for each sample, or indices"),
        (np.ones((20, 1), bool), ValueError, r"rows has shape \(20, 1\); pass a boolean for each sample, or indices"),
        ((slice(2), 1), TypeError, "rows "),
        ("labels", TypeError, "rows "),
        (None, TypeError, "rows is None"),
    ],
)
def test_wrong_rows_are_refused(samples, rows, error, message):
    with pytest.raises(error, match=f"^{message}"):
        samples[rows]


def test_some_samples_are_found_anew(samples):
    quietly(samples.scan, MASK)
    rows = np.arange(20) % 2 == 0
    assert quietly(samples[rows].scan, MASK).margin.tolist() == samples.scan(MASK).margin[rows].tolist()


def test_to_another_device(given, samples, device):
    moved = samples.to(device)
    assert {getattr(moved, name).device.type for name in FIELDS if name != "groups"} == {device.type}
    assert same(moved.to("cpu"), samples)
    assert type(moved.logits) is torch.Tensor
    assert type(samples.logits) is np.ndarray
    assert quietly(moved.scan, MASK).margin.device.type == device.type
    with pytest.raises(ValueError, match="^device is 'nowhere', which is none"):
        samples.to("nowhere")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_every_field_survives_a_file(samples, tmp_path, suffix, dtype):
    samples = samples.to("cpu")
    samples = finecal.Samples(
        **{name: getattr(samples, name).to(dtype) if "logits" in name else getattr(samples, name) for name in FIELDS}
    )
    path = tmp_path / f"samples{suffix}"
    samples.save(path, class_names=list("abcdefg"))
    back = finecal.Samples.load(path)
    if dtype != torch.bfloat16 or suffix == ".safetensors":
        assert same(back, samples)
    else:  # NumPy has no bfloat16; float32 holds it exactly
        assert back.logits.dtype == torch.float32
        assert torch.equal(back.logits, samples.logits.float())
    assert back.groups.tolist() == samples.groups.tolist()  # as they were given
    assert type(back.logits) is torch.Tensor
    assert finecal._core.logits_file.read_logits(path).class_names == tuple("abcdefg")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
@pytest.mark.parametrize("n", [0, 1, 20])
def test_logits_alone_survive_a_file(rng, tmp_path, suffix, n):
    samples = finecal.Samples(torch.from_numpy(fields_of(rng, n)["logits"]))
    samples.save(tmp_path / f"logits{suffix}")
    assert same(finecal.Samples.load(tmp_path / f"logits{suffix}"), samples)


def test_masked_classes_survive_a_file(tmp_path):
    samples = finecal.Samples(torch.tensor([[0.5, -INF, 2.0], [-INF, -INF, -INF]]), torch.tensor([0, 1]))
    samples.save(tmp_path / "logits.npz")
    assert same(finecal.Samples.load(tmp_path / "logits.npz"), samples)


def test_a_npy_has_the_logits_alone(samples, tmp_path):
    samples.save(tmp_path / "logits.npy")
    back = finecal.Samples.load(tmp_path / "logits.npy")
    assert same(back, finecal.Samples(torch.from_numpy(samples.logits)))


def test_torch_files_are_read(given, samples, tmp_path):
    torch.save({name: torch.as_tensor(value) for name, value in given.items()}, tmp_path / "samples.pt")
    assert same(finecal.Samples.load(tmp_path / "samples.pt"), samples.to("cpu"))


def test_files_with_gamma_are_refused(samples, tmp_path):
    path = tmp_path / "calibrated.npz"
    write_logits(path, LogitsFile(torch.from_numpy(samples.logits), gamma=6.75))
    with pytest.raises(ValueError, match=r"calibrated.npz already has gamma = 6.75 added; give the logits before cal"):
        finecal.Samples.load(path)


def test_errors_of_files_name_the_file(given, samples, tmp_path):
    for change, message in (
        ({"features": np.zeros((3, 2))}, r"features have shape \(3, 2\)"),
        ({"pretrained_logits": np.zeros((3, 2))}, r"pretrained_logits have shape \(3, 2\), logits \(20, 7\)"),
        ({"labels": np.full(20, 9)}, "labels contain 9, outside"),
        ({"groups": np.zeros(20)}, "groups have dtype float64"),
    ):
        np.savez(tmp_path / "wrong.npz", **given | change)
        with pytest.raises(ValueError, match=rf"wrong\.npz: {message}"):
            finecal.Samples.load(tmp_path / "wrong.npz")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        finecal.Samples.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="cannot be written: choose a name that ends with"):
        samples.save(tmp_path / "samples.pt")
    with pytest.raises(ValueError, match="there are 2 class names for 7 classes"):
        samples.save(tmp_path / "samples.npz", class_names=["a", "b"])
    with pytest.raises(TypeError, match="class_names is a str; pass a list of str"):
        samples.save(tmp_path / "samples.npz", class_names="abcdefg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong.npz"]


# --- one pass, whichever functions ask --------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch):
    """The names of the reductions that were called, each of which is a pass over the logits."""
    calls = []
    for name in ("label_scalars", "label_hits", "group_maxima"):
        kernel = getattr(module, name)

        def counted(*args, kernel=kernel, name=name):
            calls.append(name)
            return kernel(*args)

        monkeypatch.setattr(module, name, counted)
    return calls


def test_several_estimators_pass_over_the_logits_once(rng, passes):
    samples = finecal.Samples(*doubtful_problem(rng))
    with without_warnings():
        for estimate in (
            finecal.estimators.average_logit_gap,
            finecal.estimators.max_logit_gap,
            finecal.estimators.mixed_pair_gap,
        ):
            estimate(samples, MASK)
        finecal.estimators.residual_gap(samples, torch.tensor(MASK))
        finecal.estimators.seen_budget_gamma(samples, MASK.tolist(), 0.5)
        finecal.estimators.known_share_gamma(samples, MASK, 0.5)
        finecal.estimate_gamma(MASK, train=samples)
        finecal.estimate_gamma(MASK, held_out=samples)
        finecal.evaluate(samples, MASK)
        samples.margins(MASK)
    assert passes == ["label_scalars"]


def test_another_mask_is_another_pass(rng, passes):
    samples = finecal.Samples(*doubtful_problem(rng))
    other = MASK.copy()
    other[1] = True
    for mask, number in ((MASK, 1), (MASK, 1), (other, 2), (other, 2), (MASK, 3)):
        found = quietly(finecal.estimators.max_logit_gap, samples, mask)
        assert len(passes) == number
        assert found == quietly(finecal.estimators.max_logit_gap, samples.logits, samples.labels, mask)
        passes.pop()


def test_samples_by_another_name_share_what_is_found(rng, passes):
    samples = finecal.Samples(*doubtful_problem(rng), groups=np.arange(80) // 4)
    scan = samples.scan(MASK)
    renamed = samples.named("held_out")
    again = renamed.scan(MASK)
    assert passes == ["label_scalars"]
    assert again.margin is scan.margin
    assert (again.name, again.groups.name) == ("held_out", "held_out: groups")
    assert (scan.name, scan.groups.name) == ("", "groups")
    assert (samples.name, samples.scan(MASK)) == ("", scan)
    renamed.named("train").margin(MASK)
    assert passes == ["label_scalars"]


def test_margins_are_found_once_with_labels_or_without(rng, passes):
    logits, labels = doubtful_problem(rng)
    labels[:20] = 1  # some of an absent class
    samples = finecal.Samples(logits, labels)
    margins = samples.margins(MASK)
    assert samples.margin(MASK).tolist() == margins.margin.tolist()
    assert quietly(finecal.evaluate, samples, MASK) == quietly(finecal.evaluate, logits, labels, MASK)
    assert passes == ["label_hits"] * 2
    unlabelled = finecal.Samples(logits)
    assert unlabelled.margin(MASK).tolist() == unlabelled.margin(MASK).tolist() == margins.margin.tolist()
    assert passes == ["label_hits"] * 2 + ["group_maxima"]


def test_doubts_are_looked_for_once_and_issued_each_time(rng, monkeypatch):
    calls = []
    looked = module.input_warnings
    monkeypatch.setattr(module, "input_warnings", lambda *args: calls.append(0) or looked(*args))
    logits, labels = doubtful_problem(rng)
    logits[:, 1] = -1e9  # in place of -inf
    samples = finecal.Samples(logits, labels)
    for call in (finecal.evaluate, finecal.tradeoff_curve, lambda given, mask: given.margins(mask)):
        with pytest.warns(finecal.FinecalWarning, match="look masked by a large number"):
            call(samples, MASK)
    assert len(calls) == 1
    for call in (finecal.estimators.max_logit_gap, finecal.estimators.mixed_pair_gap, finecal.evaluate):
        with pytest.warns(finecal.FinecalWarning, match="look masked by a large number"):
            call(samples, MASK)
    assert len(calls) == 2


# --- the same as from arrays ------------------------------------------------------------------------------------------


BOOTSTRAP = {"n_bootstrap": 5, "seed": 2}
OF_SEEN = {
    "average_logit_gap": lambda *given: finecal.estimators.average_logit_gap(*given, MASK, **BOOTSTRAP),
    "max_logit_gap": lambda *given: finecal.estimators.max_logit_gap(*given, MASK, **BOOTSTRAP),
    "mixed_pair_gap": lambda *given: finecal.estimators.mixed_pair_gap(*given, MASK, 0.4, **BOOTSTRAP),
    "residual_gap": lambda *given: finecal.estimators.residual_gap(*given, MASK, **BOOTSTRAP),
    "seen_budget_gamma": lambda *given: finecal.estimators.seen_budget_gamma(*given, MASK, 0.5, **BOOTSTRAP),
    "head_drift_gamma": lambda *given: finecal.estimators.head_drift_gamma(
        *given, MASK, features=torch.eye(7)[torch.arange(80) % 7], head=(torch.eye(7), None),
        pretrained_head=(2 * torch.eye(7), None), **BOOTSTRAP,
    ),
}  # fmt: skip
OF_ALL = {
    "search_gamma": lambda *given: finecal.search_gamma(*given, MASK, "balanced", 0.5, **BOOTSTRAP),
    "search_gamma, nll": lambda *given: finecal.search_gamma(*given, MASK, "nll"),
    "evaluate": lambda *given: finecal.evaluate(*given, MASK, 1.0, "macro"),
    "tradeoff_curve": lambda *given: finecal.tradeoff_curve(*given, MASK, average="macro").to_dict(),
}


@pytest.mark.parametrize("name", [*OF_SEEN, *OF_ALL])
def test_estimates_are_the_same_to_the_bit(rng, name, device, dtype):
    logits, labels = doubtful_problem(rng)
    labels = labels if name in OF_SEEN else np.where(np.arange(80) % 4 < 2, labels, 1)
    call = (OF_SEEN | OF_ALL)[name]
    if name == "head_drift_gamma" and device.type != "cpu":
        pytest.skip("its features are on the CPU")
    given = torch.tensor(logits, device=device).to(dtype), torch.tensor(labels, device=device)
    expected = quietly(call, *given)
    samples = finecal.Samples(*given)
    for _ in range(2):  # what is found the first time is used the second
        assert quietly(call, samples) == expected
    assert quietly(call, samples[torch.arange(80)]) == expected
    if dtype == torch.float32 and device.type == "cpu":
        assert quietly(call, logits, labels) == quietly(call, finecal.Samples(logits, labels)) == expected


def test_gamma_from_all_data_is_the_same_to_the_bit(rng):
    train, held_out = doubtful_problem(rng, 60, lead=6.0), doubtful_problem(rng)
    unlabelled = doubtful_problem(rng, 90, shift=2.0)[0]
    expected = quietly(finecal.estimate_gamma, MASK, train=train, held_out=list(held_out), unlabelled=unlabelled)
    given = {"train": finecal.Samples(*train), "held_out": finecal.Samples(*held_out)}
    given["unlabelled"] = finecal.Samples(unlabelled, np.zeros(90, int))  # labels that nobody looks at
    for _ in range(2):
        assert quietly(finecal.estimate_gamma, MASK, **given) == expected
    seen = held_out[0], given["unlabelled"]
    mixtures = [quietly(finecal.estimators.mixture_gamma, *pair, MASK) for pair in ((held_out[0], unlabelled), seen)]
    assert mixtures[0] == mixtures[1]
    share = [
        quietly(finecal.estimators.known_share_gamma, logits, MASK, 0.4) for logits in (unlabelled, given["unlabelled"])
    ]
    assert share[0] == share[1]


@pytest.mark.parametrize("name", ["average_logit_gap", "max_logit_gap"])
def test_groups_are_resampled_as_a_whole(rng, name):
    """Each resampling is the mean of the samples of the groups that were drawn."""
    logits, labels = doubtful_problem(rng)
    groups = rng.integers(12, size=80)
    samples = finecal.Samples(logits, labels, groups=groups)
    found = quietly(public(name), samples, MASK, n_bootstrap=300, seed=1)
    each = np.array([quietly(public(name), samples[[i]], MASK).gamma for i in range(80)])
    own, draws = np.random.default_rng(0), []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in own.choice(np.unique(groups), 12)])
        draws.append(each[rows].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.interval == pytest.approx((low, high), abs=0.15 * (high - low))
    assert found.gamma == pytest.approx(each.mean(), rel=1e-5)


def test_no_samples():
    empty = finecal.Samples(
        np.zeros((0, 3)), [], features=np.zeros((0, 2)), groups=[], pretrained_logits=np.zeros((0, 3))
    )
    mask = [True, True, False]
    assert (len(empty), empty.groups.tolist(), empty.labels.dtype) == (0, [], np.int64)
    assert len(empty.margins(mask)) == 0
    assert empty.margin(mask).tolist() == []
    empty.check_pretrained()
    assert len(empty[:5]) == len(empty[[]]) == 0
    for call in (finecal.estimators.max_logit_gap, finecal.search_gamma):
        with pytest.raises(ValueError, match=f"^logits are empty .0 samples.; {call.__name__} has nothing to estimate"):
            call(empty, mask)
    with pytest.raises(ValueError, match="^train: logits are empty .0 samples.; estimate_gamma has nothing"):
        finecal.estimate_gamma(mask, train=empty)
    with pytest.raises(ValueError, match="^seen: logits are empty .0 samples.; mixture_gamma has nothing"):
        finecal.estimators.mixture_gamma(empty, np.ones((2, 3)) * 3, mask)


def test_masked_classes_and_groups():
    logits = np.array([[-INF, -INF, 0.0, 1.0], [0.0, 1.0, -INF, -INF], [-INF] * 4, [2.0, 1.0, 0.5, -INF]])
    samples = finecal.Samples(logits, [1, 1, 0, 0], pretrained_logits=logits)
    assert samples.margins([True, True, False, False]).margin.tolist() == [-INF, INF, INF, 1.5]
    assert samples.margin([True, True, False, False]).tolist() == [-INF, INF, INF, 1.5]
    assert samples.pretrained_tensor.tolist() == logits.tolist()


# --- as arguments -----------------------------------------------------------------------------------------------------


def test_labels_come_once(rng):
    samples = finecal.Samples(*doubtful_problem(rng))
    with pytest.raises(TypeError, match="^logits is a Samples, which has its labels; pass no others beside it$"):
        samples_of(samples, samples.labels)
    with pytest.raises(TypeError, match="^logits is a Samples, which has its labels; pass no others beside it$"):
        finecal.evaluate(samples, labels=samples.labels, seen_mask=MASK)
    assert samples_of(samples, None) is samples


def test_arguments_by_name_and_by_position(rng):
    logits, labels = doubtful_problem(rng)
    labels[:20] = 1  # some of an absent class
    samples = finecal.Samples(logits, labels)
    expected = quietly(finecal.evaluate, logits, labels, MASK, 1.5)
    for call in (
        lambda: finecal.evaluate(samples, MASK, 1.5),
        lambda: finecal.evaluate(samples, seen_mask=MASK, gamma=1.5),
        lambda: finecal.evaluate(logits=samples, seen_mask=MASK, gamma=1.5),
        lambda: finecal.evaluate(logits=logits, labels=labels, seen_mask=MASK, gamma=1.5),
        lambda: finecal.evaluate(logits, seen_mask=MASK, labels=labels, gamma=1.5),
    ):
        assert quietly(call) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.ones((3, 4)), "a ndarray"),
        ((np.ones((3, 4)),), "a tuple of 1 items"),
        ("ab", "a str"),
        (3, "a int"),
        ((1, 2, 3), "a tuple of 3 items"),
        ([1, 2, 3, 4], "a list of 4 items"),
    ],
)
def test_pairs_are_asked_for(value, said):
    sentence = (
        rf"^train is {said}; pass a pair, train=\(logits, labels\), or with features or groups train=Samples\(logits, "
        r"labels, features=\.\.\., groups=\.\.\.\)$"
    )
    for call in (finecal.estimate_gamma, finecal.compare_estimators):
        with pytest.raises(TypeError, match=sentence):
            call(MASK, train=value)
    for name in ("labelled", "test"):
        with pytest.raises(TypeError, match=f"^{name} is {said}; pass a pair, {name}="):
            finecal.compare_estimators(MASK, train=(np.ones((3, 7)), [0, 0, 0]), **{name: value})


def test_a_pair_is_scanned_by_its_name(rng):
    logits, labels = seen_problem(rng)
    for pair in ((logits, labels), [logits, labels], finecal.Samples(logits, labels)):
        samples = labelled_samples(pair, "held_out")
        assert samples.name == "held_out"
        assert torch.equal(samples.scan(MASK).margin, scan_labelled(logits, labels, MASK).margin)


def test_errors_are_of_an_argument(rng):
    logits, labels = seen_problem(rng)
    absent = np.where(np.arange(60) == 5, 1, labels)
    for held_out in ((logits, absent), finecal.Samples(logits, absent)):
        with pytest.raises(
            ValueError, match="^held_out: labels contain absent class 1 .1 of 60 samples.; estimate_gam"
        ):
            finecal.estimate_gamma(MASK, train=(logits, labels), held_out=held_out)
    with pytest.raises(ValueError, match="^train: labels have"):
        finecal.estimate_gamma(MASK, train=(logits, labels[:3]))
    with pytest.raises(ValueError, match="^labels have"):
        finecal.Samples(logits, labels[:3])


def test_features_and_groups_come_in_samples_only(rng):
    """Neither features nor groups are guessed from their place."""
    logits, labels = seen_problem(rng)
    for third in (rng.normal(size=(60, 3)), torch.arange(60) // 4, None):
        for call in (finecal.estimate_gamma, finecal.compare_estimators):
            with pytest.raises(TypeError, match="^held_out is a tuple of 3 items; pass a pair"):
                call(MASK, held_out=(logits, labels, third))
    for call in (finecal.estimate_gamma, finecal.compare_estimators):
        with pytest.raises(
            TypeError, match=r"^unlabelled is a tuple of 2 items; pass logits, or Samples\(logits, feat"
        ):
            call(MASK, held_out=(logits, labels), unlabelled=(logits, torch.arange(60)))


@pytest.mark.parametrize("logits", [[[1.0, 2.0], [3.0, 4.0]], np.ones((2, 3)), torch.ones(2, 3)])
def test_unlabelled_samples_are_logits(logits):
    """A list of two is two rows."""
    samples = unlabelled_samples(logits, "unlabelled")
    assert (len(samples), samples.name, samples.labels, samples.features) == (2, "unlabelled", None, None)
    assert unlabelled_samples(finecal.Samples(logits, [0, 1]), "unlabelled").labels.tolist() == [0, 1]
    with pytest.raises(TypeError, match="^unlabelled is a tuple of 2 items"):
        unlabelled_samples((logits, 3), "unlabelled")


def test_fields_are_asked_for(rng):
    samples = finecal.Samples(*seen_problem(rng))
    assert samples_with(samples, "samples", "labels") is samples
    with pytest.raises(
        TypeError, match=r"^reference has no features; pass reference=Samples\(logits, labels, features="
    ):
        samples_with(samples, "reference", "labels", "features")
    with pytest.raises(TypeError, match=r"^samples is a tuple; pass samples=Samples\(logits, labels\)$"):
        samples_with((samples.logits, samples.labels), "samples", "labels")


def test_warnings_point_at_the_caller(rng):
    logits = doubtful_problem(rng)[0]
    scattered = np.array([False, False, False, True, True, True, True])
    samples = finecal.Samples(logits, np.arange(80) % 4)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        samples.margins(scattered)
        finecal.evaluate(samples, scattered)
    assert {warning.filename for warning in record} == {__file__}
    assert sum("re-indexed" in str(warning.message) for warning in record) == 2


# --- what one pass finds ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_ways")
def test_a_sample_on_the_line_stays_seen():
    scan = scan_labelled(np.array([[2.0, 0.0], [3.0, 0.0]]), [0, 0], [True, False])
    assert [scan.acc_seen(gamma) for gamma in (2.0, 2.5, 3.0, 3.5)] == [1.0, 0.5, 0.5, 0.0]


@pytest.mark.usefixtures("both_ways")
def test_rounding_step_is_that_of_the_largest_maximum():
    for value in (0.001, 0.75, 3.0, 1000.0):
        scan = scan_labelled(np.array([[value, -INF], [0.0, -value / 4]], np.float32), [0, 0], [True, False])
        assert scan.rounding_step() == np.spacing(np.float32(value))
    assert scan_labelled(np.zeros((1, 2)), [0], [True, False]).rounding_step() == 0.0
