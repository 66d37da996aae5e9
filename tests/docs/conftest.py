"""What the pages take for granted."""

import copy

import numpy as np
import pytest
import torch

import finecal


@pytest.fixture
def samples(rng):
    """Of a linear model whose seen classes, the first three of five, have outgrown the others."""
    labels = np.arange(300) % 5
    inputs = rng.normal(size=(300, 5)) + 3 * np.eye(5)[labels]
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture
def model():
    model = torch.nn.Linear(5, 5)
    with torch.no_grad():
        model.weight.copy_(torch.eye(5))
        model.bias.copy_(torch.tensor([3.0, 3.0, 3.0, 0.0, 0.0]))
    return model


@pytest.fixture
def names(samples, model):
    """What the pages take for granted; the first half of the samples are for training."""
    inputs, labels = samples
    seen = labels < 3
    pretrained = torch.nn.Linear(5, 5)
    with torch.no_grad():
        pretrained.weight.copy_(torch.eye(5))
        pretrained.bias.zero_()
        logits, pretrained_logits = model(inputs), pretrained(inputs)
    first = torch.arange(len(labels)) < 150
    names = {
        "model": model,
        "pretrained": pretrained,
        "num_classes": 5,
        "torch": torch,
        "seen_mask": torch.arange(5) < 3,
    }
    for split, rows in {"train": seen & first, "held_out": seen & ~first, "test": labels >= 0, "valid": ~first}.items():
        names[f"{split}_inputs"], names[f"{split}_labels"] = inputs[rows], labels[rows]
        names[f"{split}_logits"], names[f"pretrained_{split}_logits"] = logits[rows], pretrained_logits[rows]
        names[split] = finecal.Samples(logits[rows], labels[rows])
    for split in ("train", "test"):
        batches = zip(names[f"{split}_inputs"].split(50), names[f"{split}_labels"].split(50), strict=True)
        names[f"{split}_loader"] = list(batches)

    def fine_tune(start, inputs, labels):
        tuned = copy.deepcopy(start).requires_grad_(False)
        tuned.bias[labels.unique()] += 3.0
        return tuned

    return {**names, "fine_tune": fine_tune}
