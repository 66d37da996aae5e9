"""
Hugging Face Trainer
====================

Hugging Face Trainer: a small ModernBERT tells countries, currencies and scripts by their names in other languages.

Pre-trained on all classes in English and the Romance languages, fine-tuned on half of them in others. Needs the extras
finecal[demo,transformers], no network and under a minute: python examples/integrations/huggingface_trainer.py
"""

import tempfile
from zlib import crc32

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, ModernBertConfig, Trainer, TrainingArguments, set_seed

import finecal
from finecal.datasets import NamesSplit, load_names
from finecal.integrations.transformers import CalibrationCallback

VOCABULARY, LENGTH, Samples = 4096, 32, list[dict[str, torch.Tensor]]


def tokenize(split: NamesSplit) -> Samples:
    """Three letters at a time, hashed; 0 pads."""
    samples = []
    for name, label in zip(split.names, split.labels, strict=True):
        text = f"^{name.casefold()}$"
        tokens = [1 + crc32(text[i : i + 3].encode()) % (VOCABULARY - 1) for i in range(len(text) - 2)][:LENGTH]
        ids = torch.tensor(tokens + [0] * (LENGTH - len(tokens)))
        samples.append({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": label})
    return samples


def make_model(num_classes: int) -> nn.Module:
    size = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = ModernBertConfig(
        **size,
        vocab_size=VOCABULARY,
        initializer_range=0.1,
        embedding_dropout=0.1,
        classifier_pooling="mean",
        num_labels=num_classes,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        pad_token_id=0,
    )
    return AutoModelForSequenceClassification.from_config(config)


def make_trainer(model: nn.Module, folder: str, train: Samples, test: Samples, **settings: float) -> Trainer:
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        dataloader_pin_memory=torch.cuda.is_available(),
        **quiet,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=train, eval_dataset=test)


def main(folder: str) -> None:
    set_seed(0)
    task = load_names()
    source, train, test = map(tokenize, (task.source, task.train, task.test))
    model = make_model(len(task.class_names))
    make_trainer(model, folder, source, test, num_train_epochs=10, learning_rate=4e-3).train()

    trainer = make_trainer(model, folder, train, test, num_train_epochs=8, learning_rate=2e-3)
    trainer.add_callback(CalibrationCallback(trainer, task.seen_mask, fold=True))
    trainer.train()
    trainer.save_model(folder)
    # Gamma is in the saved model: whoever loads it needs no finecal.
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    test_loader = DataLoader(test, batch_size=256)
    print(finecal.evaluate(*finecal.collect_logits(loaded, test_loader, progress=False), task.seen_mask))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
