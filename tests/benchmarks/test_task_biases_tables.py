import importlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import task_biases
import torch

import finecal

TASKS = torch.tensor([0, 2, 1, 2, 0, 1])
HERE = Path(__file__).parent


@pytest.fixture
def increments(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "runs"))
    module = importlib.import_module("increments")
    monkeypatch.setattr(module, "FIRST", (10, 60, 0.01))
    monkeypatch.setattr(module, "LATER", (10, 30, 0.01))
    return module


@pytest.fixture
def domains(increments):
    """Two domains of the same six clusters of 12 values."""
    rng = np.random.default_rng(0)
    centers = rng.uniform(60, 190, size=(6, 12))

    def samples(count):
        labels = torch.arange(count) % 6
        values = centers[labels] + 10 * rng.normal(size=(count, 12))
        return increments.Samples(torch.from_numpy(values.clip(0, 255).astype(np.uint8)), labels)

    encoder = importlib.import_module("models").PixelEncoder
    return increments.Domains(samples(120), samples(60), 6, lambda: encoder(12))


@pytest.fixture
def model(tmp_path):
    """A model whose tasks were pushed down by 6, 2 and 0, as a file."""
    rng = np.random.default_rng(0)

    def samples(labels):
        logits = rng.normal(size=(len(labels), 6)) + 2.5 * np.eye(6)[labels] - np.array([6, 2, 0])[TASKS]
        return {"logits": logits.astype(np.float32), "labels": labels}

    newest = np.tile([1, 3], 100)
    parts = {"train": newest, "held_out": np.repeat(np.arange(6), 5), "test": np.tile(np.arange(6), 50)}
    arrays = {f"{part}_{name}": a for part, labels in parts.items() for name, a in samples(labels).items()}
    norms = np.array([1, 3, 2, 5, 1, 4], np.float32)
    arrays |= {"task_of_class": TASKS.numpy(), "weight_norm": norms, "bias": np.arange(6, dtype=np.float32)}
    np.savez(tmp_path / "cities_3_plain_after3.npz", **arrays)
    return task_biases.Model.read(tmp_path / "cities_3_plain_after3.npz")


# --- the models -------------------------------------------------------------------------------------------------------


def test_no_sample_is_in_two_parts(increments, domains):
    parts = increments.split(domains, 0)
    rows = [tuple(values) for samples in parts for values in samples.inputs.tolist()]
    assert len(set(rows)) == len(rows) == 180
    for samples, count in zip(parts, (15, 5, 10), strict=True):
        assert samples.labels.bincount().tolist() == [count] * 6


def test_models_of_all_ways(increments, domains):
    found = dict(increments.learned(domains, 3, 1))
    assert list(found) == [f"{way}_after3" for way in increments.WAYS]
    again = dict(increments.learned(domains, 3, 1, ["masked"]))["masked_after3"]
    for name, array in found["masked_after3"].items():
        assert np.array_equal(array, again[name])
    for arrays in found.values():
        tasks = arrays["task_of_class"]
        assert np.bincount(tasks).tolist() == [2, 2, 2]
        assert set(tasks[arrays["train_labels"]]) == {2}
        assert set(arrays["test_labels"]) == set(arrays["held_out_labels"]) == set(range(6))
        newest = tasks[arrays["test_labels"]] == 2
        own = arrays["test_logits"][newest][:, tasks == 2].argmax(1)
        assert (np.flatnonzero(tasks == 2)[own] == arrays["test_labels"][newest]).mean() > 0.9  # it was learned
    right = {way: (a["test_logits"].argmax(1) == a["test_labels"]).mean() for way, a in found.items()}
    assert right["rehearsed_after3"] > right["plain_after3"]


def test_classes_to_come_are_left_out_of_the_files(increments, domains):
    after = {name: arrays["test_logits"].shape[1] for name, arrays in increments.learned(domains, 6, 0, ["plain"])}
    assert after == {"plain_after3": 3, "plain_after6": 6}


# --- methods ----------------------------------------------------------------------------------------------------------


def test_parts_of_a_model(model):
    assert (model.family, model.way) == ("cities", "plain")
    assert model.seen_mask.tolist() == [False, True, False, True, False, False]
    assert model.held_out[1].tolist() == [1] * 5 + [3] * 5
    assert model.exemplars[1].bincount().tolist() == [2] * 6


