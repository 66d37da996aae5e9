"""Mean IoU by brute force over every gamma, by hand, and where it must not change."""

import math

import numpy as np
import pytest
import torch
from hypothesis import settings

import finecal
import reference
from finecal._evaluation import iou, iou_curve
from iou_problems import BREAKPOINTS, IOUS, LABELS, LOGITS, MASK, pictures, problem

pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")  # of few classes, by chance
MEANS = ("iou_seen", "iou_absent", "iou_all", "iou_harmonic")
IGNORED = {"ignore_index": 255}
DENSE = {"dim": 1, **IGNORED}


def of_objective(name, seen, absent, all_classes):
    if name == "overall":
        return all_classes
    if name in ("seen", "absent"):
        return seen if name == "seen" else absent
    return reference.objective(name, seen, absent, all_classes)


def assert_same(one, other):
    """Reports or curves, of tensors or arrays, are equal to the bit."""
    one, other = one.to_dict(), other.to_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture
def in_small_pieces(monkeypatch):
    monkeypatch.setattr(iou_curve, "_BLOCK", 5)
    monkeypatch.setitem(iou._POSITIONS, "cpu", 7)


@pytest.mark.usefixtures("in_small_pieces")
def test_by_brute_force_over_every_gamma():
    """Of 200 problems in the profile `thorough`."""
    for seed in range(2 * settings.default.max_examples):
        logits, labels, mask, background = problem(seed)
        given = {"background": background, **IGNORED}
        curve = finecal.dense.iou_curve(logits, labels, mask, **given)
        rows, own = logits[labels != 255].tolist(), labels[labels != 255].tolist()

        def truth(gamma, rows=rows, own=own, mask=mask, background=background or ()):
            return reference.mean_ious(rows, own, mask, gamma, background)

        every = [truth(gamma) for gamma in reference.plateaus(rows, own, mask)]
        for name in ("overall", "balanced", "harmonic", "seen", "absent"):
            best = of_objective(name, *truth(curve.best(name)))
            assert best == max(of_objective(name, *means) for means in every), (seed, name)
        for gamma, *found in zip(curve.gamma, curve.iou_seen, curve.iou_absent, curve.iou_all, strict=True):
            assert found == pytest.approx([*map(float, truth(gamma))], rel=1e-15), (seed, gamma)
        ends = [0.0, *curve.breakpoints]  # at a breakpoint itself the seen class still wins
        for gamma in ends[seed % 3 :: 3]:
            report, point = curve.at(gamma), np.searchsorted(curve.breakpoints, gamma)
            assert_same(report, finecal.dense.evaluate_iou(logits, labels, mask, gamma, **given))
            found = report.iou_seen, report.iou_absent, report.iou_all, report.iou_harmonic
            assert found == tuple(getattr(curve, name)[point] for name in MEANS)
            assert found[:3] == pytest.approx([*map(float, truth(gamma))], rel=1e-15)


def test_by_hand():
    curve = finecal.dense.iou_curve(LOGITS, LABELS, MASK)
    np.testing.assert_array_equal(curve.breakpoints, BREAKPOINTS)
    np.testing.assert_array_equal(curve.gamma, [-0.5, 0.75, 1.5, 3.0, 5.0])
    np.testing.assert_allclose(curve.iou_seen, IOUS[:, :2].mean(1), rtol=1e-15)
    np.testing.assert_allclose(curve.iou_absent, IOUS[:, 2], rtol=1e-15)
    np.testing.assert_allclose(curve.iou_all, IOUS.mean(1), rtol=1e-15)
    assert (curve.n_seen, curve.n_absent, curve.best(), curve.best("seen")) == (3, 1, 0.75, 0.75)
    report = finecal.dense.evaluate_iou(LOGITS, LABELS, MASK, 1.0)
    assert (report.acc_all, report.acc_seen, report.acc_absent) == (1, 1, 1)
    report = finecal.dense.evaluate_iou(LOGITS, LABELS, MASK, 1.5)
    assert (report.acc_all, report.acc_seen, report.acc_absent) == (3 / 4, 2 / 3, 1)
    np.testing.assert_array_equal(report.iou, IOUS[2])
    assert [report.labelled.tolist(), report.predicted.tolist(), report.correct.tolist()] == [
        [2, 1, 1],
        [1, 1, 2],
        [1, 1, 1],
    ]
    with_background = finecal.dense.iou_curve(LOGITS, LABELS, MASK, background=1)
    np.testing.assert_array_equal(with_background.iou_seen, IOUS[:, 0])
    np.testing.assert_array_equal(with_background.iou_all, curve.iou_all)
    assert with_background.n_seen == 2


