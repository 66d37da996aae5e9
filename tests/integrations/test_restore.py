"""`restore_head` on models of other libraries: saved, loaded, with logits equal and counts of classes mended."""

import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

import finecal

OLD, NEW = ("ant", "bee", "cat", "dog", "elk", "fox"), ("elk", "ant", "cat")
NEW_TO_OLD = [4, 0, 2]
pytestmark = [
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def names(classes):
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def batches(model, inputs, size=10):
    """Batches of inputs, with the classes that the model gives them."""
    labels = logits_of(model, inputs).argmax(1)

    def rows(start):
        if isinstance(inputs, dict):
            return {name: value[start : start + size] for name, value in inputs.items()}
        return inputs[start : start + size]

    return [(rows(start), labels[start : start + size]) for start in range(0, len(labels), size)]


def logits_of(model, inputs):
    with torch.no_grad():
        output = model.eval()(**inputs) if isinstance(inputs, dict) else model.eval()(inputs)
    return getattr(output, "logits", output)


def with_same_body(make, head_prefixes, inputs, head_of):
    """A pre-trained model, and one with its body and rows of its head, which gives the inputs different classes."""
    torch.manual_seed(0)
    pretrained, model = make(OLD).eval(), make(NEW).eval()
    body = {name: value for name, value in pretrained.state_dict().items() if not name.startswith(head_prefixes)}
    missing, unexpected = model.load_state_dict(body, strict=False)
    assert all(name.startswith(head_prefixes) for name in missing)
    assert not unexpected
    with torch.no_grad():
        head_of(model).weight.copy_(head_of(pretrained).weight[NEW_TO_OLD])
        head_of(model).bias -= logits_of(model, inputs).mean(0)
    return model, pretrained


def same_classes(logits, new):
    """Whether the fine-tuned classes are told apart nearly as before, but for what the old head adds."""
    pair = torch.stack([logits[:, NEW_TO_OLD], new])
    return float(torch.corrcoef((pair - pair.mean(2, keepdim=True)).flatten(1))[0, 1]) > 0.8


def check(restored, model_before, inputs, head_of):
    """The rows of the new head are in their places."""
    assert head_of(restored).out_features == 6
    logits = logits_of(restored, inputs)
    assert same_classes(logits, logits_of(model_before, inputs))
    return logits


def check_follows(logits, old):
    """The body and the rows are the same, so that absent logits are those of the old head but for the penalty."""
    for column in (1, 3, 5):
        assert float(torch.corrcoef(torch.stack([logits[:, column], old[:, column]]))[0, 1]) > 0.9


def text_inputs(count=120):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (count, 8), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pixels(count=120, size=16, channels=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def bert(classes):
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
        **names(classes),
    )
    return BertForSequenceClassification(config)


def roberta(classes):
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
        pad_token_id=1,
        **names(classes),
    )
    return RobertaForSequenceClassification(config)


def vit(classes):
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
        **names(classes),
    )
    return ViTForImageClassification(config)


def convnext(classes):
    config = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], initializer_range=0.3, **names(classes))
    return ConvNextForImageClassification(config)


HUGGING_FACE = {
    "bert": (bert, "classifier.", text_inputs, lambda model: model.classifier),
    "roberta": (roberta, "classifier.out_proj.", text_inputs, lambda model: model.classifier.out_proj),
    "vit": (vit, "classifier.", pixels, lambda model: model.classifier),
    "convnext": (convnext, "classifier.", lambda: pixels(size=32), lambda model: model.classifier),
}
BERT = (bert, "classifier.", text_inputs(), lambda model: model.classifier)


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face(kind, tmp_path):
    make, head, make_inputs, head_of = HUGGING_FACE[kind]
    inputs = make_inputs()
    inputs = inputs if isinstance(inputs, dict) else {"pixel_values": inputs}
    model, pretrained = with_same_body(make, head, inputs, head_of)
    before = make(NEW)
    before.load_state_dict(model.state_dict())
    restored = finecal.restore_head(model, pretrained, batches(model, inputs), verbose=False)
    assert restored is model
    logits = check(restored, before, inputs, head_of)
    check_follows(logits, logits_of(pretrained, inputs))
    assert restored.num_labels == restored.config.num_labels == 6
    assert restored.config.id2label == dict(enumerate(OLD))
    restored.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, inputs), logits)
    assert loaded.config.id2label == dict(enumerate(OLD))
    labels = torch.full((len(logits),), 5)
    assert torch.isfinite(loaded(**inputs, labels=labels).loss)  # num_labels is right inside as well


