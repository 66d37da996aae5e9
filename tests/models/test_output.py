import copy
import dataclasses
import pickle
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import finecal
from finecal._models.output import logits_of, with_logits

Named = namedtuple("Named", ["loss", "logits", "features"])
Unnamed = namedtuple("Unnamed", ["loss", "scores"])


@dataclasses.dataclass(frozen=True)
class Record:
    features: Any
    logits: Any


LOGITS = torch.arange(6.0).reshape(2, 3)
LOSS = torch.tensor(0.5)
LOSSES = torch.ones(2)
FEATURES = torch.zeros(2, 4)
INDICES = torch.zeros(2, 3, dtype=torch.int64)
OTHER = LOGITS + 1

OUTPUTS = {
    "tensor": LOGITS,
    "dict": {"loss": LOSS, "logits": LOGITS, "features": FEATURES},
    "ordered": OrderedDict(logits=LOGITS, features=FEATURES),
    "defaults": defaultdict(list, features=FEATURES, logits=LOGITS),
    "user": UserDict(features=FEATURES, logits=LOGITS),
    "named": Named(LOSS, LOGITS, FEATURES),
    "unnamed": Unnamed(LOSS, LOGITS),
    "dataclass": Record(FEATURES, LOGITS),
    "tuple": (LOGITS, FEATURES),
    "loss first": (LOSS, LOGITS, (FEATURES, FEATURES)),
    "losses first": (LOSSES, LOGITS),
    "integers first": (INDICES, LOGITS),
    "list": [LOGITS],
    "out": {"out": LOGITS, "aux": FEATURES},
    "out, ordered": OrderedDict(aux=FEATURES, out=LOGITS),
    "out beside logits": OrderedDict(out=FEATURES, logits=LOGITS),
    "out beside no logits": {"logits": None, "out": LOGITS},
}


def parts(output):
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Record):
        return [output.features, output.logits]
    return list(output.values()) if hasattr(output, "values") else list(output)


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_only_the_logits_are_replaced(output):
    before = parts(output)
    assert logits_of(output) is LOGITS
    changed = with_logits(output, OTHER)
    assert type(changed) is type(output)
    assert logits_of(changed) is OTHER
    assert len(parts(changed)) == len(before)
    assert [a is b for a, b in zip(parts(changed), before, strict=True)].count(False) == 1
    assert all(a is b for a, b in zip(parts(output), before, strict=True))


def test_an_ordered_mapping_keeps_its_order():
    for output in (OUTPUTS["out, ordered"], OUTPUTS["ordered"], OUTPUTS["out beside logits"]):
        assert list(with_logits(output, OTHER)) == list(output)


def test_default_of_a_mapping_is_kept():
    assert with_logits(OUTPUTS["defaults"], OTHER)["missing"] == []


@pytest.mark.parametrize(
    ("output", "described"),
    [
        (None, "a NoneType"),
        (LOGITS.numpy(), "a ndarray"),
        ({"logits": [LOGITS]}, "a dict with the keys ['logits']"),
        ((LOSS, INDICES), "a tuple of ['Tensor', 'Tensor']"),
        ([], "a list of []"),
        (Named(LOSS, None, FEATURES), "a Named of ['Tensor', 'NoneType', 'Tensor']"),
    ],
)
def test_output_without_logits(output, described):
    with pytest.raises(TypeError) as error:
        logits_of(output)
    assert str(error.value).startswith(f"the model returned {described}, in which finecal finds no logits; return ")


@pytest.mark.parametrize(
    "output",
    [
        [{"boxes": FEATURES, "labels": INDICES, "scores": LOSSES}],
        ({"boxes": FEATURES},),
        {"loss_classifier": LOSS, "loss_box_reg": LOSS},
        {"classification": LOSS, "bbox_regression": LOSS},
    ],
)
def test_output_of_a_detector(output):
    with pytest.raises(
        TypeError, match=r"finds no logits; a detector keeps them to itself, so fold .*\.cls_score, for"
    ):
        logits_of(output)


def test_a_mapping_that_is_a_dataclass_too_keeps_its_other_entries():
    @dataclasses.dataclass
    class Both(OrderedDict):
        logits: object = None
        loss: object = None

        def __post_init__(self):
            self.update(logits=self.logits, loss=self.loss)

    new = torch.ones(2, 3)
    out = with_logits(Both(torch.zeros(2, 3), 1.0), new)
    assert type(out) is Both
    assert out["logits"] is out.logits is new
    assert (out["loss"], out.loss) == (1.0, 1.0)