def test_weight_aligning_scales_products_with_rows_alone(model):
    logits, mask = model.test[0], model.seen_mask
    products = logits - torch.arange(6)
    expected = torch.where(mask, products * (2 / 4), products) + torch.arange(6)  # mean norms: 1, 2, 1, 4 and 3, 5
    torch.testing.assert_close(task_biases.weight_aligned(model), expected)


def test_bias_correction_is_the_best_factor_and_shift(model):
    mask, (logits, labels) = model.seen_mask, model.exemplars
    test = model.test[0].double()
    corrected = task_biases.bias_corrected(model)
    assert torch.equal(corrected[:, ~mask], test[:, ~mask])
    (shift, factor), *_ = torch.linalg.lstsq(
        torch.stack([torch.ones(600), test[:, mask].flatten()], 1).double(), corrected[:, mask].flatten()[:, None]
    )

    def loss(factor, shift):
        changed = torch.where(mask, factor * logits + shift, logits.double())
        return float(torch.nn.functional.cross_entropy(changed, labels))

    best = loss(float(factor), float(shift))
    for change in (-0.01, 0.01):
        assert best < loss(float(factor) + change, float(shift))
        assert best < loss(float(factor), float(shift) + change)


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_gains_are_those_of_the_biases(model):
    found = task_biases.measure(model)
    logits, labels = model.test
    right = (logits + torch.tensor([6.0, 2.0, 0.0])[TASKS]).argmax(1) == labels
    start = 100 * float((logits.argmax(1) == labels).double().mean())
    for name in ("task_biases, training samples", "oracle, a bias a task"):
        assert found[name].accuracy == pytest.approx(100 * float(right.double().mean()), abs=5)
        assert found[name].gain == pytest.approx(found[name].accuracy - start)
    assert found["no bias"].gain == 0
    assert not found["no bias"].warned
    assert found["oracle, one gamma"].accuracy >= found["estimate_gamma, held-out samples"].accuracy
    assert found["task_biases, exemplars"].warned  # four samples of each task


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", [RuntimeWarning, finecal.FinecalWarning])
def test_only_warnings_of_finecal_count(model, monkeypatch, category):
    def method(given):
        warnings.warn("slow", category, stacklevel=1)
        return given.test[0]

    monkeypatch.setattr(task_biases, "METHODS", {"other": method})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert task_biases.measure(model)["other"].warned == (category is finecal.FinecalWarning)


def test_tables_by_hand(model, monkeypatch):
    monkeypatch.setattr(task_biases, "METHODS", dict.fromkeys(["task_biases"]))
    of = [(0.0, False), (-1.5, False), (-4.0, True), (-0.9, True)]
    results = [(model, {"task_biases": task_biases.Found(50 + gain, gain, warned)}) for gain, warned in of]
    assert task_biases.summary(results)[1] == [["task_biases", "48.4", "2", "1", "4.0", "2"]]
    assert task_biases.by(lambda model: model.way, results) == (["", "plain, 4"], [["task_biases", "48.4 (2)"]])
    name = "cities_3_plain_after3"
    assert task_biases.losses(results)[1] == [
        [name, "task_biases", "50.0", "-1.5", ""],
        [name, "task_biases", "50.0", "-4.0", "warned"],
    ]


def test_command(model, tmp_path, capsys):
    task_biases.main([str(tmp_path), "--losses"])
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert "Families that were not looked at: 1 models (cities)" in printed
    assert "Families that were looked at" not in printed
    for method in task_biases.METHODS:
        assert printed.count(f"| {method} |") >= 3
    with pytest.raises(SystemExit):
        task_biases.main([str(tmp_path / "none")])
    assert "no .npz files" in capsys.readouterr().err


# --- the guide --------------------------------------------------------------------------------------------------------


def test_the_plugin_is_that_of_the_guide():
    guide = (HERE.parents[1] / "docs/how-to/class-incremental.md").read_text(encoding="utf-8")
    (plugin,) = re.findall(r"^class TaskBiases.*?(?=^```)", guide, re.DOTALL | re.MULTILINE)
    assert plugin in (HERE / "runs/avalanche_plugin.py").read_text(encoding="utf-8")
