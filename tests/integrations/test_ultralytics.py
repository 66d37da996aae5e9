"""Logits against what YOLO returns for pictures that are padded by hand, matched by brute force; gamma in what it does.

Fast networks without training, whose boxes are set: squares of two cells to each side of a position.
"""

import os

os.environ.update(YOLO_AUTOINSTALL="false", YOLO_OFFLINE="true", YOLO_VERBOSE="false")

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ultralytics", reason="heavy; `pip install '.[ultralytics]'`")

from torchvision.ops import box_iou
from ultralytics import YOLO
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, SegmentationModel, WorldModel

import finecal
from finecal.integrations.ultralytics import calibrate_yolo, collect_yolo_logits
from pages import blocks

NAMES = ["cat", "ant", "dog", "bee"]
SEEN = ["cat", "dog"]
MASK = torch.tensor([True, False, True, False])
SIDE, PADDED = 160, 192
KINDS = {
    "detect": (DetectionModel, "yolo11n.yaml"),
    "segment": (SegmentationModel, "yolo11n-seg.yaml"),
    "end to end": (DetectionModel, "yolo26n.yaml"),
    "classify": (ClassificationModel, "yolo11n-cls.yaml"),
}
pytestmark = pytest.mark.filterwarnings("ignore::finecal.FinecalWarning", "ignore::DeprecationWarning")


def yolo_of(kind):
    torch.manual_seed(0)
    network, config = KINDS[kind]
    yolo = YOLO(config)
    yolo.model = network(config, nc=len(NAMES), verbose=False)
    yolo.model.names = dict(enumerate(NAMES))
    yolo.ckpt = {"train_args": {"task": yolo.task, "imgsz": SIDE}}
    head = yolo.model.model[-1]
    with torch.no_grad():
        if kind == "classify":
            head.linear.weight.normal_()
            return yolo
        for branch in ("", "one2one_"):
            for layers in getattr(head, f"{branch}cv2", None) or ():
                layers[-1].weight.zero_()
                layers[-1].bias.zero_()
                layers[-1].bias.view(4, -1)[:, min(2, head.reg_max - 1)] = 20.0 if head.reg_max > 1 else 2.0
            for layers in getattr(head, f"{branch}cv3", None) or ():
                layers[-1].weight.normal_()
                layers[-1].bias.normal_()
    head.end2end = kind == "end to end"
    return yolo


