"""The logits of a detector for boxes that are matched to true objects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou, clip_boxes_to_image

from .._core.arrays import check_number
from .._core.checks import check_index_dtype, check_index_range
from .._core.warning import warn
from .._models.collect import check_loader
from .._models.feed import device_of, in_eval_mode
from .._models.output import described

_MIN_MATCHED = 0.5
"""Matched share of the true boxes below which `collect_box_logits` warns."""


class BoxLogits(NamedTuple):
    """Logits `(N, C)` of boxes, their labels `(N,)`, and the number of the picture of each `(N,)`."""

    logits: Tensor
    labels: Tensor
    groups: Tensor


class Boxes(NamedTuple):
    """Boxes of one picture before non-maximum suppression, which keeps the highest score."""

    boxes: Tensor
    logits: Tensor
    scores: Tensor


def match_boxes(
    boxes: Tensor,
    truth_boxes: Tensor,
    truth_labels: Tensor,
    iou_threshold: float = 0.5,
    *,
    scores: Tensor | None = None,
) -> Tensor:
    """Return for each box the label of the true box that it overlaps most, -1 below the threshold.

    `O(NM)` time and memory. A box that overlaps two objects equally belongs to the first one.

    Parameters
    ----------
    boxes : (N, 4) tensor
        Boxes of one picture, `(x1, y1, x2, y2)`.
    truth_boxes : (M, 4) tensor
        True boxes, in the same coordinates.
    truth_labels : (M,) int tensor
        Class of each true box: its column in the detector's logits.
    iou_threshold : float, default 0.5
        Least intersection over union of a match, in (0, 1].
    scores : (N,) tensor, optional
        With scores, only the matching box with the highest score (the first one of equal scores) keeps the label of an
        object, as in non-maximum suppression; the others get -1.

    Returns
    -------
    (N,) int64 tensor
        On the device of `boxes`.

    Raises
    ------
    TypeError
        If boxes or scores are not floating point, or labels are not integer.
    ValueError
        If shapes do not match, boxes or scores contain NaN, a box is infinite or has another order of corners, a label
        is negative, or `iou_threshold` is out of range.

    Examples
    --------
    >>> import torch
    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [50.0, 50, 60, 60]])
    >>> truth_boxes, truth_labels = boxes[:1], torch.tensor([7])
    >>> match_boxes(boxes, truth_boxes, truth_labels)
    tensor([ 7,  7, -1])
    """
    _check_boxes(boxes, "boxes")
    _check_boxes(truth_boxes, "truth_boxes")
    labels = _check_truth_labels(truth_labels, len(truth_boxes), "truth_labels")
    threshold = _check_iou_threshold(iou_threshold)
    if scores is not None and (
        not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.shape != boxes.shape[:1]
    ):
        raise TypeError(
            f"scores are {_describe(scores)} for {len(boxes)} boxes; pass a tensor with one floating-point score per "
            "box"
        )
    if scores is not None:
        check_no_nan(scores, "scores")
    objects = _match_objects(boxes, truth_boxes.to(boxes), threshold, scores)
    matched = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    found = objects >= 0
    matched[found] = labels.to(boxes.device)[objects[found]]
    return matched


def collect_box_logits(detector: nn.Module, loader: Iterable[Any], *, iou_threshold: float = 0.5) -> BoxLogits:
    """Return the logits of one box for each true object, from which gamma is estimated.

    The box is the one with the highest score among those that overlap the object; an object that no box overlaps has no
    row. Drop column 0, of the background or of nothing, before you estimate: see :doc:`/how-to/detection`.

    Parameters
    ----------
    detector : nn.Module
        A `FasterRCNN` (or subclass, such as `MaskRCNN`), `RetinaNet`, `FCOS` or `SSD` of torchvision; runs in eval
        mode where its weights are.
    loader : iterable of (images, targets)
        A list of `(3, H, W)` tensors, and a list of dicts with ``"boxes"`` `(M, 4)`, `(x1, y1, x2, y2)` in pixels, and
        ``"labels"`` `(M,)`.
    iou_threshold : float, default 0.5
        Least intersection over union of a box with the object, in (0, 1].

    Returns
    -------
    logits : (N, C) tensor
        On the CPU, before sigmoid or softmax, with all columns of the detector.
    labels : (N,) int64 tensor
        Columns of `logits`.
    groups : (N,) int64 tensor
        Number of the picture of each object.

    Raises
    ------
    TypeError
        If `detector` is none of these, or a batch is not as above.
    ValueError
        If the loader is empty, a label is not a column of the logits, no box overlaps an object, or the detector gives
        NaN.

    Warns
    -----
    FinecalWarning
        If less than half of the objects have a box that overlaps them.

    Examples
    --------
    >>> import torch
    >>> from torchvision.models.detection import retinanet_resnet50_fpn
    >>> detector = retinanet_resnet50_fpn(
    ...     weights=None, weights_backbone=None, num_classes=6, min_size=64
    ... )
    >>> box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    >>> targets = [{"boxes": box, "labels": torch.tensor([3])}]
    >>> loader = [([torch.rand(3, 64, 64)], targets)]
    >>> logits, labels, groups = collect_box_logits(detector, loader)
    >>> logits.shape, labels, groups
    (torch.Size([1, 6]), tensor([3]), tensor([0]))
    """
    network: Any = detector
    boxes_of = _box_reader(detector)
    check_loader(loader)
    threshold = _check_iou_threshold(iou_threshold)
    device = device_of(detector)
    rows: list[BoxLogits] = []
    objects = 0
    with in_eval_mode(detector):
        for batch in loader:
            images, targets = _split_batch(batch)
            sent = [image.to(device) for image in images]
            truths = [{"boxes": target["boxes"].to(device), "labels": target["labels"]} for target in targets]
            with torch.inference_mode():
                resized, truths = network.transform(sent, truths)
                for found, truth in zip(boxes_of(detector, resized), truths, strict=True):
                    rows.append(match_picture(found, truth, threshold, len(rows)))
                    objects += len(truth["labels"])
    if not rows:
        raise ValueError("loader gave no picture: it is empty, or an iterator that was used up before")
    advice = "boxes must be (x1, y1, x2, y2) in pixels of the images that the loader gives"
    return joined(rows, objects, "collect_box_logits", advice)


def joined(rows: Sequence[BoxLogits], objects: int, caller: str, advice: str) -> BoxLogits:
    """Return the rows of all pictures as one; the error of `caller`, where no object has a box, ends in an advice."""
    collected = BoxLogits(*(torch.cat(part) for part in zip(*rows, strict=True)))
    matched = len(collected.labels)
    if matched < _MIN_MATCHED * objects or not objects:
        found = f"{matched} of {objects} objects in {len(rows)} pictures have a box that overlaps them"
        if not matched:
            raise ValueError(f"{found}; {advice}")
        warn(f"{caller}: only {found}; gamma is that of the objects which the detector has located")
    return collected


# --- the detectors of torchvision -------------------------------------------------------------------------------------


def _box_reader(detector: object) -> Any:
    """Return the function that yields the boxes of a batch, picture by picture."""
    if isinstance(detector, FasterRCNN):
        return _read_proposals
    if isinstance(detector, (RetinaNet, FCOS, SSD)):
        return _read_anchors
    raise TypeError(
        f"detector is {described(detector)}; collect_box_logits reads FasterRCNN, RetinaNet, FCOS and SSD of "
        "torchvision. With another one take the class logits of its boxes before non-maximum suppression, picture by "
        "picture: labels = match_boxes(boxes, truth_boxes, truth_labels, scores=scores), and keep rows with labels >= 0"
    )


def _read_proposals(detector: Any, images: Any) -> Iterator[Boxes]:
    """Yield the proposals of a two-stage detector, whose softmax includes the background."""
    features = _features_of(detector, images)
    proposals, _ = detector.rpn(images, features)
    heads = detector.roi_heads
    logits, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes)))
    for boxes, rows in zip(proposals, logits.split([len(boxes) for boxes in proposals]), strict=True):
        yield Boxes(boxes, rows, rows.softmax(1)[:, 1:].amax(1))


def _read_anchors(detector: Any, images: Any) -> Iterator[Boxes]:
    """Yield the boxes of a one-stage detector at all anchors; only SSD has a softmax."""
    features = list(_features_of(detector, images).values())
    outputs, anchors = detector.head(features), detector.anchor_generator(images, features)
    coder = detector.box_coder
    decode = coder.decode if isinstance(detector, FCOS) else coder.decode_single
    for number, own_anchors in enumerate(anchors):
        logits = outputs["cls_logits"][number]
        scores = logits.softmax(1)[:, 1:].amax(1) if isinstance(detector, SSD) else logits.amax(1).sigmoid()
        if "bbox_ctrness" in outputs:
            scores = scores * outputs["bbox_ctrness"][number].squeeze(1).sigmoid()
        boxes = decode(outputs["bbox_regression"][number], own_anchors)
        yield Boxes(clip_boxes_to_image(boxes, images.image_sizes[number]), logits, scores)


def _features_of(detector: Any, images: Any) -> Mapping[str, Tensor]:
    features = detector.backbone(images.tensors)
    return {"0": features} if isinstance(features, Tensor) else features


def match_picture(found: Boxes, truth: Mapping[str, Tensor], threshold: float, picture: int) -> BoxLogits:
    """Return the rows of the located objects of one picture."""
    labels = check_index_range(
        truth["labels"].to(found.logits.device), found.logits.shape[1], "labels", "number of columns of the logits"
    )
    check_no_nan(found.boxes, "boxes of the detector")
    check_no_nan(found.scores, "scores of the detector")
    objects = _match_objects(found.boxes, truth["boxes"].to(found.boxes), threshold, found.scores)
    kept = objects >= 0
    groups = torch.full((int(kept.sum()),), picture, dtype=torch.int64)
    return BoxLogits(found.logits[kept].cpu(), labels[objects[kept]].cpu(), groups)


def _match_objects(boxes: Tensor, truth_boxes: Tensor, threshold: float, scores: Tensor | None) -> Tensor:
    """Return the index of the object that each box matches, -1 for none; with scores, one box per object."""
    if not len(boxes) or not len(truth_boxes):
        return torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    overlap, objects = box_iou(boxes, truth_boxes).max(1)
    objects = torch.where(overlap >= threshold, objects, -1)
    if scores is None:
        return objects
    numbers = torch.arange(len(truth_boxes), device=boxes.device)
    belongs = objects[:, None] == numbers
    ranks = scores.clamp(min=torch.finfo(scores.dtype).min)  # a box of an object, even with a score of -inf, goes first
    best = torch.where(belongs, ranks[:, None], -math.inf).argmax(0)
    best = best[belongs.any(0)]
    one_each = torch.full_like(objects, -1)
    one_each[best] = objects[best]
    return one_each


# --- checks -----------------------------------------------------------------------------------------------------------


def _split_batch(batch: Any) -> tuple[Sequence[Tensor], Sequence[Mapping[str, Tensor]]]:
    """Return images and targets of a batch, checked."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        images, targets = batch
        pictures = isinstance(images, (Tensor, list, tuple)) and all(isinstance(image, Tensor) for image in images)
        if pictures and isinstance(targets, (list, tuple)) and len(images) == len(targets):
            for target in targets:
                if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
                    raise TypeError(f'a target is {described(target)}; pass a dict with "boxes" and "labels"')
                _check_boxes(target["boxes"], "boxes of a target")
                _check_truth_labels(target["labels"], len(target["boxes"]), "labels of a target")
            return list(images), targets
    raise TypeError(
        f"a batch is {described(batch)}; expected (images, targets), a list of (3, H, W) tensors and a list of dicts "
        'with "boxes" and "labels", one each per picture'
    )


