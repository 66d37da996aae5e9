"""Batches of the forms that loaders give, and what is said of those that are not told apart by themselves."""

import numpy as np
import pytest
import torch
from torch import nn

import finecal
from finecal import collect_logits
from finecal._core.warning import without_warnings
from finecal._models.feed import Feed, check_is_network, described, move_to, suggest_batch_function
from finecal.streaming import MarginRows

X = torch.arange(12.0).reshape(2, 6)
Y = torch.tensor([0, 2])
INDEX = torch.tensor([7, 8])
MASK = torch.tensor([True, True, False])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x)


OTHERS = {
    "index and pair": ((INDEX, (X, Y)), lambda b: b[1], "(b[1][0], b[1][1])"),
    "index and list": ([INDEX, [X, Y]], lambda b: b[1], "(b[1][0], b[1][1])"),
    "index first": ((INDEX, X, Y), lambda b: b[1:], "(b[1], b[2])"),
    "path last": ((X, Y, ["a", "b"]), lambda b: b[:2], "(b[0], b[1])"),
    "images and labels": (
        {"images": X, "labels": Y},
        lambda b: (b["images"], b["labels"]),
        "(b['images'], b['labels'])",
    ),
    "img and label": ({"img": X, "label": Y}, lambda b: (b["img"], b["label"]), "(b['img'], b['label'])"),
    "label first": ({"label": Y, "img": X}, lambda b: (b["img"], b["label"]), "(b['img'], b['label'])"),
    "other names": ({"data": X, "cls": Y}, lambda b: ({"x": b["data"]}, b["cls"]), "(b['data'], b['cls'])"),
    "named y": ({"y": Y, "x": X}, lambda b: ({"x": b["x"]}, b["y"]), "(b['x'], b['y'])"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_forms_are_described_and_taken_as_told(name):
    batch, split, example = OTHERS[name]
    model = Model()
    with pytest.raises(TypeError) as caught:
        collect_logits(model, [batch], progress=False)
    assert str(caught.value).endswith(f"say which are the inputs and the labels, as in batch=lambda b: {example}")
    samples = collect_logits(model, [batch, batch], batch=split, progress=False)
    with torch.no_grad():
        assert torch.equal(samples.logits, model(X).repeat(2, 1))
    assert samples.labels.tolist() == Y.tolist() * 2


@pytest.mark.parametrize("name", OTHERS)
def test_the_example_in_the_message_is_right(name):
    batch, _, example = OTHERS[name]
    inputs, labels = eval(f"lambda b: {example}")(batch)
    assert inputs is X
    assert labels is Y


def test_every_loop_over_a_loader_takes_it():
    torch.manual_seed(0)
    before, after = Model(), Model()
    plain = [(torch.randn(40, 6), torch.arange(40) % 2) for _ in range(3)]
    told = [(INDEX, pair) for pair in plain]
    split = lambda b: b[1]  # noqa: E731
    rows = collect_logits(after, told, into=MarginRows(MASK), batch=split, progress=False).compute()
    assert torch.equal(
        rows.margin, collect_logits(after, plain, into=MarginRows(MASK), progress=False).compute().margin
    )
    quiet = {"verbose": False, "is_held_out": True, "seen_mask": MASK}
    with without_warnings():
        expected = finecal.calibrate_model(after, plain, unlabelled_loader=plain, **quiet)
        found = finecal.calibrate_model(after, told, unlabelled_loader=told, batch=split, **quiet)
        assert found.calibrator.gamma == expected.calibrator.gamma
        expected = finecal.weights.search_interpolation(before, after, plain, seen_mask=MASK, progress=False)
        assert (
            finecal.weights.search_interpolation(before, after, told, seen_mask=MASK, batch=split, progress=False)
            == expected
        )


def test_batch_norms_are_measured_on_batches_as_told():
    torch.manual_seed(0)
    before, after = (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)) for _ in range(2))
    after[0].running_mean.fill_(1.0)
    plain = [(torch.randn(8, 6), torch.zeros(8, dtype=torch.long))]
    told = [(INDEX, pair) for pair in plain]
    expected = finecal.weights.interpolate_weights(before, after, 0.5, batch_norm_loader=plain)
    found = finecal.weights.interpolate_weights(before, after, 0.5, batch_norm_loader=told, batch=lambda b: b[1])
    assert torch.equal(found[0].running_mean, expected[0].running_mean)
    assert not torch.equal(found[0].running_mean, torch.full((6,), 0.5))


def test_a_fold_takes_the_inputs_that_batch_returns():
    torch.manual_seed(0)
    model, expected = Model(), Model()
    expected.load_state_dict(model.state_dict())
    plain = [(torch.randn(40, 6), torch.arange(40) % 2)]
    quiet = {"verbose": False, "is_held_out": True, "seen_mask": MASK}
    with without_warnings():
        finecal.calibrate_model(expected, plain, **quiet).fold(plain[0][0])
        finecal.calibrate_model(model, [(INDEX, plain[0])], batch=lambda b: b[1], **quiet).fold(plain[0][0])
    assert torch.equal(model.head.bias, expected.head.bias)


