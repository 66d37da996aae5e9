"""Means of quotients as sums of integers."""

from fractions import Fraction

import pytest
import torch

from finecal.evaluation.iou_counts import ClassCounts, ClassGroups, Means, mean_ious


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
