"""Models into whose head a calibrator is folded."""

import json

import torch
from torch import nn

C = 6
MASK = torch.tensor([True, False, True, True, False, True])
BIAS = torch.tensor([0.5, -1.0, 0.25, 3.0, 0.0, -0.125])


class Config:
    """As Hugging Face's: attributes that `save_pretrained` writes as JSON."""

    def save_pretrained(self):
        return json.dumps(vars(self))

    @classmethod
    def from_pretrained(cls, text):
        config = cls()
        vars(config).update(json.loads(text))
        return config


class Classifier(nn.Module):
    def __init__(self, config=None, classes=C):
        super().__init__()
        self.config = config
        self.body = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, classes)

    def forward(self, x):
        return self.classifier(self.body(x).relu())


class Distilled(Classifier):
    def __init__(self):
        super().__init__()
        self.head = self.classifier
        self.head_dist = nn.Linear(8, C)

    def get_classifier(self):
        return self.head, self.head_dist

    def forward(self, x):
        return (self.head(x) + self.head_dist(x)) / 2