class Picky(nn.Module):
    """Fails in its own way."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x, *others):
        raise self.error


@pytest.mark.parametrize("error", [ValueError, KeyError, torch.cuda.OutOfMemoryError, AttributeError, TypeError])
def test_errors_of_the_model_are_its_own_with_a_note_on_the_batch(error):
    described = {
        "(float32 tensor (2, 6), int64 tensor (2,)); say which": (X, Y),
        "batch=lambda b: (b[1], b[0])": (INDEX, X),
        "a batch is float32 tensor (2, 6); if it holds": X,
        "fold_into_head(layer, calibrator)": ([X], [{"boxes": X, "labels": Y}]),
    }
    for words, batch in described.items():
        with pytest.raises(error, match="my own words") as caught:
            collect_logits(Picky(error("my own words")), [batch], progress=False)
        (note,) = caught.value.__notes__
        assert note.startswith("finecal called Picky with ")
        assert words in note
        assert "batch=" in note or "boxes" in note


@pytest.mark.parametrize("pair", [(X, Y), [X, Y], (X.long(), Y), (X.numpy(), Y.numpy()), (X, Y[:, None])])
def test_one_batch_is_no_loader(pair):
    quiet = {"is_held_out": True, "seen_mask": MASK, "verbose": False}
    with pytest.raises(TypeError, match=r"^loader is one batch, .*pass a list of it, \[\(inputs, labels\)\]"):
        collect_logits(Model(), pair, progress=False)
    with pytest.raises(TypeError, match="^seen_loader is one batch"):
        finecal.calibrate_model(Model(), pair, **quiet)


def test_two_batches_of_inputs_are_a_loader():
    assert len(collect_logits(Model(), [X, X], progress=False)) == 4
    assert len(collect_logits(Model(), (X, X[:1]), progress=False)) == 3


REFUSED = {
    "no function": (3, "batch is a int; pass a function from a batch to"),
    "three": (
        lambda b: b,
        r"batch returned \(int64 tensor \(2,\), float32 tensor \(2, 6\), int64 tensor \(2,\)\); it must",
    ),
    "inputs alone": (lambda b: b[1], r"batch returned float32 tensor \(2, 6\); it must return \(inputs, labels\)"),
}


@pytest.mark.parametrize(("split", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_split_is_refused(split, message):
    with pytest.raises(TypeError, match=message):
        collect_logits(Model(), [(INDEX, X, Y)], batch=split, progress=False)


def test_labels_may_be_none():
    samples = collect_logits(Model(), [(INDEX, X)], batch=lambda b: (b[1], None), progress=False)
    assert samples.logits.shape == (2, 3)
    assert samples.labels is None


def test_what_cannot_be_told_apart_is_described_only():
    assert suggest_batch_function(X) == "a batch is float32 tensor (2, 6)"
    assert suggest_batch_function({"input": np.zeros(2, np.float32)}) == "a batch is {'input': float32 array (2,)}"
    assert suggest_batch_function((INDEX,)) == "a batch is (int64 tensor (2,))"
    assert suggest_batch_function([1] * 9).startswith("a batch is a list of ['int', 'int'")


@pytest.mark.parametrize("labels", [[0, 2], (torch.tensor(0), torch.tensor(2)), np.array([0, 2])])
def test_labels_in_a_list_are_labels(labels):
    assert Feed(Model()).split_batch([X, labels])[1] is labels


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_gets_its_own_dtype(half):
    model = Model().to(half)
    samples = collect_logits(model, [(X, Y)], progress=False)
    with torch.no_grad():
        assert torch.equal(samples.logits, model(X.to(half)))
    assert samples.logits.dtype == half
    assert samples.labels.tolist() == [0, 2]


def test_integers_and_what_is_nested_keep_their_dtype():
    inputs = {"ids": torch.tensor([1]), "mask": torch.tensor([True]), "nested": [X.double(), (X,)]}
    found = move_to(inputs, None, torch.bfloat16)
    assert found["ids"].dtype == torch.int64
    assert found["mask"].dtype == torch.bool
    assert found["nested"][0].dtype == found["nested"][1][0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_models_get_what_the_loader_gives(dtype):
    inputs, _ = Feed(Model().to(dtype)).split_batch((X.half(), Y))
    assert inputs.dtype == torch.float16


def test_models_of_several_dtypes_and_autocast_choose_for_themselves():
    mixed = nn.Sequential(nn.Linear(6, 6).bfloat16(), nn.LayerNorm(6))
    assert Feed(mixed).to_model_device(X).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert Feed(Model().bfloat16()).to_model_device(X).dtype == torch.float32
    assert Feed(nn.Identity()).to_model_device(X).dtype == torch.float32


def test_long_and_labelled_batches_are_described_in_short():
    assert described([("a", "b")] * 350) == f"a list of {['tuple'] * 6} and 344 more"
    batch = {"target": torch.zeros(3, 1), "continuous": torch.zeros(3, 4)}
    assert "batch=lambda b: (b['continuous'], b['target'])" in suggest_batch_function(batch)


def test_a_model_whose_train_trains_is_refused():
    """As `ultralytics.YOLO`, also within another module."""
    kind = type("YOLO", (nn.Module,), {"__module__": "ultralytics.engine.model", "train": None})
    for model in (kind(), nn.Sequential(kind())):
        with pytest.raises(TypeError, match="model is a YOLO of ultralytics.*its attribute `model`"):
            check_is_network(model)
    check_is_network(nn.Sequential(nn.Linear(2, 2)))
