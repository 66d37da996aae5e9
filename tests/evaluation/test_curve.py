import dataclasses
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
import reference
from finecal.evaluation.objectives import OBJECTIVES
from finecal.evaluation.operating_points import interval_of, point_at
from profiles import examples

INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")

GOLDEN_MASK = [True, True, False, False]
GOLDEN_LABELS = [0, 1, 0, 2, 3, 2]
GOLDEN_LOGITS = [
    [5.0, 0.0, 1.0, 0.0],  # seen hit, margin 4
    [0.0, 3.0, 1.0, 0.0],  # seen hit, margin 2
    [1.0, 2.0, 0.0, 0.0],  # seen, no hit
    [3.0, 0.0, 2.0, 1.0],  # absent hit, margin 1
    [4.0, 0.0, 0.0, 2.0],  # absent hit, margin 2
    [0.0, 0.0, 1.0, 9.0],  # absent, no hit
]


def golden(average="micro"):
    return finecal.tradeoff_curve(np.array(GOLDEN_LOGITS), GOLDEN_LABELS, GOLDEN_MASK, average)


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


def test_golden_best():
    curve = golden()
    assert curve.best("overall") == 3.0  # (2, 4] is wider than (1, 2]
    assert curve.best("absent") == 3.0
    assert curve.best("balanced") == 3.0
    assert curve.best("harmonic") == 3.0
    assert curve.best("overall", max_seen_drop=0.0) == 1.5
    assert curve.best("absent", max_seen_drop=0.34) == 3.0


def test_golden_macro():
    # class accuracies at gamma 1.5: 0: 1/2, 1: 1, 2: 1/2, 3: 0
    point = golden("macro").at(1.5)
    assert point.acc_seen == pytest.approx(3 / 4)
    assert point.acc_absent == pytest.approx(1 / 4)
    assert point.acc_all == pytest.approx(1 / 2)


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


def test_adjacent_float32_margins_are_told_apart():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    logits = np.array([[low, 0.0], [high, 0.0], [5.0, 0.0], [-1.0, 0.0]], np.float32)
    curve = finecal.tradeoff_curve(logits, [1, 0, 0, 1], [True, False])
    gamma = curve.best()
    assert gamma == np.float32(gamma) == high
    assert finecal.predict(logits, [True, False], gamma).tolist() == [1, 0, 0, 1]


def test_adjacent_float64_margins_are_told_apart():
    low, high = 1.0, np.nextafter(1.0, 2)
    curve = finecal.tradeoff_curve(np.array([[low, 0.0], [high, 0.0]]), [1, 0], [True, False])
    assert curve.gamma[1] == high
    assert curve.best() == high
    assert curve.at(curve.best()).acc_all == 1.0


@pytest.mark.parametrize("size", [1e8, 1e30])
def test_gamma_beyond_the_ends_at_sizes_where_one_is_nothing(size):
    logits = np.array([[size, 0.0], [-size, 0.0]])
    curve = finecal.tradeoff_curve(logits, [0, 1], [True, False])
    for index, gamma in enumerate(curve.gamma):
        assert point_at(curve.breakpoints, float(gamma)) == index
    only_absent_hit = finecal.tradeoff_curve(
        np.array([[size, 0.0], [size, 0.0], [0.0, -1.0]]), [1, 1, 0], [True, False]
    )
    assert only_absent_hit.at(only_absent_hit.best()).acc_all == 2 / 3


def test_choice_among_equal_intervals():
    # flips: seen hits at -6, 3, 10; absent hits at -4, 5: overall 3 of 5 holds twice, (-4, 3] and (5, 10]
    logits = np.array([[-6.0, 0], [3, 0], [10, 0], [-4, 0], [5, 0]])
    curve = finecal.tradeoff_curve(logits, [0, 0, 0, 1, 1], [True, False])
    assert interval_of(curve.breakpoints, 2) == (-4.0, 3.0)
    assert curve.best() == -0.5
    # equally wide: the smaller |gamma|
    logits = np.array([[-6.0, 0], [3, 0], [12, 0], [-4, 0], [5, 0]])
    assert finecal.tradeoff_curve(logits, [0, 0, 0, 1, 1], [True, False]).best() == -0.5
    assert finecal.tradeoff_curve(-logits, [1, 1, 1, 0, 0], [True, False]).best() == 0.5


def test_unbounded_intervals_only_if_no_bounded_one_is_as_good():
    seen_only_hits = finecal.tradeoff_curve(np.array([[2.0, 0, 0], [0.0, 0, 9]]), [0, 1], [True, False, False])
    assert seen_only_hits.best() == 1.0  # breakpoint 2, minus 1
    absent_only_hits = finecal.tradeoff_curve(np.array([[0.0, 9.0, 0], [5.0, 0, 0]]), [0, 2], [True, True, False])
    assert absent_only_hits.best() == 6.0


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


