"""YOLO of ultralytics: gamma from a data file, in the biases of the head, so that whatever YOLO does is calibrated."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import box_convert
from ultralytics.cfg import get_cfg
from ultralytics.data import ClassificationDataset, build_yolo_dataset
from ultralytics.data.utils import check_cls_dataset, check_det_dataset
from ultralytics.engine.model import Model

from .._calibrators.additive_bias import AdditiveBias
from .._core.arrays import check_count, check_flag
from .._core.files import PathLike
from .._core.samples import Samples
from .._core.seen_mask import seen_mask_from_indices, seen_mask_from_names
from .._estimators.auto import estimate_gamma
from .._models.feed import device_of, in_eval_mode
from .._models.fold import check_uncalibrated, fold_into_head
from .._models.heads import find_head
from ._box_logits import Boxes, BoxLogits, joined, match_picture

__all__ = ["calibrate_yolo", "collect_yolo_logits"]

_TASKS = ("classify", "detect", "segment")
_IOU = 0.5
"""Least overlap of a box with the object whose logits it gives."""

YoloT = TypeVar("YoloT", bound=Model)


def calibrate_yolo(
    yolo: YoloT,
    data: PathLike,
    *,
    seen_classes: Iterable[str] | Iterable[int],
    split: str = "val",
    seen_share: float | None = None,
    imgsz: int | None = None,
    batch: int = 16,
    verbose: bool = True,
) -> YoloT:
    r"""Estimate gamma for a fine-tuned YOLO from pictures of its seen classes, and add it to the biases of its head.

    .. math:: \tilde b_c = b_c + \gamma \, [c \in U], at each scale of a detector

    The weights change, so `predict`, `val`, `track`, `export` and `save` are calibrated. `finecal.unfold_from_head`
    undoes it.

    Parameters
    ----------
    yolo : ultralytics.YOLO
        A model for ``classify``, ``detect`` or ``segment`` that was fine-tuned with the head of all classes: the data
        file has listed all names, or the folders of all classes were there, empty ones too.
    data : path
        The YAML file, or for ``classify`` the folder, as in ``yolo.val(data=...)``. The names in a YAML file must be
        those of the model.
    seen_classes : iterable of str or of int
        Names or numbers of the classes that had objects in the fine-tuning.
    split : {"val", "test", "train"}, default "val"
        Which pictures of `data` gamma is estimated from. They may have labels of the seen classes only. Those of
        "train" count as samples of the fine-tuning, others as held out.
    seen_share : float in (0, 1), optional
        Share of objects of seen classes where the model will be used; default \|S\| / C.
    imgsz : int, optional
        Size of the pictures; default: that of the training.
    batch : int, default 16
        Pictures at a time.
    verbose : bool, default True
        Whether to print the estimate to stderr.

    Returns
    -------
    ultralytics.YOLO
        `yolo`, changed. The estimate is in the record of `finecal.fold_into_head`, which `yolo.save` keeps.

    Raises
    ------
    TypeError, ValueError
        As `collect_yolo_logits` and `finecal.fold_into_head`; ValueError if a calibrator is folded in already, classes
        are unknown, all of the model's are seen, or the pictures have objects of others.

    Warns
    -----
    FinecalWarning
        As `finecal.estimate_gamma`, and if less than half of the objects are located.

    Notes
    -----
    A detector of YOLO has a sigmoid per class: gamma raises the scores of the absent classes on the background, too,
    and hardly changes an average precision over boxes of all scores. See :doc:`/how-to/detection`.

    Examples
    --------
    >>> yolo = calibrate_yolo(
    ...     YOLO("best.pt"), "data.yaml", seen_classes=["cat", "dog"]
    ... )  # doctest: +SKIP
    >>> yolo.save("calibrated.pt")  # doctest: +SKIP
    """
    names = _names_of(yolo)
    check_uncalibrated(yolo.model)
    check_flag(verbose, "verbose")
    mask = _seen_mask(seen_classes, names)
    samples = collect_yolo_logits(yolo, data, split=split, imgsz=imgsz, batch=batch)
    is_held_out = split != "train"
    estimate = estimate_gamma(
        mask,
        train=None if is_held_out else samples,
        held_out=samples if is_held_out else None,
        seen_share=seen_share,
    )
    if verbose:
        print(replace(estimate, warnings=()), file=sys.stderr)  # they were issued
        print(f"{int(mask.sum())} seen, {int((~mask).sum())} absent classes", file=sys.stderr)
    return fold_into_head(yolo, AdditiveBias(mask, estimate))


def collect_yolo_logits(
    yolo: Model, data: PathLike, *, split: str = "val", imgsz: int | None = None, batch: int = 16
) -> Samples:
    """Return the logits and labels of the pictures of a data file, as `yolo.val` reads them.

    For ``detect`` and ``segment`` there is one row for each object that a box overlaps by half: that of the box with
    the highest score, before suppression. Their `groups` say which picture an object is in.

    Parameters
    ----------
    yolo, data, split, imgsz, batch
        As in `calibrate_yolo`; the labels may be of all classes.

    Returns
    -------
    Samples
        Logits `(N, C)` before sigmoid or softmax, on the CPU.

    Raises
    ------
    TypeError
        If `yolo` is no YOLO of ultralytics in torch, or for another task.
    ValueError
        If `data` has no such split or other names than the model, or no box overlaps an object.

    Warns
    -----
    FinecalWarning
        If less than half of the objects have a box that overlaps them.

    Notes
    -----
    The network runs unfused, in eval mode, on the device where it is. Of an end-to-end model (YOLOv10, YOLO26), the
    branch is read that its setting `end2end` chooses; gamma is folded into both.

    Examples
    --------
    >>> samples = collect_yolo_logits(
    ...     YOLO("best.pt"), "data.yaml", split="test"
    ... )  # doctest: +SKIP
    >>> finecal.search_gamma(samples, seen_mask)  # doctest: +SKIP
    """
    names = _names_of(yolo)
    network: Any = yolo.model
    own = {key: value for key, value in yolo.overrides.items() if key in ("imgsz", "single_cls")}
    given = {"mode": "val", "task": yolo.task, "batch": check_count(batch, "batch"), "split": split}
    settings = get_cfg(overrides={**own, **given, **({} if imgsz is None else {"imgsz": imgsz})})
    read = _read_pictures if yolo.task == "classify" else _read_objects
    with in_eval_mode(network), torch.no_grad():
        return read(network, str(data), settings, names)


def _read_pictures(network: nn.Module, data: str, settings: Any, names: Sequence[str]) -> Samples:
    """Return the logits of a classifier; a folder has the name of its class."""
    folder = _path_in(check_cls_dataset(data), settings.split, data)
    dataset = ClassificationDataset(folder, settings)
    number = {name: place for place, name in enumerate(names)}
    unknown = [name for name in dataset.base.classes if name not in number]
    if unknown:
        raise ValueError(
            f"data has the folder {unknown[0]!r}, no class of the model ({len(unknown)} unknown of "
            f"{len(dataset.base.classes)} folders; the model's classes start with {', '.join(map(repr, names[:3]))})"
        )
    columns = torch.tensor([number[name] for name in dataset.base.classes])
    logits, labels = [], []
    for batch in DataLoader(dataset, settings.batch):
        _, scores = network(_sent(batch["img"], network))
        logits.append(scores.cpu())
        labels.append(columns[batch["cls"]])
    return Samples(torch.cat(logits), torch.cat(labels))


def _read_objects(network: Any, data: str, settings: Any, names: Sequence[str]) -> Samples:
    """Return the logits of a detector at the objects of pictures that are padded to the same size."""
    found = check_det_dataset(data, autodownload=False)
    listed = list(found["names"].values())
    if listed != list(names):
        raise ValueError(
            f"data lists {len(listed)} names and the model {len(names)}, or others ({listed[:3]}, {list(names[:3])}); "
            "list the names of the model in their order"
        )
    settings.task = "detect"  # masks are not read
    stride = int(network.stride.max())
    folder = _path_in(found, settings.split, data)
    dataset = build_yolo_dataset(settings, folder, settings.batch, found, mode="val", rect=True, stride=stride)
    rows: list[BoxLogits] = []
    objects = 0
    with _all_boxes(network.model[-1]) as class_layers, _outputs_of(class_layers) as outputs:
        for batch in DataLoader(dataset, settings.batch, collate_fn=dataset.collate_fn):
            images = _sent(batch["img"], network) / 255
            decoded = network(images)[0]
            decoded = decoded[0] if isinstance(decoded, tuple) else decoded  # masks follow
            boxes = box_convert(decoded[:, :4].mT, "cxcywh", "xyxy")
            logits = torch.cat([outputs[layer].flatten(2) for layer in class_layers], 2).mT
            height, width = images.shape[2:]
            truth = box_convert(batch["bboxes"], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
            for picture in range(len(images)):
                own = batch["batch_idx"] == picture
                target = {"boxes": truth[own], "labels": batch["cls"][own, 0].long()}
                scored = Boxes(boxes[picture], logits[picture], logits[picture].amax(1))
                rows.append(match_picture(scored, target, _IOU, len(rows)))
                objects += len(target["labels"])
    logits, labels, groups = joined(rows, objects, "collect_yolo_logits", "pass the imgsz of the training")
    return Samples(logits, labels, groups=groups)


@contextmanager
def _all_boxes(head: Any) -> Iterator[list[nn.Module]]:
    """Let an end-to-end head give all boxes of the branch in use, not the best 300; yield what scores the classes."""
    saved = {}
    if getattr(head, "end2end", False):
        branch = {name.removeprefix("one2one_"): name for name in dict(head.named_children()) if "one2one_" in name}
        saved = {name: getattr(head, name) for name in branch} | {"end2end": True}
        for name, other in branch.items():
            setattr(head, name, getattr(head, other))
        head.end2end = False
    try:
        yield [layers[-1] for layers in head.cv3]
    finally:
        for name, value in saved.items():
            setattr(head, name, value)


@contextmanager
def _outputs_of(layers: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Yield what layers gave when they last ran."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: Any, output: Tensor) -> None:
        outputs[layer] = output

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _sent(images: Tensor, network: nn.Module) -> Tensor:
    """Move pictures to the network, in its dtype."""
    return images.to(device_of(network), next(network.parameters()).dtype)


# --- checks -----------------------------------------------------------------------------------------------------------


def _names_of(yolo: Any) -> list[str]:
    """Return the names of a model's classes in the order of its logits, after checking that it is one that is read."""
    if not isinstance(yolo, Model) or not isinstance(yolo.model, nn.Module):
        raise TypeError(
            f"yolo is a {type(yolo).__name__}; pass ultralytics.YOLO with a .pt file; for an exported model: "
            "finecal.integrations.onnx.fold_into_onnx"
        )
    head = getattr(yolo.model, "model", [None])[-1]
    if yolo.task not in _TASKS or not (yolo.task == "classify" or hasattr(head, "cv3")):
        raise TypeError(
            f"yolo has the task {yolo.task!r} and the head {type(head).__name__}; those for {', '.join(_TASKS)} are "
            "read. With others, match boxes by finecal.integrations.detection.match_boxes, and fold gamma into the "
            "layers that score the classes by finecal.fold_into_head"
        )
    find_head(yolo.model)  # or it says why gamma has no place there
    return [name for _, name in sorted(yolo.names.items())]


def _seen_mask(seen_classes: Any, names: Sequence[str]) -> Tensor:
    if isinstance(seen_classes, (str, bytes)) or not isinstance(seen_classes, Iterable):
        raise TypeError(f"seen_classes is {seen_classes!r}; pass a list of names, or of numbers of classes")
    chosen = list(seen_classes)
    if len(names) > 1 and set(chosen) >= (set(names) if isinstance(chosen[0], str) else set(range(len(names)))):
        raise ValueError(
            f"seen_classes are all {len(names)} classes of the model. If fine-tuning has made a new head for them, "
            "gamma has nothing to be added to: train again with a data file that lists all names, or bring the others "
            "back into a classifier by finecal.restore_head"
        )
    if all(isinstance(each, str) for each in chosen):
        return torch.from_numpy(seen_mask_from_names(chosen, list(names)))
    return torch.from_numpy(seen_mask_from_indices(chosen, len(names)))


def _path_in(found: dict[str, Any], split: str, data: str) -> Any:
    folder = found.get(split) if split in ("train", "val", "test") else None
    if not folder:
        raise ValueError(f"split is {split!r}, which {data} does not have; it may be 'train', 'val' or 'test'")
    return folder
