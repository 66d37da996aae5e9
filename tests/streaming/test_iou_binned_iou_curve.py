"""What bins say of mean IoU between their edges."""

import math

import pytest
import torch

import finecal
from finecal.streaming import IoUBins
from iou_problems import LABELS, LOGITS, MASK, problem

OBJECTIVES = ("overall", "balanced", "harmonic", "seen", "absent")
pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")  # of few classes, by chance


@pytest.mark.parametrize("seed", range(20))
def test_no_gamma_is_better_than_the_bound(seed):
    logits, labels, mask, background = problem(seed, most=40)
    given = {"background": background, "ignore_index": 255}
    binned = IoUBins(mask, 6, 1.0, **given).update(logits, labels).compute()
    exact = finecal.dense.iou_curve(logits, labels, mask, **given)
    for low, high, bounds in zip(
        binned.gamma[:-1].tolist(),
        binned.gamma[1:].tolist(),
        torch.stack([binned.bound_seen, binned.bound_absent, binned.bound_all], 1).tolist(),
        strict=True,
    ):
        inside = (exact.gamma > low) & (exact.gamma < high)
        for name, bound in zip(("iou_seen", "iou_absent", "iou_all"), bounds, strict=True):
            assert (getattr(exact, name)[inside] <= bound + 1e-15).all()
    for objective in OBJECTIVES:
        best, most = (
            value_at(exact, binned.best(objective), objective),
            value_at(exact, exact.best(objective), objective),
        )
        assert best <= most + 1e-15 <= best + binned.shortfall(objective) + 2e-15


def value_at(curve, gamma, objective):
    report = curve.at(gamma)
    means = {
        "overall": report.iou_all,
        "seen": report.iou_seen,
        "absent": report.iou_absent,
        "harmonic": report.iou_harmonic,
    }
    return means.get(objective, (report.iou_seen + report.iou_absent) / 2)


def test_by_hand():
    # Margins 0.5, 1, 2 and 4; each bin holds those from its left edge on.
    curve = IoUBins(MASK, 4, 1.0).update(LOGITS, LABELS).compute()
    assert curve.gamma.tolist() == [-math.inf, -1.0, 0.0, 1.0, math.inf]
    assert curve.iou_all.tolist() == pytest.approx([0.5, 0.5, 0.5, 1.0, 1 / 12], rel=1e-15)
    assert curve.iou_harmonic.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert curve.best() == 1.0
    assert curve.shortfall() == 0.0
    # From 0 to 1 class 0 has 2 of 2 throughout, class 1 goes from 1 of 2 to 1 of 1, and class 2 from 0 of 1 to 1 of 1.
    # From 1 on class 0 has 2 correct positions at first and a union of 2 at last.
    assert curve.bound_all.tolist() == [0.5, 0.5, 1.0, 1.0]
    assert repr(curve) == "BinnedIoUCurve(4 bins, 3 seen and 1 absent positions)"


def test_of_equal_edges_the_nearest_to_zero():
    curve = IoUBins(MASK, 4, 1.0).update(LOGITS, LABELS).compute()
    assert curve.best("seen") == 1.0
    shifted = IoUBins(MASK, 4, 1.0).update(LOGITS[[0, 3]], [0, 1]).update(LOGITS[[2]], [2]).compute()
    assert shifted.best("seen") == 0.0


def test_objectives_and_groups_are_checked():
    curve = IoUBins(MASK, 6).update(LOGITS, LABELS).compute()
    with pytest.raises(ValueError, match="objective is 'all'; choose one of 'overall', 'balanced'"):
        curve.best("all")
    with pytest.raises(ValueError, match="labels are of seen classes only"):
        IoUBins(MASK, 6).update(LOGITS[:1], [0]).compute().shortfall()
