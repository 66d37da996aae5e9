"""Accuracies in which every class counts alike."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finecal
import reference
from finecal._core.objectives import OBJECTIVES
from problems import golden
from profiles import draws, examples

INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")


def test_golden_macro():
    # class accuracies at gamma 1.5: 0: 1/2, 1: 1, 2: 1/2, 3: 0
    point = golden("macro").at(1.5)
    assert point.acc_seen == pytest.approx(3 / 4)
    assert point.acc_absent == pytest.approx(1 / 4)
    assert point.acc_all == pytest.approx(1 / 2)


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
    checked, number = 0, draws(400, quick=100)
    for seed in range(number):
        rng = np.random.default_rng(seed)
        logits, labels, mask = reference.integer_problem(rng, max_samples=60, spread=6)
        m = finecal.Samples(logits + 3, labels).margins(mask)
        if m.hit.any():
            for objective in ("overall", "balanced"):
                assert m.curve("macro").best(objective) == exact_macro_best(m, objective)
            checked += 1
    assert checked > 0.875 * number
