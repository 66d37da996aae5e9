"""Wrong numbers and names of choices: the message says which argument, and what it may be."""

import math

import numpy as np
import pytest

import finecal

MASK = [True, True, False, False]
LABELS = [0, 1, 0, 1]
LOGITS = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]] * 2)
ALL_LABELS = [0, 1, 2, 3]

f = finecal
WRONG_CALLS = {
    "labels for classes": (lambda: f.seen_mask_from_labels(4, np.array(LABELS)), TypeError, "num_classes is a ndarray"),
    "objective": (
        lambda: f.search_gamma(LOGITS, ALL_LABELS, MASK, "accuracy"),
        ValueError,
        "objective is 'accuracy'; choose one of 'overall', 'balanced', 'harmonic', 'absent'",
    ),
    "average": (
        lambda: f.evaluate(LOGITS, LABELS, MASK, 0, "weighted"),
        ValueError,
        "average is 'weighted'; choose one",
    ),
    "share in per cent": (
        lambda: f.estimators.known_share_gamma(LOGITS, MASK, 40),
        ValueError,
        r"seen_share is 40.0; it must lie strictly between 0 and 1 \(40.0 % is 0.4\)",
    ),
    "share of 1": (
        lambda: f.estimators.mixed_pair_gap(LOGITS, LABELS, MASK, 1.0),
        ValueError,
        "seen_share is 1.0; it must lie",
    ),
    "share in an array": (
        lambda: f.estimators.known_share_gamma(LOGITS, MASK, np.array([0.5])),
        TypeError,
        "seen_share is a ndarray; pass a number",
    ),
    "share of words": (
        lambda: f.estimators.known_share_gamma(LOGITS, MASK, "half"),
        TypeError,
        "seen_share is a str; pass a number",
    ),
    "share of nothing": (
        lambda: f.estimators.known_share_gamma(LOGITS, MASK, math.nan),
        ValueError,
        "seen_share is NaN; pass a",
    ),
    "drop": (
        lambda: f.search_gamma(LOGITS, ALL_LABELS, MASK, max_seen_drop=2),
        ValueError,
        r"max_seen_drop is 2.0; it is a fraction in \[0, 1\]",
    ),
    "negative drop": (
        lambda: f.tradeoff_curve(LOGITS, ALL_LABELS, MASK).best(max_seen_drop=-0.1),
        ValueError,
        "max_seen_drop is -0.1",
    ),
    "confidence": (
        lambda: f.estimators.seen_budget_gamma(LOGITS, LABELS, MASK, confidence=95),
        ValueError,
        "confidence is 95.0",
    ),
    "bootstrap": (
        lambda: f.estimators.max_logit_gap(LOGITS, LABELS, MASK, n_bootstrap=-1),
        ValueError,
        "n_bootstrap is -1",
    ),
    "bootstrap yes": (
        lambda: f.estimators.max_logit_gap(LOGITS, LABELS, MASK, n_bootstrap=True),
        TypeError,
        "n_bootstrap is a bool",
    ),
    "seed": (
        lambda: f.estimators.mixed_pair_gap(LOGITS, LABELS, MASK, seed=0.5),
        TypeError,
        "seed is a float; pass an integer",
    ),
    "classes": (
        lambda: f.seen_mask_from_labels([0], 4.0),
        TypeError,
        "num_classes is a float; pass the number of columns",
    ),
    "one class only": (lambda: f.seen_mask_from_labels([0], 1), ValueError, "num_classes is 1; at least one seen"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_call(name):
    call, error, message = WRONG_CALLS[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("share", [0, 1.0, 100, 150, -0.1])
def test_shares_that_are_no_per_cent_get_no_hint(share):
    with pytest.raises(ValueError, match=r"it must lie strictly between 0 and 1$"):
        f.estimators.known_share_gamma(LOGITS, MASK, share)


def test_the_ends_of_a_drop_are_fractions():
    for drop in (0, 1):
        f.tradeoff_curve(LOGITS, [0, 1, 2, 3], MASK).best(max_seen_drop=drop)
    with pytest.raises(TypeError, match="max_seen_drop is a str; pass a number"):
        f.tradeoff_curve(LOGITS, [0, 1, 2, 3], MASK).best(max_seen_drop="0.1")
