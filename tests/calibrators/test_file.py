import copy
import json
import math
import os
import pickle
import random
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import finecal
from finecal._calibrators.file import _checksum
from public_names import public
from sentences import says

MASK = torch.tensor([True, False, True, False, False])
VALUES = torch.tensor([1.0, 2.5, 0.3, 4.0, 0.7])
NAMES = ["ant", "bée", "cat", 'd"g', "\N{EAGLE}"]
LOGITS = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(80) % 5
ESTIMATE = finecal.GammaEstimate(1 / 3, "by hand", "7 guesses", 7, 0.25, (-math.inf, 0.5), ("doubtful",), math.nan)
AGAIN = "fetch it again, or write it anew with finecal.save(calibrator, path)"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def fitted():
    """Every kind of calibrator, every account of a fit, and sequences in a sequence."""
    return nn.Sequential(
        finecal.NormalizedLogits(VALUES - 2, VALUES),
        finecal.calibrators.fit_group_temperature(LOGITS, LABELS, MASK),
        nn.Sequential(finecal.AdditiveBias(MASK, ESTIMATE), nn.Sequential(finecal.calibrators.ClassBias(VALUES))),
        finecal.calibrators.fit_temperature(LOGITS, LABELS),
        finecal.calibrators.fit_class_bias(LOGITS, LABELS, MASK, shrinkage=0.5),
    )


def accounts(calibrator):
    return [
        (type(part), part.method, repr(getattr(part, "estimate", None)), repr(getattr(part, "report", None)))
        for part in calibrator.modules()
        if not isinstance(part, nn.Sequential)
    ]


def contents(path):
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    return json.loads(metadata["finecal"]), tensors


def write(path, record, tensors, *, signed=True):
    if signed:
        record = {**record, "sha256": _checksum(record, tensors)}
    safetensors.torch.save_file(tensors, path, {"finecal": json.dumps(record)})


# --- there and back ---------------------------------------------------------------------------------------------------


def test_keeps_outputs_accounts_and_names(fitted, dtype):
    finecal.save(fitted, "a.safetensors", class_names=NAMES)
    loaded = finecal.load("a.safetensors")
    assert torch.equal(loaded(LOGITS.to(dtype)), fitted(LOGITS.to(dtype)))
    assert repr(loaded) == repr(fitted)
    assert accounts(loaded) == accounts(fitted)
    assert loaded.class_names == tuple(NAMES)
    assert loaded.state_dict().keys() == fitted.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, fitted.state_dict()[name])
        assert value.dtype == fitted.state_dict()[name].dtype
    assert not any(value.requires_grad for value in loaded.state_dict().values())
    for twin in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert twin.class_names == tuple(NAMES)


@pytest.mark.parametrize("name", ["AdditiveBias", "Temperature", "ClassBias"])
def test_single_calibrators(name):
    arguments = {"AdditiveBias": (MASK, 1.7), "Temperature": (0.3,), "ClassBias": (VALUES,)}[name]
    calibrator = public(name)(*arguments).half()
    finecal.save(calibrator, "a.safetensors")
    loaded = finecal.load("a.safetensors")
    assert type(loaded) is type(calibrator)
    assert (loaded.method, loaded.class_names) == (None, None)
    assert torch.equal(loaded(LOGITS), calibrator(LOGITS))


def test_an_estimate_comes_back_as_it_was():
    estimate = finecal.estimators.max_logit_gap(
        LOGITS[MASK[LABELS]] + 4 * MASK, LABELS[MASK[LABELS]], MASK, n_bootstrap=5
    )
    finecal.save(finecal.AdditiveBias(MASK, estimate), "a.safetensors")
    assert finecal.load("a.safetensors").estimate == estimate


def test_equal_calibrators_give_equal_bytes(fitted):
    finecal.save(fitted, "a.safetensors", class_names=np.array(NAMES))
    finecal.save(finecal.load("a.safetensors"), Path("b.safetensors"))
    assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()
    code = "import finecal; finecal.save(finecal.load('a.safetensors'), 'c.safetensors')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Path("c.safetensors").read_bytes() == Path("a.safetensors").read_bytes()


