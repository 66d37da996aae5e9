"""Models into whose head a calibrator is folded."""

import json
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

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


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """One level, and a last convolution of any kind."""

    def __init__(self, last=None):
        super().__init__()
        self.inside, self.below = block(3, 8), block(8, 8)
        self.above = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.out = nn.Conv2d(16, C, 1) if last is None else last

    def forward(self, x):
        skipped = self.inside(x)
        below = self.below(F.max_pool2d(skipped, 2))
        return self.out(torch.cat([skipped, self.above(below)], 1))


class Interpolated(nn.Module):
    """As FCN of torchvision: logits of less resolution are interpolated, in a mapping with those of a second head."""

    def __init__(self, mode="bilinear"):
        super().__init__()
        self.mode = mode
        self.backbone = block(3, 8)
        self.classifier = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, C, 1))
        self.aux_classifier = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, C, 1))

    def forward(self, x):
        features = F.max_pool2d(self.backbone(x), 2)
        size, corners = x.shape[-2:], False if self.mode.startswith("bi") else None
        output = OrderedDict()
        for name, head in (("out", self.classifier), ("aux", self.aux_classifier)):
            output[name] = F.interpolate(head(features), size=size, mode=self.mode, align_corners=corners)
        return output


class Summed(nn.Module):
    """As LRASPP of torchvision."""

    def __init__(self):
        super().__init__()
        self.cbr = block(3, 8)
        self.low_classifier, self.high_classifier = nn.Conv2d(3, C, 1), nn.Conv2d(8, C, 1)

    def forward(self, x):
        return self.low_classifier(x) + self.high_classifier(self.cbr(x))


class Detector(nn.Module):
    """As SSD of torchvision, with a level for each number of anchors: boxes in eval mode, losses in train mode."""

    def __init__(self, *anchors):
        super().__init__()
        convolutions = [nn.Conv2d(8, number * C, 3, padding=1) for number in anchors]
        self.backbone, self.head = block(3, 8), nn.Module()
        self.head.classification_head = nn.Module()
        self.head.classification_head.module_list = nn.ModuleList(convolutions)

    def scores(self, x):
        """Return `(B, boxes, C)` logits, box by box at each position, as RetinaNet orders them."""
        features = self.backbone(x)
        levels = [layer(features) for layer in self.head.classification_head.module_list]
        return torch.cat([level.unflatten(1, (-1, C)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in levels], 1)

    def forward(self, x):
        scores = self.scores(x).sigmoid()
        if self.training:
            return {"classification": scores.sum(), "bbox_regression": scores.mean()}
        return [{"boxes": item.new_zeros(len(item), 4), "scores": item.amax(1)} for item in scores]
