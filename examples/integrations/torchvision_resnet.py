"""
torchvision
===========

A torchvision ResNet-18, fine-tuned on some of its classes, calibrated in one call.

Needs torchvision and scikit-learn, no network and under a minute:
``python examples/integrations/torchvision_resnet.py``
"""

import warnings

from faint_digits import accuracies, load, train
from torch.utils.data import DataLoader
from torchvision.models import resnet18

import finecal

# %%
# Fine-tune
# ---------
# The data are those of :doc:`faint_digits`, in 16 by 16 pixels and three channels.

data = load(size=16, channels=3)
model = resnet18(weights=None, num_classes=10)
train(model, data.pretraining, epochs=5, learning_rate=1e-3)
print(f"pre-trained: {accuracies(model, data.test)}")
train(model, data.fine_tuning, epochs=5, learning_rate=3e-4)
print(f"fine-tuned:  {accuracies(model, data.test)}")

# %%
# Calibrate
# ---------
# One call runs over the training data once, estimates gamma, and wraps the model.

seen_loader = DataLoader(data.fine_tuning, batch_size=100)
warnings.simplefilter("default", finecal.FinecalWarning)
calibrated = finecal.calibrate_model(
    model, seen_loader, is_held_out=False, verbose=False
)
print(f"calibrated:  {accuracies(calibrated, data.test)}")
print(calibrated.calibrator.estimate)
