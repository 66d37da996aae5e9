"""Wrong calls: the message names the argument, what came, and what to do."""

import math
import warnings

import numpy as np
import pytest
import torch

import finecal

MASK = [True, True, False, False]
LABELS = [0, 1, 0, 1]
LOGITS = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]] * 2)
ALL_LABELS = [0, 1, 2, 3]
NAN = np.where(np.arange(4) == 2, np.nan, LOGITS)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)

f = finecal
WRONG_CALLS = {
    # shapes
    "1-d logits": (lambda: f.margins(LOGITS[0], [0], MASK), ValueError, r"logits has shape \(4,\); expected \(N, C\)"),
    "one class": (lambda: f.predict(np.ones((3, 1)), [True]), ValueError, r"shape \(3, 1\): 1 classes; at least one"),
    "0-d logits": (lambda: f.calibrate_logits(np.float64(1), MASK, 0), ValueError, r"expected \(\.\.\., C\)"),
    "mask too short": (
        lambda: f.predict(LOGITS, MASK[:3]),
        ValueError,
        "seen_mask has 3 entries for logits of 4 classes",
    ),
    "2-d mask": (lambda: f.predict(LOGITS, [MASK]), ValueError, r"seen_mask has shape \(1, 4\); expected \(C,\)"),
    "labels too short": (lambda: f.margins(LOGITS, [0], MASK), ValueError, r"labels have shape \(1,\) for 4 rows"),
    "one-hot labels": (lambda: f.margins(LOGITS, np.eye(4, dtype=int), MASK), ValueError, r"labels\.argmax\(1\)"),
    # dtypes
    "integer logits": (
        lambda: f.predict(np.ones((2, 4), int), MASK),
        TypeError,
        r"logits has dtype int64; .*float\(\)",
    ),
    "boolean logits": (lambda: f.predict([[True, False]], MASK), TypeError, "logits has dtype bool"),
    "float8 logits": (
        lambda: f.predict(torch.zeros(1, 4).to(torch.float8_e5m2), MASK),
        TypeError,
        "logits has dtype float8_e5m2",
    ),
    "complex logits": (lambda: f.predict(LOGITS * 1j, MASK), TypeError, "logits is ndarray of dtype complex128"),
    "logits of words": (lambda: f.predict([["a", "b"]], MASK), TypeError, "logits is list of dtype <U1"),
    "ragged logits": (lambda: f.predict([[1.0], [1.0, 2.0]], MASK), TypeError, "logits cannot be read as an array"),
    "sparse logits": (lambda: f.predict(torch.ones(2, 4).to_sparse(), MASK), TypeError, r"logits\.to_dense\(\)"),
    "indices as mask": (lambda: f.predict(LOGITS, [0, 2]), TypeError, "must be boolean.*seen_mask_from_indices"),
    "0 and 1 as mask": (lambda: f.predict(LOGITS, [0, 1, 1, 0]), TypeError, "convert a mask of 0 and 1 to bool"),
    "0 and 1 as indices": (
        lambda: f.seen_mask_from_indices([0, 1, 1, 0], 4),
        ValueError,
        "indices contain 0 more than once; name each seen class once: for labels use seen_mask_from_labels",
    ),
    "inverted mask": (
        lambda: f.max_logit_gap(LOGITS, [2, 3, 2, 3], MASK),
        ValueError,
        r"labels are of absent classes in all 4 samples; .* \(is it inverted\?\)",
    ),
    "labels for classes": (lambda: f.seen_mask_from_labels(4, np.array(LABELS)), TypeError, "num_classes is a ndarray"),
    "estimate for a mask": (
        lambda: f.evaluate(LOGITS, LABELS, f.GammaEstimate(1.0, "", "", 1)),
        TypeError,
        "seen_mask is one GammaEstimate; pass a torch tensor",
    ),
    "a pair for logits": (
        lambda: f.mixture_gamma((LOGITS, np.array(LABELS)), LOGITS, MASK),
        TypeError,
        "tuple of 2 arrays",
    ),
    "float labels": (
        lambda: f.margins(LOGITS, [0.0, 1, 0, 1], MASK),
        TypeError,
        "labels have dtype float64; expected int",
    ),
    "boolean labels": (lambda: f.margins(LOGITS, MASK, MASK), TypeError, "labels have dtype bool"),
    "swapped": (lambda: f.margins(np.array(LABELS), LOGITS, MASK), TypeError, "logits and labels are not swapped"),
    # masks
    "none seen": (lambda: f.predict(LOGITS, [False] * 4), ValueError, "no seen class among 4; mark"),
    "none absent": (lambda: f.AdditiveBias([True] * 4, 1.0), ValueError, "no absent class: all 4 are seen"),
    # labels
    "label too large": (
        lambda: f.margins(LOGITS, [0, 1, 2, 4], MASK),
        ValueError,
        r"labels contain 4, outside \[0, 4\)",
    ),
    "ignored label": (lambda: f.margins(LOGITS, [0, 1, 2, -100], MASK), ValueError, "labels contain -100, outside"),
    "absent label": (
        lambda: f.average_logit_gap(LOGITS, [0, 2, 0, 3], MASK),
        ValueError,
        r"labels contain absent class 2 \(2 of 4 samples\); average_logit_gap needs seen-class samples only: drop",
    ),
    "absent label for the budget": (
        lambda: f.seen_budget_gamma(LOGITS, ALL_LABELS, MASK),
        ValueError,
        "seen_budget_gamma needs seen-class samples only",
    ),
    "no labels": (lambda: f.margins(LOGITS, [], MASK), ValueError, r"labels have shape \(0,\) for 4 rows of logits"),
    "names as labels": (lambda: f.margins(LOGITS, ["a", "b"], MASK), TypeError, "labels is list of dtype <U1"),
    "masked array": (
        lambda: f.predict(np.ma.masked_less(LOGITS, 1), MASK),
        TypeError,
        r"masked entries; fill or drop them: logits\.filled",
    ),
    "no mask": (lambda: f.predict(LOGITS, None), TypeError, "seen_mask is None; pass a torch tensor"),
    "too many classes": (
        lambda: f.predict(torch.zeros(1, 1).expand(1, 2**24 + 1), MASK),
        ValueError,
        "counts at most 16777216 classes",
    ),
    "tensors with gradients": (
        lambda: f.predict([torch.ones(4, requires_grad=True)] * 2, MASK),
        TypeError,
        "logits cannot be read as an array .*requires grad",
    ),
    # values
    "NaN": (
        lambda: f.margins(NAN, LABELS, MASK),
        ValueError,
        r"logits contain NaN \(first in row 0, 4 of 4 rows\); drop",
    ),
    "NaN in seen": (lambda: f.margins(NAN, LABELS, np.logical_not(MASK)), ValueError, "logits contain NaN"),
    "NaN at the label": (lambda: f.evaluate(NAN, [2, 2, 2, 0], MASK), ValueError, "logits contain NaN"),
    "+inf": (
        lambda: f.evaluate(LOGITS + np.array([0, 0, np.inf, 0]), LABELS, MASK),
        ValueError,
        r"logits contain \+inf",
    ),
    "NaN unlabelled": (
        lambda: f.mixture_gamma(LOGITS, NAN, MASK),
        ValueError,
        "unlabelled_logits contain NaN",
    ),
    "probabilities": (
        lambda: f.average_logit_gap(PROBABILITIES, LABELS, MASK),
        ValueError,
        r"logits look like probabilities: .* pass the scores before softmax, or logits\.log\(\)",
    ),
    "half probabilities": (
        lambda: f.known_share_gamma(torch.tensor(PROBABILITIES).bfloat16(), MASK, 0.5),
        ValueError,
        "logits look like probabilities",
    ),
    # nothing to estimate from
    "no samples": (
        lambda: f.average_logit_gap(LOGITS[:0], [], MASK),
        ValueError,
        r"logits are empty \(0 samples\); average",
    ),
    "no samples to search": (lambda: f.search_gamma(LOGITS[:0], [], MASK), ValueError, "search_gamma has nothing to"),
    "no unlabelled": (lambda: f.known_share_gamma(LOGITS[:0], MASK, 0.5), ValueError, "known_share_gamma has nothing"),
    "no held-out": (lambda: f.mixture_gamma(LOGITS[:0], LOGITS, MASK), ValueError, "seen_logits are empty"),
    "no mixture": (lambda: f.mixture_gamma(LOGITS, LOGITS[:0], MASK), ValueError, "unlabelled_logits are empty"),
    # options
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
        lambda: f.known_share_gamma(LOGITS, MASK, 40),
        ValueError,
        r"seen_share is 40.0; it must lie strictly between 0 and 1 \(40.0 % is 0.4\)",
    ),
    "share of 1": (lambda: f.mixed_pair_gap(LOGITS, LABELS, MASK, 1.0), ValueError, "seen_share is 1.0; it must lie"),
    "share in an array": (
        lambda: f.known_share_gamma(LOGITS, MASK, np.array([0.5])),
        TypeError,
        "seen_share is a ndarray; pass a number",
    ),
    "share of words": (
        lambda: f.known_share_gamma(LOGITS, MASK, "half"),
        TypeError,
        "seen_share is a str; pass a number",
    ),
    "share of nothing": (lambda: f.known_share_gamma(LOGITS, MASK, math.nan), ValueError, "seen_share is NaN; pass a"),
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
    "confidence": (lambda: f.seen_budget_gamma(LOGITS, LABELS, MASK, confidence=95), ValueError, "confidence is 95.0"),
    "bootstrap": (lambda: f.max_logit_gap(LOGITS, LABELS, MASK, n_bootstrap=-1), ValueError, "n_bootstrap is -1"),
    "bootstrap yes": (
        lambda: f.max_logit_gap(LOGITS, LABELS, MASK, n_bootstrap=True),
        TypeError,
        "n_bootstrap is a bool",
    ),
    "seed": (lambda: f.mixed_pair_gap(LOGITS, LABELS, MASK, seed=0.5), TypeError, "seed is a float; pass an integer"),
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
    "gamma first": (lambda: f.AdditiveBias(1.0, MASK), TypeError, "seen_mask is one float; pass a torch tensor"),
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
    # seen masks
    "mask for indices": (
        lambda: f.seen_mask_from_indices(MASK, 4),
        TypeError,
        "indices have dtype bool; expected integer",
    ),
    "index too large": (
        lambda: f.seen_mask_from_indices([0, 4], 4),
        ValueError,
        r"indices contain 4, outside \[0, 4\)",
    ),
    "no indices": (lambda: f.seen_mask_from_indices([], 4), ValueError, "indices are empty: no class would be seen"),
    "2-d labels": (lambda: f.seen_mask_from_labels([[0], [1]], 4), ValueError, r"labels have shape \(2, 1\)"),
    "every class": (lambda: f.seen_mask_from_labels([0, 1], 2), ValueError, "no absent class: all 2 are seen"),
    "classes": (
        lambda: f.seen_mask_from_labels([0], 4.0),
        TypeError,
        "num_classes is a float; pass the number of columns",
    ),
    "one class only": (lambda: f.seen_mask_from_labels([0], 1), ValueError, "num_classes is 1; at least one seen"),
    "misspelt name": (
        lambda: f.seen_mask_from_names(["cta"], ["cat", "dog"]),
        ValueError,
        r"seen_names contain 'cta' \(1 unknown of 1 names\); did you mean 'cat'\?",
    ),
    "foreign name": (
        lambda: f.seen_mask_from_names(["zebra"], ["cat", "dog"]),
        ValueError,
        "class_names start with 'cat', 'dog'",
    ),
    "one string": (lambda: f.seen_mask_from_names("cat", ["cat", "dog"]), TypeError, "seen_names is one string, 'cat'"),
    "two of a name": (lambda: f.seen_mask_from_names(["a"], ["a", "a", "b"]), ValueError, "contain 'a' more than once"),
    # labels elsewhere
    "labels elsewhere": (
        lambda: f.margins(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64, device="meta"), MASK),
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
    assert f.average_logit_gap(log, LABELS, MASK).gamma == pytest.approx(
        f.average_logit_gap(LOGITS, LABELS, MASK).gamma
    )
    with np.errstate(divide="ignore"):
        f.margins(np.log(np.eye(4)), ALL_LABELS, MASK)