def test_the_file_says_what_it_is():
    finecal.save(finecal.AdditiveBias(MASK, ESTIMATE), "a.safetensors", class_names=NAMES)
    record, tensors = contents("a.safetensors")
    assert re.fullmatch("[0-9a-f]{64}", record.pop("sha256"))
    assert record == {
        "format": 1,
        "finecal": finecal.__version__,
        "num_classes": 5,
        "class_names": NAMES,
        "calibrator": {
            "kind": "AdditiveBias",
            "method": "by hand",
            "estimate": {
                "gamma": 1 / 3,
                "method": "by hand",
                "data": "7 guesses",
                "n": 7,
                "acc_seen_at_gamma": 0.25,
                "interval": ["-inf", 0.5],
                "warnings": ["doubtful"],
                "acc_seen_at_zero": "nan",
                "seen_share": None,
                "seen_share_source": None,
                "cost_source": None,
                "weights": {},
                "sources": {},
                "min_absent_share": None,
            },
        },
    }
    assert {name: (value.dtype, value.tolist()) for name, value in tensors.items()} == {
        "seen_mask": (torch.bool, MASK.tolist()),
        "gamma": (torch.float32, float(torch.tensor(1 / 3))),
    }


def test_a_module_twice_and_parts_with_names():
    bias = finecal.calibrators.ClassBias(VALUES)
    calibrator = nn.Sequential()
    calibrator.add_module("first", bias)
    calibrator.add_module("second", bias)
    finecal.save(calibrator, "a.safetensors")
    loaded = finecal.load("a.safetensors")
    assert torch.equal(loaded(LOGITS), calibrator(LOGITS))
    assert list(loaded.state_dict()) == ["0.bias", "1.bias"]


def test_loads_on_the_cpu_whatever_the_default(fitted):
    finecal.save(fitted, "a.safetensors")
    with torch.device("meta"):
        loaded = finecal.load("a.safetensors")
    assert torch.equal(loaded(LOGITS), fitted(LOGITS))


def test_saves_from_any_device(device, fitted):
    finecal.save(copy.deepcopy(fitted).to(device), "a.safetensors")
    assert torch.equal(finecal.load("a.safetensors")(LOGITS), fitted(LOGITS))


def test_names_without_classes_to_count():
    finecal.save(finecal.Temperature(2.0), "a.safetensors", class_names=("x", "y"))
    assert finecal.load("a.safetensors").class_names == ("x", "y")


def test_missing_fields_with_a_default_are_filled():
    finecal.save(finecal.AdditiveBias(MASK, ESTIMATE), "a.safetensors")
    record, tensors = contents("a.safetensors")
    for name in (
        "acc_seen_at_zero",
        "seen_share",
        "seen_share_source",
        "cost_source",
        "weights",
        "sources",
        "min_absent_share",
    ):
        del record["calibrator"]["estimate"][name]
    write("a.safetensors", record, tensors)
    estimate = finecal.load("a.safetensors").estimate
    assert (estimate.acc_seen_at_zero, estimate.seen_share, estimate.seen_share_source) == (None, None, None)
    assert (estimate.cost_source, estimate.weights, estimate.sources) == (None, {}, {})


# --- prototypes -------------------------------------------------------------------------------------------------------

FEATURES = torch.randn(80, 3, generator=torch.Generator().manual_seed(1)) + torch.eye(5, 3)[LABELS] * 4


