"""A text in place of a flag of a callback or of Ray is not taken for True."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from finecal.integrations import detection, lightning, ray, torchmetrics, transformers
from finecal.streaming import MarginRows
from flags import PHRASE, flags_of

MASK = torch.tensor([True, True, False])


@pytest.fixture
def trainer(tmp_path):
    config = BertConfig(vocab_size=4, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    data = [{"input_ids": torch.tensor([1]), "labels": 0}]
    return Trainer(BertForSequenceClassification(config), TrainingArguments(tmp_path, use_cpu=True), train_dataset=data)


def test_a_text_is_no_flag(trainer, tmp_path):
    calls = {
        lightning: {"CalibrationCallback": lambda **flag: lightning.CalibrationCallback(MASK, **flag)},
        transformers: {"CalibrationCallback": lambda **flag: transformers.CalibrationCallback(trainer, MASK, **flag)},
        ray: {"fill": lambda **flag: ray.fill(MarginRows(MASK), tmp_path, **flag)},
        detection: {},
        torchmetrics: {},
    }
    tested = []
    for module, each in calls.items():
        for name in flags_of(module):
            function, _, flag = name.removesuffix(")").partition("(")
            with pytest.raises(TypeError, match=f"^{flag} {PHRASE}"):
                each[function](**{flag: "false"})
            tested.append(flag)
    assert sorted(tested) == ["every_evaluation", "every_validation", "fold", "fold", "progress", "save"]