@pytest.mark.parametrize("rows", [LOGITS / LOGITS.max(), PROBABILITIES * 1.01, PROBABILITIES - 0.25])
def test_scores_that_only_resemble_probabilities_are_fine(rows):
    f.margins(rows, LABELS, MASK)


SCATTERED = np.array([False, True, False, True])


def test_reindexed_labels_are_warned_of_at_the_callers_line():
    with pytest.warns(f.FinecalWarning, match=r"labels are exactly 0..1, .* they look re-indexed") as record:
        f.evaluate(LOGITS, LABELS, SCATTERED)
    assert record[0].filename == __file__
    with (
        pytest.warns(f.FinecalWarning, match="re-indexed") as record,
        pytest.raises(ValueError, match="absent class 0"),
    ):
        f.average_logit_gap(LOGITS, LABELS, SCATTERED)
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
        f.margins(LOGITS, labels, mask)


@pytest.mark.parametrize("share", [0, 1.0, 100, 150, -0.1])
def test_shares_that_are_no_per_cent_get_no_hint(share):
    with pytest.raises(ValueError, match=r"it must lie strictly between 0 and 1$"):
        f.known_share_gamma(LOGITS, MASK, share)


def test_the_ends_of_a_drop_are_fractions():
    for drop in (0, 1):
        f.tradeoff_curve(LOGITS, [0, 1, 2, 3], MASK).best(max_seen_drop=drop)
    with pytest.raises(TypeError, match="max_seen_drop is a str; pass a number"):
        f.tradeoff_curve(LOGITS, [0, 1, 2, 3], MASK).best(max_seen_drop="0.1")


@pytest.mark.parametrize(("dtype", "off", "refused"), [("float32", 5e-4, True), ("float32", 5e-3, False)])
def test_tolerance_of_the_sum_of_probabilities(dtype, off, refused):
    rows = torch.tensor(PROBABILITIES * (1 + off), dtype=getattr(torch, dtype))
    if refused:
        with pytest.raises(ValueError, match="look like probabilities"):
            f.margins(rows, LABELS, MASK)
    else:
        f.margins(rows, LABELS, MASK)


def test_half_types_round_their_probabilities():
    rows = torch.full((3, 4), 0.2515).bfloat16()  # 0.251953125: they sum to 1.0078
    assert rows.double().sum(1)[0] > 1.005
    with pytest.raises(ValueError, match="look like probabilities"):
        f.margins(rows, [0, 1, 2], MASK)


def test_zero_is_a_probability():
    with pytest.raises(ValueError, match="look like probabilities"):
        f.margins(np.eye(4), ALL_LABELS, MASK)