def test_changes_between_classes_without_labels_are_no_breakpoints():
    logits = np.array([[3.0, 0, 0, 1.0], [0, 8.0, 1.0, 0]])  # from class 0 to 3 at 2, from class 1 to 2 at 7
    curve = finecal.dense.iou_curve(logits, [0, 0], [True, True, False, False])
    assert curve.breakpoints.tolist() == [2.0]
    assert curve.iou_all.tolist() == [0.5, 0.0]
    assert math.isnan(curve.iou_absent[0])


@pytest.mark.parametrize("seed", range(5))
def test_layouts_agree(seed, dtype, device):
    logits, labels, mask = pictures(seed, dtype=dtype)
    logits, labels = logits.to(device), labels.to(device)
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    whole = finecal.dense.iou_curve(rows, labels.flatten(), mask, **IGNORED)
    report = finecal.dense.evaluate_iou(rows, labels.flatten(), mask, 1.0, **IGNORED)
    assert report.iou.device.type == whole.iou_all.device.type == device.type
    last = torch.channels_last
    for z, y, dim in (
        (logits, labels, 1),
        (logits, labels, -3),
        (logits.to(memory_format=last), labels, 1),
        (logits.movedim(1, 0), labels, 0),
        (logits.movedim(1, -1).contiguous(), labels, -1),
        (rows, labels.flatten(), -1),
        (rows.T.contiguous(), labels.flatten(), 0),
    ):
        assert_same(finecal.dense.iou_curve(z, y, mask, dim=dim, **IGNORED), whole)
        assert_same(finecal.dense.evaluate_iou(z, y, mask, 1.0, dim=dim, **IGNORED), report)


def test_types_follow_the_logits():
    logits, labels, mask = pictures()
    curve, report = (
        finecal.dense.iou_curve(logits, labels, mask, **DENSE),
        finecal.dense.evaluate_iou(logits, labels, mask, **DENSE),
    )
    assert isinstance(curve.gamma, torch.Tensor)
    assert isinstance(report.iou, torch.Tensor)
    arrays = logits.numpy(), labels.numpy().astype(np.uint8), mask.numpy()
    as_arrays = finecal.dense.iou_curve(*arrays, **DENSE), finecal.dense.evaluate_iou(*arrays, **DENSE)
    assert isinstance(as_arrays[0].iou_all, np.ndarray)
    assert isinstance(as_arrays[1].labelled, np.ndarray)
    assert_same(curve, as_arrays[0])
    assert_same(report, as_arrays[1])
    for name in ("gamma", "breakpoints", *MEANS):
        assert getattr(curve, name).dtype == torch.float64, name


@pytest.mark.parametrize("seed", range(10))
def test_what_must_not_change_a_curve(seed):
    logits, labels, mask, background = problem(seed)
    kinds = {"background": background, **IGNORED}
    curve = finecal.dense.iou_curve(logits, labels, mask, **kinds)
    rng = np.random.default_rng(seed)
    assert_same(finecal.dense.iou_curve(logits + rng.integers(-9, 9, (len(labels), 1)), labels, mask, **kinds), curve)
    order = rng.permutation(len(labels))
    assert_same(finecal.dense.iou_curve(logits[order], labels[order], mask, **kinds), curve)
    rubbish = np.where((labels == 255)[:, None], np.nan, logits)
    assert_same(finecal.dense.iou_curve(rubbish, labels, mask, **kinds), curve)
    kept = labels != 255
    assert_same(finecal.dense.iou_curve(logits[kept], labels[kept], mask, background=background), curve)


@pytest.mark.parametrize("seed", range(10))
def test_seen_and_absent_exchanged_negate_gamma(seed):
    logits, labels, mask, _ = problem(seed)
    logits[np.isneginf(logits).all(1)] = 0  # rows of which a seen class always wins
    one = finecal.dense.iou_curve(logits, labels, mask, **IGNORED)
    other = finecal.dense.iou_curve(logits, labels, ~mask, **IGNORED)
    np.testing.assert_array_equal(one.breakpoints, -other.breakpoints[::-1])
    np.testing.assert_array_equal(one.iou_seen, other.iou_absent[::-1])
    np.testing.assert_array_equal(one.iou_all, other.iou_all[::-1])


