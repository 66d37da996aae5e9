"""
The data of these examples
==========================

What most of the other examples here learn: handwritten digits, then faint and noisy copies of the even ones only.

Needs scikit-learn, and no network.
"""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import finecal

# %%
# The seen classes
# ----------------
# Fine-tuning sees the even digits. The model has outputs for all ten.

SEEN_MASK = finecal.seen_mask_from_indices(
    torch.tensor([0, 2, 4, 6, 8]), num_classes=10
)


# %%
# The images
# ----------
# In the size, and with as many channels, as the model wants them.


class Digits(NamedTuple):
    """Images `(N, channels, size, size)` with labels: plain ones of all classes, faint even ones, faint ones of all."""

    pretraining: TensorDataset
    fine_tuning: TensorDataset
    held_out: TensorDataset
    test: TensorDataset


def load(size: int = 8, channels: int = 1) -> Digits:
    torch.manual_seed(0)
    digits = load_digits()
    plain, labels = (
        torch.from_numpy(digits.images).float().unsqueeze(1) / 16,
        torch.from_numpy(digits.target),
    )
    plain = F.interpolate(plain, size=(size, size), mode="bilinear").expand(
        -1, channels, -1, -1
    )
    faint = 0.2 + 0.6 * plain + 0.15 * torch.randn_like(plain)
    plain, faint = (
        F.layer_norm(images, images.shape[1:]) for images in (plain, faint)
    )
    source, target, test = torch.randperm(len(labels)).split([600, 697, 500])
    fine_tuning, held_out = target[SEEN_MASK[labels[target]]].tensor_split(
        [250]
    )
    return Digits(
        TensorDataset(plain[source], labels[source]),
        *(
            TensorDataset(faint[rows], labels[rows])
            for rows in (fine_tuning, held_out, test)
        ),
    )


# %%
# Training
# --------
# An ordinary loop, for pre-training and for fine-tuning alike.


def train(
    model: nn.Module, data: TensorDataset, epochs: int, learning_rate: float
) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate)
    model.train()
    for _ in range(epochs):
        for images, labels in DataLoader(data, batch_size=32, shuffle=True):
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()


# %%
# What is shown
# -------------
# Accuracies on test images of seen digits, of absent ones and of all, with every digit allowed.


def accuracies(model: nn.Module, data: TensorDataset) -> str:
    samples = finecal.collect_logits(
        model, DataLoader(data, batch_size=100), progress=False
    )
    report = finecal.evaluate(samples, SEEN_MASK)
    shown = {
        "S/Y": report.acc_seen,
        "U/Y": report.acc_absent,
        "Y/Y": report.acc_all,
    }
    return "   ".join(
        f"Acc_{name} {100 * accuracy:5.1f} %"
        for name, accuracy in shown.items()
    )