@pytest.fixture
def prototypes():
    samples = finecal.Samples(LOGITS, LABELS, features=FEATURES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        return finecal.calibrators.fit_prototypes(samples, MASK, ESTIMATE, held_out=samples[MASK[LABELS]])


def test_prototypes_come_back_to_the_bit(prototypes, dtype):
    finecal.save(prototypes.half(), "a.safetensors", class_names=NAMES)
    loaded = finecal.load("a.safetensors")
    assert accounts(loaded) == accounts(prototypes)
    assert loaded.report == prototypes.report
    assert loaded.report.warnings
    assert loaded.report.acc_seen_within is not None
    assert repr(loaded) == repr(prototypes)
    for name, value in prototypes.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    arguments = LOGITS.to(dtype), FEATURES.to(dtype)
    assert torch.equal(loaded(*arguments), prototypes(*arguments))
    finecal.save(loaded, "b.safetensors")
    assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()


def test_prototypes_by_hand_have_no_accounts():
    finecal.save(finecal.calibrators.Prototypes(MASK, 1.5, torch.eye(5), VALUES), "a.safetensors")
    loaded = finecal.load("a.safetensors")
    assert (loaded.estimate, loaded.report, loaded.method) == (None, None, None)
    assert set(contents("a.safetensors")[0]["calibrator"]) == {"kind", "method"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": torch.eye(4, 3)}, "weight has 4 entries, but the calibrator is for 5 classes"),
        ({"weight": VALUES}, "weight has shape (5,) and dtype float32; expected (C, D) and float32"),
        ({"center": torch.ones(3).double()}, "center has shape (3,) and dtype float64; expected (D,) and float32"),
        ({"center": torch.ones(4)}, "weight has shape (5, 3) and center (4,); expected (5, D) and (D,): a row for each "
         "class of seen_mask, and a number for each feature"),
        ({"weight": torch.ones(5, 3) / 0}, "weight has values that are not finite in float32; pass finite ones"),
        ({"gamma": torch.tensor(2.0)}, "gamma is 2, but that of its estimate 0.333333; if it was changed on purpose, "
         "set the calibrator's estimate to None"),
    ],
)  # fmt: skip
def test_wrong_prototypes(prototypes, change, sentence):
    finecal.save(prototypes, "a.safetensors")
    record, tensors = contents("a.safetensors")
    write("a.safetensors", record, {**tensors, **change})
    with says(f"a.safetensors: {sentence}; {AGAIN}"):
        finecal.load("a.safetensors")


