"""Wrong logits, masks, labels, gammas and class names: the message says which argument, what came, and what to do."""

import math
import warnings

import numpy as np
import pytest
import torch

import finecal
from finecal._core.checks import check_same_device

MASK = [True, True, False, False]
LABELS = [0, 1, 0, 1]
LOGITS = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]] * 2)
ALL_LABELS = [0, 1, 2, 3]
NAN = np.where(np.arange(4) == 2, np.nan, LOGITS)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)

f = finecal
WRONG_CALLS = {
    # shapes
    "1-d logits": (
        lambda: f.Samples(LOGITS[0], [0]).margins(MASK),
        ValueError,
        r"logits has shape \(4,\); expected \(N, C\)",
    ),
    "one class": (lambda: f.predict(np.ones((3, 1)), [True]), ValueError, r"shape \(3, 1\): 1 classes; at least one"),
    "0-d logits": (lambda: f.calibrate_logits(np.float64(1), MASK, 0), ValueError, r"expected \(\.\.\., C\)"),
    "mask too short": (
        lambda: f.predict(LOGITS, MASK[:3]),
        ValueError,
        "seen_mask has 3 entries for logits of 4 classes",
    ),
    "2-d mask": (lambda: f.predict(LOGITS, [MASK]), ValueError, r"seen_mask has shape \(1, 4\); expected \(C,\)"),
    "labels too short": (
        lambda: f.Samples(LOGITS, [0]).margins(MASK),
        ValueError,
        r"labels have shape \(1,\) for 4 rows",
    ),
    "one-hot labels": (
        lambda: f.Samples(LOGITS, np.eye(4, dtype=int)).margins(MASK),
        ValueError,
        r"labels\.argmax\(1\)",
    ),
    # dtypes
    "integer logits": (
        lambda: f.predict(np.ones((2, 4), int), MASK),
        TypeError,
        r"logits has dtype int64; .*convert with logits\.astype\(numpy\.float32\), or",
    ),
    "integer tensor": (
        lambda: f.predict(torch.ones(2, 4).long(), MASK),
        TypeError,
        r"logits has dtype int64; .*convert with logits\.float\(\), or",
    ),
    "integer list": (
        lambda: f.predict([[1, 2, 3, 4]], MASK),
        TypeError,
        r"logits has dtype int64; .*convert with numpy\.float32\(logits\), or",
    ),
    "integer features": (
        lambda: f.estimators.head_drift_gamma(
            LOGITS, LABELS, MASK, features=np.ones((4, 3), int), head=None, pretrained_head=None
        ),
        TypeError,
        r"features have dtype int64; .*: features\.astype\(numpy\.float32\)",
    ),
    "empty mask": (
        lambda: f.predict(LOGITS, []),
        ValueError,
        r"seen_mask is empty, of shape \(0,\); pass one boolean per class, True for each seen one",
    ),
    "boolean logits": (lambda: f.predict([[True, False]], MASK), TypeError, "logits has dtype bool"),
    "float8 logits": (
        lambda: f.predict(torch.zeros(1, 4).to(torch.float8_e5m2), MASK),
        TypeError,
        "logits has dtype float8_e5m2",
    ),
    "sparse logits": (lambda: f.predict(torch.ones(2, 4).to_sparse(), MASK), TypeError, r"logits\.to_dense\(\)"),
    "indices as mask": (lambda: f.predict(LOGITS, [0, 2]), TypeError, "must be boolean.*seen_mask_from_indices"),
    "0 and 1 as mask": (lambda: f.predict(LOGITS, [0, 1, 1, 0]), TypeError, "convert a mask of 0 and 1 to bool"),
    "inverted mask": (
        lambda: f.estimators.max_logit_gap(LOGITS, [2, 3, 2, 3], MASK),
        ValueError,
        r"labels are of absent classes in all 4 samples; .* \(is it inverted\?\)",
    ),
    "float labels": (
        lambda: f.Samples(LOGITS, [0.0, 1, 0, 1]).margins(MASK),
        TypeError,
        "labels have dtype float64; expected int",
    ),
    "boolean labels": (lambda: f.Samples(LOGITS, MASK).margins(MASK), TypeError, "labels have dtype bool"),
    "swapped": (
        lambda: f.Samples(np.array(LABELS), LOGITS).margins(MASK),
        TypeError,
        "logits and labels are not swapped",
    ),
    # masks
    "none seen": (lambda: f.predict(LOGITS, [False] * 4), ValueError, "no seen class among 4; mark"),
    "none absent": (lambda: f.AdditiveBias([True] * 4, 1.0), ValueError, "no absent class: all 4 are seen"),
    "head that lost classes": (
        lambda: f.predict(LOGITS, [True] * 4 + [False] * 2),
        ValueError,
        r"6 entries for logits of 4 classes; .* \(if the head has lost classes in fine-tuning, finecal.restore_head",
    ),
    "head with more classes": (
        lambda: f.predict(LOGITS, [True, False]),
        ValueError,
        "2 entries for logits of 4 classes; it needs one boolean per column of the logits$",
    ),
    # labels
    "label too large": (
        lambda: f.Samples(LOGITS, [0, 1, 2, 4]).margins(MASK),
        ValueError,
        r"labels contain 4, outside \[0, 4\)",
    ),
    "ignored label": (
        lambda: f.Samples(LOGITS, [0, 1, 2, -100]).margins(MASK),
        ValueError,
        "labels contain -100, outside",
    ),
    "absent label": (
        lambda: f.estimators.average_logit_gap(LOGITS, [0, 2, 0, 3], MASK),
        ValueError,
        r"labels contain absent class 2 \(2 of 4 samples\); average_logit_gap needs seen-class samples only: drop",
    ),
    "absent label for the budget": (
        lambda: f.estimators.seen_budget_gamma(LOGITS, ALL_LABELS, MASK),
        ValueError,
        "seen_budget_gamma needs seen-class samples only",
    ),
    "no labels": (
        lambda: f.Samples(LOGITS, []).margins(MASK),
        ValueError,
        r"labels have shape \(0,\) for 4 rows of logits",
    ),
    "too many classes": (
        lambda: f.predict(torch.zeros(1, 1).expand(1, 2**24 + 1), MASK),
        ValueError,
        "counts at most 16777216 classes",
    ),
    # values
    "NaN": (
        lambda: f.Samples(NAN, LABELS).margins(MASK),
        ValueError,
        r"logits contain NaN \(first in row 0, 4 of 4 rows\); drop",
    ),
    "NaN in seen": (lambda: f.Samples(NAN, LABELS).margins(np.logical_not(MASK)), ValueError, "logits contain NaN"),
    "NaN at the label": (lambda: f.evaluate(NAN, [2, 2, 2, 0], MASK), ValueError, "logits contain NaN"),
    "+inf": (
        lambda: f.evaluate(LOGITS + np.array([0, 0, np.inf, 0]), LABELS, MASK),
        ValueError,
        r"logits contain \+inf",
    ),
    "NaN unlabelled": (
        lambda: f.estimators.mixture_gamma(LOGITS, NAN, MASK),
        ValueError,
        "^unlabelled: logits contain NaN",
    ),
    "probabilities": (
        lambda: f.estimators.average_logit_gap(PROBABILITIES, LABELS, MASK),
        ValueError,
        r"logits look like probabilities: .* pass the scores before softmax, or the logarithms of these probabilities",
    ),
    "half probabilities": (
        lambda: f.estimators.known_share_gamma(torch.tensor(PROBABILITIES).bfloat16(), MASK, 0.5),
        ValueError,
        "logits look like probabilities",
    ),
    # nothing to estimate from
    "no samples": (
        lambda: f.estimators.average_logit_gap(LOGITS[:0], [], MASK),
        ValueError,
        r"logits are empty \(0 samples\); average",
    ),
    "no samples to search": (lambda: f.search_gamma(LOGITS[:0], [], MASK), ValueError, "search_gamma has nothing to"),
    "no unlabelled": (
        lambda: f.estimators.known_share_gamma(LOGITS[:0], MASK, 0.5),
        ValueError,
        "known_share_gamma has nothing",
    ),
    "no held-out": (
        lambda: f.estimators.mixture_gamma(LOGITS[:0], LOGITS, MASK),
        ValueError,
        "^seen: logits are empty",
    ),
    "no mixture": (
        lambda: f.estimators.mixture_gamma(LOGITS, LOGITS[:0], MASK),
        ValueError,
        "^unlabelled: logits are empty",
    ),
    # gamma
    "gamma of words": (lambda: f.predict(LOGITS, MASK, "1.0"), TypeError, "gamma is a str; pass a float"),
    "gamma yes": (lambda: f.predict(LOGITS, MASK, True), TypeError, "gamma is a bool"),
    "gammas": (lambda: f.predict(LOGITS, MASK, np.array([1.0])), TypeError, "gamma is a ndarray; pass a float, a 0-d"),
    "gamma tensor": (lambda: f.predict(LOGITS, MASK, torch.ones(1)), ValueError, r"gamma is a tensor of shape \(1,\)"),
    "complex gamma": (
        lambda: f.predict(LOGITS, MASK, torch.tensor(1j)),
        TypeError,
        "gamma is a tensor of dtype complex64",
    ),
    "infinite gamma": (
        lambda: f.calibrate_logits(LOGITS, MASK, math.inf),
        ValueError,
        "gamma is inf; it must be finite",
    ),
    "NaN gamma": (lambda: f.evaluate(LOGITS, LABELS, MASK, torch.tensor(math.nan)), ValueError, "gamma is nan"),
    "gamma beyond float32": (
        lambda: f.calibrate_logits(LOGITS.astype("float32"), MASK, 1e39),
        ValueError,
        r"gamma is 1e\+39, which float32 cannot hold",
    ),
    "gamma beyond all": (lambda: f.predict(LOGITS, MASK, 10**400), ValueError, "gamma is inf; it must be finite"),
    # class names
    "one name": (
        lambda: f.html_report(LOGITS, ALL_LABELS, MASK, class_names="abcd"),
        TypeError,
        "class_names is a str; pass a list of str, one per class",
    ),
    "numbers as names": (
        lambda: f.html_report(LOGITS, ALL_LABELS, MASK, class_names=[0, 1, 2, 3]),
        TypeError,
        "class_names are not all texts",
    ),
    "too many names": (
        lambda: f.html_report(LOGITS, ALL_LABELS, MASK, class_names=list("abcde")),
        ValueError,
        "there are 5 class names for 4 classes; give one per class",
    ),
    "too few names": (
        lambda: f.evaluate(LOGITS, ALL_LABELS, MASK).to_html(class_names=list("abc")),
        ValueError,
        "there are 3 class names for at least 4 classes",
    ),
    # labels elsewhere
    "labels elsewhere": (
        lambda: check_same_device(torch.zeros(1, device="meta"), torch.device("cpu")),
        ValueError,
        r"labels are on meta, logits on cpu; move them: labels\.to\('cpu'\)",
    ),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_call(name):
    call, error, message = WRONG_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_cheap_functions_let_nan_and_empty_batches_through():
    assert np.isnan(f.calibrate_logits(NAN, MASK, 1.0)).sum() == 4
    assert f.predict(NAN, MASK).shape == (4,)
    assert f.predict(NAN[:0], MASK).shape == (0,)


def test_log_probabilities_and_masked_classes_are_fine():
    log = np.log(PROBABILITIES)
    assert f.estimators.average_logit_gap(log, LABELS, MASK).gamma == pytest.approx(
        f.estimators.average_logit_gap(LOGITS, LABELS, MASK).gamma
    )
    with np.errstate(divide="ignore"):
        f.Samples(np.log(np.eye(4)), ALL_LABELS).margins(MASK)


@pytest.mark.parametrize("rows", [LOGITS / LOGITS.max(), PROBABILITIES * 1.01, PROBABILITIES - 0.25])
def test_scores_that_only_resemble_probabilities_are_fine(rows):
    f.Samples(rows, LABELS).margins(MASK)


SCATTERED = np.array([False, True, False, True])


def test_reindexed_labels_are_warned_of_at_the_callers_line():
    with pytest.warns(f.FinecalWarning, match=r"labels are exactly 0..1, .* they look re-indexed") as record:
        f.evaluate(LOGITS, LABELS, SCATTERED)
    assert record[0].filename == __file__
    with (
        pytest.warns(f.FinecalWarning, match="re-indexed") as record,
        pytest.raises(ValueError, match="absent class 0"),
    ):
        f.estimators.average_logit_gap(LOGITS, LABELS, SCATTERED)
    assert len(record) == 1


@pytest.mark.parametrize(
    ("labels", "mask"),
    [
        (LABELS, MASK),  # the first classes are the seen ones
        (ALL_LABELS, SCATTERED),
        ([1, 1, 1, 1], SCATTERED),
        ([1, 3, 1, 3], SCATTERED),
        ([0, 0, 0, 0], [False, True, False, False]),  # one seen class: too little to tell
    ],
)
def test_other_labels_are_not_suspected(labels, mask):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f.Samples(LOGITS, labels).margins(mask)


@pytest.mark.parametrize(("dtype", "off", "refused"), [("float32", 5e-4, True), ("float32", 5e-3, False)])
def test_tolerance_of_the_sum_of_probabilities(dtype, off, refused):
    rows = torch.tensor(PROBABILITIES * (1 + off), dtype=getattr(torch, dtype))
    if refused:
        with pytest.raises(ValueError, match="look like probabilities"):
            f.Samples(rows, LABELS).margins(MASK)
    else:
        f.Samples(rows, LABELS).margins(MASK)


def test_half_types_round_their_probabilities():
    rows = torch.full((3, 4), 0.2515).bfloat16()  # 0.251953125: they sum to 1.0078
    assert rows.double().sum(1)[0] > 1.005
    with pytest.raises(ValueError, match="look like probabilities"):
        f.Samples(rows, [0, 1, 2]).margins(MASK)


def test_zero_is_a_probability():
    with pytest.raises(ValueError, match="look like probabilities"):
        f.Samples(np.eye(4), ALL_LABELS).margins(MASK)


@pytest.mark.parametrize(
    "yes", [True, np.True_, np.array(True), torch.tensor(True)], ids=lambda yes: type(yes).__name__
)
def test_a_truth_value_is_no_number(yes):
    mask = np.arange(4) < 2
    logits, labels = np.eye(4) * 3.0, np.arange(4)
    calls = {
        "gamma": lambda: finecal.evaluate(logits, labels, mask, yes),
        "seen_share": lambda: finecal.estimators.known_share_gamma(logits, mask, yes),
        "max_seen_drop": lambda: finecal.search_gamma(logits, labels, mask, max_seen_drop=yes),
        "n_bootstrap": lambda: finecal.search_gamma(logits, labels, mask, n_bootstrap=yes),
        "seed": lambda: finecal.search_gamma(logits, labels, mask, seed=yes),
        "n_bins": lambda: finecal.probabilities.evaluate_probabilities(logits, labels, mask, n_bins=yes),
        "temperature": lambda: finecal.Temperature(yes),
        "num_classes": lambda: finecal.seen_mask_from_indices([0], yes),
        "shrinkage": lambda: finecal.calibrators.fit_class_bias(logits, labels, mask, shrinkage=yes),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"^{name} is a "):
            call()
