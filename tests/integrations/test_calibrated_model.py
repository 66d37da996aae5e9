"""CalibratedModel around real architectures with random weights; as a script: load what the tests have saved."""

import copy
import inspect
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import onnxruntime
import peft
import pytest
import safetensors.torch
import timm
import tokenizers
import torch
import torchvision
import transformers
from torch import nn

import finecal
from finecal import CalibratedModel

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the other packages
    pytest.mark.filterwarnings("error::finecal.FinecalWarning"),
]

CLASSES = 7
MASK = torch.arange(CLASSES) % 3 == 0
GAMMA = float(torch.tensor(1.7))
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(1, 50, (3, 6), generator=torch.Generator().manual_seed(2))
VECTORS = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
TEXT = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def sequential():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def timm_model(name):
    return timm.create_model(name, num_classes=CLASSES, img_size=32, depth=1, num_heads=2, embed_dim=16)


def vit():
    config = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=CLASSES, **SMALL)
    return transformers.AutoModelForImageClassification.from_config(config)


def bert():
    config = transformers.BertConfig(vocab_size=50, num_labels=CLASSES, **SMALL)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=50, num_labels=CLASSES, num_key_value_heads=2, pad_token_id=0, use_cache=False, **SMALL
    )
    return transformers.AutoModelForSequenceClassification.from_config(config)


def lora():
    model = peft.get_peft_model(bert(), peft.LoraConfig(task_type="SEQ_CLS", r=2))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return model


MODELS = {
    "sequential": (sequential, (VECTORS,), {}),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=CLASSES), (IMAGES,), {}),
    "vit_tiny": (lambda: timm_model("vit_tiny_patch16_224"), (IMAGES,), {}),
    "deit_tiny_distilled": (lambda: timm_model("deit_tiny_distilled_patch16_224"), (IMAGES,), {}),
    "hf_vit": (vit, (), {"pixel_values": IMAGES}),
    "bert": (bert, (), TEXT),
    "llama": (llama, (), TEXT),
    "lora": (lora, (), TEXT),
}
PRETRAINED = {
    "hf_vit": transformers.AutoModelForImageClassification,
    "bert": transformers.AutoModelForSequenceClassification,
    "llama": transformers.AutoModelForSequenceClassification,
    "merged": transformers.AutoModelForSequenceClassification,
}
CALIBRATORS = {
    "AdditiveBias": finecal.AdditiveBias(MASK, GAMMA),
    "Temperature": finecal.Temperature(1.3),
    "GroupTemperature": finecal.calibrators.GroupTemperature(MASK, 2.0, 0.7),
    "NormalizedLogits": finecal.NormalizedLogits(torch.linspace(-1, 1, CLASSES), torch.linspace(0.5, 2, CLASSES)),
    "ClassBias": finecal.calibrators.ClassBias(torch.linspace(-1, 1, CLASSES)),
}


def seeded(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name][0]().eval()


@torch.no_grad()
def logits(model, name, **options):
    _, inputs, named = MODELS[name]
    output = model(*inputs, **named, **options)
    return output if isinstance(output, torch.Tensor) else output["logits"]


def loaded(name, directory):
    """Load a model and its calibrator in the way that its users would."""
    if name in PRETRAINED or name == "lora":
        calibrator = finecal.load(directory / "finecal.safetensors")
        if name == "lora":
            torch.manual_seed(0)
            return CalibratedModel(peft.PeftModel.from_pretrained(bert(), directory).eval(), calibrator)
        return CalibratedModel(PRETRAINED[name].from_pretrained(directory).eval(), calibrator)
    calibrated = CalibratedModel(seeded(name, seed=9), finecal.AdditiveBias(~MASK, 0.0))
    safetensors.torch.load_model(calibrated, directory / "model.safetensors")
    return calibrated


