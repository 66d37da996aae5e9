import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
import reference
from finecal._core.objectives import OBJECTIVES, point_at
from problems import GOLDEN_LABELS, GOLDEN_LOGITS, GOLDEN_MASK, golden
from profiles import examples

INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")


def test_golden_curve():
    curve = golden()
    assert curve.breakpoints.tolist() == [1.0, 2.0, 4.0]
    assert curve.gamma.tolist() == [0.0, 1.5, 3.0, 5.0]
    assert curve.seen_correct.tolist() == [2, 2, 1, 0]
    assert curve.absent_correct.tolist() == [0, 1, 2, 2]
    assert curve.acc_seen.tolist() == [2 / 3, 2 / 3, 1 / 3, 0.0]
    assert curve.acc_absent.tolist() == [0.0, 1 / 3, 2 / 3, 2 / 3]
    assert curve.acc_all.tolist() == [2 / 6, 3 / 6, 3 / 6, 2 / 6]
    assert curve.acc_seen_within == curve.acc_absent_within == 2 / 3
    # 1/3 x (1/3 + 2/3)/2 + 1/3 x 2/3
    assert curve.ausuc == pytest.approx(1 / 6 + 2 / 9)
    assert "4 operating points, 3 seen and 3 absent samples" in repr(curve)


def test_equal_margins_flip_together():
    logits = np.array([[3.0, 1.0], [3.0, 1.0], [0.0, 0.0]])
    curve = finecal.tradeoff_curve(logits, [0, 1, 1], [True, False])
    assert curve.breakpoints.tolist() == [0.0, 2.0]
    assert curve.seen_correct.tolist() == [1, 1, 0]
    assert curve.absent_correct.tolist() == [0, 1, 2]


def test_signed_zeros_are_one_breakpoint(device, dtype):
    logits = torch.tensor([[0.0, 0.0], [-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]], dtype=dtype, device=device)
    curve = finecal.tradeoff_curve(logits, torch.tensor([0, 1, 0, 1], device=device), [True, False])
    assert curve.breakpoints.tolist() == [0.0]
    assert curve.seen_correct.tolist() == [2, 0]
    assert curve.absent_correct.tolist() == [0, 2]


def test_infinite_margins_count_at_both_ends():
    logits = np.array([[1.0, -INF], [-INF, 1.0], [3.0, 1.0], [3.0, 2.0]])
    curve = finecal.tradeoff_curve(logits, [0, 1, 0, 1], [True, False])
    assert curve.breakpoints.tolist() == [1.0, 2.0]
    assert curve.seen_correct.tolist() == [2, 2, 1]
    assert curve.absent_correct.tolist() == [1, 2, 2]
    macro = finecal.tradeoff_curve(logits, [0, 1, 0, 1], [True, False], "macro")
    assert macro.acc_seen.tolist() == [1.0, 1.0, 0.5]
    assert macro.acc_absent.tolist() == [0.5, 1.0, 1.0]


def test_no_breakpoints():
    curve = finecal.tradeoff_curve(np.array([[0.0, 1.0, 5.0, 6.0]] * 2), [0, 2], GOLDEN_MASK)
    assert curve.gamma.tolist() == [0.0]
    assert curve.best() == 0.0
    assert curve.ausuc == 0.0


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("labels", [[], [0, 1], [2]])
def test_one_sided_data(labels, average):
    curve = finecal.tradeoff_curve(np.zeros((len(labels), 4)), labels, GOLDEN_MASK, average)
    report = curve.at(0.0)
    assert math.isnan(report.ausuc)
    assert math.isnan(report.balanced)
    assert math.isnan(report.acc_seen) == (0 not in labels)
    assert math.isnan(report.acc_absent) == (2 not in labels)
    assert math.isnan(report.acc_all) == (not labels)
    messages = {0: "labels are empty", 1: r"labels are of absent classes only \(1 samples\)"}
    with pytest.raises(ValueError, match=messages.get(len(labels), r"labels are of seen classes only \(2 samples\)")):
        curve.best()


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_types_and_devices(device, dtype, average):
    logits = torch.tensor(GOLDEN_LOGITS, dtype=dtype, device=device)
    curve = finecal.tradeoff_curve(logits, torch.tensor(GOLDEN_LABELS, device=device), GOLDEN_MASK, average)
    expected = golden(average)
    for name in ("gamma", "seen_correct", "absent_correct", "acc_seen", "acc_absent", "acc_all", "breakpoints"):
        field = getattr(curve, name)
        assert field.device.type == device.type
        assert field.dtype == (torch.int64 if name.endswith("correct") else torch.float64)
        assert field.tolist() == pytest.approx(getattr(expected, name).tolist())
    assert curve.ausuc == pytest.approx(expected.ausuc)
    assert curve.best() == expected.best()


