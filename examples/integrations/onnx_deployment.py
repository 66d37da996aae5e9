"""
ONNX
====

A calibrated model as an ONNX file, served by onnxruntime: gamma is inside, and neither torch nor finecal is needed.

Needs onnx, onnxscript, onnxruntime and scikit-learn, no network and under a minute:
``python examples/integrations/onnx_deployment.py``
"""

import tempfile
import warnings
from pathlib import Path

import onnxruntime
import torch
from faint_digits import SEEN_MASK, accuracies, load, train
from torch import nn
from torch.utils.data import DataLoader

import finecal
from finecal.integrations.onnx import OnnxModel, fold_into_onnx

warnings.filterwarnings(
    "ignore", category=FutureWarning
)  # the exporter's, about torch itself

# %%
# A calibrated model
# ------------------
# The data are those of :doc:`faint_digits`.

data = load()
model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
)
train(model, data.pretraining, epochs=20, learning_rate=2e-3)
train(model, data.fine_tuning, epochs=15, learning_rate=5e-4)
print(f"fine-tuned: {accuracies(model, data.test)}")

seen_loader = DataLoader(data.fine_tuning, batch_size=100)
calibrated = finecal.calibrate_model(
    model, seen_loader, is_held_out=False, verbose=False
).eval()
print(f"calibrated: {accuracies(calibrated, data.test)}")

# %%
# Export and serve
# ----------------
# The wrapper is a module as any other. The size of the batch stays open, and the weights are in the same file.

images, labels = data.test.tensors
options = {
    "input_names": ["images"],
    "output_names": ["logits"],
    "dynamic_shapes": ({0: torch.export.Dim("batch")},),
    "external_data": False,
    "dynamo": True,
    "verbose": False,
}
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "model.onnx"
    torch.onnx.export(calibrated, (images[:2],), file, **options)
    session = onnxruntime.InferenceSession(
        file, providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], {"images": images.numpy()})

# %%
# A file that exists already
# --------------------------
# If the model is at hand as a file only, gamma goes into that: here into the bias of its last layer.

with tempfile.TemporaryDirectory() as folder:
    finetuned, new = Path(folder) / "finetuned.onnx", Path(folder) / "new.onnx"
    torch.onnx.export(model, (images[:2],), finetuned, **options)
    fold_into_onnx(finetuned, calibrated.calibrator, images[:20], out=new)
    folded = OnnxModel(new)(images)
difference = (torch.from_numpy(logits) - folded).abs().max()
print(f"largest difference between the two ways: {difference:.1e}")

# %%
# The same logits
# ---------------
# Those of onnxruntime are NumPy arrays, which finecal takes as well.

with torch.no_grad():
    difference = (torch.from_numpy(logits) - calibrated(images)).abs().max()
print(finecal.evaluate(logits, labels, SEEN_MASK.numpy()))
print(f"largest difference between onnxruntime and torch: {difference:.1e}")
