"""Matching by brute force, logits against what detectors of torchvision return, averages against torchmetrics."""

import copy
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import MultiScaleRoIAlign, box_convert, box_iou
from transformers import DetrConfig, DetrForObjectDetection, Owlv2Config, Owlv2ForObjectDetection, ResNetConfig

import finecal
from finecal.integrations.detection import SeenAbsentAveragePrecision, collect_box_logits, match_boxes
from pages import blocks

CLASSES = 5
MASK = torch.tensor([True, True, False, True, False])  # a background, two seen and two absent classes
SIDE = 48
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
]


# --- match_boxes ------------------------------------------------------------------------------------------------------


def random_boxes(rng, count, side=12):
    """Boxes with corners at few places, so that many overlap equally."""
    corners = np.sort(rng.integers(0, side, (count, 2, 2)), axis=1)
    corners[:, 1] += 1
    return corners.reshape(count, 4).astype(np.float64)


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    return shared / (area(a) + area(b) - shared)


def matched_slowly(boxes, truth_boxes, truth_labels, threshold, scores=None):
    objects = []
    for box in boxes:
        overlaps = [overlap(box, truth) for truth in truth_boxes]
        best = int(np.argmax(overlaps)) if overlaps else None
        objects.append(best if overlaps and overlaps[best] >= threshold else None)
    if scores is not None:
        for number in range(len(truth_boxes)):
            own = [place for place, found in enumerate(objects) if found == number]
            for place in own:
                if place != max(own, key=lambda candidate: scores[candidate]):
                    objects[place] = None
    return [-1 if number is None else truth_labels[number] for number in objects]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_boxes_are_matched_as_by_brute_force(seed, dtype):
    rng = np.random.default_rng(seed)
    boxes, truth_boxes = random_boxes(rng, seed % 17), random_boxes(rng, seed % 5)
    labels, scores = rng.integers(0, 4, len(truth_boxes)), rng.integers(0, 4, len(boxes)) / 4
    threshold = [0.3, 0.5, 1.0][seed % 3]
    given = torch.tensor(boxes, dtype=dtype), torch.tensor(truth_boxes, dtype=dtype), torch.tensor(labels), threshold
    found = match_boxes(*given)
    assert found.dtype == torch.int64
    assert found.tolist() == matched_slowly(boxes, truth_boxes, labels, threshold)
    one_each = match_boxes(*given, scores=torch.tensor(scores, dtype=dtype))
    assert one_each.tolist() == matched_slowly(boxes, truth_boxes, labels, threshold, scores)


def test_a_score_of_minus_infinity_is_the_lowest():
    """The only box of an object keeps its label, whatever the scores of the boxes before it."""
    boxes = torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 10]])
    for scores in ([0.5, -math.inf], [-math.inf, -math.inf]):
        assert match_boxes(boxes, boxes.flip(0), torch.tensor([1, 2]), scores=torch.tensor(scores)).tolist() == [2, 1]