def test_names_of_other_heads_are_kept():
    model, pretrained = with_same_body(*BERT)
    model.config.id2label = {0: "elk", 1: "emu", 2: "cat"}
    inputs = text_inputs()
    restored = finecal.restore_head(model, pretrained, batches(model, inputs), verbose=False)
    assert restored.config.id2label == dict(enumerate((*OLD, "emu")))
    assert logits_of(restored, inputs).shape == (120, 7)


def test_pretrained_model_is_left_alone():
    model, pretrained = with_same_body(*BERT)
    before = {name: value.clone() for name, value in pretrained.state_dict().items()}
    finecal.restore_head(model, pretrained, batches(model, text_inputs()), verbose=False)
    assert all(torch.equal(before[name], value) for name, value in pretrained.state_dict().items())
    assert pretrained.config.id2label == dict(enumerate(OLD))


# --- torchvision, timm, plain -----------------------------------------------------------------------------------------

PLAIN = {
    "resnet18": (lambda n: torchvision.models.resnet18(num_classes=n), "fc.", 32, lambda model: model.fc),
    "mobilenet_v3_small": (
        lambda n: torchvision.models.mobilenet_v3_small(num_classes=n),
        "classifier.3.",
        32,
        lambda model: model.classifier[-1],
    ),
    "sequential": (
        lambda n: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.Tanh(), nn.Linear(16, n)),
        "3.",
        8,
        lambda model: model[-1],
    ),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_torchvision_and_plain_modules(kind, tmp_path):
    make, head, size, head_of = PLAIN[kind]
    inputs = pixels(size=size)
    model, pretrained = with_same_body(lambda classes: make(len(classes)), head, inputs, head_of)
    before = make(3)
    before.load_state_dict(model.state_dict())
    restored = finecal.restore_head(model, pretrained, batches(model, inputs), new_to_old=NEW_TO_OLD, verbose=False)
    logits = check(restored, before, inputs, head_of)
    torch.save(restored.state_dict(), tmp_path / "model.pt")
    loaded = make(6)
    loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(logits_of(loaded, inputs), logits)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timm(name, tmp_path):
    inputs = pixels(60, size=160 if name == "test_vit" else 64)

    def make(classes):
        return timm.create_model(name, num_classes=len(classes))

    classifier = make(NEW).default_cfg["classifier"]
    model, pretrained = with_same_body(make, f"{classifier}.", inputs, lambda model: model.get_classifier())
    before = make(NEW)
    before.load_state_dict(model.state_dict())
    restored = finecal.restore_head(model, pretrained, batches(model, inputs), new_to_old=NEW_TO_OLD, verbose=False)
    logits = check(restored, before, inputs, lambda model: model.get_classifier())
    assert restored.num_classes == 6
    timm.models.save_for_hf(restored, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(logits_of(loaded, inputs), logits)
    restored.reset_classifier(2)
    assert logits_of(restored, inputs).shape == (60, 2)


# --- PEFT -------------------------------------------------------------------------------------------------------------


def adapted():
    from peft import LoraConfig, get_peft_model

    model, pretrained = with_same_body(*BERT)
    torch.manual_seed(2)
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["classifier"])
    return get_peft_model(model, settings).eval(), pretrained


def test_peft_model_that_is_merged(tmp_path):
    model, pretrained = adapted()
    inputs = text_inputs()
    new = logits_of(model, inputs)
    merged = model.merge_and_unload()
    restored = finecal.restore_head(merged, pretrained, batches(merged, inputs), verbose=False)
    logits = logits_of(restored, inputs)
    assert same_classes(logits, new)
    restored.save_pretrained(tmp_path)
    assert torch.equal(logits_of(BertForSequenceClassification.from_pretrained(tmp_path), inputs), logits)


