"""
PEFT
====

LoRA with PEFT: gamma goes into the trained head, and stays there when the adapter is merged and the model saved.

Continues :doc:`huggingface_trainer`, with the same model and names. Needs the extras finecal[demo,transformers] and
peft, no network and about a minute: ``python examples/integrations/peft_lora.py``
"""

import tempfile
import warnings

from name_transformer import make_model, make_trainer, tokenize
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, set_seed

import finecal
from finecal._demo.names import load_names
from finecal.integrations.transformers import CalibrationCallback

warnings.filterwarnings(
    "ignore", category=FutureWarning, module="transformers"
)  # PEFT's use of it

# %%
# Pre-train on all classes
# ------------------------
# Model, tokens and Trainer are those of :doc:`name_transformer`.

set_seed(0)
task = load_names()
source, train, test = (
    tokenize(split) for split in (task.source, task.train, task.test)
)
model = make_model(num_classes=len(task.class_names))
folder = tempfile.TemporaryDirectory()
make_trainer(
    model, folder.name, source, test, num_train_epochs=10, learning_rate=4e-3
).train()

# %%
# Fine-tune an adapter, and the head
# ----------------------------------
# The classifier is among ``modules_to_save``: it is trained, and takes gamma.

lora = LoraConfig(
    task_type="SEQ_CLS",
    r=8,
    target_modules=["Wqkv", "Wo", "Wi"],
    modules_to_save=["classifier"],
)
adapted = get_peft_model(model, lora)
adapted.print_trainable_parameters()
trainer = make_trainer(
    adapted, folder.name, train, test, num_train_epochs=8, learning_rate=4e-3
)
trainer.add_callback(CalibrationCallback(trainer, task.seen_mask, fold=True))
trainer.train()

# %%
# Merge, save and load
# --------------------
# What is loaded is a plain transformer with gamma in its head.

adapted.merge_and_unload().save_pretrained(folder.name)
loaded = AutoModelForSequenceClassification.from_pretrained(folder.name)
folder.cleanup()
samples = finecal.collect_logits(
    loaded, DataLoader(test, batch_size=256), progress=False
)
print(finecal.evaluate(samples, task.seen_mask))
