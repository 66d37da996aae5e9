"""
PEFT
====

LoRA with PEFT: gamma goes into the trained head, and stays there when the adapter is merged and the model saved.

Continues huggingface_trainer.py, with the same model and names. Needs the extras finecal[demo,transformers] and peft,
no network and about a minute: python examples/integrations/peft_lora.py
"""

import tempfile
import warnings

from huggingface_trainer import make_model, make_trainer, tokenize
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, set_seed

import finecal
from finecal.datasets import load_names
from finecal.integrations.transformers import CalibrationCallback


def main(folder: str) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # PEFT's use of it
    set_seed(0)
    task = load_names()
    source, train, test = (tokenize(split) for split in (task.source, task.train, task.test))
    model = make_model(num_classes=len(task.class_names))
    make_trainer(model, folder, source, test, num_train_epochs=10, learning_rate=4e-3).train()

    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["Wqkv", "Wo", "Wi"], modules_to_save=["classifier"])
    adapted = get_peft_model(model, lora)
    adapted.print_trainable_parameters()
    trainer = make_trainer(adapted, folder, train, test, num_train_epochs=8, learning_rate=4e-3)
    trainer.add_callback(CalibrationCallback(trainer, task.seen_mask, fold=True))
    trainer.train()

    adapted.merge_and_unload().save_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    logits, labels = finecal.collect_logits(loaded, DataLoader(test, batch_size=256), progress=False)
    print(finecal.evaluate(logits, labels, task.seen_mask))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