def test_each_object_keeps_at_most_one_box():
    rng = np.random.default_rng(0)
    boxes, truth_boxes = (torch.tensor(random_boxes(rng, count)) for count in (200, 9))
    labels = torch.arange(9)
    all_boxes = match_boxes(boxes, truth_boxes, labels, 0.2)
    one_each = match_boxes(boxes, truth_boxes, labels, 0.2, scores=torch.rand(200))
    assert set(one_each.tolist()) == set(all_boxes.tolist())
    assert one_each[one_each >= 0].unique(return_counts=True)[1].max() == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"boxes": torch.ones(2, 4, dtype=torch.int64)}, TypeError, "boxes are torch.int64"),
        ({"boxes": [[0.0, 0, 1, 1]]}, TypeError, "boxes are a list"),
        ({"boxes": torch.ones(2, 5)}, ValueError, r"boxes have shape \(2, 5\)"),
        ({"truth_boxes": torch.tensor([[5.0, 5, 2, 9]])}, ValueError, "truth_boxes contain .*box_convert"),
        (
            {"boxes": torch.tensor([[0.0, 0, 1, 1], [0, 0, math.nan, 1]])},
            ValueError,
            r"boxes contain NaN \(first in row 1",
        ),
        ({"boxes": torch.tensor([[0.0, 0, math.inf, 1]])}, ValueError, "boxes contain .*inf.*; clip them"),
        ({"truth_boxes": torch.full((1, 4), math.nan)}, ValueError, "truth_boxes contain NaN"),
        ({"scores": torch.tensor([0.5, math.nan])}, ValueError, r"scores contain NaN \(first in row 1, 1 of 2\)"),
        ({"truth_labels": torch.tensor([1, 2])}, ValueError, r"truth_labels have shape \(2,\) for 1 boxes"),
        ({"truth_labels": torch.tensor([1.0])}, TypeError, "truth_labels have dtype float32"),
        ({"truth_labels": torch.tensor([-1])}, ValueError, "truth_labels contain -1"),
        ({"truth_labels": [1]}, TypeError, "truth_labels are a list"),
        ({"iou_threshold": 0}, ValueError, "iou_threshold is 0"),
        ({"iou_threshold": 50}, ValueError, "iou_threshold is 50"),
        ({"iou_threshold": "half"}, TypeError, "iou_threshold is a str"),
        ({"scores": torch.ones(3)}, TypeError, r"scores are torch.float32 of shape \(3,\) for 2 boxes"),
    ],
)
def test_what_cannot_be_matched(changes, error, message):
    box = torch.tensor([[0.0, 0, 4, 4]])
    given = {"boxes": box.repeat(2, 1), "truth_boxes": box, "truth_labels": torch.tensor([1])} | changes
    with pytest.raises(error, match=message):
        match_boxes(**given)


# --- collect_box_logits -----------------------------------------------------------------------------------------------


def small_backbone():
    backbone = nn.Sequential(nn.Conv2d(3, 32, 3, 4, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU())
    backbone.out_channels = 32
    return backbone


def anchors():
    return AnchorGenerator(((16,),), ((1.0,),))


SHOW_ALL = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": 10_000, "topk_candidates": 10_000}
"""What makes a detector return all of its boxes with all of their scores."""
SIZES = {"min_size": 64, "max_size": 64}  # other than that of the images, which are therefore scaled
MAKERS = {
    "FasterRCNN": lambda: FasterRCNN(
        small_backbone(),
        CLASSES,
        rpn_anchor_generator=anchors(),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 1),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(9 * 32, 1024)),
        rpn_post_nms_top_n_test=40,
        **SIZES,
    ),
    "RetinaNet": lambda: RetinaNet(small_backbone(), CLASSES, anchor_generator=anchors(), **SIZES, **SHOW_ALL),
    "FCOS": lambda: FCOS(
        small_backbone(),
        CLASSES,
        anchor_generator=AnchorGenerator(((8,),), ((1.0,),)),
        head=FCOSHead(32, 1, CLASSES, num_convs=1),
        **SIZES,
        **SHOW_ALL,
    ),
    "SSD": lambda: SSD(
        small_backbone(),
        DefaultBoxGenerator([[2]], scales=[0.3, 0.4]),
        (64, 64),
        CLASSES,
        head=SSDHead([32], [4], CLASSES),
        **SHOW_ALL,
    ),
}
ONE_STAGE = [name for name in MAKERS if name != "FasterRCNN"]


def made(name):
    torch.manual_seed(0)
    detector = MAKERS[name]().eval()
    for parameter in detector.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.3)
    if name == "FCOS":
        nn.init.ones_(detector.head.regression_head.bbox_reg.bias)  # or its boxes are tiny
    return detector


