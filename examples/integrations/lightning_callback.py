"""
Lightning
=========

Lightning: gamma after every validation, so that the best checkpoint is the one that is best when calibrated.

Needs lightning and scikit-learn, no network and under a minute: ``python examples/integrations/lightning_callback.py``
"""

import logging
import tempfile
import warnings

import lightning
import torch
from faint_digits import SEEN_MASK, accuracies, load
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import finecal
from finecal.integrations.lightning import CalibrationCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")  # about its own use of torch, and of two processor cores

# %%
# A module
# --------
# Nothing in it knows of gamma.


class Classifier(lightning.LightningModule):
    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(256, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.learning_rate)


def fit(model: Classifier, train: DataLoader, test: DataLoader, epochs: int, *callbacks: lightning.Callback) -> None:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        accelerator="auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train, test)


# %%
# Pre-train on all digits
# -----------------------
# The data are those of :doc:`faint_digits`.

data = load()
test = DataLoader(data.test, batch_size=100)
model = Classifier(2e-3)
fit(model, DataLoader(data.pretraining, batch_size=32, shuffle=True), test, 20)
print(f"pre-trained: {accuracies(model, data.test)}")

# %%
# Fine-tune, with the callback
# ----------------------------
# After every validation it estimates gamma and logs the accuracies with it, which a checkpoint can watch. Gamma is in
# the checkpoint, as the state of the callback.

model.learning_rate = 1e-3
callback = CalibrationCallback(SEEN_MASK, every_validation=True)
with tempfile.TemporaryDirectory() as folder:
    best = ModelCheckpoint(folder, monitor="val_acc_all_calibrated", mode="max")
    fit(model, DataLoader(data.fine_tuning, batch_size=32, shuffle=True), test, 15, callback, best)
    checkpoint = torch.load(best.best_model_path, weights_only=True)

# %%
# The best epoch
# --------------
# Weights and gamma belong together: both are those of the checkpoint.

model.load_state_dict(checkpoint["state_dict"])
callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
print(f"best epoch: {checkpoint['epoch']}")
print(f"fine-tuned:  {accuracies(model, data.test)}")
print(f"calibrated:  {accuracies(finecal.CalibratedModel(model, callback.calibrator), data.test)}")
print(callback.estimate)
