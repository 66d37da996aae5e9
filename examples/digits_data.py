"""
The data: digits, plain and faint
=================================

The data, the network and the training loop that the examples with digits share: an ordinary training script in PyTorch.

A network learns to tell scikit-learn's handwritten digits apart, from 400 plain images of all ten. Then the camera
changes: images become faint and noisy. To fine-tune there are 350 such images, of even digits only; these are the seen
classes, and the odd ones are absent. The test has 500 faint images of all ten.

Needs scikit-learn and matplotlib, and no network: ``python examples/digits_data.py``
"""

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import finecal

SEEN_MASK = finecal.seen_mask_from_indices(
    torch.tensor([0, 2, 4, 6, 8]), num_classes=10
)
Split = tuple[Tensor, Tensor]  # images, labels


# %%
# The images
# ----------
# Each has eight by eight pixels. What is held out are faint even digits, too: who fine-tunes on even digits has no
# others.


def load(seed: int) -> tuple[Split, Split, Split, Split]:
    """Return plain digits for pre-training, and faint ones for fine-tuning (even digits), held out (even), test."""
    torch.manual_seed(seed)
    digits = load_digits()
    plain, labels = (
        torch.from_numpy(digits.images).float().unsqueeze(1) / 16,
        torch.from_numpy(digits.target),
    )
    faint = 0.6 + 0.4 * plain + 0.1 * torch.randn_like(plain)
    source, target, test = torch.randperm(len(labels)).split([400, 897, 500])
    fine_tuning, held_out = target[SEEN_MASK[labels[target]]].tensor_split(
        [350]
    )
    return (plain[source], labels[source]), *(
        (faint[i], labels[i]) for i in (fine_tuning, held_out, test)
    )


# %%
# The network
# -----------
# Its head has an output for each of the ten digits, and keeps all of them when it is fine-tuned on five.


def make_model() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


def train(
    model: nn.Module, split: Split, epochs: int, learning_rate: float
) -> None:
    images, labels = split
    optimiser = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()


@torch.no_grad()
def score(model: nn.Module, split: Split) -> finecal.Samples:
    """Return logits with their labels."""
    images, labels = split
    return finecal.Samples(model.eval()(images), labels)


# %%
# What it is given
# ----------------
# An image of each digit from the data for pre-training, and one from the test.

if __name__ == "__main__":
    source, _, _, test = load(seed=0)
    figure, axes = plt.subplots(2, 10, figsize=(7.5, 1.9), layout="constrained")
    for row, name, (images, labels) in zip(
        axes, ("plain", "faint"), (source, test), strict=True
    ):
        row[0].set_ylabel(name)
        for digit, ax in enumerate(row):
            ax.imshow(
                images[labels == digit][0, 0].numpy(),
                cmap="gray_r",
                vmin=0,
                vmax=1,
            )
            ax.set(xticks=[], yticks=[])
    for digit, ax in enumerate(axes[1]):
        ax.set_xlabel("seen" if SEEN_MASK[digit] else "absent")
    plt.show()
