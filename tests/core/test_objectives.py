"""Which operating point is the best."""

import dataclasses

import numpy as np
import pytest

import finecal
from finecal._core.objectives import OBJECTIVES, interval_of
from problems import golden

pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")


def test_golden_best():
    curve = golden()
    assert curve.best("overall") == 3.0  # (2, 4] is wider than (1, 2]
    assert curve.best("absent") == 3.0
    assert curve.best("balanced") == 3.0
    assert curve.best("harmonic") == 3.0
    assert curve.best("overall", max_seen_drop=0.0) == 1.5
    assert curve.best("absent", max_seen_drop=0.34) == 3.0


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


def test_equal_harmonic_means_are_equal_however_many_samples():
    counts = {"seen_correct": np.array([18042, 12028]), "absent_correct": np.array([9021, 12028])}
    curve = dataclasses.replace(golden(), **counts, n_seen=21050, n_absent=21050)
    first, second = OBJECTIVES["harmonic"](curve)
    assert first == second


def test_points_where_nothing_is_correct_have_a_harmonic_mean_of_zero():
    # seen hits leave at 1 and 2, the absent one joins at 2.5: nothing is correct in (2, 2.5], and (1, 2] is wider
    logits = np.array([[1.0, 0], [2.0, 0], [2.5, 0]])
    assert finecal.tradeoff_curve(logits, [0, 0, 1], [True, False]).best("harmonic") == 1.5
