"""Small YOLO11 models before and after gamma: classify, detect and segment, trained and judged by ultralytics itself.

They learn icons of 20 classes in clear pictures, and are fine-tuned on foggy ones with ten classes, whose head they
keep. Half an hour on one core at first; trained models stay in FOLDER. Needs `ultralytics`, `onnx` and `onnxruntime`.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ |= {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}

import cv2
import numpy as np
import torch
from ultralytics import YOLO

import finecal
from finecal._core.results import format_table
from finecal.integrations._box_logits import match_boxes
from finecal.integrations.ultralytics import calibrate_yolo

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from _icons import SHAPES, draw_pictures

NAMES = list(SHAPES)
SEEN = NAMES[::2]
LABELS = range(1, len(NAMES) + 1, 2)
SETTINGS = {"do not occur": {"classes": LABELS}, "occur without boxes": {"labelled": LABELS}}
"""What becomes of objects of absent classes in the pictures for fine-tuning."""
SIZE = 96
MODELS = {"classify": "yolo11n-cls.yaml", "detect": "yolo11n.yaml", "segment": "yolo11n-seg.yaml"}
USUAL = 0.25
"""The confidence above which `predict` shows a box."""
COLUMNS = ["val", f"val above {USUAL}", "found", "F1", "wrong, off objects", "one class: F1", "wrong, off objects"]
"""By seen, absent and all classes, in %: average precision (accuracy), twice; what `predict` shows; the same with
`agnostic_nms`, so that each object has one class. Wrong boxes per picture, and those that overlap no object."""
RUNS = Path()


def write_data(folder: Path, task: str, splits: dict[str, dict[str, Any]]) -> Path:
    """Draw the pictures of each split, and return what ultralytics takes as `data`."""
    for split, options in splits.items():
        if task == "classify":
            _write_folders(folder / split, **options)
        else:
            _write_boxes(folder, split, **options)
    if task == "classify":
        return folder
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    paths = "".join(f"{split}: images/{split}\n" for split in splits)
    (folder / "data.yaml").write_text(f"path: {folder}\n{paths}names:\n{names}")
    return folder / "data.yaml"


def _save(path: Path, image: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), (255 * image).round().byte().permute(1, 2, 0).flip(2).numpy())


def _write_folders(folder: Path, count: int, **options: Any) -> None:
    """One icon per picture; a folder for each class, empty ones too, so that the head is kept."""
    pictures = draw_pictures(count, size=64, icons=(1, 1), radii=(0.2, 0.3), **options)
    for name in NAMES:
        (folder / name).mkdir(parents=True)
    for number, (image, labels) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
        _save(folder / NAMES[int(labels[0]) - 1] / f"{number}.png", image)


def _write_boxes(folder: Path, split: str, count: int, **options: Any) -> None:
    """Polygons, of which ultralytics takes the boxes for detection."""
    pictures = draw_pictures(count, size=SIZE, **options)
    (folder / "labels" / split).mkdir(parents=True)
    for number in range(count):
        _save(folder / "images" / split / f"{number}.png", pictures.images[number])
        lines = []
        for box, label in zip(pictures.boxes[number], pictures.labels[number], strict=True):
            left, top, right, bottom = box.int().tolist()
            own = pictures.label_maps[number, top:bottom, left:right] == label
            contours, _ = cv2.findContours(own.numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            corners = max(contours, key=len)[:, 0] + (left + 0.5, top + 0.5)
            lines.append(" ".join([str(int(label) - 1), *(f"{value:.5f}" for value in (corners / SIZE).ravel())]))
        (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))


def trained(start: str | Path, data: Path, epochs: int, folder: Path, **settings: Any) -> Path:
    """Train, unless that was done before."""
    last = folder / "weights" / "last.pt"
    if not last.exists():
        quiet = {"plots": False, "val": False, "verbose": False, "exist_ok": True, "workers": 0, "device": "cpu"}
        where = {"project": folder.parent, "name": folder.name}
        YOLO(start).train(data=data, epochs=epochs, batch=32, seed=0, **where, **quiet, **settings)
    return last


def mask_of(yolo: Any) -> np.ndarray:
    """Folders are classes in alphabetical order, so the numbers of classes differ between tasks."""
    return finecal.seen_mask_from_names(SEEN, yolo.names)


def by_group(values: dict[int, float], mask: np.ndarray) -> list[float]:
    """Means over seen, absent and all classes, in %."""
    groups = mask, ~mask, mask | ~mask
    return [100 * float(np.mean([value for key, value in values.items() if group[key]])) for group in groups]


def validated(yolo: Any, data: Path, **settings: Any) -> list[float]:
    """What its own `val` says: accuracy, or average precision at an IoU of 0.5 (of masks, for segment)."""
    quiet = {"plots": False, "verbose": False, "workers": 0, "project": RUNS, "name": "val", "exist_ok": True}
    metrics = yolo.val(data=data, split="test", **quiet, **settings)
    if yolo.task == "classify":
        matrix = metrics.confusion_matrix.matrix[: len(NAMES), : len(NAMES)]  # predictions by row
        return by_group(dict(enumerate(matrix.diagonal() / matrix.sum(0))), mask_of(yolo))
    found = metrics.seg if yolo.task == "segment" else metrics.box
    return by_group(dict(zip(found.ap_class_index.tolist(), found.ap50, strict=True)), mask_of(yolo))


def predicted(yolo: Any, data: Path, **settings: Any) -> dict[str, list[float]]:
    """What `predict` shows: share of the objects that are found, F1 of boxes, and wrong boxes per picture."""
    hits, objects, boxes = np.zeros((3, len(NAMES)))
    off = 0
    pictures = sorted((data.parent / "images" / "test").iterdir())
    for result in yolo.predict(pictures, verbose=False, stream=True, **settings):
        text = (data.parent / "labels" / "test" / f"{Path(result.path).stem}.txt").read_text()
        rows = [np.array(line.split(), dtype=np.float32) for line in text.splitlines()]
        corners = [row[1:].reshape(-1, 2) * SIZE for row in rows]
        truth = torch.tensor(np.array([[*each.min(0), *each.max(0)] for each in corners]).reshape(-1, 4)).float()
        labels = torch.tensor([int(row[0]) for row in rows])
        off += int((match_boxes(result.boxes.xyxy, truth, labels) < 0).sum())
        for number in range(len(NAMES)):
            own, of_class = result.boxes[result.boxes.cls == number], labels == number
            got = match_boxes(own.xyxy, truth[of_class], labels[of_class], scores=own.conf)
            hits[number] += int((got >= 0).sum())
            boxes[number] += len(own)
            objects[number] += int(of_class.sum())
    mask = mask_of(yolo)
    groups = mask, ~mask, mask | ~mask
    return {
        "found": by_group(dict(enumerate(hits / objects)), mask),
        "F1": [200 * hits[group].sum() / (objects[group].sum() + boxes[group].sum()) for group in groups],
        "wrong": [(boxes - hits).sum() / len(pictures), off / len(pictures)],
    }


def cells(yolo: Any, data: Path) -> list[str]:
    def shown(values: Iterable[float], digits: int = 1) -> str:
        return " / ".join(f"{value:.{digits}f}" for value in values)

    if yolo.task == "classify":
        return [shown(validated(yolo, data)), *[""] * (len(COLUMNS) - 1)]
    usual, one = predicted(yolo, data), predicted(yolo, data, agnostic_nms=True)
    return [
        shown(validated(yolo, data)),
        shown(validated(yolo, data, conf=USUAL)),
        *(shown(usual["found"]), shown(usual["F1"]), shown(usual["wrong"], 2)),
        *(shown(one["F1"]), shown(one["wrong"], 2)),
    ]


def score(row: list[str]) -> float:
    """Harmonic mean of seen and absent: of accuracy, or of the F1 of `predict`."""
    seen, absent, _ = map(float, (row[3] or row[0]).split(" / "))
    return 2 * seen * absent / (seen + absent + 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for pictures, models and what ultralytics writes")
    parser.add_argument("--pictures", type=int, default=1000, help="for pre-training; half as many for fine-tuning")
    parser.add_argument("--task", choices=list(MODELS), action="append")
    arguments = parser.parse_args()
    count = arguments.pictures
    global RUNS
    RUNS = arguments.folder.resolve()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    table = []
    for task in arguments.task or MODELS:
        for setting, options in SETTINGS.items():
            if task == "classify" and setting != "do not occur":
                continue
            own = RUNS / task
            tuning = own / setting.replace(" ", "_")
            foggy = {"foggy": True, **options}
            data = [
                written(own / "clear", task, {"train": {"count": count, "seed": 0}, "val": {"count": 100, "seed": 3}}),
                written(
                    tuning / "data",
                    task,
                    {
                        "train": {"count": count // 2, "seed": 2, **foggy},
                        "val": {"count": count // 5, "seed": 4, **foggy},
                        "test": {"count": count * 3 // 10, "seed": 1, "foggy": True},
                    },
                ),
            ]
            size = {"imgsz": 64 if task == "classify" else SIZE}
            epochs = 60 if task == "classify" else 30
            before = trained(MODELS[task], data[0], epochs, own / "pretrained", optimizer="AdamW", lr0=0.002, **size)
            after = trained(before, data[1], 10, tuning / "tuned", **size)
            rows = [("pre-trained", 0.0, cells(YOLO(before), data[1])), ("none", 0.0, cells(YOLO(after), data[1]))]
            for split in ("val", "train"):
                yolo = calibrate_yolo(YOLO(after), data[1], seen_classes=SEEN, split=split)
                rows.append((f"from {split}", gamma_of(yolo), cells(yolo, data[1])))
                if split == "val":
                    check_files(yolo, data[1], tuning)
            tried = []
            for gamma in range(1, 13):
                yolo = YOLO(after)
                finecal.fold_into_head(yolo, finecal.AdditiveBias(mask_of(yolo), float(gamma)))
                tried.append(("best", gamma, cells(yolo, data[1])))
            rows.append(max(tried, key=lambda row: score(row[2])))
            table += [[f"{task}, {setting}", which, f"{gamma:.1f}", *row] for which, gamma, row in rows]
            print(format_table(["absent objects", "gamma", "", *COLUMNS], table), flush=True)


def written(folder: Path, task: str, splits: dict[str, dict[str, Any]]) -> Path:
    """Draw pictures, unless that was done before."""
    if not folder.exists():
        return write_data(folder, task, splits)
    return folder if task == "classify" else folder / "data.yaml"


def gamma_of(yolo: Any) -> float:
    """From the record in the weights."""
    layer = next(module for module in yolo.model.modules() if "finecal_folded" in vars(module))
    return float(layer.finecal_folded["estimate"]["gamma"])


def check_files(yolo: Any, data: Path, folder: Path) -> None:
    """The saved and the exported model say what the calibrated one says; a second fold is refused."""
    yolo.save(folder / "calibrated.pt")
    loaded = YOLO(folder / "calibrated.pt")
    try:
        calibrate_yolo(loaded, data, seen_classes=SEEN)
    except ValueError as error:
        print(f"Again: {str(error)[:60]}...")
    exported = YOLO(loaded.export(format="onnx", imgsz=yolo.overrides["imgsz"]), task=yolo.task)
    above = {} if yolo.task == "classify" else {"conf": USUAL}  # without it gamma hardly shows
    values = [validated(each, data, rect=False, batch=1, **above) for each in (yolo, loaded, exported)]
    print("In memory, from .pt, from .onnx:", *(" / ".join(f"{each:.1f}" for each in row) for row in values), sep="  ")


if __name__ == "__main__":
    main()