@examples(200)
@given(st.integers(0, 2**32 - 1))
def test_macro_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    logits, labels, mask = reference.integer_problem(rng)
    logits += 0.25 * rng.integers(0, 2, logits.shape).astype(np.float32) + 3
    curve = finecal.tradeoff_curve(logits, labels, mask, "macro")
    for gamma in reference.plateaus(logits, labels, mask):
        point = curve.at(gamma)
        expected = reference.accuracies(logits, labels, mask, gamma, "macro")
        assert (point.acc_seen, point.acc_absent, point.acc_all) == pytest.approx(expected)
    for objective in OBJECTIVES:
        best = reference.best_value(logits, labels, mask, objective, 0.2, "macro")
        got = reference.accuracies(logits, labels, mask, curve.best(objective, 0.2), "macro")
        assert reference.objective(objective, *got) == pytest.approx(best)


def test_float32_and_float64_paths_agree(rng):
    logits = rng.normal(size=(3000, 12)).astype(np.float32).round(1)
    labels, mask = rng.integers(0, 12, 3000), np.arange(12) % 2 == 0
    m = finecal.margins(logits, labels, mask)
    wide = finecal.Margins(m.margin.astype(np.float64), m.is_seen, m.hit, m.label)
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
    m = finecal.margins(logits, [0, 2, 0, 2], mask)  # the first of the masked classes is a hit by its index
    assert m.hit.all()
    curve = m.curve(average)
    assert curve.breakpoints.tolist() == [-3.0, 2.0]
    assert curve.acc_seen.tolist() == [0.5, 0.5, 0.0]
    assert curve.acc_absent.tolist() == [0.0, 0.5, 0.5]


def test_intervals_finer_than_float32_are_told_apart():
    step = 2.0**-20  # of float32 numbers near 8
    logits = np.array([[8 + 0.1 * step, 0.0], [8 + 0.6 * step, 0.0]])
    curve = finecal.tradeoff_curve(logits, [1, 0], [True, False])
    assert curve.at(curve.best(max_seen_drop=0.0)).acc_all == 1.0


def test_equal_harmonic_means_are_equal_however_many_samples():
    counts = {"seen_correct": np.array([18042, 12028]), "absent_correct": np.array([9021, 12028])}
    curve = dataclasses.replace(golden(), **counts, n_seen=21050, n_absent=21050)
    first, second = OBJECTIVES["harmonic"](curve)
    assert first == second


def test_points_where_nothing_is_correct_have_a_harmonic_mean_of_zero():
    # seen hits leave at 1 and 2, the absent one joins at 2.5: nothing is correct in (2, 2.5], and (1, 2] is wider
    logits = np.array([[1.0, 0], [2.0, 0], [2.5, 0]])
    assert finecal.tradeoff_curve(logits, [0, 0, 1], [True, False]).best("harmonic") == 1.5


def exact_macro_best(m, objective):
    """Choose the interval by the rule of the design, in exact fractions."""
    classes = {int(c): np.flatnonzero(m.label == c) for c in np.unique(m.label)}
    groups = [
        [c for c in classes if m.is_seen[classes[c][0]]],
        [c for c in classes if not m.is_seen[classes[c][0]]],
    ]
    edges = sorted({float(x) for x in m.margin[m.hit]})
    intervals = list(pairwise([-INF, *edges, INF]))

    def value(gamma):
        correct = m.hit & np.where(m.is_seen, m.margin >= gamma, m.margin < gamma)
        shares = [[Fraction(int(correct[classes[c]].sum()), len(classes[c])) for c in group] for group in groups]
        if objective == "overall":
            return sum(shares[0] + shares[1]) / len(classes)
        return sum(sum(group) / len(group) for group in shares)

    inside = [high - 1 if low == -INF else low + 1 if high == INF else (low + high) / 2 for low, high in intervals]
    values = [value(gamma) for gamma in inside]
    best = [i for i, v in enumerate(values) if v == max(values)]
    bounded = [i for i in best if INF not in (-intervals[i][0], intervals[i][1])]
    if bounded:
        widest = max(intervals[i][1] - intervals[i][0] for i in bounded)
        best = [i for i in bounded if intervals[i][1] - intervals[i][0] == widest]
    return min((inside[i] for i in best), key=abs)


def test_equal_macro_accuracies_are_equal_whatever_the_rounding():
    checked = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        logits, labels, mask = reference.integer_problem(rng, max_samples=60, spread=6)
        m = finecal.margins(logits + 3, labels, mask)
        if m.hit.any():
            for objective in ("overall", "balanced"):
                assert m.curve("macro").best(objective) == exact_macro_best(m, objective)
            checked += 1
    assert checked > 350
