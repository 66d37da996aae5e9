"""Average precision of small detectors of torchvision before and after gamma: the tables of docs/how-to/detection.md.

Two detectors learn icons of 20 classes in clear pictures, and are fine-tuned on foggy ones in which only ten classes
have boxes. Seven minutes on one core; needs the extra `detection` and no network.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import MultiScaleRoIAlign, nms

import finecal
from finecal._core.results import format_table
from finecal.integrations.detection import SeenAbsentAveragePrecision, collect_box_logits, match_boxes

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from _icons import CLASSES, Pictures, draw_pictures

SEEN = range(1, len(CLASSES), 2)
MASK = torch.arange(len(CLASSES)) % 2 == 1
MASK[0] = True  # the background
GAMMAS = [float(gamma) for gamma in range(9)]
BATCH, EPOCHS = 16, 8
SETTINGS = {"do not occur": {"classes": SEEN}, "occur without boxes": {"labelled": SEEN}}
"""What becomes of objects of absent classes in the pictures for fine-tuning."""


def backbone() -> nn.Sequential:
    def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    layers = layer(3, 16, 2), layer(16, 32, 2), layer(32, 32), layer(32, 64, 2), layer(64, 64), layer(64, 64)
    network = nn.Sequential(*layers)
    network.out_channels = 64  # what torchvision reads
    return network


def fcos() -> FCOS:
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    head = FCOSHead(64, 1, len(CLASSES), num_convs=1)
    return FCOS(backbone(), len(CLASSES), min_size=96, max_size=96, anchor_generator=anchors, head=head)


def faster_rcnn() -> FasterRCNN:
    return FasterRCNN(
        backbone(),
        min_size=96,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((24,),), ((1.0,),)),
        rpn_pre_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=32,
        rpn_post_nms_top_n_test=32,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 1),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(25 * 64, 128), nn.ReLU()),
        box_predictor=FastRCNNPredictor(128, len(CLASSES)),
    )


def batches(pictures: Pictures, order: Tensor | None = None) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    order = torch.arange(len(pictures.images)) if order is None else order
    for chosen in order.split(BATCH):
        targets = [{"boxes": pictures.boxes[i], "labels": pictures.labels[i]} for i in chosen]
        yield [pictures.images[i] for i in chosen], targets


def train(detector: nn.Module, pictures: Pictures) -> None:
    """Leave out pictures without a box, as torchvision's reference does."""
    kept = torch.tensor([number for number, boxes in enumerate(pictures.boxes) if len(boxes)])
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    steps = EPOCHS * -(-len(kept) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    torch.manual_seed(0)
    detector.train()
    for _ in range(EPOCHS):
        for images, targets in batches(pictures, kept[torch.randperm(len(kept))]):
            losses = detector(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            schedule.step()
    detector.eval()


def detections(detector: nn.Module, pictures: Pictures, gamma: float, threshold: float) -> list[dict[str, Tensor]]:
    shifted: Any = finecal.fold_into_head(copy.deepcopy(detector), finecal.AdditiveBias(MASK, gamma))
    getattr(shifted, "roi_heads", shifted).score_thresh = threshold
    with torch.inference_mode():
        return [found for images, _ in batches(pictures) for found in shifted(images)]


def one_class_each(found: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Suppression among boxes of all classes."""
    kept = [nms(boxes["boxes"], boxes["scores"], 0.5) for boxes in found]
    return [{key: value[rows] for key, value in boxes.items()} for boxes, rows in zip(found, kept, strict=True)]


def confident(found: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{key: value[boxes["scores"] >= 0.5] for key, value in boxes.items()} for boxes in found]


def averages(found: list[dict[str, Tensor]], pictures: Pictures) -> Any:
    metric = SeenAbsentAveragePrecision(MASK)
    metric.warn_on_many_detections = False
    metric.update(found, [target for _, targets in batches(pictures) for target in targets])
    return metric.report()


def pair(report: Any, name: str = "map_50") -> str:
    return " / ".join(f"{100 * getattr(report, f'{name}_{group}'):.1f}" for group in ("seen", "absent"))


def estimates(detector: FCOS | FasterRCNN, pictures: Pictures) -> dict[str, float]:
    """Gamma from one box of each object, and of FCOS also from all boxes that overlap an object."""
    rows = {"one box": collect_box_logits(detector, batches(pictures))[:2]}
    if isinstance(detector, FCOS):
        rows["all boxes"] = all_boxes(detector, pictures)
    gammas = {}
    for name, (logits, labels) in rows.items():
        kept = finecal.logits.drop_classes(logits, labels, MASK, 0)
        gammas[name] = finecal.estimate_gamma(kept.seen_mask, train=(kept.logits, kept.labels)).gamma
    return gammas


@torch.inference_mode()
def all_boxes(detector: Any, pictures: Pictures) -> tuple[Tensor, Tensor]:
    logits, labels = [], []
    for images, targets in batches(pictures):
        resized, truth = detector.transform(images, targets)
        features = [detector.backbone(resized.tensors)]
        outputs = detector.head(features)
        anchors = detector.anchor_generator(resized, features)
        parts = zip(outputs["cls_logits"], outputs["bbox_regression"], anchors, truth, strict=True)
        for rows, codes, own_anchors, target in parts:
            boxes = detector.box_coder.decode(codes, own_anchors)
            found = match_boxes(boxes, target["boxes"], target["labels"])
            logits.append(rows[found >= 0])
            labels.append(found[found >= 0])
    return torch.cat(logits), torch.cat(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="for pre-training; half as many for fine-tuning")
    count = parser.parse_args().pictures
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    clear = draw_pictures(count, seed=0)
    test = draw_pictures(count * 3 // 10, seed=1, foggy=True)
    foggy = {name: draw_pictures(count // 2, seed=2, foggy=True, **options) for name, options in SETTINGS.items()}
    rows, gammas = [], []
    for name, make, threshold in (("FCOS", fcos, 0.2), ("Faster R-CNN", faster_rcnn, 0.05)):
        torch.manual_seed(0)
        pretrained = make()
        train(pretrained, clear)
        for setting, pictures in foggy.items():
            detector = copy.deepcopy(pretrained)
            train(detector, pictures)
            estimated = estimates(detector, pictures)

            def looked_at(gamma: float, detector: nn.Module = detector, threshold: float = threshold) -> list[Any]:
                low, usual = (detections(detector, test, gamma, limit) for limit in (0.001, threshold))
                one = one_class_each(usual)
                return [averages(found, test) for found in (low, usual, one, confident(one))]

            tried = {gamma: looked_at(gamma) for gamma in GAMMAS}
            best = max(tried, key=lambda gamma: tried[gamma][2].map_50_harmonic)
            chosen = {"none": (0.0, tried[0.0]), "estimated": (estimated["one box"], looked_at(estimated["one box"]))}
            chosen["best"] = best, tried[best]
            for which, (gamma, (low, usual, one, sure)) in chosen.items():
                cells = pair(low), pair(usual), pair(one), pair(sure, "recall_50")
                rows.append([f"{name}, {setting}", which, f"{gamma:.1f}", *cells])
            from_all = f"{estimated['all boxes']:.1f}" if "all boxes" in estimated else ""
            gammas.append([f"{name}, {setting}", f"{estimated['one box']:.1f}", from_all, f"{best:.0f}"])
    print(format_table(["absent objects", "gamma", "", "all boxes", "usual", "one class", "recall"], rows))
    print(format_table(["absent objects", "one box", "all boxes", "best"], gammas))


if __name__ == "__main__":
    main()
