"""
torchmetrics
============

torchmetrics: during a training of one's own, what the absent classes lose, what gamma brings back, and gamma itself.

Needs torchmetrics and scikit-learn, no network, under a minute:
``python examples/integrations/torchmetrics_validation.py``
"""

import torch
from faint_digits import SEEN_MASK, load, train
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from finecal.integrations.torchmetrics import (
    AUSUC,
    LogitGap,
    SeenAbsentAccuracy,
)

# %%
# A pre-trained model
# -------------------
# The data are those of :doc:`faint_digits`.

data = load()
held_out, test = (
    DataLoader(data.held_out, batch_size=100),
    DataLoader(data.test, batch_size=100),
)
model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
)
train(model, data.pretraining, epochs=20, learning_rate=2e-3)

# %%
# What the absent classes lose
# ----------------------------
# The metrics take logits and labels, batch by batch. While the model is fine-tuned, they show the accuracy on absent
# samples fall to nothing. AUSUC, which no gamma changes, hardly falls: the knowledge is still there.


def validate(
    model: nn.Module, metrics: MetricCollection, loader: DataLoader
) -> dict[str, float]:
    model.eval()
    metrics.reset()
    with torch.no_grad():
        for images, labels in loader:
            metrics.update(model(images), labels)
    return {name: float(value) for name, value in metrics.compute().items()}


validation = MetricCollection([SeenAbsentAccuracy(SEEN_MASK), AUSUC(SEEN_MASK)])
for epoch in range(16):
    if epoch % 5 == 0:
        values = validate(model, validation, test)
        shown = ("acc_seen", "acc_absent", "acc_all", "AUSUC")
        print(
            f"epoch {epoch:2}:  "
            + "   ".join(f"{name} {values[name]:.3f}" for name in shown)
        )
    train(model, data.fine_tuning, epochs=1, learning_rate=1e-3)

# %%
# What gamma brings back
# ----------------------
# Gamma is a metric, too: of held-out samples of seen classes.

gamma = validate(
    model, MetricCollection({"gamma": LogitGap(SEEN_MASK)}), held_out
)["gamma"]
both = MetricCollection(
    {
        "before": SeenAbsentAccuracy(SEEN_MASK, accuracy="acc_all"),
        "after": SeenAbsentAccuracy(SEEN_MASK, gamma, accuracy="acc_all"),
    }
)
values = validate(model, both, test)
print(
    f"Acc_Y/Y {100 * values['before']:.1f} %, with gamma = {gamma:.2f}: {100 * values['after']:.1f} %"
)