HEADS = {"main": LOGITS, "aux": LOGITS + 5}
Pair = namedtuple("Pair", ["main", "aux"])


@dataclasses.dataclass(frozen=True)
class Heads:
    main: Any
    aux: Any


class Plain:
    def __init__(self, main, aux):
        self.main, self.aux = main, aux


@pytest.mark.parametrize(
    ("output", "where"),
    [
        (HEADS, "main"),
        (UserDict(HEADS), "main"),
        (OrderedDict(HEADS), "main"),
        (Pair(**HEADS), "main"),
        (Heads(**HEADS), "main"),
        (Plain(**HEADS), "main"),
        (HEADS, lambda out: out["main"]),
        (OrderedDict(HEADS), lambda out: out["main"]),
        ((LOGITS + 5, LOGITS), lambda out: out[1]),
        ([{"heads": (LOGITS + 5, LOGITS)}, LOSS], lambda out: out[0]["heads"][1]),
        (Heads(LOGITS, LOGITS), lambda out: out.main),
        (LOGITS, lambda out: out),
    ],
)
def test_the_user_says_where_the_logits_are(output, where):
    before = copy.deepcopy(output)
    assert logits_of(output, where) is LOGITS
    changed = with_logits(output, OTHER, where)
    assert type(changed) is type(output)
    assert logits_of(changed, where) is OTHER
    assert repr(before) == repr(output) or isinstance(output, Plain)
    if where == "main" and not isinstance(output, (UserDict, dict)):
        assert torch.equal(changed.aux, HEADS["aux"])


@pytest.mark.parametrize("where", [lambda out: out[0][:, 0], lambda out: out[0].squeeze(1)])
def test_logits_that_are_a_view_are_put_back(where):
    whole = torch.arange(6.0).reshape(2, 1, 3)
    output = (whole, LOSS)
    changed = with_logits(output, OTHER, where)
    assert torch.equal(changed[0], OTHER[:, None])
    assert changed[1] is LOSS
    assert torch.equal(whole, LOGITS[:, None])
    weight = torch.ones(3, requires_grad=True)
    with_logits((whole * weight, LOSS), OTHER * weight, where)[0].sum().backward()
    assert torch.equal(weight.grad, OTHER.sum(0))
    with torch.inference_mode():
        assert torch.equal(with_logits((whole * 1, LOSS), OTHER, where)[0], OTHER[:, None])


def test_logits_that_are_computed_cannot_be_put_back():
    where = lambda out: (out[0] + out[1]) / 2  # noqa: E731
    assert torch.equal(logits_of((LOGITS, OTHER), where), LOGITS + 0.5)
    with pytest.raises(TypeError, match=r"output= computes the logits .*fold_into_head\(model, calibrator, inputs="):
        with_logits((LOGITS, OTHER), LOGITS, where)


@pytest.mark.parametrize(
    ("output", "where", "message"),
    [
        ((LOGITS.softmax(1), LOGITS), None, r"float32 tensor \(2, 3\).*of the same shape.*output=lambda out: out\[1\]"),
        (
            {"scores": LOGITS, 3: 1},
            None,
            r"keys \['3', 'scores'\].*; say which entry they are: output='scores', for example",
        ),
        (HEADS, None, r"a dict with the keys \['aux', 'main'\].* output='main', for example"),
        (Record(FEATURES, None), None, "a Record, in which .*; say which entry they are: output='features', for"),
        (Heads(**HEADS), None, "output='main', for example"),
        (Plain(**HEADS), None, "output='main', a key or attribute"),
        (HEADS, "maim", r"keys \['aux', 'main'\], in which output='maim' finds a NoneType"),
        ((LOGITS, LOGITS), "main", "output='main' finds a NoneType"),
        ((LOGITS,), lambda out: out[1], r"output= fails on \(float32 tensor \(2, 3\)\).*IndexError"),
        (HEADS, lambda out: out, "function output= finds a dict"),
    ],
)
def test_errors_say_how_to_name_the_logits(output, where, message):
    with pytest.raises(TypeError, match=message):
        logits_of(output, where)


@pytest.mark.parametrize("output", [1, ("main",), nn.Linear, LOGITS])
def test_output_of_another_type(output):
    with pytest.raises(TypeError, match="output is .*'main', or a function"):
        finecal.collect_logits(nn.Linear(4, 3), [torch.zeros(2, 4)], output=output, progress=False)
    with pytest.raises(TypeError, match="output is .*'main', or a function"):
        finecal.fold_into_head(nn.Linear(4, 3), finecal.AdditiveBias([True, True, False], 1.0), output=output)