def pictures(rng, count):
    return [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def boxes_file(tmp_path, rng):
    """Six pictures with three squares each, of seen classes in `train` and `val`, and of all in `test`."""
    truth = {}
    for split, classes in {"train": [0, 2], "val": [0, 2], "test": [0, 1, 2, 3]}.items():
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        truth[split] = []
        for number, pixels in enumerate(pictures(rng, 6)):
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{number}.png")
            centres = rng.choice(3, 3, replace=False)[:, None] * 50 + 30 + rng.integers(-5, 6, (3, 2))
            labels = rng.choice(classes, 3)
            rows = [
                [label, *(centre / SIDE), 32 / SIDE, 32 / SIDE] for label, centre in zip(labels, centres, strict=True)
            ]
            text = "\n".join(" ".join(map(str, row)) for row in rows)
            (tmp_path / "labels" / split / f"{number}.txt").write_text(text)
            corners = np.concatenate([centres - 16, centres + 16], 1) + (PADDED - SIDE) / 2
            truth[split].append((pixels, torch.tensor(corners, dtype=torch.float32), torch.tensor(labels)))
    splits = "".join(f"{split}: images/{split}\n" for split in truth)
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\n{splits}names: {NAMES}\n")
    return tmp_path / "data.yaml", truth


@pytest.fixture
def folders(tmp_path, rng):
    """Folders of classes, whose alphabetical order is not that of the model."""
    truth = {}
    for split, classes in {"train": [0, 2], "val": [0, 2], "test": [0, 1, 2, 3]}.items():
        truth[split] = []
        for name in sorted(NAMES):
            (tmp_path / split / name).mkdir(parents=True)
            for number, pixels in enumerate(pictures(rng, 5 if NAMES.index(name) in classes else 0)):
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
                truth[split].append((pixels, NAMES.index(name)))
    return tmp_path, truth


def scores_of(yolo, pixels, side=PADDED, branch="one2one"):
    """Boxes and raw class scores of one padded picture, from what the network returns."""
    padded = np.full((side, side, 3), 114, dtype=np.uint8)
    start = (side - SIDE) // 2
    padded[start : start + SIDE, start : start + SIDE] = pixels
    image = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    yolo.model.eval()
    with torch.no_grad():
        raw = yolo.model(image)[1]
    scores = raw.get(branch, raw)["scores"]
    boxes = []
    for stride in (8, 16, 32):
        cells = (torch.arange(side // stride) + 0.5) * stride
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        boxes.append(torch.stack([x - 2 * stride, y - 2 * stride, x + 2 * stride, y + 2 * stride], -1).reshape(-1, 4))
    return torch.cat(boxes), scores[0].T


@pytest.mark.parametrize("kind", ["detect", "segment", "end to end"])
def test_logits_are_those_of_the_best_box_of_each_object(kind, boxes_file):
    path, truth = boxes_file
    yolo = yolo_of(kind)
    before = {name: value.clone() for name, value in yolo.model.state_dict().items()}
    yolo.model.train()
    samples = collect_yolo_logits(yolo, path, split="test", imgsz=SIDE, batch=4)
    assert yolo.model.training
    assert all(torch.equal(value, before[name]) for name, value in yolo.model.state_dict().items())
    expected, labels, groups = [], [], []
    for number, (pixels, corners, own) in enumerate(truth["test"]):
        boxes, scores = scores_of(yolo, pixels)
        overlap = box_iou(boxes, corners)
        for place in range(len(own)):
            of_object = (overlap.argmax(1) == place) & (overlap[:, place] >= 0.5)
            rows = scores[of_object]
            if len(rows):
                expected.append(rows[rows.amax(1).argmax()])
                labels.append(own[place])
                groups.append(number)
    order = np.lexsort([np.array(labels), np.array(groups)])
    found = np.lexsort([samples.labels_tensor.numpy(), samples.groups.numpy()])
    assert samples.labels_tensor[found].tolist() == torch.stack(labels)[order].tolist()
    assert samples.groups[found].tolist() == np.array(groups)[order].tolist()
    sums = [rows.sum(1).sort().values for rows in (samples.logits_tensor, torch.stack(expected))]
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-4)


def test_logits_of_a_classifier(folders):
    path, truth = folders
    yolo = yolo_of("classify")
    samples = collect_yolo_logits(yolo, path, split="test", imgsz=SIDE, batch=3)
    yolo.model.eval()
    images = torch.stack([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 for pixels, _ in truth["test"]])
    with torch.no_grad():
        torch.testing.assert_close(samples.logits_tensor, yolo.model(images)[1], rtol=1e-4, atol=1e-4)
    assert samples.labels_tensor.tolist() == [label for _, label in truth["test"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["val", "train"])
def test_gamma_is_estimated_and_folded(kind, split, request, capsys, monkeypatch):
    def estimated(mask, *, train, held_out, seen_share):
        assert ((train, held_out)[split == "train"], seen_share, mask.tolist()) == (None, 0.4, MASK.tolist())
        return finecal.estimators.max_logit_gap(train or held_out, mask)  # the network recognises nothing

    monkeypatch.setattr("finecal.integrations.ultralytics.estimate_gamma", estimated)
    path, _ = request.getfixturevalue("folders" if kind == "classify" else "boxes_file")
    yolo, bare = yolo_of(kind), yolo_of(kind)
    estimate = finecal.estimators.max_logit_gap(collect_yolo_logits(yolo, path, split=split, imgsz=SIDE), MASK)
    seen = SEEN if split == "val" else [0, 2]
    assert calibrate_yolo(yolo, path, seen_classes=seen, split=split, imgsz=SIDE, seen_share=0.4) is yolo
    assert "2 seen, 2 absent classes" in capsys.readouterr().err
    head, other = (each.model.model[-1] for each in (yolo, bare))
    names = {"classify": (), "end to end": ("cv3", "one2one_cv3")}.get(kind, ("cv3",))
    parts = [zip(getattr(head, name), getattr(other, name), strict=True) for name in names]
    pairs = [(ours[-1], before[-1]) for part in parts for ours, before in part] or [(head.linear, other.linear)]
    for layer, before in pairs:
        added = torch.where(MASK, 0.0, estimate.gamma)
        torch.testing.assert_close(layer.bias - before.bias, added, rtol=0, atol=1e-5)
        assert layer.finecal_folded["estimate"]["gamma"] == estimate.gamma
    with pytest.raises(ValueError, match="folded into"):
        calibrate_yolo(yolo, path, seen_classes=SEEN, imgsz=SIDE)


def test_what_a_calibrated_classifier_does(folders, tmp_path):
    path, truth = folders
    yolo = yolo_of("classify")
    samples = collect_yolo_logits(yolo, path, split="test", imgsz=SIDE)
    calibrator = finecal.AdditiveBias(MASK, 7.0)
    finecal.fold_into_head(yolo, calibrator)
    expected = calibrator(samples.logits_tensor)
    yolo.save(tmp_path / "calibrated.pt")
    loaded = YOLO(tmp_path / "calibrated.pt")
    for each in (yolo, loaded):
        results = each.predict([pixels[..., ::-1] for pixels, _ in truth["test"]], imgsz=SIDE, verbose=False)
        found = torch.stack([result.probs.data for result in results])
        torch.testing.assert_close(found, expected.softmax(1), rtol=0, atol=2e-3)
        metrics = each.val(data=path, split="test", imgsz=SIDE, plots=False, project=tmp_path, workers=0)
        assert metrics.top1 == pytest.approx((expected.argmax(1) == samples.labels_tensor).float().mean().item())
    with pytest.raises(ValueError, match="folded into"):
        finecal.fold_into_head(loaded, calibrator)
    finecal.unfold_from_head(yolo, calibrator)
    torch.testing.assert_close(yolo.model.model[-1].linear.bias, yolo_of("classify").model.model[-1].linear.bias)


@pytest.mark.parametrize("kind", ["detect", "end to end"])
def test_what_a_calibrated_detector_does(kind, boxes_file, tmp_path):
    """Where no box is suppressed, each has the class and the score of its largest calibrated logit.

    Unless `nms=False` is passed, ultralytics predicts by the first branch, whatever it has trained.
    """
    pixels = boxes_file[1]["test"][0][0]
    options = {"imgsz": SIDE, "conf": 0.0, "iou": 1.0, "max_det": 2000, "verbose": False}
    yolo = yolo_of(kind)
    calibrator = finecal.AdditiveBias(MASK, 1.5)
    bare = scores_of(yolo, pixels, SIDE, "one2many")[1]
    expected = calibrator(bare)
    before = yolo.predict(pixels[..., ::-1], **options)[0].boxes.conf  # with a copy of the network, which is kept
    finecal.fold_into_head(yolo, calibrator)
    yolo.save(tmp_path / "calibrated.pt")
    for each in (yolo, YOLO(tmp_path / "calibrated.pt")):
        found = each.predict(pixels[..., ::-1], **options)[0].boxes
        assert len(found) == len(expected)
        torch.testing.assert_close(
            found.conf, expected.amax(1).sigmoid().sort(descending=True).values, rtol=0, atol=0.02
        )
        shares = [(~MASK[classes]).float().mean() for classes in (found.cls.long(), expected.argmax(1))]
        torch.testing.assert_close(*shares, rtol=0, atol=0.02)
    finecal.unfold_from_head(yolo, calibrator)
    after = yolo.predict(pixels[..., ::-1], **options)[0].boxes.conf
    for found in (before, after):
        torch.testing.assert_close(found, bare.amax(1).sigmoid().sort(descending=True).values, rtol=0, atol=0.02)


def test_guide(boxes_file, tmp_path, monkeypatch):
    yolo_of("detect").save(tmp_path / "best.pt")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(next(block for block in blocks("docs/how-to/detection.md", "python") if "calibrate_yolo" in block), names)
    assert "finecal_folded" in vars(names["yolo"].model.model[-1].cv3[0][-1])


def test_refusals(boxes_file, folders, tmp_path):
    path, _ = boxes_file
    yolo, classifier = yolo_of("detect"), yolo_of("classify")
    given = {"seen_classes": SEEN, "imgsz": SIDE}
    with pytest.raises(TypeError, match=r"yolo is a DetectionModel; pass ultralytics\.YOLO with a \.pt file"):
        calibrate_yolo(yolo.model, path, **given)
    world = YOLO("yolov8n-worldv2.yaml")
    assert isinstance(world.model, WorldModel)
    with pytest.raises(ValueError, match="WorldDetect compares positions with texts"):
        collect_yolo_logits(world, path)
    with pytest.raises(TypeError, match="yolo has the task 'obb' and the head OBB"):
        collect_yolo_logits(YOLO("yolo11n-obb.yaml"), path)
    with pytest.raises(TypeError, match="seen_classes is 'cat'; pass a list of names"):
        calibrate_yolo(yolo, path, seen_classes="cat")
    for everything in (NAMES, range(4)):
        with pytest.raises(ValueError, match=r"seen_classes are all 4 classes of the model.*restore_head"):
            calibrate_yolo(yolo, path, seen_classes=everything)
    with pytest.raises(ValueError, match="'cow'"):
        calibrate_yolo(yolo, path, seen_classes=["cow"])
    with pytest.raises(ValueError, match="absent class"):
        calibrate_yolo(yolo, path, split="test", **given)
    with pytest.raises(ValueError, match="split is 'minival', which .* does not have"):
        collect_yolo_logits(yolo, path, split="minival")
    yolo.model.names = dict(enumerate(sorted(NAMES)))
    with pytest.raises(ValueError, match="data lists 4 names and the model 4, or others"):
        collect_yolo_logits(yolo, path)
    (folders[0] / "val" / "cow").mkdir()
    with pytest.raises(ValueError, match="data has the folder 'cow', no class of the model"):
        collect_yolo_logits(classifier, folders[0], imgsz=SIDE)
    for call in (
        lambda: finecal.collect_logits(classifier, [(torch.rand(2, 3, 64, 64), torch.tensor([0, 1]))]),
        lambda: finecal.CalibratedModel(classifier, finecal.AdditiveBias(MASK, 1.0)),
    ):
        with pytest.raises(TypeError, match=r"model is a YOLO of ultralytics.*calibrate_yolo"):
            call()


def test_a_new_head_of_a_classifier_is_restored():
    """By the names that the networks have; and the networks' own counts are mended."""
    pretrained = yolo_of("classify")
    yolo = yolo_of("classify")
    head = yolo.model.model[-1]
    head.linear = torch.nn.Linear(head.linear.in_features, 2)
    old = pretrained.model.model[-1].linear
    with torch.no_grad():
        head.linear.weight.copy_(old.weight[[2, 0]])
        head.linear.bias.copy_(old.bias[[2, 0]])
    yolo.model.names = {0: "dog", 1: "cat"}
    yolo.model.yaml["nc"] = yolo.model.nc = 2
    x = torch.rand(200, 3, 32, 32) * torch.rand(200, 3, 1, 1)
    yolo.model.eval()
    with torch.no_grad():
        logits = yolo.model(x)[1]
        head.linear.bias[0] -= (logits[:, 0] - logits[:, 1]).median()
        batches = [{"img": part, "cls": yolo.model(part)[1].argmax(1)} for part in x.split(50)]
    finecal.restore_head(
        yolo.model,
        pretrained.model,
        batches,
        batch=lambda given: (given["img"], given["cls"]),
        output=lambda out: out[1],
        verbose=False,
    )
    assert yolo.names == dict(enumerate(NAMES))
    assert yolo.model.yaml["nc"] == 4
    result = yolo.predict(np.zeros((32, 32, 3), dtype=np.uint8), imgsz=32, verbose=False)[0]
    assert result.names[result.probs.top1] in NAMES
    assert len(result.probs.data) == 4