def test_peft_model_as_it_is(tmp_path):
    from peft import PeftModel

    model, pretrained = adapted()
    inputs = text_inputs()
    new = logits_of(model, inputs)
    restored = finecal.restore_head(model, pretrained, batches(model, inputs), verbose=False)
    logits = logits_of(restored, inputs)
    assert same_classes(logits, new)
    restored.save_pretrained(tmp_path)
    base = bert(OLD)
    body = {name: value for name, value in pretrained.state_dict().items() if not name.startswith("classifier")}
    base.load_state_dict(body, strict=False)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(logits_of(loaded, inputs), logits)
    merged = restored.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, inputs), logits, rtol=1e-4, atol=1e-5)
    assert merged.classifier.out_features == merged.config.num_labels == 6


# --- without finecal --------------------------------------------------------------------------------------------------

_LOADED = """
import sys
sys.modules["finecal"] = None
import timm, torch, torchvision
from peft import PeftModel
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

torchvision_model = torchvision.models.resnet18(num_classes=6)
torchvision_model.load_state_dict(torch.load("torchvision.pt", weights_only=True))
base = AutoModelForSequenceClassification.from_pretrained("base")
models = {
    "text": AutoModelForSequenceClassification.from_pretrained("text"),
    "image": AutoModelForImageClassification.from_pretrained("image"),
    "torchvision": torchvision_model,
    "timm": timm.create_model("local-dir:timm", pretrained=True),
    "merged": AutoModelForSequenceClassification.from_pretrained("merged"),
    "adapter": PeftModel.from_pretrained(base, "adapter"),
}
for name, (inputs, logits) in torch.load("expected.pt").items():
    with torch.no_grad():
        output = models[name].eval()(**inputs) if isinstance(inputs, dict) else models[name].eval()(inputs)
    torch.testing.assert_close(getattr(output, "logits", output), logits, rtol=1e-4, atol=1e-5)
    print(name)
"""


def test_models_load_without_finecal(tmp_path):
    """Saved as each library saves, then loaded in a process that cannot import finecal: the logits are the same."""
    expected = {}

    def restored(name, model, pretrained, inputs, **options):
        found = finecal.restore_head(model, pretrained, batches(model, inputs), verbose=False, **options)
        expected[name] = inputs, logits_of(found, inputs)
        assert expected[name][1].shape[1] == 6
        return found

    texts = text_inputs()
    restored("text", *with_same_body(*BERT), texts).save_pretrained(tmp_path / "text")
    of_images = {"pixel_values": pixels()}
    model = with_same_body(vit, "classifier.", of_images, lambda model: model.classifier)
    restored("image", *model, of_images).save_pretrained(tmp_path / "image")
    make, head, size, head_of = PLAIN["resnet18"]
    of_size = pixels(size=size)
    model = with_same_body(lambda classes: make(len(classes)), head, of_size, head_of)
    found = restored("torchvision", *model, of_size, new_to_old=NEW_TO_OLD)
    torch.save(found.state_dict(), tmp_path / "torchvision.pt")
    model = with_same_body(
        lambda classes: timm.create_model("test_resnet", num_classes=len(classes)),
        "fc.",
        of_size,
        lambda model: model.fc,
    )
    found = restored("timm", *model, of_size, new_to_old=NEW_TO_OLD)
    timm.models.save_for_hf(found, str(tmp_path / "timm"), safe_serialization=True)
    model, pretrained = adapted()
    pretrained.save_pretrained(tmp_path / "base")
    restored("merged", model.merge_and_unload(), pretrained, texts).save_pretrained(tmp_path / "merged")
    restored("adapter", *adapted(), texts).save_pretrained(tmp_path / "adapter")
    torch.save(expected, tmp_path / "expected.pt")
    result = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.split() == list(expected), result.stderr
