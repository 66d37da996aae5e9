"""The Python of the guides to other libraries runs, each page from its first block to its last, and calibrates."""

import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import pil_to_tensor
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

import finecal
from finecal.integrations.onnx import OnnxModel
from pages import blocks

CLASSES, SEEN = 6, 3
MASK = torch.arange(CLASSES) < SEEN
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def pages_of(name):
    return blocks(f"docs/how-to/{name}.md", "python")


def run(page, names):
    for block in page:
        exec(block, names)
    return names


# --- texts ------------------------------------------------------------------------------------------------------------


def texts(n, num_classes, seed=0):
    """The class is the first token."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % num_classes
    tokens = torch.randint(0, CLASSES, (n, 8), generator=generator)
    tokens[:, :2] = labels[:, None]
    return [{"input_ids": row + 1, "labels": label} for row, label in zip(tokens, labels, strict=True)]


@pytest.fixture
def text_names():
    """What the pages on Hugging Face take for granted: a model that knows all classes, the seen ones too loud."""
    config = DistilBertConfig(
        vocab_size=CLASSES + 1, dim=16, hidden_dim=32, n_layers=1, n_heads=2, max_position_embeddings=8, num_labels=6
    )
    model = AutoModelForSequenceClassification.from_config(config)
    source = texts(600, CLASSES, seed=9)
    inputs, labels = (torch.stack([sample[key] for sample in source]) for key in ("input_ids", "labels"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.classifier.bias[MASK] += 15.0
    model.save_pretrained("pretrained")
    splits = {"train": SEEN, "valid": CLASSES, "test": CLASSES}
    return {f"{name}_set": texts(60, n, seed) for seed, (name, n) in enumerate(splits.items())}


def logits_of_texts(model, data):
    with torch.no_grad():
        return model.eval()(input_ids=torch.stack([sample["input_ids"] for sample in data])).logits


def test_hugging_face(text_names, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folding, loading, augmenting, testing, choosing, *others = pages_of("hugging-face")
    putting_together, wrapping, measuring = others[:3]
    names = run([folding, loading, testing], text_names)
    run([augmenting], {**names})
    logged = names["trainer"].state.log_history[-1]
    report = finecal.evaluate(names["test"], MASK)
    assert report.acc_seen == logged["eval_acc_seen_calibrated"]
    assert report.acc_absent == logged["eval_acc_absent_calibrated"]
    assert report.acc_absent > logged["eval_acc_absent"] + 0.1
    assert str(report) in capsys.readouterr().out

    run([choosing, putting_together], names)
    best = names["trainer"].state.best_metric
    test = names["valid_set"]
    labels = torch.stack([sample["labels"] for sample in test])
    assert finecal.evaluate(logits_of_texts(names["calibrated"], test), labels, MASK).acc_all == pytest.approx(best)

    run([wrapping], names)
    loaded = AutoModelForSequenceClassification.from_pretrained("wrapped")
    again = finecal.CalibratedModel(loaded, finecal.load("wrapped/finecal.safetensors"))
    torch.testing.assert_close(logits_of_texts(again, test), logits_of_texts(names["calibrated"], test))

    run([measuring], names)
    values = names["trainer"].evaluate()
    logits = logits_of_texts(names["model"], names["test_set"])
    report = finecal.evaluate(logits, names["test"].labels, MASK, names["best"].estimate)
    assert values["eval_acc_all"] == pytest.approx(report.acc_all)
    assert values["eval_ausuc"] == pytest.approx(report.ausuc)


def test_peft(text_names):
    preparing, _, _, testing, *_, folding, merging, freezing, loading, merging_frozen = pages_of("hugging-face")
    names = run([preparing.partition("arguments =")[0], folding, merging], text_names)
    base = AutoModelForSequenceClassification.from_pretrained("pretrained")
    restored = names["PeftModel"].from_pretrained(base, "adapter")
    test = names["test_set"]
    torch.testing.assert_close(logits_of_texts(restored, test), logits_of_texts(names["model"], test))
    names["loaded"] = AutoModelForSequenceClassification.from_pretrained("merged")
    run([testing], names)
    logged = names["trainer"].state.log_history[-1]
    report = finecal.evaluate(names["test"], MASK)
    assert report.acc_absent == logged["eval_acc_absent_calibrated"]
    assert report.acc_absent > logged["eval_acc_absent"] + 0.1
    torch.testing.assert_close(names["test"].logits, logits_of_texts(names["model"], test), rtol=1e-4, atol=1e-5)

    run([freezing], names)
    expected = logits_of_texts(names["calibrated"], test)
    with pytest.raises(ValueError, match="would not save the bias"):
        finecal.fold_into_head(names["model"], names["calibrated"].calibrator)
    run([loading], names)
    torch.testing.assert_close(logits_of_texts(names["calibrated"], test), expected)
    run([merging_frozen], names)
    loaded = AutoModelForSequenceClassification.from_pretrained("merged-frozen")
    torch.testing.assert_close(logits_of_texts(loaded, test), expected, rtol=1e-4, atol=1e-5)


# --- images -----------------------------------------------------------------------------------------------------------


def images(n, num_classes, channels=3, size=32):
    labels = torch.arange(n) % num_classes
    return TensorDataset(torch.randn(n, channels, size, size) + labels[:, None, None, None], labels)


def test_timm(tmp_path):
    for make, file in ((timm.create_model, "fine_tuned"), (torchvision.models.get_model, "fine_tuned_torchvision")):
        model = make("resnet18", num_classes=10)
        with torch.no_grad():
            model.fc.bias[:5] += 2.0
        torch.save(model.state_dict(), f"{file}.pt")
    for name in ("cat", "hen"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "train" / name / "0.png")
    with_timm, folding, with_torchvision, searching, beyond, folders, testing = pages_of("timm")

    names = {"train_set": images(40, 5), "few_loader": DataLoader(images(20, 10), 20), "test_set": images(40, 10)}
    run([with_timm, searching], names)
    assert names["calibrated"].calibrator.method == "search_gamma(objective='overall')"
    assert names["calibrated"].model is names["model"]
    assert not names["model"].training
    inputs, labels = names["test_set"].tensors
    with torch.no_grad():
        expected = names["calibrated"].eval()(inputs)
    run([folding], names)
    loaded, calibrated = names["loaded"], names["calibrated"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), expected)
    with pytest.raises(ValueError, match="folded"):
        calibrated(inputs)
    run([testing], names)
    torch.testing.assert_close(names["test"].logits, expected)
    assert names["test"].labels.equal(labels)

    run([with_torchvision], names)
    weights = torch.load("calibrated_torchvision.pt", weights_only=True)
    before = torch.load("fine_tuned_torchvision.pt", weights_only=True)
    gamma = names["model"].fc.finecal_folded["estimate"]["gamma"]
    torch.testing.assert_close(weights["fc.bias"] - before["fc.bias"], gamma * (torch.arange(10) >= 5))

    names |= {"held_out_set": images(40, 5), "unlabelled_set": images(200, 10)}
    run([beyond], names)
    assert names["calibrated"].calibrator.report.n == 200
    again = timm.create_model("resnet18", num_classes=10).eval()
    again.load_state_dict(torch.load("with_prototypes.pt", weights_only=True))
    before = torch.load("fine_tuned.pt", weights_only=True)
    torch.testing.assert_close(again.fc.weight - before["fc.weight"], names["calibrated"].calibrator.weight)
    met = finecal.collect_logits(again, DataLoader(names["unlabelled_set"], 100), with_features=True)
    with torch.no_grad():
        weights, bias = before["fc.weight"], before["fc.bias"]
        expected = names["calibrated"].calibrator(met.features @ weights.T + bias, met.features)
    torch.testing.assert_close(met.logits, expected, rtol=1e-4, atol=1e-4)

    names |= {"transform": pil_to_tensor, "class_names": ["ant", "cat", "dog", "hen"]}
    run([folders], names)
    assert [label for _, label in names["train_set"]] == [1, 3]
    assert list(names["seen_mask"]) == [False, True, False, True]


@pytest.mark.parametrize("library", ["torchvision", "transformers"])
def test_segmentation(library):
    """Outputs with the logits under "out", and logits at a quarter of the resolution."""
    images = torch.randn(6, 3, 64, 64)
    if library == "torchvision":
        make = torchvision.models.segmentation.lraspp_mobilenet_v3_large
        model = make(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
        with torch.inference_mode():
            model.classifier.high_classifier.bias -= model(images)["out"].mean((0, 2, 3))  # else one class wins
        key = "out"
    else:
        sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
        config = SegformerConfig(decoder_hidden_size=16, num_labels=CLASSES, **sizes)
        model = SegformerForSemanticSegmentation(config).eval()
        key = "logits"
    with torch.inference_mode():
        before = model(images)[key]
    labels = torch.nn.functional.interpolate(before, (64, 64), mode="bilinear")[:, : 1 + SEEN].argmax(1)
    batch = (images, labels) if library == "torchvision" else {"pixel_values": images, "labels": labels}
    names = {"model": model, "train_loader": [batch], "num_classes": CLASSES, "seen_classes": range(1, 1 + SEEN)}
    estimating, *_, folding = pages_of("segmentation")
    run([estimating], names)
    assert names["train"].logits.shape == (1200, CLASSES - 1)
    names["estimate"] = 2.5
    run([folding], names)
    with torch.inference_mode():
        after = model(images)[key]
    expected = finecal.calibrate_logits(before, names["seen_mask"], 2.5, dim=1)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)


def test_onnx():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(16, CLASSES))
    train_set, test_set = images(40, SEEN, 1, 4), images(30, CLASSES, 1, 4)
    exporting, serving, exporting_folded, editing, testing = pages_of("onnx")
    names = {"model": model, "train_loader": DataLoader(train_set, 8), "test_loader": DataLoader(test_set, 30)}
    run([exporting, serving], names)
    assert [path.name for path in Path.cwd().iterdir()] == ["model.onnx"]
    with torch.no_grad():
        np.testing.assert_allclose(names["logits"], names["calibrated"](names["images"]), atol=1e-5)
    run([testing], names)
    assert names["logits"].shape == (30, CLASSES)
    assert names["difference"] < 1e-5
    with torch.no_grad():
        shift = names["calibrated"](test_set.tensors[0]) - names["calibrated"].model(test_set.tensors[0])
    torch.testing.assert_close(shift, (names["calibrated"].calibrator.gamma * ~MASK).expand(30, -1))

    torch.onnx.export(model.eval(), (names["images"],), "finetuned.onnx", **names["options"])
    run([editing], names)
    inputs = test_set.tensors[0].numpy()
    before, after = (OnnxModel(f"{name}.onnx")(inputs) for name in ("finetuned", "calibrated"))
    torch.testing.assert_close(after, finecal.calibrate_logits(before, MASK, 1.5))

    expected = names["logits"]
    finecal.fold_into_head(model, names["calibrated"].calibrator)
    run([exporting_folded, serving], names)
    (logits,) = names["session"].run(["logits"], {"images": test_set.tensors[0].numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-5)


# --- Lightning --------------------------------------------------------------------------------------------------------


def points(n, num_classes):
    labels = torch.arange(n) % num_classes
    return TensorDataset(3 * torch.eye(CLASSES)[labels] + torch.randn(n, CLASSES), labels)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:`isinstance.treespec, LeafSpec.` is deprecated")
def test_lightning():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    fitting, loading, choosing, augmenting, testing, *_ = pages_of("lightning")
    definition = fitting.partition("\n\n\nmodule =")[0]
    names = {"train_set": points(90, SEEN), "val_set": points(60, CLASSES), "test_set": points(60, CLASSES)}
    names |= {"train_labels": names["train_set"].tensors[1], "num_classes": CLASSES, "__name__": __name__}
    exec(definition, names)
    trainer = names["lightning"].Trainer(max_epochs=10, logger=False, enable_checkpointing=False)
    trainer.fit(names["Classifier"](CLASSES, CLASSES), DataLoader(points(90, CLASSES), batch_size=32))
    trainer.save_checkpoint("pretrained.ckpt")
    exec(fitting.removeprefix(definition), names)

    run([loading], names)
    inputs, labels = names["val_set"].tensors
    with torch.no_grad():
        logits = names["loaded"].eval()(inputs)
    report = finecal.evaluate(logits, labels, MASK)
    before, after = names["callback"].accuracies["val"]
    assert (report.acc_seen, report.acc_absent) == (after.acc_seen, after.acc_absent)
    assert after.acc_absent > before.acc_absent

    run([choosing], names)
    with torch.no_grad():
        logits = names["calibrated"].eval()(inputs)
    best = names["best"].best_model_score
    assert finecal.evaluate(logits, labels, MASK).acc_all == pytest.approx(float(best))
    run([augmenting, testing], names)
    trainer = names["lightning"].Trainer(max_epochs=1, logger=False, callbacks=[names["callback"]])
    trainer.fit(names["Classifier"].load_from_checkpoint("pretrained.ckpt"), names["train_loader"])
    assert names["callback"].estimate.n == 90
    assert names["test"].logits.shape == (60, CLASSES)