class TwoOutputs(nn.Module):
    """Returns probabilities, then logits, as YOLO's classifier does."""

    def __init__(self, classes=4):
        super().__init__()
        self.fc = nn.Linear(5, classes)
        nn.init.eye_(self.fc.weight)
        self.fc.bias = nn.Parameter(4.0 * (torch.arange(classes) < 2))

    def forward(self, x):
        logits = self.fc(x)
        return logits.softmax(-1), logits


def second(out):
    return out[1]


MASK = np.array([True, True, False, False])
LABELS = torch.arange(200) % 2
NOISE = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
BATCHES = [(4 * torch.eye(5)[LABELS] + NOISE, LABELS)]


def test_every_function_that_calls_a_model_takes_it():
    model = TwoOutputs()
    with pytest.raises(TypeError, match="of the same shape"):
        finecal.collect_logits(model, BATCHES, progress=False)
    samples = finecal.collect_logits(model, BATCHES, output=second, progress=False)
    assert torch.equal(samples.logits, model.fc(BATCHES[0][0]))
    options = {"is_held_out": True, "seen_mask": MASK, "verbose": False}
    calibrated = finecal.calibrate_model(model, BATCHES, output=second, **options)
    estimate = finecal.estimate_gamma(MASK, held_out=samples)
    assert calibrated.calibrator.estimate == estimate
    probabilities, logits = calibrated(BATCHES[0][0])
    assert torch.equal(logits, finecal.calibrate_logits(samples.logits, MASK, estimate))
    assert torch.equal(probabilities, samples.logits.softmax(-1))
    for again in (copy.deepcopy(calibrated), pickle.loads(pickle.dumps(calibrated))):
        assert torch.equal(again(BATCHES[0][0])[1], logits)
    rows = finecal.streaming.MarginRows(MASK)
    finecal.distributed.collect_sharded(model, BATCHES, into=rows, output=second, progress=False)
    assert torch.equal(rows.compute().margin, samples.margins(MASK).margin)
    before = copy.deepcopy(model)
    nn.init.zeros_(before.fc.bias)
    search = finecal.weights.search_interpolation(
        before, model, BATCHES, alphas=[1.0], output=second, seen_mask=MASK, progress=False
    )
    assert search.gamma == estimate
    with pytest.warns(finecal.FinecalWarning, match="the heads share 2 classes"):
        restored = finecal.restore_head(
            TwoOutputs(2), TwoOutputs(), BATCHES, new_to_old=[0, 1], output=second, verbose=False
        )
    assert restored(BATCHES[0][0])[1].shape == (200, 4)
    with pytest.warns(finecal.FinecalWarning, match="the heads share 2 classes"):
        both = finecal.weights.run_side_by_side(
            TwoOutputs(2), TwoOutputs(), BATCHES, new_to_old=[0, 1], output=second, verbose=False
        )
    new_and_old = [second(part(BATCHES[0][0])) for part in (both.model, both.pretrained)]
    assert torch.equal(both(BATCHES[0][0]), both.head(torch.cat(new_and_old, 1)))
    with pytest.raises(TypeError, match="output is an? int"):
        finecal.weights.SideBySide(both.model, both.pretrained, both.restored, 1)
    folded = calibrated.fold(BATCHES[0][0])
    assert folded is model
    torch.testing.assert_close(folded(BATCHES[0][0])[1], logits)


def test_logits_of_one_row_each_name_output():
    model = nn.Sequential(TwoOutputs().fc, nn.Unflatten(1, (1, 4)))
    with pytest.raises(ValueError, match=r"logits have shape \(200, 1, 4\).*output=lambda out: out\[:, 0\]"):
        finecal.collect_logits(model, BATCHES, progress=False)
    calibrated = finecal.calibrate_model(
        model, BATCHES, output=lambda out: out[:, 0], is_held_out=True, seen_mask=MASK, verbose=False
    )
    x = BATCHES[0][0]
    assert torch.equal(calibrated(x), finecal.calibrate_logits(model(x), MASK, calibrated.calibrator.estimate))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        return {"main": self.fc(x), "aux": -self.fc(x)}


def test_a_key_compiles():
    calibrated = finecal.CalibratedModel(TwoHeads(), finecal.AdditiveBias(MASK, 1.5), output="main")
    x = BATCHES[0][0]
    plain = calibrated.model(x)
    for output in (calibrated(x), torch.compile(calibrated, backend="eager", fullgraph=True)(x)):
        assert torch.equal(output["main"], finecal.calibrate_logits(plain["main"], MASK, 1.5))
        assert torch.equal(output["aux"], plain["aux"])
