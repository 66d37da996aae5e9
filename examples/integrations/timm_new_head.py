"""
timm: a head that was made anew
===============================

A timm model that was fine-tuned with a head of five classes names all ten digits again.

Needs timm and scikit-learn, no network and under a minute: ``python examples/integrations/timm_new_head.py``
"""

import copy
import tempfile

import timm
import torch
from faint_digits import SEEN_MASK, accuracies, load, train
from torch.utils.data import DataLoader, TensorDataset

import finecal

# %%
# Fine-tune with a new head
# -------------------------
# The data are those of :doc:`faint_digits`. `reset_classifier` makes the head of five rows, as ``--num-classes 5``
# does; the labels are numbered by it.

data = load(size=32)
pretrained = timm.create_model("test_resnet", num_classes=10, in_chans=1)
train(pretrained, data.pretraining, epochs=20, learning_rate=3e-3)
print(f"pre-trained: {accuracies(pretrained, data.test)}")

seen = SEEN_MASK.nonzero().squeeze(1)
model = copy.deepcopy(pretrained)
model.reset_classifier(len(seen))
images, labels = data.fine_tuning.tensors
renumbered = TensorDataset(images, torch.searchsorted(seen, labels))
train(model, renumbered, epochs=5, learning_rate=1e-3)

# %%
# Restore the head
# ----------------
# It takes the pre-trained model and the training samples. The model stays a timm model: `num_classes` and the
# configuration follow.

loader = DataLoader(renumbered, batch_size=50)
restored = finecal.restore_head(model, pretrained, loader, new_to_old=seen)
print(f"restored:    {accuracies(restored, data.test)}")
print(restored.num_classes, restored.get_classifier())

# %%
# Save and load
# -------------
# As any model of timm.

with tempfile.TemporaryDirectory() as folder:
    timm.models.save_for_hf(restored, folder, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
print(f"loaded:      {accuracies(loaded, data.test)}")