def _check_boxes(boxes: object, name: str) -> None:
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        raise TypeError(f"{name} are {_describe(boxes)}; pass a floating-point tensor of shape (N, 4)")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} have shape {tuple(boxes.shape)}; expected (N, 4), each (x1, y1, x2, y2)")
    check_corners(boxes, name)


def check_corners(boxes: Tensor, name: str) -> None:
    """Boxes `(N, 4)` are finite, and have their corners in order."""
    check_no_nan(boxes, name)
    if bool(boxes.isinf().any()):
        raise ValueError(f"{name} contain {boxes[boxes.isinf().any(1)][0].tolist()}; clip them to the picture")
    if not bool((boxes[:, 2:] >= boxes[:, :2]).all()):
        wrong = boxes[~(boxes[:, 2:] >= boxes[:, :2]).all(1)][0].tolist()
        raise ValueError(
            f"{name} contain {wrong}, which is not (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2; convert them by "
            "torchvision.ops.box_convert"
        )


def check_no_nan(values: Tensor, name: str) -> None:
    """No NaN among scores or boxes, which would be of no order."""
    found = values.isnan().nonzero()
    if len(found):
        rows = torch.unique(found[:, 0])
        raise ValueError(
            f"{name} contain NaN (first in row {int(rows[0])}, {len(rows)} of {len(values)}); drop these boxes or "
            "repair the model"
        )


def _check_truth_labels(labels: object, count: int, name: str) -> Tensor:
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} are {_describe(labels)}; pass an integer tensor")
    if labels.shape != (count,):
        raise ValueError(f"{name} have shape {tuple(labels.shape)} for {count} boxes; expected ({count},)")
    if not count:
        return labels.to(torch.int64)
    labels = check_index_dtype(labels, name).to(torch.int64)
    if int(labels.min()) < 0:
        raise ValueError(f"{name} contain {int(labels.min())}; pass the number of each class, its column in the logits")
    return labels


def _check_iou_threshold(iou_threshold: float) -> float:
    threshold = check_number(iou_threshold, "iou_threshold")
    if not 0 < threshold <= 1:
        raise ValueError(f"iou_threshold is {threshold}; it must be above 0 and at most 1")
    return threshold


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