def test_a_class_that_is_predicted_without_a_label_has_no_iou():
    report = finecal.dense.evaluate_iou(np.array([[1.0, 3.0, 0], [2.0, 0, 0]]), [0, 0], [True, True, False])
    assert report.iou[0] == 0.5
    assert np.isnan(report.iou[1:]).all()
    assert (report.iou_all, report.classes_all, report.predicted.tolist()) == (0.5, 1, [1, 1, 0])


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.tensor([255, 255])),
        (torch.full((1, 3), -math.inf), torch.tensor([255])),
    ],
)
def test_nothing_that_counts(logits, labels):
    curve, report = (
        finecal.dense.iou_curve(logits, labels, MASK, **IGNORED),
        finecal.dense.evaluate_iou(logits, labels, MASK, **IGNORED),
    )
    assert (curve.gamma.tolist(), len(curve.breakpoints), report.n_all) == ([0.0], 0, 0)
    assert all(map(math.isnan, (report.iou_all, report.iou_harmonic, report.acc_seen, float(curve.iou_all[0]))))
    assert "-" in str(report)
    assert "nan" not in str(report) + curve.to_markdown()
    with pytest.raises(ValueError, match="labels are empty: the best gamma needs"):
        curve.best()
    finecal.dense.evaluate_iou(torch.zeros(2, 3, 0, 4), torch.zeros(2, 0, 4).long(), MASK, dim=1)


def test_one_position_of_one_class():
    curve = finecal.dense.iou_curve(np.array([[2.0, -math.inf, 1.0]]), [0], MASK)
    assert (curve.gamma.tolist(), curve.iou_all.tolist()) == ([0.0, 2.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="labels are of seen classes only"):
        curve.best("overall")
    always = finecal.dense.iou_curve(np.array([[2.0, 1.0, -math.inf]]), [0], MASK)
    assert (always.gamma.tolist(), always.iou_seen.tolist()) == ([0.0], [1.0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": [0, 1]}, ValueError, r"labels have shape \(2,\) for logits of shape \(4, 3\)"),
        ({"labels": [0, 1, 2, 3]}, ValueError, r"labels contain 3, outside \[0, 3\)"),
        ({"labels": [0, 1, 2, 255]}, ValueError, r"labels contain 255, outside \[0, 3\).*ignore"),
        ({"labels": [0.0, 1, 2, 0]}, TypeError, "labels have dtype float64"),
        ({"logits": np.where(LOGITS == 6, np.nan, LOGITS)}, ValueError, "logits contain NaN .first in row 2"),
        ({"logits": np.full((4, 3), 1 / 3)}, ValueError, "logits look like probabilities"),
        ({"logits": LOGITS.astype(int)}, TypeError, "logits has dtype int64"),
        ({"seen_mask": [True, True, True]}, ValueError, "seen_mask has no absent class"),
        ({"seen_mask": [True, False]}, ValueError, "seen_mask has 2 entries for logits of 3 classes"),
        ({"background": 2}, ValueError, "background contains class 2, which seen_mask says is absent"),
        ({"background": [0, 7]}, ValueError, r"background contain 7, outside \[0, 3\)"),
        ({"dim": 2}, ValueError, "dim is 2"),
        ({"logits": np.zeros((1, 3, 2, 2))}, ValueError, "seen_mask has 3 entries for logits of 2 classes.*use dim=1"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index is a float"),
    ],
)
@pytest.mark.parametrize("function", [finecal.dense.evaluate_iou, finecal.dense.iou_curve])
def test_wrong_arguments_are_named(function, change, error, message, monkeypatch):
    monkeypatch.setitem(iou._POSITIONS, "cpu", 2)
    with pytest.raises(error, match=message):
        function(**({"logits": LOGITS, "labels": LABELS, "seen_mask": MASK} | change))


@pytest.mark.parametrize("function", [finecal.dense.evaluate_iou, finecal.dense.iou_curve])
def test_a_class_is_not_ignored_for_a_negative_index(function):
    """In uint8, -100 would be 156."""
    mask = np.arange(200) < 150
    logits = np.random.default_rng(0).normal(size=(1, 200, 5, 5))
    labels = np.full((1, 5, 5), 156, dtype=np.uint8)
    assert function(logits, labels, mask, dim=1, ignore_index=-100).n_absent == 25


def test_gamma_is_checked():
    with pytest.raises(ValueError, match="gamma is inf"):
        finecal.dense.evaluate_iou(LOGITS, LABELS, MASK, math.inf)
    with pytest.raises(TypeError, match="gamma is a str"):
        finecal.dense.iou_curve(LOGITS, LABELS, MASK).at("1")
    assert finecal.dense.evaluate_iou(LOGITS, LABELS, MASK, None).gamma == 0


def test_reindexed_labels_are_noticed():
    with pytest.warns(finecal.FinecalWarning, match="labels are exactly 0..1"):
        finecal.dense.evaluate_iou(LOGITS, [0, 1, 0, 1], [False, True, True])


def test_inputs_stay_as_they_are():
    logits, labels, mask = pictures()
    before = logits.clone(), labels.clone()
    finecal.dense.iou_curve(logits.requires_grad_(), labels, mask, **DENSE)
    assert torch.equal(logits.detach(), before[0])
    assert torch.equal(labels, before[1])
