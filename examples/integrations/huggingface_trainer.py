"""
Hugging Face Trainer
====================

Hugging Face Trainer: a small ModernBERT tells countries, currencies and scripts by their names in other languages.

Pre-trained on all classes in English and the Romance languages, fine-tuned on half of them in others. Needs the extras
finecal[demo,transformers], no network and under a minute: ``python examples/integrations/huggingface_trainer.py``
"""

import tempfile

from name_transformer import make_model, make_trainer, tokenize
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, set_seed

import finecal
from finecal._demo.names import load_names
from finecal.integrations.transformers import CalibrationCallback

# %%
# Pre-train on all classes
# ------------------------
# Model, tokens and Trainer are those of :doc:`name_transformer`.

set_seed(0)
task = load_names()
source, train, test = map(tokenize, (task.source, task.train, task.test))
model = make_model(len(task.class_names))
folder = tempfile.TemporaryDirectory()
make_trainer(
    model, folder.name, source, test, num_train_epochs=10, learning_rate=4e-3
).train()

# %%
# Fine-tune, with the callback
# ----------------------------
# It estimates gamma when the training ends, logs the accuracies without and with it, and folds it into the head.

trainer = make_trainer(
    model, folder.name, train, test, num_train_epochs=8, learning_rate=2e-3
)
trainer.add_callback(CalibrationCallback(trainer, task.seen_mask, fold=True))
trainer.train()

# %%
# Save and load
# -------------
# Gamma is in the saved model: whoever loads it needs no finecal.

trainer.save_model(folder.name)
loaded = AutoModelForSequenceClassification.from_pretrained(folder.name)
folder.cleanup()
samples = finecal.collect_logits(
    loaded, DataLoader(test, batch_size=256), progress=False
)
print(finecal.evaluate(samples, task.seen_mask))

# %%
# The oracle
# ----------
# What would still be to be added, if the test labels were known.

rest = finecal.search_gamma(samples, task.seen_mask)
report = finecal.evaluate(samples, task.seen_mask, rest)
print(f"oracle: {rest.gamma:+.2f}, Acc_Y/Y {100 * report.acc_all:.1f} %")
