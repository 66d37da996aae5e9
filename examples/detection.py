"""
A detector that sees only the new classes
=========================================

A small detector knows icons of 20 classes in clear weather. Fine-tuned in fog, on pictures that show only ten of the
classes, it gives every icon one of these ten names, and average precision of the other ten falls to zero. One number,
added to their class logits, brings them back.

See the guide :doc:`../how-to/detection` for detectors of other kinds, and for what gamma cannot do.

Needs the extra detection, no network and less than a minute: ``python examples/detection.py``
"""

# %%
# Data and detector
# -----------------
# The icons are drawn on the spot. Every second class is seen in fine-tuning. Class 0 is the background, which is
# neither seen nor absent. The mask says True there, since gamma is not added to it.

import torch
from _icons import CLASSES, draw_pictures
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import nms

import finecal
from finecal.integrations.detection import (
    SeenAbsentAveragePrecision,
    collect_box_logits,
)
from finecal.plots._axes import palette_of

torch.set_num_threads(1)  # The same figures on every machine.
torch.manual_seed(0)

SEEN = range(1, len(CLASSES), 2)
seen_mask = torch.ones(len(CLASSES), dtype=torch.bool)
seen_mask[2::2] = False

clear = draw_pictures(640, seed=0, icons=(4, 7))
foggy = draw_pictures(320, seed=1, icons=(4, 7), foggy=True, classes=SEEN)
test = draw_pictures(200, seed=2, foggy=True)
clear_test = draw_pictures(100, seed=3)

# %%
# FCOS of torchvision, with a small backbone and one level of features. It has a sigmoid per class.


def layer(inputs, outputs, stride=1):
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


backbone = nn.Sequential(
    layer(3, 16, 2), layer(16, 32, 2), layer(32, 64, 2), layer(64, 64)
)
backbone.out_channels = 64
detector = FCOS(
    backbone,
    len(CLASSES),
    min_size=96,
    max_size=96,
    anchor_generator=AnchorGenerator(((8,),), ((1.0,),)),
    head=FCOSHead(64, 1, len(CLASSES), num_convs=1),
)


def batches(pictures, order):
    for chosen in order.split(8):
        images = [pictures.images[i] for i in chosen]
        targets = [
            {"boxes": pictures.boxes[i], "labels": pictures.labels[i]}
            for i in chosen
        ]
        yield images, targets


def in_order(pictures):
    return batches(pictures, torch.arange(len(pictures.images)))


