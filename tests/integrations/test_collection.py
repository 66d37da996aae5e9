import pytest
import timm
import torch
import torchvision
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import finecal
from finecal._core.warning import without_warnings
from finecal._models.heads import find_head
from finecal.streaming import MarginRows

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the other packages
    pytest.mark.filterwarnings("error::finecal.FinecalWarning"),
]
C = 6
MASK = torch.arange(C) < 3
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "num_labels": C}
WORDS = ["[PAD]", "[UNK]", *"abcdefgh"]


def bert():
    return BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **SMALL))


def lora():
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2, init_lora_weights=False)
    return get_peft_model(bert(), config)


def llama():
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, **SMALL))


TEXT = {"BERT": bert, "PEFT": lora, "Llama": llama}
IMAGES = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=C),
    "torchvision mobilenet": lambda: torchvision.models.mobilenet_v3_small(weights=None, num_classes=C),
    "timm ViT": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=C, img_size=32),
    "timm DeiT": lambda: timm.create_model("deit_tiny_distilled_patch16_224", num_classes=C, img_size=32),
    "Hugging Face ViT": lambda: ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **SMALL)),
}


@pytest.fixture
def collator():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return DataCollatorWithPadding(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]"))


@pytest.fixture
def texts(collator):
    sentences = ["a b", "c d e", "f", "g h a b", "c", "d e f g h"]
    rows = [{**collator.tokenizer(text), "label": i % 3} for i, text in enumerate(sentences)]
    for row in rows:
        row.pop("token_type_ids", None)
    return rows


@pytest.fixture
def images():
    torch.manual_seed(0)
    return TensorDataset(torch.randn(7, 3, 32, 32), torch.arange(7) % 3)


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_image_models(make, images):
    model = make().train()
    samples = finecal.collect_logits(model, DataLoader(images, 3), progress=False)
    with torch.no_grad():
        output = model.eval()(images.tensors[0])
    torch.testing.assert_close(samples.logits, getattr(output, "logits", output), rtol=1e-4, atol=1e-5)
    assert torch.equal(samples.labels, images.tensors[1])


@pytest.mark.parametrize("make", TEXT.values(), ids=TEXT)
def test_text_models_and_batch_encodings(make, texts, collator):
    model = make().train()
    loader = DataLoader(texts, 4, collate_fn=collator)
    assert isinstance(next(iter(loader)), BatchEncoding)
    samples = finecal.collect_logits(model, loader, progress=False)
    assert model.training
    with torch.no_grad():
        outputs = [model.eval()(**{k: v for k, v in batch.items() if k != "labels"}) for batch in loader]
    torch.testing.assert_close(samples.logits, torch.cat([output.logits for output in outputs]))
    assert samples.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_loaders_of_the_trainer(texts, collator, tmp_path):
    model = bert()
    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=4, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=texts, eval_dataset=texts)
    samples = finecal.collect_logits(model, trainer.get_eval_dataloader(), progress=False)
    predicted = trainer.predict(texts)
    torch.testing.assert_close(samples.logits, torch.from_numpy(predicted.predictions), rtol=1e-4, atol=1e-6)
    assert samples.labels.tolist() == predicted.label_ids.tolist()


@pytest.mark.parametrize("name", [*IMAGES, "BERT", "PEFT"])
def test_features_of_the_head(name, images, texts, collator):
    if name in IMAGES:
        model, loader = IMAGES[name](), DataLoader(images, 3)
    else:
        model, loader = TEXT[name](), DataLoader(texts, 4, collate_fn=collator)
    if name == "timm DeiT":
        with pytest.raises(ValueError, match="averages the logits of head and head_dist"):
            finecal.collect_logits(model, loader, with_features=True, progress=False)
        return
    samples = finecal.collect_logits(model, loader, with_features=True, progress=False)
    (head,) = find_head(model).layers
    with torch.no_grad():
        torch.testing.assert_close(head(samples.features), samples.logits, rtol=1e-4, atol=1e-5)
    assert samples.features.shape == (len(samples), head.in_features)


def test_features_of_a_head_on_all_tokens_are_refused(texts, collator):
    loader = DataLoader(texts, 4, collate_fn=collator)
    with pytest.raises(ValueError, match=r"features have shape \(4, 4, 32\); expected \(4, D\)"):
        finecal.collect_logits(llama(), loader, with_features=True, progress=False)


def test_compiled_and_traced_models(images):
    model = IMAGES["torchvision resnet18"]().eval()
    loader = DataLoader(images, 3)
    logits = finecal.collect_logits(model, loader, progress=False).logits
    traced = torch.jit.trace(model, images.tensors[0])
    for other in (torch.compile(model, backend="eager"), traced, nn.DataParallel(model)):
        found = finecal.collect_logits(other, loader, progress=False).logits
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", TEXT.values(), ids=TEXT)
def test_calibrates_text_models_after_fine_tuning(make, texts, collator):
    torch.manual_seed(0)
    model, loader = make().train(), DataLoader(texts * 10, 30, collate_fn=collator)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in list(loader) * 20:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with without_warnings():  # Nothing was learnt before: two estimators may be far apart.
        calibrated = finecal.calibrate_model(model, loader, is_held_out=False, verbose=False)
    estimate = calibrated.calibrator.estimate
    assert calibrated.calibrator.seen_mask.tolist() == MASK.tolist()
    assert estimate.gamma > 1
    assert estimate.acc_seen_at_zero == 1
    state = finecal.collect_logits(calibrated, loader, into=MarginRows(MASK), progress=False)
    own = finecal.collect_logits(model, loader, into=MarginRows(MASK), progress=False)
    torch.testing.assert_close(state.compute().margin, own.compute().margin - estimate.gamma, rtol=1e-4, atol=1e-5)
    for batch in loader:  # inference mode has left nothing behind that training cannot use
        calibrated(**batch).logits.sum().backward()