def test_swapping_the_groups_negates_gamma(rng):
    logits = rng.normal(size=(200, 10))
    mask = np.arange(10) < 4
    labels = rng.integers(0, 10, 200)
    curve, swapped = (finecal.tradeoff_curve(logits, labels, m) for m in (mask, ~mask))
    assert curve.best() == pytest.approx(-swapped.best())
    assert curve.ausuc == pytest.approx(swapped.ausuc)
    assert np.array_equal(curve.seen_correct, swapped.absent_correct[::-1])


@examples(1000)
@given(st.integers(0, 2**32 - 1))
def test_tie_heavy_integer_problems_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    logits, labels, mask = reference.integer_problem(rng)
    curve = finecal.tradeoff_curve(logits, labels, mask)
    n_seen = int(mask[labels].sum())
    for gamma in [*reference.plateaus(logits, labels, mask), *curve.gamma, *curve.breakpoints]:
        point = point_at(curve.breakpoints, float(gamma))
        seen, absent, both = reference.accuracies(logits, labels, mask, gamma)
        assert curve.seen_correct[point] == round(seen * n_seen)
        assert curve.absent_correct[point] == round(absent * (len(labels) - n_seen))
        assert curve.acc_all[point] == pytest.approx(both)
    assert curve.ausuc == pytest.approx(reference.ausuc(logits, labels, mask))

    drop = [None, 0.0, 0.25][seed % 3]
    for objective in OBJECTIVES:
        best = reference.best_value(logits, labels, mask, objective, drop)
        gamma = curve.best(objective, drop)
        assert reference.objective(objective, *reference.accuracies(logits, labels, mask, gamma)) == pytest.approx(best)
        # applied in float32, by argmax over the calibrated logits: plateaus of integers are wide
        predicted = finecal.calibrate_logits(logits, mask, gamma).argmax(1)
        correct = predicted == labels
        applied = correct[mask[labels]].mean(), correct[~mask[labels]].mean(), correct.mean()
        assert reference.objective(objective, *applied) == pytest.approx(best)


def test_float32_and_float64_paths_agree(rng):
    logits = rng.normal(size=(3000, 12)).astype(np.float32).round(1)
    labels, mask = rng.integers(0, 12, 3000), np.arange(12) % 2 == 0
    m = finecal.Samples(logits, labels).margins(mask)
    wide = finecal.logits.Margins(m.margin.astype(np.float64), m.is_seen, m.hit, m.label)
    for name in ("breakpoints", "seen_correct", "absent_correct"):
        assert np.array_equal(getattr(m.curve(), name), getattr(wide.curve(), name))


def test_plot_draws_the_curve():
    ax = golden().plot()
    assert ax.get_xlabel()
    assert ax.get_ylabel()


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_hits_of_a_masked_group_are_never_correct(average):
    mask = [True, True, False, False]
    logits = np.array([[-INF, -INF, 0.0, 1.0], [0.0, 1.0, -INF, -INF], [2.0, 0, 0, 0], [0.0, 0, 3.0, 0]])
    m = finecal.Samples(logits, [0, 2, 0, 2]).margins(mask)  # the first of the masked classes is a hit by its index
    assert m.hit.all()
    curve = m.curve(average)
    assert curve.breakpoints.tolist() == [-3.0, 2.0]
    assert curve.acc_seen.tolist() == [0.5, 0.5, 0.0]
    assert curve.acc_absent.tolist() == [0.0, 0.5, 0.5]