def train(pictures, epochs):
    optimizer = torch.optim.AdamW(detector.parameters())
    steps = epochs * len(pictures.images) // 8
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    detector.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(pictures.images))
        for images, targets in batches(pictures, shuffled):
            losses = detector(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            schedule.step()
    detector.eval()


# %%
# What the detector finds: torchvision suppresses overlapping boxes within each class. Here an object gets one box, and
# so one class, by suppression among boxes of all classes.


@torch.inference_mode()
def detect(pictures):
    found = []
    for images, _ in in_order(pictures):
        for boxes in detector(images):
            kept = nms(boxes["boxes"], boxes["scores"], 0.5)
            found.append({key: value[kept] for key, value in boxes.items()})
    return found


def truth_of(pictures):
    return [target for _, targets in in_order(pictures) for target in targets]


def evaluate(found, pictures=test):
    metric = SeenAbsentAveragePrecision(seen_mask)
    metric.update(found, truth_of(pictures))
    return metric.report()


# %%
# Before and after fine-tuning
# ----------------------------
# Pre-training gives a detector that knows all classes in clear weather, but finds few icons in fog. Fine-tuning in fog
# teaches it the seen classes there. The absent ones disappear:

train(clear, epochs=7)
reports = {
    "pre-trained, clear": evaluate(detect(clear_test), clear_test),
    "pre-trained": evaluate(detect(test)),
}
train(foggy, epochs=8)
before = detect(test)
reports["fine-tuned"] = evaluate(before)
print(reports["fine-tuned"])

# %%
# Gamma
# -----
# ``collect_box_logits`` returns the logits of one box for each object in the fine-tuning pictures. Without the
# background's column, they are the logits of a classifier, and gamma is estimated as for any other:

logits, labels, groups = collect_box_logits(detector, in_order(foggy))
kept = finecal.logits.drop_classes(logits, labels, seen_mask, 0)
gamma = finecal.estimate_gamma(kept.seen_mask, train=(kept.logits, kept.labels))
print(gamma)

# %%
# It goes into the bias of the layer that gives the class logits, before the sigmoid. The detector is then used as
# before, at no cost:

finecal.fold_into_head(detector, finecal.AdditiveBias(seen_mask, gamma))
after = detect(test)
reports[f"gamma = {float(gamma):.2f}, estimated"] = evaluate(after)
print(reports[f"gamma = {float(gamma):.2f}, estimated"])

# %%
# What other gammas give. To know the best one takes labelled objects of all classes:


def with_gamma(other):
    """Average precision at another gamma; the head already has the estimate."""
    head = detector.head.classification_head.cls_logits
    shift = torch.where(seen_mask, 0.0, other - float(gamma))
    head.bias.data += shift
    report = evaluate(detect(test))
    head.bias.data -= shift
    return report


gammas = [0.0, 2, 3, 4, 5, 6, 8]
curve = [with_gamma(other) for other in gammas]
best = max(range(len(curve)), key=lambda i: curve[i].map_50_harmonic)
reports[f"gamma = {gammas[best]:.2f}, best on test"] = curve[best]
print(f"{'average precision at IoU 0.5, %':<32} seen absent harmonic")
for name, report in reports.items():
    seen, absent = 100 * report.map_50_seen, 100 * report.map_50_absent
    harmonic = 100 * report.map_50_harmonic
    print(f"{name:<32} {seen:4.1f} {absent:6.1f} {harmonic:8.1f}")

# %%
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
colours = palette_of(ax)
for group, style in (("seen", "-"), ("absent", "--")):
    heights = [100 * getattr(report, f"map_50_{group}") for report in curve]
    ax.plot(
        gammas,
        heights,
        style,
        color=getattr(colours, group),
        label=f"{group} classes",
    )
ax.axvline(float(gamma), color=colours.ink, lw=1, label="estimate_gamma")
ax.set(xlabel="gamma", ylabel="average precision at IoU 0.5, %", ylim=(0, 100))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %%
# Pictures
# --------
# The first test pictures: the truth, and boxes of a score of at least 0.4 before and after. Solid blue boxes have the
# name of a seen class, dashed orange ones that of an absent one.
# sphinx_gallery_thumbnail_number = 2

SHOWN = 5
rows = {"truth": truth_of(test), "fine-tuned": before, "with gamma": after}


def draw_boxes(ax, found):
    colours = palette_of(ax)
    scores = found.get("scores", torch.ones(len(found["labels"])))
    for box, label in zip(
        found["boxes"][scores >= 0.4].tolist(),
        found["labels"][scores >= 0.4].tolist(),
        strict=True,
    ):
        left, top, right, bottom = box
        colour, style = (
            (colours.seen, "-") if seen_mask[label] else (colours.absent, "--")
        )
        ax.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=colour,
                linestyle=style,
                linewidth=1.8,
            )
        )
        ax.text(
            min(max(left, 0), 70),
            max(top, 9) - 1,
            CLASSES[label],
            size=8,
            color=colours.face,
            bbox={"color": colour, "pad": 0.8},
        )


figure, axes = plt.subplots(
    len(rows), SHOWN, figsize=(10, 6.4), layout="constrained"
)
for line, (title, found) in zip(axes, rows.items(), strict=True):
    for number, ax in enumerate(line):
        ax.imshow(test.images[number].permute(1, 2, 0).numpy())
        ax.set(xticks=[], yticks=[])
        draw_boxes(ax, found[number])
    line[0].set_ylabel(title, size=12)
plt.show()