def test_damaged_prototypes_are_refused(prototypes):
    finecal.save(prototypes, "a.safetensors")
    data, generator = Path("a.safetensors").read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        Path("damaged.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match="^damaged.safetensors"):
            finecal.load("damaged.safetensors")


# --- classes along another dimension ----------------------------------------------------------------------------------


@pytest.fixture
def dense():
    prototypes = finecal.calibrators.Prototypes(MASK, ESTIMATE, torch.outer(VALUES, VALUES), VALUES, dim=1)
    return prototypes, nn.Sequential(
        finecal.NormalizedLogits(VALUES - 2, VALUES, dim=1),
        finecal.calibrators.GroupTemperature(MASK, 2.0, 0.5, dim=-3),
        nn.Sequential(finecal.Temperature(2.0), finecal.AdditiveBias(MASK, ESTIMATE, dim=1)),
        finecal.calibrators.ClassBias(VALUES, dim=1),
    )


def test_dim_comes_back(dense):
    pictures = LOGITS.reshape(2, 8, 5, 5).movedim(-1, 1)
    for calibrator, arguments in zip(dense, [(pictures, pictures), (pictures,)], strict=True):
        finecal.save(calibrator, "a.safetensors")
        loaded = finecal.load("a.safetensors")
        assert repr(loaded) == repr(calibrator)
        assert torch.equal(loaded(*arguments), calibrator(*arguments))
        finecal.save(loaded, "b.safetensors")
        assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()


def test_files_of_calibrators_with_the_classes_last_are_as_before_there_was_dim(fitted):
    finecal.save(fitted, "a.safetensors")
    assert "dim" not in json.dumps(contents("a.safetensors")[0])
    assert {part.dim for part in finecal.load("a.safetensors").modules() if not isinstance(part, nn.Sequential)} == {-1}


@pytest.mark.parametrize(
    ("dim", "sentence"),
    [
        (True, "'dim' in its metadata is True"),
        (1.0, "'dim' in its metadata is 1.0"),
        ("1", "'dim' in its metadata is '1'"),
        (None, "'dim' in its metadata is None"),
        (-65, "dim is -65, but no tensor has so many dimensions; pass the dimension of the classes: -1 for the last, 1 "
         "for (B, C, H, W)"),
    ],
)  # fmt: skip
def test_wrong_dims(dim, sentence):
    finecal.save(finecal.AdditiveBias(MASK, ESTIMATE, dim=1), "a.safetensors")
    record, tensors = contents("a.safetensors")
    assert record["calibrator"]["dim"] == 1
    record["calibrator"]["dim"] = dim
    write("a.safetensors", record, tensors)
    with says(f"a.safetensors: {sentence}; {AGAIN}"):
        finecal.load("a.safetensors")


# --- what save refuses ------------------------------------------------------------------------------------------------


class _Own(finecal.AdditiveBias):
    pass


@pytest.mark.parametrize(
    ("calibrator", "what"),
    [
        (nn.Linear(2, 2), "Linear"),
        (nn.Sequential(nn.Linear(2, 5), finecal.AdditiveBias(MASK, 1.0)), "Linear in part 0"),
        (nn.Sequential(nn.Sequential(finecal.Temperature(1), nn.ReLU())), "ReLU in part 0.1"),
        (nn.Sequential(), "Sequential"),
        (_Own(MASK, 1.0), "_Own"),
        (1.5, "float"),
    ],
)
def test_other_modules(calibrator, what):
    with says(
        f"calibrator is a {what}; save takes AdditiveBias, Temperature, GroupTemperature, NormalizedLogits, "
        "ClassBias, Prototypes and an nn.Sequential of these: pass the calibrator without the model, and save the "
        "model on its own",
        TypeError,
    ):
        finecal.save(calibrator, "a.safetensors")
    assert os.listdir() == []


def test_values_that_could_not_be_loaded():
    def refuses(calibrator, sentence, **names):
        with says(f"calibrator could not be loaded again: {sentence}"):
            finecal.save(calibrator, "a.safetensors", **names)

    changed = finecal.AdditiveBias(MASK, ESTIMATE)
    changed.gamma.fill_(2)
    refuses(
        nn.Sequential(changed),
        "0.gamma is 2, but that of its estimate 0.333333; if it was changed on purpose, set the calibrator's estimate "
        "to None",
    )
    changed.estimate = None
    finecal.save(changed, "b.safetensors")
    assert finecal.load("b.safetensors").method == "by hand"
    changed.gamma.fill_(math.nan)
    refuses(changed, "gamma is nan; it must be finite")
    changed.seen_mask.fill_(True)
    refuses(
        changed,
        "seen_mask has no absent class: all 5 are seen, so there is nothing to calibrate (if the head was made for the "
        "fine-tuned classes alone, the rows of the others are gone: finecal.restore_head brings them back with the "
        "pre-trained model; better still, fine-tune its head with the full list of classes)",
    )
    wide = finecal.Temperature(2.0)
    wide.temperature = wide.temperature.double()
    refuses(wide, "temperature has shape () and dtype float64; expected () and float32")
    mixed = nn.Sequential(finecal.AdditiveBias(MASK, 1.0), finecal.calibrators.ClassBias([1.0, 2.0]))
    refuses(mixed, "1.bias has 2 entries, but the calibrator is for 5 classes")
    few = "there are 4 class names for 5 classes; give one per class, in order"
    refuses(finecal.calibrators.ClassBias(VALUES), few, class_names=NAMES[:4])
    with says("seen_mask is on the meta device and has no values; load the calibrator's state"):
        finecal.save(finecal.AdditiveBias(MASK, 1.0).to("meta"), "a.safetensors")
    for names, what in (
        ("abcde", "is a str"),
        ([1, 2, 3, 4, 5], "are not all texts: one is a int"),
        (set("abcde"), "is a set, which has no order"),
    ):
        with pytest.raises(TypeError, match=f"^class_names {what}[;,] "):
            finecal.save(changed, "a.safetensors", class_names=names)
    assert os.listdir() == ["b.safetensors"]


def test_wrong_destinations(fitted):
    with says("a.pt cannot be written: choose a name that ends with .safetensors"):
        finecal.save(fitted, "a.pt")
    with pytest.raises(FileNotFoundError, match="there is no folder missing; make it first"):
        finecal.save(fitted, "missing/a.safetensors")


def test_a_failed_save_leaves_the_old_file(fitted, monkeypatch):
    finecal.save(fitted, "a.safetensors")
    before = Path("a.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="a.safetensors cannot be written: disk full; nothing was changed"):
            finecal.save(finecal.Temperature(2.0), "a.safetensors")
    assert os.listdir() == ["a.safetensors"]
    assert Path("a.safetensors").read_bytes() == before


def test_without_safetensors(fitted, monkeypatch):
    finecal.save(fitted, "a.safetensors")
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'finecal\[io\]'"):
        finecal.save(fitted, "b.safetensors")
    with pytest.raises(ImportError, match=r"pip install 'finecal\[io\]'"):
        finecal.load("a.safetensors")


# --- what load refuses ------------------------------------------------------------------------------------------------


def test_truncated_files(fitted):
    finecal.save(fitted, "a.safetensors")
    data = Path("a.safetensors").read_bytes()
    for length in (0, 5, 8, 9, len(data) // 2, len(data) - 1):
        Path("cut.safetensors").write_bytes(data[:length])
        with says(f"cut.safetensors is truncated or no .safetensors file; {AGAIN}"):
            finecal.load("cut.safetensors")


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("protocol", [None, 2, 5])
def test_a_renamed_pickle_is_not_read(protocol):
    if protocol is None:
        torch.save(_Bomb(), "a.safetensors")
    else:
        Path("a.safetensors").write_bytes(pickle.dumps(_Bomb(), protocol))
    with says(
        "a.safetensors is a pickle, as torch.save writes it, and no safetensors file; to read it could run any code, "
        "so finecal does not: load it by torch.load where you trust it, and write it anew with "
        "finecal.save(calibrator, path)"
    ):
        finecal.load("a.safetensors")
    assert os.listdir() == ["a.safetensors"]


def test_a_header_that_starts_like_a_pickle_is_none():
    """The length of the header comes first: one of 128 bytes modulo 256 starts with the 0x80 of pickles."""
    starts = set()
    for length in range(0, 512, 8):
        finecal.save(finecal.Temperature(2.0), "a.safetensors", class_names=["x" * length, "y"])
        finecal.load("a.safetensors")
        starts.add(Path("a.safetensors").read_bytes()[0])
    assert 0x80 in starts


def test_other_safetensors_files():
    safetensors.torch.save_file({f"layer.{n}": VALUES + n for n in range(5)}, "model.safetensors", {"format": "pt"})
    with says(
        "model.safetensors is a safetensors file, but of no calibrator (it holds 'layer.0', 'layer.1', 'layer.2', "
        "...); give one that finecal.save wrote"
    ):
        finecal.load("model.safetensors")
    safetensors.torch.save_file({}, "empty.safetensors")
    with pytest.raises(ValueError, match="of no calibrator \\(it holds nothing\\)"):
        finecal.load("empty.safetensors")


def test_newer_formats_whatever_else_is_in_them():
    record = {"format": 2, "finecal": "3.1.4", "parts": "elsewhere"}
    write("a.safetensors", record, {"unknown": VALUES}, signed=False)
    with says(
        "a.safetensors was written by finecal 3.1.4 in format 2, but this finecal reads formats up to 1; update it: "
        "pip install --upgrade finecal"
    ):
        finecal.load("a.safetensors")


def part(record):
    return record["calibrator"]["parts"][1]


def replaced(name, value):
    return lambda record, tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (replaced("1.seen_mask", MASK[:4]), "1.seen_mask has 4 entries, but the calibrator is for 5 classes"),
        (replaced("0.bias", VALUES.repeat(2)), "0.bias has 10 entries, but the calibrator is for 5 classes"),
        (replaced("1.seen_mask", VALUES), "1.seen_mask has shape (5,) and dtype float32; expected (C,) and bool"),
        (replaced("1.gamma", VALUES), "1.gamma has shape (5,) and dtype float32; expected () and float32"),
        (replaced("0.bias", VALUES.half()), "0.bias has shape (5,) and dtype float16; expected (C,) and float32"),
        (replaced("1.gamma", torch.tensor(math.nan)), "gamma is nan; it must be finite"),
        (replaced("1.gamma", torch.tensor(2.0)), "1.gamma is 2, but that of its estimate 0.333333; if it "
         "was changed on purpose, set the calibrator's estimate to None"),
        (replaced("0.bias", VALUES / 0), "bias is inf for class 0 (5 of 5 classes); it must be finite in float32"),
        (replaced("1.seen_mask", ~MASK & MASK), "seen_mask has no seen class among 5; mark the classes of the "
         "fine-tuning data as True"),
        (replaced("1.seen_mask", torch.tensor([0, 1, 2, 0, 0], dtype=torch.uint8).view(torch.bool)),
         "1.seen_mask holds bytes that are neither False nor True"),
        (replaced("2.bias", VALUES), "it holds '2.bias', which belongs to no part of the calibrator"),
        (lambda record, tensors: tensors.pop("1.gamma"), "it lacks '1.gamma'"),
        (lambda record, tensors: part(record).update(kind="Linear"), "the calibrator is of the unknown kind 'Linear' "
         "(known: AdditiveBias, Temperature, GroupTemperature, NormalizedLogits, ClassBias, Prototypes)"),
        (lambda record, tensors: part(record).update(kind=["AdditiveBias"]),
         "'kind' in its metadata is ['AdditiveBias']"),
        (lambda record, tensors: part(record).pop("method"), "its metadata lacks the entry 'method'"),
        (lambda record, tensors: part(record)["estimate"].update(n=True), "'n' in its metadata is True"),
        (lambda record, tensors: part(record)["estimate"].update(interval=[1.0]),
         "'interval' in its metadata is [1.0]"),
        (lambda record, tensors: part(record)["estimate"].pop("n"), "estimate has the entries ['acc_seen_at_gamma', "
         "'acc_seen_at_zero', 'cost_source', 'data', 'gamma', 'interval', 'method', "
         "'min_absent_share', 'seen_share', 'seen_share_source', 'sources', 'warnings', 'weights']; expected "
         "['acc_seen_at_gamma', 'acc_seen_at_zero', 'cost_source', 'data', 'gamma', 'interval', 'method', "
         "'min_absent_share', 'n', 'seen_share', 'seen_share_source', 'sources', 'warnings', 'weights']"),
        (lambda record, tensors: record.update(class_names=["a"]), "there are 1 class names for 5 classes; give one "
         "per class, in order"),
        (lambda record, tensors: record.update(class_names=[1] * 5), "'class_names' in its metadata is "
         "[1, 1, 1, 1, 1]"),
        (lambda record, tensors: record.update(calibrator=None), "'calibrator' in its metadata is None"),
        (lambda record, tensors: record.update(format="1"), "'format' in its metadata is '1'"),
    ],
)  # fmt: skip
def test_wrong_contents(change, sentence):
    finecal.save(
        nn.Sequential(finecal.calibrators.ClassBias(VALUES), finecal.AdditiveBias(MASK, ESTIMATE)), "a.safetensors"
    )
    record, tensors = contents("a.safetensors")
    change(record, tensors)
    write("a.safetensors", record, tensors)
    with says(f"a.safetensors: {sentence}; {AGAIN}"):
        finecal.load("a.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"format": 1' + "1" * 5000 + "}"])
def test_metadata_that_is_no_record(text):
    safetensors.torch.save_file({"gamma": VALUES}, "a.safetensors", {"finecal": text})
    with pytest.raises(ValueError, match="^a.safetensors: .*; fetch it again"):
        finecal.load("a.safetensors")


def test_sequences_in_sequences_without_end():
    record = {"kind": "Temperature", "method": None}
    for _ in range(400):
        record = {"kind": "Sequential", "parts": [record]}
    record = {"format": 1, "finecal": "0", "num_classes": None, "class_names": None, "calibrator": record, "sha256": ""}
    write("a.safetensors", record, {"0." * 400 + "temperature": torch.tensor(2.0)}, signed=False)
    with pytest.raises(ValueError, match="^a.safetensors: .*; fetch it again"):
        finecal.load("a.safetensors")


def test_paths_that_cannot_be_read():
    with says("missing.safetensors does not exist; check the name", FileNotFoundError):
        finecal.load("missing.safetensors")
    with says(". is a directory; give a file in it", IsADirectoryError):
        finecal.load(".")


def test_damaged_files_give_an_error_or_what_was_saved(fitted):
    finecal.save(fitted, "a.safetensors", class_names=NAMES)
    data, generator = Path("a.safetensors").read_bytes(), random.Random(0)
    expected = repr([fitted(LOGITS).tolist(), NAMES, accounts(fitted)])
    damages = {
        "bit": lambda d, k: d[:k] + bytes([d[k] ^ 1 << generator.randrange(8)]) + d[k + 1 :],
        "byte": lambda d, k: d[:k] + generator.randbytes(1) + d[k + 1 :],
        "end": lambda d, k: d[:k],
        "hole": lambda d, k: d[:k] + d[k + generator.randrange(1, 30) :],
    }
    messages = []
    for number in range(400):
        damage = damages[list(damages)[number % len(damages)]]
        Path("damaged.safetensors").write_bytes(damage(data, generator.randrange(len(data))))
        try:
            loaded = finecal.load("damaged.safetensors")
        except ValueError as error:
            messages.append(str(error))
        else:
            assert repr([loaded(LOGITS).tolist(), list(loaded.class_names), accounts(loaded)]) == expected
    assert len(messages) > 390
    assert all(message.startswith("damaged.safetensors") for message in messages)


def test_every_bit_of_the_numbers_is_checked():
    finecal.save(finecal.AdditiveBias(MASK, 1.7), "a.safetensors")
    data = Path("a.safetensors").read_bytes()
    for position in range(len(data) - 9, len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            Path("damaged.safetensors").write_bytes(damaged)
            with pytest.raises(ValueError, match="^damaged.safetensors: "):
                finecal.load("damaged.safetensors")


def test_another_spelling_of_the_same_number_is_damage():
    finecal.save(finecal.AdditiveBias(MASK, ESTIMATE), "a.safetensors")
    with safetensors.safe_open("a.safetensors", framework="pt") as file:
        text = file.metadata()["finecal"]
    other = text.replace("0.3333333333333333,", "0.33333333333333331,")
    assert other != text
    assert json.loads(other) == json.loads(text)
    safetensors.torch.save_file(contents("a.safetensors")[1], "a.safetensors", {"finecal": other})
    with says(f"a.safetensors: its content does not match its checksum, so it was damaged or edited; {AGAIN}"):
        finecal.load("a.safetensors")


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def page():
    return (Path(__file__).parents[2] / "docs" / "how-to" / "saving.md").read_text(encoding="utf-8")


def test_python_on_saving_runs(page, monkeypatch, capsys):
    hub = types.ModuleType("huggingface_hub")
    uploads = []
    hub.upload_file = lambda **arguments: uploads.append(arguments)
    hub.hf_hub_download = lambda repo_id, filename: filename
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    seen = MASK[LABELS]
    model = nn.Linear(5, 5)
    names = {
        "seen_mask": MASK,
        "held_out_logits": LOGITS[seen] + 4 * MASK,
        "held_out_labels": LABELS[seen],
        "class_names": NAMES,
        "model": model,
    }
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        if "pipeline" not in block:  # tests/integrations runs it
            exec(block, names)
    assert torch.equal(names["calibrated"](LOGITS), names["calibrator"](model(LOGITS)))
    assert "max_logit_gap" in capsys.readouterr().out
    assert [upload["path_or_fileobj"] for upload in uploads] == ["finecal.safetensors"]
    finecal.fold_into_head(model, names["calibrator"])
    loaded = nn.Linear(5, 5)
    loaded.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="folded"):
        finecal.CalibratedModel(model, names["calibrator"])
    with pytest.warns(finecal.FinecalWarning, match="looks as if"):
        finecal.CalibratedModel(loaded, names["calibrator"])


# --- nothing by halves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, -1])
def test_formats_that_never_were(version):
    finecal.save(finecal.Temperature(2.0), "a.safetensors")
    record, tensors = contents("a.safetensors")
    write("a.safetensors", {**record, "format": version}, tensors)
    with says(f"a.safetensors: its format is {version}, but the first one was 1; {AGAIN}"):
        finecal.load("a.safetensors")


def test_an_empty_sequence():
    finecal.save(nn.Sequential(finecal.Temperature(2.0)), "a.safetensors")
    record, tensors = contents("a.safetensors")
    record["calibrator"]["parts"].append({"kind": "Sequential", "parts": []})
    write("a.safetensors", record, tensors)
    with says(f"a.safetensors: a Sequential in it holds no calibrator; {AGAIN}"):
        finecal.load("a.safetensors")


def test_an_entry_twice():
    finecal.save(finecal.Temperature(2.0), "a.safetensors")
    record, tensors = contents("a.safetensors")
    text = json.dumps({**record, "sha256": _checksum(record, tensors)})
    safetensors.torch.save_file(tensors, "a.safetensors", {"finecal": text[:-1] + ', "format": 1}'})
    with says(f"a.safetensors: it has the entry 'format' more than once; {AGAIN}"):
        finecal.load("a.safetensors")
