"""A model whose head was replaced gets a head of all classes."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import finecal
from finecal._calibrators import head_map

OLD, WIDTH = 6, 12
NEW_TO_OLD = [4, 1, -1]
pytestmark = pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")  # what is expected of made-up models


class Model(nn.Module):
    """With a body, a head of any number of classes, and a count of these."""

    def __init__(self, num_classes, names=None):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh())
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, num_classes)
        if names is not None:
            self.config = SimpleNamespace(id2label=dict(enumerate(names)), label2id={})

    def forward(self, x, scale=1.0):
        return {"logits": self.head(self.dropout(self.body(x))), "features": scale}


@pytest.fixture
def models():
    torch.manual_seed(0)
    pretrained, model = Model(OLD), Model(3)
    model.body = copy.deepcopy(pretrained.body)
    with torch.no_grad():
        model.head.weight[:2] = 3 * pretrained.head.weight[[4, 1]]
        model.head.bias[:2] = 3 * pretrained.head.bias[[4, 1]]
    return model, pretrained


@pytest.fixture
def batches(models):
    """Labelled samples of the fine-tuned classes."""
    x = 3 * torch.randn(600, 5)
    with torch.no_grad():
        labels = models[0].eval()(x)["logits"].argmax(1)
    return [(x[:250], labels[:250]), (x[250:], labels[250:])]


def restore(models, batches, **others):
    model, pretrained = copy.deepcopy(models)
    return finecal.restore_head(model, pretrained, batches, **{"new_to_old": NEW_TO_OLD, "verbose": False, **others})


def test_logits_are_those_of_both_heads(models, batches):
    model, pretrained = models
    restored = restore(models, batches)
    x = torch.randn(50, 5)
    with torch.no_grad():
        logits, new, old = (each.eval()(x)["logits"] for each in (restored, model, pretrained))
    gamma = restored.head.finecal_restored["estimate"]["gamma"]
    torch.testing.assert_close(logits[:, [4, 1, 6]], new)
    absent = [0, 2, 3, 5]
    torch.testing.assert_close(logits[:, absent], 3 * old[:, absent] + gamma, rtol=1e-2, atol=1e-2)
    assert isinstance(restored, Model)
    assert restored.num_classes == restored.head.out_features == 7


def test_model_is_changed_in_place_and_modes_stay(models, batches):
    model, pretrained = models
    model.train()
    pretrained.train()
    before = copy.deepcopy(pretrained.state_dict())
    body = copy.deepcopy(model.body.state_dict())
    assert finecal.restore_head(model, pretrained, batches, new_to_old=NEW_TO_OLD, verbose=False) is model
    assert all(module.training for module in [*model.modules(), *pretrained.modules()])
    assert all(torch.equal(value, before[name]) for name, value in pretrained.state_dict().items())
    assert all(torch.equal(value, body[name]) for name, value in model.body.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_batches_make_no_difference(models, batches):
    one = [tuple(map(torch.cat, zip(*batches, strict=True)))]
    first, second = restore(models, batches).head, restore(models, one).head
    torch.testing.assert_close(first.weight, second.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.bias, second.bias, rtol=1e-4, atol=1e-4)


def from_samples(models, batches):
    """What `fit_restored_head` gives for the same samples."""
    model, pretrained = models
    samples = finecal.collect_logits(model, batches, with_features=True, progress=False)
    old = finecal.collect_logits(pretrained, batches, progress=False)
    both = finecal.Samples(samples.logits, samples.labels, features=samples.features, pretrained_logits=old.logits)
    return finecal.weights.fit_restored_head(
        both,
        model.head.weight,
        model.head.bias,
        new_to_old=NEW_TO_OLD,
        old_weight=pretrained.head.weight,
    )


def test_it_is_what_samples_give(models, batches):
    head, found = restore(models, batches).head, from_samples(models, batches)
    assert torch.equal(head.weight, found.weight.float())
    assert torch.equal(head.bias, found.bias.float())


def test_many_samples_are_added_up_and_few_are_kept(models, batches, monkeypatch):
    """The map is that of all samples; gamma is told from so many that are drawn, whatever the batches."""
    every = restore(models, batches).head
    monkeypatch.setattr(head_map, "_LEAST_KEPT", 128)
    monkeypatch.setattr("finecal._models.restore._BLOCK", 50)
    kept = []
    add = head_map.DrawnRows.add
    monkeypatch.setattr(head_map.DrawnRows, "add", lambda own, *given: (add(own, *given), kept.append(own.columns)))
    x, labels = map(torch.cat, zip(*batches, strict=True))
    few = restore(models, list(zip(x.split(7), labels.split(7), strict=True))).head
    assert len(kept) == 11
    assert [len(columns[0]) for columns in kept] == [56, 112, *[128] * 9]
    whole = from_samples(models, batches)
    for other in (restore(models, batches).head, whole):
        torch.testing.assert_close(few.weight, other.weight.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(few.bias, other.bias.float(), rtol=1e-4, atol=1e-4)
    records = [head.finecal_restored for head in (every, few)]
    assert records[1]["estimate"]["n"] <= 128 < records[0]["estimate"]["n"]
    assert records[0]["explained"] == pytest.approx(records[1]["explained"])
    shape = [head.weight[[0, 3, 5]] - head.weight[2] for head in (every, few)]  # but for the level
    torch.testing.assert_close(shape[1] / shape[1].norm(), shape[0] / shape[0].norm(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("with_prototypes", [False, True])
def test_unlabelled_samples_come_in_blocks(models, batches, monkeypatch, with_prototypes):
    options = {"unlabelled_loader": [x for x, _ in batches], "with_prototypes": with_prototypes}
    expected = restore(models, batches, **options).head
    monkeypatch.setattr("finecal._models.restore._BLOCK", 50)
    found = restore(models, batches, **options).head
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-4, atol=1e-4)


def test_labels_are_missing_from_later_blocks(models, batches, monkeypatch):
    monkeypatch.setattr("finecal._models.restore._BLOCK", len(batches[0][0]))
    with pytest.raises(ValueError, match="some batches have labels and some have none"):
        restore(models, [*batches, batches[0][0]])


def test_names_say_which_class_is_which(models, batches):
    new, old = ["e", "b", "own"], list("abcdef")
    expected = restore(models, batches)
    by_names = restore(models, batches, new_to_old=(new, old))
    assert torch.equal(by_names.head.weight, expected.head.weight)
    for model, names in zip(models, (new, old), strict=True):
        model.config = SimpleNamespace(id2label=dict(enumerate(names)), label2id={})
    by_config = restore(models, batches, new_to_old=None)
    assert torch.equal(by_config.head.weight, expected.head.weight)
    assert by_config.config.id2label == dict(enumerate([*old, "own"]))
    assert by_config.config.label2id["own"] == 6


def test_names_and_counts_of_yolo(models, batches):
    model, pretrained = models
    pretrained.names = dict(enumerate("abcdef"))
    model.names, model.yaml, model.nc = {0: "e", 1: "b", 2: "new"}, {"nc": 3, "depth": 3}, 3
    restored = restore(models, batches, new_to_old=None)
    assert restored.names == dict(enumerate([*"abcdef", "new"]))
    assert (restored.yaml, restored.nc) == ({"nc": 7, "depth": 3}, 7)
    model.names = ["e", "b", "new"]  # another attribute of this name
    with pytest.raises(ValueError, match="new_to_old is missing, and model has no class names"):
        restore(models, batches, new_to_old=None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_and_devices(models, batches, dtype, device):
    model, pretrained = (each.to(device, dtype) for each in models)
    batches = [(x.to(dtype), labels) for x, labels in batches]
    restored = finecal.restore_head(model, pretrained, batches, new_to_old=NEW_TO_OLD, verbose=False)
    assert restored.head.weight.dtype == dtype
    assert restored.head.weight.device.type == torch.device(device).type
    x = torch.randn(8, 5, device=device, dtype=dtype)
    assert restored(x)["logits"].shape == (8, 7)


def test_a_head_without_bias_gets_one(models, batches):
    models[0].head = nn.Linear(WIDTH, 3, bias=False)
    assert restore(models, batches).head.bias.shape == (7,)


def test_prints_what_it_did(models, batches, capsys):
    restore(models, batches, verbose=True)
    said = capsys.readouterr().err
    assert "head of 7 classes restored: 3 fine-tuned, 4 from the old head" in said
    assert "gamma = " in said


def test_calibrate_model_takes_the_result(models, batches):
    restored = restore(models, batches)
    places = torch.tensor([4, 1, 6])
    loader = [(x, places[labels]) for x, labels in batches]
    mask = torch.zeros(7, dtype=torch.bool)
    mask[places] = True
    calibrated = finecal.calibrate_model(restored, loader, is_held_out=False, seen_mask=mask, verbose=False)
    assert isinstance(calibrated, finecal.CalibratedModel)


def scaled_behind(model):
    class Scaled(Model):
        def forward(self, x, scale=1.0):
            return {"logits": 30 * super().forward(x)["logits"]}

    model.__class__ = Scaled
    return {}


def folded(model):
    finecal.fold_into_head(model.head, finecal.AdditiveBias([True, True, False], 1.0))
    return {}


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (scaled_behind, ValueError, "scaled, negated or normalised behind it"),
        (folded, ValueError, "a calibrator is folded into the model's head already"),
        (lambda _: {"new_to_old": None}, ValueError, "model has no class names in config.id2label"),
        (lambda _: {"new_to_old": (["a"], ["b"])}, ValueError, "there are 1 names of new classes"),
        (
            lambda _: {"new_to_old": (list("xyz"), list("abcdef"))},
            ValueError,
            "no new class has the name of an old one",
        ),
        (
            lambda _: {"new_to_old": (list("abz"), list("abcde"))},
            ValueError,
            "5 names of old classes, but pretrained has 6",
        ),
        (lambda _: {"new_to_old": [0, 1]}, ValueError, "new_to_old has shape (2,), but the new head has 3 rows"),
        (lambda _: {"unlabelled_loader": 3}, TypeError, "unlabelled_loader is a int"),
        (lambda _: {"verbose": "no"}, TypeError, "verbose"),
        (lambda _: {"with_prototypes": True}, ValueError, "prototypes are made of unlabelled samples"),
    ],
)
def test_refuses(models, batches, change, error, sentence):
    others = change(models[0])
    with pytest.raises(error, match=re.escape(sentence)):
        restore(models, batches, **others)


def test_refuses_what_is_no_model(models, batches):
    with pytest.raises(TypeError, match="pretrained is a dict"):
        finecal.restore_head(models[0], {}, batches, new_to_old=NEW_TO_OLD)
    with pytest.raises(ValueError, match="pretrained is model itself"):
        finecal.restore_head(models[0], models[0], batches, new_to_old=NEW_TO_OLD)


def test_refuses_names_that_two_old_classes_have():
    """As "crane" in ImageNet."""
    pretrained, model = Model(4, ["crane", "heron", "crane", "stork"]), Model(2, ["crane", "stork"])
    with pytest.raises(ValueError, match="2 old classes have the name 'crane'; pass new_to_old as indices"):
        finecal.restore_head(model, pretrained, [(torch.randn(9, 5), torch.arange(9) % 2)], verbose=False)