def as_model(name):
    return "bert" if name == "merged" else name


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Logits before saving, and those of a fresh process after loading."""
    root, before = tmp_path_factory.mktemp("models"), {}
    for name in [*MODELS, "merged"]:
        calibrated = CalibratedModel(seeded("lora" if name == "merged" else name), CALIBRATORS["AdditiveBias"])
        before[name] = logits(calibrated, as_model(name))
        if name == "merged":
            calibrated = calibrated.merge_and_unload()
        if hasattr(calibrated.model, "save_pretrained"):
            calibrated.save_pretrained(root / name)
        else:
            (root / name).mkdir()
            safetensors.torch.save_model(calibrated, root / name / "model.safetensors")
    subprocess.run([sys.executable, __file__, root], check=True, timeout=300)
    return before, torch.load(root / "after.pt", weights_only=True)


@pytest.mark.parametrize("name", [*MODELS, "merged"])
def test_fresh_process_gives_the_calibrated_logits(name, reloaded):
    model = seeded("lora" if name == "merged" else name)
    expected = finecal.calibrate_logits(logits(model, as_model(name)), MASK, GAMMA)
    before, after = reloaded
    assert torch.equal(before[name], expected)
    torch.testing.assert_close(after[name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_signature_is_the_models(name):
    model = seeded(name)
    calibrated = CalibratedModel(model, CALIBRATORS["AdditiveBias"])
    inner = model.get_base_model() if name == "lora" else model
    assert inspect.signature(calibrated.forward) == inspect.signature(inner.forward)
    assert calibrated.state_dict().keys() >= {f"model.{key}" for key in model.state_dict()}


@pytest.mark.parametrize("name", ["hf_vit", "bert", "llama", "lora"])
def test_output_keeps_its_type_and_loss(name):
    model = seeded(name)
    calibrated = CalibratedModel(model, CALIBRATORS["AdditiveBias"])
    named = {**MODELS[name][2], "labels": torch.tensor([0, 1, 2]), "output_hidden_states": True}
    plain, output = model(**named), calibrated(**named)
    assert type(output) is type(plain)
    assert list(output) == list(plain)
    assert torch.equal(output.loss, plain.loss)
    assert output["logits"] is output.logits
    assert torch.equal(output.logits, finecal.calibrate_logits(plain.logits, MASK, GAMMA))
    loss, logits, states = calibrated(**named, return_dict=False)
    assert torch.equal(loss, plain.loss)
    assert torch.equal(logits, output.logits)
    assert len(states) == len(plain.hidden_states)


@pytest.mark.parametrize("name", MODELS)
def test_compiles_and_exports(name):
    calibrated = CalibratedModel(seeded(name), CALIBRATORS["AdditiveBias"])
    expected = logits(calibrated, name)
    _, inputs, named = MODELS[name]
    compiled = torch.compile(calibrated, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, name), expected, rtol=1e-6, atol=1e-6)
    exported = torch.export.export(calibrated, inputs, named).module()
    torch.testing.assert_close(logits(exported, name), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sequential", "resnet18", "deit_tiny_distilled", "bert", "lora"])
def test_onnxruntime_gives_the_same(name, tmp_path):
    calibrated = CalibratedModel(seeded(name), CALIBRATORS["AdditiveBias"])
    assert_onnx_gives(calibrated, *MODELS[name][1:], logits(calibrated, name), tmp_path)


@pytest.mark.parametrize("calibrator", CALIBRATORS.values(), ids=CALIBRATORS.keys())
def test_calibrators_leave_torch_alike(calibrator, tmp_path):
    calibrated = CalibratedModel(seeded("sequential"), calibrator)
    expected = logits(calibrated, "sequential")
    assert torch.equal(expected, calibrator(logits(calibrated.model, "sequential")))
    compiled = torch.compile(calibrated, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(calibrated, (VECTORS,)).module()
    traced = torch.jit.trace(calibrated, VECTORS)
    for module in (compiled, exported, traced):
        torch.testing.assert_close(logits(module, "sequential"), expected, rtol=1e-6, atol=1e-6)
    assert_onnx_gives(calibrated, (VECTORS,), {}, expected, tmp_path)


def assert_onnx_gives(model, inputs, named, expected, folder):
    torch.onnx.export(model, inputs, folder / "m.onnx", kwargs=named, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(folder / "m.onnx")
    values = [value.numpy() for value in (*inputs, *named.values())]
    names = [entry.name for entry in session.get_inputs()]
    assert names[len(inputs) :] == list(named)
    (out,) = session.run(None, dict(zip(names, values, strict=True)))
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "lora"])
def test_trainer_keeps_columns_and_labels(name, tmp_path):
    calibrated = CalibratedModel(seeded(name), CALIBRATORS["AdditiveBias"])
    samples = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "token_type_ids": row % 2, "labels": label}
        for label, row in enumerate(TOKENS)
    ]
    arguments = transformers.TrainingArguments(
        tmp_path, report_to=[], disable_tqdm=True, use_cpu=True, num_train_epochs=1, save_strategy="epoch"
    )
    trainer = transformers.Trainer(calibrated, arguments, train_dataset=samples)
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "attention_mask", "token_type_ids", "labels"} <= set(trainer._signature_columns)
    assert trainer.label_names == ["labels"]
    trainer.train()
    trained = copy.deepcopy(calibrated.state_dict())
    prediction = trainer.predict(samples)
    with torch.no_grad():
        plain = calibrated.model(**{key: torch.stack([s[key] for s in samples]) for key in list(samples[0])[:3]})
    expected = finecal.calibrate_logits(plain["logits"], MASK, GAMMA)
    np.testing.assert_allclose(prediction.predictions, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert prediction.label_ids.tolist() == [0, 1, 2]
    assert prediction.metrics["test_loss"] > 0

    other = CalibratedModel(seeded(name, seed=9), finecal.AdditiveBias(~MASK, 0.0))
    transformers.Trainer(other, arguments, train_dataset=samples).train(resume_from_checkpoint=True)
    torch.testing.assert_close(other.state_dict(), trained)


def test_pipeline_gives_calibrated_scores():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    calibrated = CalibratedModel(seeded("bert"), CALIBRATORS["AdditiveBias"])
    pipeline = transformers.TextClassificationPipeline(model=calibrated, tokenizer=tokenizer)
    scores = {entry["label"]: entry["score"] for entry in pipeline("a b", top_k=None)}
    with torch.no_grad():
        plain = calibrated.model(torch.tensor([[1, 2]])).logits[0]
    expected = finecal.calibrate_logits(plain, MASK, GAMMA).softmax(0)
    np.testing.assert_allclose([scores[f"LABEL_{c}"] for c in range(CLASSES)], expected.numpy(), rtol=1e-5)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    after = {name: logits(loaded(name, root / name), as_model(name)) for name in [*MODELS, "merged"]}
    torch.save(after, root / "after.pt")
