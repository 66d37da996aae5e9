"""
Hugging Face: a head that was made anew
=======================================

A vision transformer that was fine-tuned with ``ignore_mismatched_sizes=True`` names all ten digits again.

Needs transformers and scikit-learn, no network and under a minute:
``python examples/integrations/huggingface_new_head.py``
"""

import tempfile
import warnings

import torch
from faint_digits import SEEN_MASK, accuracies, load, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig, ViTForImageClassification

import finecal


class Logits(nn.Module):
    """The logits of a model of transformers, for the training loop."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).logits


# %%
# Fine-tune with a new head
# -------------------------
# The data are those of :doc:`faint_digits`. Both configurations name their classes, so that nothing has to say which
# of the old ones each new one is.

NAMES = [
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
]
seen = SEEN_MASK.nonzero().squeeze(1)
seen_names = [NAMES[index] for index in seen]

data = load(size=16)
size = {"image_size": 16, "patch_size": 4, "num_channels": 1}
shape = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3}
config = ViTConfig(
    **size,
    **shape,
    num_attention_heads=4,
    id2label=dict(enumerate(NAMES)),
    label2id={name: index for index, name in enumerate(NAMES)},
)
pretrained = ViTForImageClassification(config)
train(Logits(pretrained), data.pretraining, epochs=40, learning_rate=1e-3)
print(f"pre-trained: {accuracies(pretrained, data.test)}")

with tempfile.TemporaryDirectory() as folder:
    pretrained.save_pretrained(folder)
    model = ViTForImageClassification.from_pretrained(
        folder,
        id2label=dict(enumerate(seen_names)),
        label2id={name: index for index, name in enumerate(seen_names)},
        ignore_mismatched_sizes=True,
    )
images, labels = data.fine_tuning.tensors
renumbered = TensorDataset(images, torch.searchsorted(seen, labels))
train(Logits(model), renumbered, epochs=15, learning_rate=1e-3)

# %%
# Restore the head
# ----------------
# It takes the pre-trained model and the training samples, and prints its doubts: the features have lost much of what
# the old head knew.

warnings.simplefilter("ignore", finecal.FinecalWarning)  # it is printed, too
loader = DataLoader(renumbered, batch_size=50)
restored = finecal.restore_head(model, pretrained, loader)
print(f"restored:    {accuracies(restored, data.test)}")

# %%
# Save and load
# -------------
# As any model of transformers; ``config.json`` names all ten classes.

with tempfile.TemporaryDirectory() as folder:
    restored.save_pretrained(folder)
    loaded = ViTForImageClassification.from_pretrained(folder)
print(f"loaded:      {accuracies(loaded, data.test)}")
print(list(loaded.config.id2label.values()))
