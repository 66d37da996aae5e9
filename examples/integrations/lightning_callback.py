"""
Lightning
=========

Lightning: every checkpoint holds its gamma, and the best one is the one that is best when calibrated.

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
warnings.filterwarnings(
    "ignore", module="lightning"
)  # about its own use of torch, and of two processor cores

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
            *(
                nn.Conv2d(32, 64, 3, padding=1),
                nn.ReLU(),
                nn.AdaptiveMaxPool2d(2),
            ),
            *(nn.Flatten(), nn.Linear(256, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log(
            "test_acc",
            (self(batch[0]).argmax(1) == batch[1]).float().mean(),
            batch_size=len(batch[1]),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.learning_rate)


def fit(
    model: Classifier,
    train: DataLoader,
    test: DataLoader,
    epochs: int,
    *callbacks: lightning.Callback,
) -> lightning.Trainer:
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
    return trainer


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
# After every validation it estimates gamma and logs the accuracies with it, which a checkpoint can watch. With
# ``fold=True`` the weights of every checkpoint have their gamma in the bias of the head, so that testing one is testing
# a calibrated model.

model.learning_rate = 1e-3
callback = CalibrationCallback(SEEN_MASK, fold=True, every_validation=True)
with tempfile.TemporaryDirectory() as folder:
    best = ModelCheckpoint(folder, monitor="val_acc_all_calibrated", mode="max")
    trainer = fit(
        model,
        DataLoader(data.fine_tuning, batch_size=32, shuffle=True),
        test,
        15,
        callback,
        best,
    )
    tested = trainer.test(model, test, ckpt_path="best", verbose=False)
print(f"test_acc of the best checkpoint: {100 * tested[0]['test_acc']:.1f} %")

# %%
# What gamma changes
# ------------------
# The test has loaded the weights, and the callback the estimate that belongs to them. So gamma can be taken out again;
# the oracle has the gamma that is best on the test labels.

calibrated = accuracies(model, data.test)
finecal.unfold_from_head(model, callback.calibrator)
samples = finecal.collect_logits(model, test, progress=False)
oracle = finecal.AdditiveBias(
    SEEN_MASK, finecal.search_gamma(samples, SEEN_MASK)
)
print(f"fine-tuned:  {accuracies(model, data.test)}")
print(f"calibrated:  {calibrated}")
print(
    f"oracle:      {accuracies(finecal.CalibratedModel(model, oracle), data.test)}"
)
print(callback.estimate)
