"""One pass over labelled logits."""

import math

import numpy as np
import pytest

from finecal.evaluation.samples import scan_labelled

INF = math.inf
pytestmark = pytest.mark.usefixtures("both_ways")


def test_a_sample_on_the_line_stays_seen():
    scan = scan_labelled(np.array([[2.0, 0.0], [3.0, 0.0]]), [0, 0], [True, False])
    assert [scan.acc_seen(gamma) for gamma in (2.0, 2.5, 3.0, 3.5)] == [1.0, 0.5, 0.5, 0.0]


def test_rounding_step_is_that_of_the_largest_maximum():
    for value in (0.001, 0.75, 3.0, 1000.0):
        scan = scan_labelled(np.array([[value, -INF], [0.0, -value / 4]], np.float32), [0, 0], [True, False])
        assert scan.rounding_step() == np.spacing(np.float32(value))
    assert scan_labelled(np.zeros((1, 2)), [0], [True, False]).rounding_step() == 0.0