def pictures(count, seed=0, objects=3):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, SIDE, SIDE, generator=generator) for _ in range(count)]
    targets = []
    for _ in images:
        corners = 4 + 20 * torch.rand(objects, 2, generator=generator)
        boxes = torch.cat([corners, corners + 8 + 12 * torch.rand(objects, 2, generator=generator)], dim=1)
        labels = torch.randint(1, CLASSES, (objects,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


@pytest.mark.parametrize("name", ONE_STAGE)
def test_rows_are_those_of_the_boxes_of_the_highest_scores(name):
    """The detector returns all boxes: the best score at an object is that of the row."""
    detector = made(name)
    images, targets = pictures(4)
    logits, labels, groups = collect_box_logits(detector, [(images, targets)], iou_threshold=0.2)
    with torch.no_grad():
        detections = detector(images)
    expected = []
    for picture, (found, target) in enumerate(zip(detections, targets, strict=True)):
        nearest = box_iou(found["boxes"], target["boxes"]).max(1)
        for number, label in enumerate(target["labels"].tolist()):
            at_object = (nearest.values >= 0.2) & (nearest.indices == number) & (found["labels"] > 0)
            if at_object.any():
                expected.append((picture, label, float(found["scores"][at_object].max())))
    assert len(expected) > 5
    assert sorted(zip(groups.tolist(), labels.tolist(), strict=True)) == sorted(row[:2] for row in expected)
    if name == "SSD":
        scores = logits.softmax(1)[:, 1:].amax(1)
    elif name == "RetinaNet":
        scores = logits.sigmoid()[:, 1:].amax(1)
    else:
        return  # whose scores have a factor that is not in the logits
    found = sorted(zip(groups.tolist(), scores.tolist(), strict=True))
    np.testing.assert_allclose(found, sorted((row[0], row[2]) for row in expected), rtol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_rows_of_the_class_layer(name):
    """What the class layer returns in a usual run of the detector, recorded."""
    detector = made(name)
    images, targets = pictures(3)
    recorded = []
    layer = detector.roi_heads.box_predictor if name == "FasterRCNN" else detector.head.classification_head
    layer.register_forward_hook(lambda module, inputs, output: recorded.append(output))
    with torch.no_grad():
        detector(images)
    whole = recorded[0][0] if name == "FasterRCNN" else recorded[0].flatten(0, 1)
    detector.train()
    logits, labels, groups = collect_box_logits(detector, [(images, targets)], iou_threshold=0.2)
    assert detector.training
    assert all(((whole - row).abs() < 1e-5).all(1).any() for row in logits)
    for picture, target in enumerate(targets):
        left = target["labels"].tolist()
        for label in labels[groups == picture].tolist():
            left.remove(label)
    assert len(labels) > 3


@pytest.mark.parametrize("name", MAKERS)
def test_batches_and_objects_in_any_order_give_the_same_rows(name):
    detector = made(name)
    images, targets = pictures(4, seed=1)
    whole = collect_box_logits(detector, [(images, targets)], iou_threshold=0.2)
    backwards = [{key: value.flip(0) for key, value in target.items()} for target in targets]
    in_pieces = collect_box_logits(
        detector, [(torch.stack(images[:1]), backwards[:1]), (images[1:], backwards[1:])], iou_threshold=0.2
    )

    def rows(collected):
        logits, labels, groups = collected
        return torch.tensor(sorted(torch.cat([groups[:, None], labels[:, None], logits], 1).tolist()))

    torch.testing.assert_close(rows(in_pieces), rows(whole), rtol=1e-4, atol=1e-4)


def test_gamma_in_the_head_is_gamma_in_the_rows():
    """The box of an object is chosen by its score, so the rows of one box for each object are compared at one box."""
    detector = made("RetinaNet")
    images, targets = pictures(4)
    before = collect_box_logits(detector, [(images, targets)], iou_threshold=0.2)
    finecal.fold_into_head(detector, finecal.AdditiveBias(MASK, 1e-3))
    after = collect_box_logits(detector, [(images, targets)], iou_threshold=0.2)
    torch.testing.assert_close(
        after.logits - before.logits, 1e-3 * (~MASK).float().expand_as(before.logits), atol=1e-5, rtol=0
    )


def test_pictures_without_objects_count_but_have_no_rows():
    detector = made("FCOS")
    images, targets = pictures(3)
    whole = collect_box_logits(detector, [(images, targets)], iou_threshold=0.2)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    collected = collect_box_logits(detector, [([images[0], *images], [nothing, *targets])], iou_threshold=0.2)
    torch.testing.assert_close(collected.groups, whole.groups + 1)
    torch.testing.assert_close(collected.labels, whole.labels)


@pytest.mark.filterwarnings("error::finecal.FinecalWarning")
def test_few_or_no_objects_located():
    detector = made("FCOS")
    images, targets = pictures(3)
    far = [{"boxes": torch.tensor([[0.0, 0, 1e-3, 1e-3]]), "labels": torch.tensor([1])}]
    with pytest.raises(ValueError, match="0 of 1 objects in 1 pictures .*in pixels"):
        collect_box_logits(detector, [(images[:1], far)])
    with pytest.raises(ValueError, match="gave no picture"):
        collect_box_logits(detector, [])
    located = len(collect_box_logits(detector, [(images, targets)], iou_threshold=0.2).labels)
    hidden = [{"boxes": torch.tensor([[0.0, 0, 1e-3, 1e-3]] * 20), "labels": torch.ones(20, dtype=torch.int64)}]
    with pytest.warns(finecal.FinecalWarning, match=f"only {located} of 29 objects in 4 pictures"):
        collect_box_logits(detector, [(images, targets), (images[:1], hidden)], iou_threshold=0.2)


def test_what_cannot_be_collected():
    images, targets = pictures(1)
    with pytest.raises(TypeError, match="detector is a Linear; .* match_boxes"):
        collect_box_logits(nn.Linear(2, 2), [(images, targets)])
    detector = made("FCOS")
    with pytest.raises(TypeError, match=r"expected \(images, targets\)"):
        collect_box_logits(detector, [images])
    with pytest.raises(TypeError, match='pass a dict with "boxes" and "labels"'):
        collect_box_logits(detector, [(images, [{"boxes": targets[0]["boxes"]}])])
    outside = [{**targets[0], "labels": torch.full((3,), CLASSES)}]
    with pytest.raises(ValueError, match=rf"labels contain {CLASSES}, outside \[0, {CLASSES}\)"):
        collect_box_logits(detector, [(images, outside)])


# --- SeenAbsentAveragePrecision ---------------------------------------------------------------------------------------


def detections(count, seed=0):
    """Boxes near the truth and elsewhere, of the right class or another one."""
    generator = torch.Generator().manual_seed(seed)
    _, targets = pictures(count, seed, objects=4)
    found = []
    for target in targets:
        near = target["boxes"].repeat(2, 1) + torch.randn(8, 4, generator=generator)
        labels = target["labels"].repeat(2)
        labels[::3] = torch.randint(1, CLASSES, labels[::3].shape, generator=generator)
        found.append({"boxes": near, "labels": labels, "scores": torch.rand(8, generator=generator)})
    return found, targets


def reported(found, targets, mask=MASK, **kwargs):
    metric = SeenAbsentAveragePrecision(mask, **kwargs)
    metric.update(found, targets)
    return metric.report()


@pytest.mark.parametrize("seed", range(3))
def test_averages_are_those_of_torchmetrics_by_class(seed):
    found, targets = detections(12, seed)
    report = reported(found, targets)
    for name, thresholds in {"map": None, "map_50": [0.5]}.items():
        by_class = MeanAveragePrecision(class_metrics=True, iou_thresholds=thresholds)
        by_class.update(found, targets)
        values = by_class.compute()
        is_seen = MASK[values["classes"].long()]
        seen, absent = (float(values["map_per_class"][group].double().mean()) for group in (is_seen, ~is_seen))
        assert getattr(report, f"{name}_seen") == pytest.approx(seen)
        assert getattr(report, f"{name}_absent") == pytest.approx(absent)
        assert getattr(report, f"{name}_harmonic") == pytest.approx(2 * seen * absent / (seen + absent))
        assert getattr(report, f"{name}_all") == pytest.approx(float(values["map"]))
    assert report.n_seen == report.n_absent == 2


def test_averages_by_hand():
    """Of class 1 the second box is right: precision 1/2 at all recalls. Of class 2 one object of two is found."""
    box = torch.tensor([[4.0, 4, 20, 20]])
    far = box + 24
    found = {
        "boxes": torch.cat([far, box, box]),
        "labels": torch.tensor([1, 1, 2]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    truth = {"boxes": torch.cat([box, box, far]), "labels": torch.tensor([1, 2, 2])}
    report = reported([found], [truth])
    assert report.map_50_seen == pytest.approx(0.5)
    assert report.map_50_absent == pytest.approx(51 / 101)  # recalls 0, 0.01, ..., 0.5 of 101
    assert report.map_seen == report.map_50_seen
    assert (report.recall_50_seen, report.recall_50_absent) == (1.0, 0.5)
    assert (report.n_seen, report.n_absent) == (1, 1)


def test_gamma_does_not_change_the_order_within_a_class():
    found, targets = detections(12)
    shifted = []
    for boxes in found:
        logits = boxes["scores"].double().logit() + 3.0 * ~MASK[boxes["labels"]]
        shifted.append({**boxes, "scores": logits.sigmoid()})
    assert reported(shifted, targets).to_dict() == reported(found, targets).to_dict()
    kept = [
        [{key: value[boxes["scores"] > 0.6] for key, value in boxes.items()} for boxes in some]
        for some in (found, shifted)
    ]
    before, after = (reported(boxes, targets) for boxes in kept)
    assert after.recall_50_absent > before.recall_50_absent
    assert after.map_seen == before.map_seen


def test_a_sigmoid_for_each_class_keeps_the_order_within_a_class():
    """Of a whole detector, before and after gamma is folded into it."""
    detector = made("RetinaNet")
    images, _ = pictures(2)
    with torch.no_grad():
        before = detector(images)
        finecal.fold_into_head(detector, finecal.AdditiveBias(MASK, 1.5))
        after = detector(images)
    for one, other in zip(before, after, strict=True):
        for number in range(CLASSES):
            own, shifted = one["labels"] == number, other["labels"] == number
            torch.testing.assert_close(one["boxes"][own], other["boxes"][shifted])
            added = other["scores"][shifted].logit() - one["scores"][own].logit()
            torch.testing.assert_close(added, torch.full_like(added, 0.0 if MASK[number] else 1.5), rtol=0, atol=1e-3)


def test_groups_change_places_with_the_mask():
    found, targets = detections(10)
    one, other = reported(found, targets).to_dict(), reported(found, targets, ~MASK).to_dict()
    exchanged = {name.translate(str.maketrans({})): value for name, value in one.items()}
    for name, value in exchanged.items():
        swapped = name.replace("seen", "#").replace("absent", "seen").replace("#", "absent")
        assert other[swapped] == pytest.approx(value)


def test_metric_in_pieces_moved_and_in_a_collection():
    found, targets = detections(9)
    whole = reported(found, targets)
    metric = SeenAbsentAveragePrecision(MASK)
    for start in range(0, 9, 4):
        metric.update(found[start : start + 4], targets[start : start + 4])
    metric = pickle.loads(pickle.dumps(copy.deepcopy(metric).to("cpu")))
    values = metric.compute()
    for name, value in values.items():
        assert value.dtype == torch.float64
        assert float(value) == getattr(whole, name)
    assert set(values) == {name for name in whole.to_dict() if name not in ("n_seen", "n_absent")}
    both = MetricCollection({"a": SeenAbsentAveragePrecision(MASK), "b": SeenAbsentAveragePrecision(~MASK)})
    both.update(found[:5], targets[:5])
    both.update(found[5:], targets[5:])
    values = both.compute()
    assert float(values["a_map_seen"]) == pytest.approx(float(values["b_map_absent"]))
    assert float(values["a_map_seen"]) == whole.map_seen
    metric.reset()
    metric.update(found[:1], targets[:1])
    assert metric.report() == reported(found[:1], targets[:1])


def test_what_has_no_objects_is_nan():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    empty = reported([{**nothing, "scores": torch.zeros(0)}], [nothing])
    assert np.isnan([value for name, value in empty.to_dict().items() if not name.startswith("n_")]).all()
    assert empty.n_seen == empty.n_absent == 0
    found, targets = detections(6)
    for target in targets:
        target["labels"] = torch.where(MASK[target["labels"]], target["labels"], 1)
    report = reported(found, targets)
    assert np.isnan([report.map_absent, report.map_harmonic, report.recall_50_absent]).all()
    assert report.map_all == pytest.approx(report.map_seen)
    other = reported(found, targets, iou_thresholds=[0.75])
    assert np.isnan(other.map_50_seen)
    assert other.map_seen < report.map_50_seen


def test_what_cannot_be_averaged():
    with pytest.raises(ValueError, match="no absent class"):
        SeenAbsentAveragePrecision([True, True])
    with pytest.raises(ValueError, match="average is 'micro'"):
        SeenAbsentAveragePrecision(MASK, average="micro")
    with pytest.raises(ValueError, match="pass one iou_type"):
        SeenAbsentAveragePrecision(MASK, iou_type=("bbox", "segm"))
    found, targets = detections(1)
    with pytest.raises(ValueError, match=r"labels of target contain 5, outside \[0, 5\) .*seen_mask"):
        SeenAbsentAveragePrecision(MASK).update(found, [{**targets[0], "labels": torch.full((4,), 5)}])


@pytest.mark.parametrize(
    ("of", "change", "message"),
    [
        ("preds", {"scores": torch.tensor([math.nan])}, "scores of preds contain NaN"),
        ("preds", {"boxes": torch.tensor([[0.0, 0, math.nan, 1]])}, "boxes of preds contain NaN"),
        ("preds", {"boxes": torch.tensor([[5.0, 0, 1, 1]])}, "boxes of preds contain .*box_convert"),
        ("target", {"boxes": torch.tensor([[0.0, 5, 1, 1]])}, "boxes of target contain .*box_convert"),
        ("target", {"boxes": torch.full((1, 4), math.nan)}, "boxes of target contain NaN"),
    ],
)
def test_boxes_and_scores_that_tell_nothing(of, change, message):
    one = {"boxes": torch.tensor([[0.0, 0, 1, 1]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}
    given = {"preds": [one], "target": [{key: one[key] for key in ("boxes", "labels")}]}
    given[of] = [given[of][0] | change]
    with pytest.raises(ValueError, match=message):
        SeenAbsentAveragePrecision(MASK).update(**given)


def test_boxes_of_other_formats_have_no_corners_in_order():
    box = {"boxes": torch.tensor([[5.0, 5, 2, 2]]), "labels": torch.tensor([1])}
    metric = SeenAbsentAveragePrecision(MASK, box_format="cxcywh")
    metric.update([{**box, "scores": torch.tensor([0.5])}], [box])
    assert metric.report().map_all == pytest.approx(1)


@pytest.mark.parametrize("name", MAKERS)
def test_a_detector_that_gives_nan(name):
    detector = MAKERS[name]()
    with torch.no_grad():
        for parameter in detector.head.parameters() if hasattr(detector, "head") else detector.roi_heads.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(ValueError, match="of the detector contain NaN"):
        collect_box_logits(detector, [pictures(1)])


# --- the guide --------------------------------------------------------------------------------------------------------


def recognised(detector, count):
    """Pictures of one object each, where the detector finds a box, of the seen class that it will prefer there."""
    images, _ = pictures(count)
    with torch.no_grad():
        targets = [{"boxes": found["boxes"][:1], "labels": torch.ones(1).long()} for found in detector(images)]
    logits, _, groups = collect_box_logits(detector, [(images, targets)])
    lead = logits[:, 1] - logits[:, 3]
    detector.head.classification_head.cls_logits.bias.data[3] += lead.median()  # each of the two for half of them
    for is_first, picture in zip(lead > lead.median(), groups.tolist(), strict=True):
        targets[picture]["labels"][0] = 1 if is_first else 3
    return [(images, targets)]


@pytest.fixture
def guide():
    return blocks("docs/how-to/detection.md", "python")


def test_thresholds_that_the_guide_names():
    usual = {
        "FCOS": (FCOS(small_backbone(), 2, anchor_generator=AnchorGenerator(((8,),), ((1.0,),))), 0.2, 100),
        "RetinaNet": (RetinaNet(small_backbone(), 2, anchor_generator=anchors()), 0.05, 300),
        "Faster R-CNN": (MAKERS["FasterRCNN"]().roi_heads, 0.05, 100),
        "SSD": (SSD(small_backbone(), DefaultBoxGenerator([[2]]), (64, 64), 2, head=SSDHead([32], [4], 2)), 0.01, 200),
    }
    for detector, threshold, most in usual.values():
        assert (detector.score_thresh, detector.detections_per_img) == (threshold, most)


def test_guide_for_torchvision(guide, capsys):
    estimating, measuring, with_interval, *_ = guide
    detector = made("RetinaNet")
    nn.init.zeros_(detector.head.classification_head.cls_logits.bias)
    detector.detections_per_img = 100
    names = {
        "detector": detector,
        "num_classes": CLASSES,
        "seen_classes": [1, 3],
        "train_loader": recognised(detector, 24),
        "test_loader": [pictures(3)],
    }
    before = detector.head.classification_head.cls_logits.bias.detach().clone()
    exec(estimating, names)
    assert names["seen_mask"].tolist() == MASK.tolist()
    added = detector.head.classification_head.cls_logits.bias.detach() - before
    torch.testing.assert_close(added, torch.where(MASK, 0.0, float(names["gamma"])), rtol=0, atol=1e-5)
    exec(measuring, names)
    assert str(names["metric"].report()) in capsys.readouterr().out
    assert names["metric"].report().n_absent == 2
    exec(with_interval, names)
    low, high = names["gamma"].interval
    assert low < high
    assert "pictures" in names["gamma"].data or "groups" in names["gamma"].data


def test_guide_for_detr(guide):
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    parts = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 30, **dict.fromkeys(parts, 1)}
    torch.manual_seed(0)
    config = DetrConfig(use_timm_backbone=False, backbone_config=backbone, num_labels=4, **sizes)
    model = DetrForObjectDetection(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    nn.init.normal_(model.model.query_position_embeddings.weight, std=3.0)  # or all queries find the same
    pixel_values = torch.rand(12, 3, 64, 64)
    with torch.no_grad():
        logits = model(pixel_values=pixel_values).logits
        model.class_labels_classifier.bias[0] += (logits[..., 1] - logits[..., 0]).median()
        output = model(pixel_values=pixel_values)
    parts = zip(output.pred_boxes[:, :10], output.logits[:, :10, :2].argmax(2), strict=True)
    targets = [{"boxes": boxes, "class_labels": recognised} for boxes, recognised in parts]
    batches = [(pixel_values[:7], targets[:7]), (pixel_values[7:], targets[7:])]
    before = model.class_labels_classifier.bias.detach().clone()
    class_mask = torch.tensor([True, True, False, False])
    names = {"model": model, "detr_loader": batches, "class_mask": class_mask, "torch": torch, "finecal": finecal}
    exec(guide[3], names)
    added = model.class_labels_classifier.bias.detach() - before
    expected = torch.where(torch.cat([class_mask, torch.tensor([True])]), 0.0, float(names["gamma"]))
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-5)
    assert box_convert is names["box_convert"]
    assert len(names["kept"].labels) > 20


def test_guide_for_yolo_world(guide):
    """Comparisons that are built as those of ultralytics."""

    class Comparison(nn.Module):
        def forward(self, features, texts):
            return torch.einsum("bdhw,bcd->bchw", features, texts)

    torch.manual_seed(0)
    scales = [torch.rand(2, 8, size, size) for size in (4, 2)]
    texts = torch.rand(2, CLASSES, 8)
    head = nn.Module()
    head.cv4 = nn.ModuleList(Comparison() for _ in scales)
    yolo = SimpleNamespace(model=SimpleNamespace(model=nn.Sequential(nn.Identity(), head)))
    before = [comparison(x, texts) for x, comparison in zip(scales, head.cv4, strict=True)]
    exec(guide[5], {"yolo_world": yolo, "seen_mask": MASK, "gamma": 1.5, "finecal": finecal})
    for x, comparison, without in zip(scales, head.cv4, before, strict=True):
        expected = finecal.calibrate_logits(without, MASK, 1.5, dim=1)
        torch.testing.assert_close(comparison(x, texts), expected)


def prompted(pictures, prompts):
    """A small OWLv2, and its inputs: a prompt of three words for each class, repeated for each picture."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {"vocab_size": 12, "max_position_embeddings": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 11}
    vision = {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = Owlv2Config(text_config=text | size, vision_config=vision | size, projection_dim=16)
    ids = torch.tensor([[1, 2 + number, 11] for number in range(prompts)]).repeat(pictures, 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Owlv2ForObjectDetection(config).eval(), inputs | {"pixel_values": torch.rand(pictures, 3, 32, 32)}


def test_guide_for_prompts(guide):
    """Gamma is added to the logits of absent prompts at each box; boxes and all else stay as they are."""
    model, inputs = prompted(pictures=2, prompts=4)
    prompt_mask = torch.tensor([True, True, False, False])
    labels = torch.tensor([0, 1]).repeat(20)
    rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    rows[torch.arange(40), labels] += 4
    rows[:, 2:] -= 2
    names = {"model": model, "prompt_mask": prompt_mask, "rows": rows.split(8), "row_labels": labels.split(8)}
    names |= {"inputs": inputs, "finecal": finecal, "torch": torch}
    before = model(**inputs)
    exec(guide[6], names)
    gamma = float(names["gamma"])
    assert gamma > 1
    torch.testing.assert_close(names["output"].logits, before.logits + torch.where(prompt_mask, 0.0, gamma))
    torch.testing.assert_close(names["output"].pred_boxes, before.pred_boxes)
    assert type(names["output"]) is type(before)
    _, fewer = prompted(pictures=2, prompts=2)
    with pytest.raises(ValueError, match="seen_mask has 4 entries for logits of 2 classes"):
        names["calibrated"](**fewer)


def test_collecting_and_folding_say_what_to_do_with_prompts():
    model, inputs = prompted(pictures=1, prompts=2)
    with pytest.raises(ValueError, match=r"logits of shape \(1, 16, 2\), one row for each box.*match_boxes"):
        finecal.collect_logits(model, [inputs], progress=False)
    with pytest.raises(ValueError, match="CalibratedModel"):
        finecal.fold_into_head(model, finecal.AdditiveBias([True, False], 1.0), inputs=inputs)
