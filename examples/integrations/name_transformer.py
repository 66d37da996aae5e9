"""
The transformer of these examples
=================================

What the examples with transformers fine-tune: a small ModernBERT that tells countries, currencies and scripts by their
names.

Needs the extras finecal[demo,transformers], and no network.
"""

from zlib import crc32

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertConfig,
    Trainer,
    TrainingArguments,
)

from finecal._demo.names import NamesSplit

# %%
# Tokens
# ------
# Nothing is downloaded: a token is three letters, hashed.

VOCABULARY, LENGTH, Samples = 4096, 32, list[dict[str, torch.Tensor]]


def tokenize(split: NamesSplit) -> Samples:
    """Three letters at a time, hashed; 0 pads."""
    samples = []
    for name, label in zip(split.names, split.labels, strict=True):
        text = f"^{name.casefold()}$"
        tokens = [
            1 + crc32(text[i : i + 3].encode()) % (VOCABULARY - 1)
            for i in range(len(text) - 2)
        ][:LENGTH]
        ids = torch.tensor(tokens + [0] * (LENGTH - len(tokens)))
        samples.append(
            {
                "input_ids": ids,
                "attention_mask": (ids > 0).long(),
                "labels": label,
            }
        )
    return samples


# %%
# The model
# ---------
# One layer, from random weights, with an output for every class.


def make_model(num_classes: int) -> nn.Module:
    size = {
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = ModernBertConfig(
        **size,
        vocab_size=VOCABULARY,
        initializer_range=0.1,
        embedding_dropout=0.1,
        classifier_pooling="mean",
        num_labels=num_classes,
        **dict.fromkeys(
            ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        ),
        pad_token_id=0,
    )
    return AutoModelForSequenceClassification.from_config(config)


# %%
# The Trainer
# -----------
# That of Hugging Face, told to be quiet.


def make_trainer(
    model: nn.Module,
    folder: str,
    train: Samples,
    test: Samples,
    **settings: float,
) -> Trainer:
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
