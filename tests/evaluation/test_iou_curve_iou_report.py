"""The report at one gamma, and means of quotients as sums of integers."""

from fractions import Fraction

import pytest
import torch

import finecal
from finecal._evaluation.iou_curve import ClassCounts, ClassGroups, Means, mean_ious
from iou_problems import IOUS, LABELS, LOGITS, MASK


def test_prints_as_a_table():
    report = finecal.dense.evaluate_iou(LOGITS, LABELS, MASK, 1.5, background=1)
    assert str(report).splitlines() == [
        "gamma = 1.5",
        "|             | seen | absent |  all |",
        "| ----------- | ---: | -----: | ---: |",
        "| mean IoU, % | 50.0 |   50.0 | 66.7 |",
        "| accuracy, % | 50.0 |  100.0 | 75.0 |",
        "| classes     |    1 |      1 |    3 |",
        "| positions   |    2 |      1 |    4 |",
        "harmonic mean IoU 50.0 %",
    ]


def test_harmonic_mean_where_both_are_zero():
    report = finecal.dense.evaluate_iou(LOGITS[:2], [1, 0], MASK, 0.0)
    assert (report.iou_seen, report.acc_all) == (0, 0)
    assert finecal.dense.evaluate_iou(LOGITS[:2], [2, 0], MASK, 0.0).iou_harmonic == 0


def test_a_row_per_class():
    table = finecal.dense.evaluate_iou(LOGITS, LABELS, MASK, 1.5).to_pandas()
    assert table.to_dict("list") == {
        "labelled": [2, 1, 1],
        "predicted": [1, 1, 2],
        "correct": [1, 1, 1],
        "iou": IOUS[2].tolist(),
    }


@pytest.mark.parametrize("classes", [1, 2, 3, 150, 511, 512, 4096])
def test_rounding_stays_within_the_tolerance(classes, rng):
    union = torch.from_numpy(rng.integers(1, 1 << 40, classes))
    correct = (union * torch.from_numpy(rng.random(classes))).long()
    union[0] = correct[0] = 1
    exact = sum(Fraction(int(c), int(u)) for c, u in zip(correct, union, strict=True)) / classes
    counts = ClassCounts(union, correct, correct)  # predicted where right only
    everywhere = torch.ones(classes, dtype=torch.bool)
    groups = ClassGroups.of(everywhere, ~everywhere)
    seen, _, all_classes = mean_ious(counts, groups)
    means = Means.over(counts.labelled, groups)
    assert seen == all_classes
    assert abs(Fraction(seen) - exact) < Fraction(means.tolerance) / 8
    assert means.tolerance < 1e-13
    full = mean_ious(ClassCounts(union, union, union), groups)
    assert full[0] == full[2] == 1.0


def test_many_classes_do_not_overflow():
    means = Means(3, 3, 1 << 20)
    one = means.quotients(torch.tensor(1), torch.tensor(1))
    assert 0 < int(one) << 20 < 1 << 63
    assert means.tolerance < 1e-10
