"""Small problems that tests of several modules share."""

import numpy as np

import finecal

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
