"""
timm
====

A timm vision transformer, distilled, with gamma folded into its two heads: saved and loaded as any timm model.

Needs timm and scikit-learn, no network and under a minute: ``python examples/integrations/timm_vit.py``
"""

import tempfile
from pathlib import Path

import timm
import torch
from faint_digits import SEEN_MASK, accuracies, load, train
from torch import nn
from torch.utils.data import DataLoader

import finecal

# %%
# A model
# -------
# A distilled vision transformer has two heads, and returns the mean of their logits.


def make_model() -> nn.Module:
    size = {
        "img_size": 16,
        "patch_size": 4,
        "in_chans": 1,
        "embed_dim": 96,
        "depth": 4,
    }
    return timm.create_model(
        "deit_tiny_distilled_patch16_224",
        pretrained=False,
        num_classes=10,
        **size,
    )


# %%
# Fine-tune
# ---------
# The data are those of :doc:`faint_digits`, in 16 by 16 pixels.

data = load(size=16)
model = make_model()
train(model, data.pretraining, epochs=40, learning_rate=1e-3)
print(f"pre-trained: {accuracies(model, data.test)}")
train(model, data.fine_tuning, epochs=5, learning_rate=3e-4)
print(f"fine-tuned:  {accuracies(model, data.test)}")

# %%
# Fold gamma into the heads
# -------------------------
# `finecal.fold_into_head` finds both heads, and adds gamma to their biases. The model stays a timm model.

samples = finecal.collect_logits(
    model, DataLoader(data.fine_tuning, batch_size=100), progress=False
)
estimate = finecal.estimate_gamma(SEEN_MASK, train=samples)
finecal.fold_into_head(model, finecal.AdditiveBias(SEEN_MASK, estimate))
print(f"folded:      {accuracies(model, data.test)}")

# %%
# Save and load
# -------------
# There is nothing to ship but the weights.

with tempfile.TemporaryDirectory() as folder:
    weights = Path(folder) / "model.pt"
    torch.save(model.state_dict(), weights)
    loaded = make_model()
    loaded.load_state_dict(torch.load(weights, weights_only=True))
print(f"loaded:      {accuracies(loaded, data.test)}")
print(estimate)
