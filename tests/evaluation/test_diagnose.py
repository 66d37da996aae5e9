"""What is compared, and what goes in: logits, features and heads, before and after fine-tuning."""

import math
from itertools import product

import numpy as np
import pytest
import torch

import finecal
import reference
from before_and_after import MASK, C, D, diagnosed, linear_problem, scores

INF = math.inf


# --- accuracies -------------------------------------------------------------------------------------------------------


def test_reports_are_those_of_evaluate(rng, device, dtype):
    features, labels, old, (weight, bias) = linear_problem(rng, noise=2.0, shift=4.0)
    new = weight + rng.normal(size=weight.shape), bias
    logits, before = (torch.tensor(scores(features, head)).to(device, dtype) for head in (new, old))
    y = torch.tensor(labels, device=device)
    diagnosis = finecal.diagnose(logits, y, MASK, pretrained_logits=before)
    gamma = finecal.tradeoff_curve(logits, y, MASK).best()
    assert diagnosis.finetuned == finecal.evaluate(logits, y, MASK)
    assert diagnosis.pretrained == finecal.evaluate(before, y, MASK)
    assert diagnosis.oracle == finecal.evaluate(logits, y, MASK, gamma)

    def correct(rows, gamma):
        return [reference.predict(row, MASK, gamma) == c for row, c in zip(rows.tolist(), labels, strict=True)]

    pairs = list(zip(correct(logits.double(), 0.0), correct(logits.double(), gamma), strict=True))
    assert diagnosis.gain == (pairs.count((False, True)), pairs.count((True, False)), len(labels))
    hits = [[reference.is_hit(r, c, MASK) for r, c in zip(x.tolist(), labels, strict=True)] for x in (before, logits)]
    pairs = [pair for *pair, c in zip(*hits, labels, strict=True) if not MASK[c]]
    assert diagnosis.absent_change == (pairs.count([False, True]), pairs.count([True, False]), len(pairs))
    assert diagnosis.gain.change == pytest.approx(diagnosis.oracle.acc_all - diagnosis.finetuned.acc_all)
    assert diagnosis.seen_change.change != 0
    assert diagnosis.seen_change.change == pytest.approx(
        diagnosis.finetuned.acc_seen_within - diagnosis.pretrained.acc_seen_within
    )


def test_same_for_tensors_arrays_and_lists(rng):
    features, labels, old, new = linear_problem(rng, n=60, shift=4.0)
    given = {
        "features": features,
        "reference_features": features[::-1],
        "reference_labels": labels[::-1],
        "pretrained_logits": scores(features, old),
    }
    expected = finecal.diagnose(scores(features, new), labels, MASK, **given)
    tensors = {name: torch.tensor(value.copy()) for name, value in given.items()}
    logits = torch.tensor(scores(features, new), requires_grad=True)
    assert finecal.diagnose(logits, torch.tensor(labels), torch.tensor(MASK), **tensors) == expected
    lists = {name: value.tolist() for name, value in given.items()}
    assert finecal.diagnose(logits.tolist(), labels.tolist(), MASK.tolist(), **lists) == expected


def test_invariances(rng):
    features, labels, old, new = linear_problem(rng, noise=2.0, shift=4.0)
    given = {"reference_labels": labels[:300], "reference_features": features[:300]}
    expected = diagnosed((features, labels, old, new), features=features, **given)
    # a constant per row, the order of samples, the scale of features
    logits, before = scores(features, new) + 8 * rng.normal(size=(400, 1)), scores(features, old)
    order = rng.permutation(400)
    moved = finecal.diagnose(
        logits[order],
        labels[order],
        MASK,
        pretrained_logits=before[order],
        features=1e4 * features[order],
        reference_features=1e-4 * features[:300],
        reference_labels=labels[:300],
    )
    # the order of classes
    renamed = rng.permutation(C)
    inverse = np.argsort(renamed)
    permuted = finecal.diagnose(
        scores(features, new)[:, renamed],
        inverse[labels],
        MASK[renamed],
        pretrained_logits=before[:, renamed],
        features=features,
        reference_features=features[:300],
        reference_labels=inverse[labels[:300]],
    )
    for other in (moved, permuted):
        assert (other.gain, other.absent_change) == (expected.gain, expected.absent_change)
        assert other.finetuned_ncm == expected.finetuned_ncm
        for gap, same in zip(other.finetuned_gaps, expected.finetuned_gaps, strict=True):
            assert gap[2:] == pytest.approx(same[2:])


# --- heads ------------------------------------------------------------------------------------------------------------


def test_a_head_is_a_linear_layer_or_a_pair(rng, device):
    features, labels, old, new = linear_problem(rng, shift=0.0, shuffle=True)
    linear = torch.nn.Linear(D, C, bias=False, device=device, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(new[0]))
    pairs = diagnosed((features, labels, old, new), head=new, pretrained_head=list(old))
    layer = diagnosed((features, labels, old, new), head=linear, pretrained_head=(torch.tensor(old[0]), None))
    assert layer.head_rows == pairs.head_rows
    assert "| absent " in str(layer)


@pytest.mark.parametrize(
    ("head", "error", "match"),
    [
        (np.ones((C, D)), TypeError, "head is a ndarray"),
        (torch.nn.Conv1d(D, C, 1), TypeError, "head is a Conv1d"),
        ((np.ones((D, C)), np.ones(C)), ValueError, r"expected \(7, D\) and \(7,\)"),
        ((np.ones((C, D)), np.ones(D)), ValueError, r"expected \(7, D\) and \(7,\)"),
        ((np.ones((C, D), int), None), TypeError, "the weight of head has dtype int64"),
        ((np.ones((C, D)), np.ones(C, int)), TypeError, "the bias of head has dtype int64"),
        ((np.full((C, D), np.nan), None), ValueError, "the weight of head contains NaN"),
        ((np.ones((C, D)), np.full(C, INF)), ValueError, "the bias of head contains NaN or infinity"),
        ((None, None), TypeError, "the weight of head is None"),
        ((np.ones((C, D + 1)), None), ValueError, "pretrained_head takes 12 features, head 13"),
    ],
)
def test_wrong_heads(rng, head, error, match):
    problem = linear_problem(rng)
    with pytest.raises(error, match=match):
        diagnosed(problem, head=head, pretrained_head=problem[2])


def test_heads_that_do_not_fit_are_warned_of(rng):
    features, labels, old, new = linear_problem(rng, shift=5.0)
    with pytest.warns(finecal.FinecalWarning) as record:
        diagnosis = diagnosed((features, labels, old, new), features=features, head=old, pretrained_head=old)
    assert len(record) == 1
    assert diagnosis.warnings[0].startswith("head applied to features does not give logits: they differ by up to 2.")
    assert "in 400 of 400 samples checked" in diagnosis.warnings[0]
    with pytest.warns(finecal.FinecalWarning, match="pretrained_head applied to pretrained_features does not give"):
        diagnosed((features, labels, old, new), pretrained_features=features[::-1], head=new, pretrained_head=old)
    with pytest.raises(ValueError, match="pretrained_features have 11 columns, pretrained_head takes 12"):
        diagnosed((features, labels, old, new), pretrained_features=features[:, 1:], head=new, pretrained_head=old)


# --- what may be left out ---------------------------------------------------------------------------------------------


def test_every_combination_of_optional_arguments(rng):
    problem = linear_problem(rng, n=90, shift=5.0)
    features, labels, old, new = problem
    optional = {
        "features": features,
        "pretrained_features": features,
        "reference_features": features,
        "pretrained_reference_features": features,
        "reference_labels": labels,
        "head": new,
        "pretrained_head": old,
    }
    accepted = 0
    for given in product([False, True], repeat=len(optional)):
        has = dict(zip(optional, given, strict=True))
        usable = has["head"] == has["pretrained_head"]
        for prefix in ("", "pretrained_"):
            own, means = has[f"{prefix}features"], has[f"{prefix}reference_features"]
            usable &= not means or (own and has["reference_labels"])
            usable &= not own or means or has["head"]
        usable &= not has["reference_labels"] or has["reference_features"] or has["pretrained_reference_features"]
        arguments = {name: value for name, value in optional.items() if has[name]}
        if not usable:
            with pytest.raises(ValueError, match="pass both|pass all three|pass either|are given without"):
                diagnosed(problem, **arguments)
            continue
        accepted += 1
        diagnosis = diagnosed(problem, **arguments)
        assert (diagnosis.finetuned_ncm is not None) == has["reference_features"]
        assert (diagnosis.pretrained_ncm is not None) == has["pretrained_reference_features"]
        assert (diagnosis.ncm_absent_change is not None) == (
            has["reference_features"] and has["pretrained_reference_features"]
        )
        assert (diagnosis.head_rows is not None) == has["head"]
        text = str(diagnosis)
        assert max(map(len, text.splitlines())) <= 120
        assert ("NCM" in text) == has["reference_labels"]
        assert ("head rows" in text) == has["head"]
    assert accepted == 13


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        (
            "pretrained_logits",
            np.ones((30, C + 1)),
            ValueError,
            r"pretrained_logits have shape \(30, 8\), logits \(30, 7\)",
        ),
        ("pretrained_logits", np.ones((30, C), int), TypeError, "pretrained_logits has dtype int64"),
        ("pretrained_logits", np.full((30, C), np.nan), ValueError, "pretrained_logits contain NaN"),
        ("pretrained_logits", np.full((30, C), 1 / C), ValueError, "pretrained_logits look like probabilities"),
        ("features", np.ones((29, D)), ValueError, r"features have shape \(29, 12\); expected \(30, D\)"),
        ("features", np.ones((30, D), int), TypeError, "features have dtype int64"),
        ("features", np.full((30, D), INF), ValueError, r"features contain NaN or infinity \(first in row 0, 30 of 30"),
        ("features", np.ones((30, D - 1)), ValueError, "reference_features have 12 columns, features 11"),
        ("features", np.ones((30, 0)), ValueError, r"features have shape \(30, 0\)"),
        ("features", np.where(np.eye(30, D), np.nan, 1), ValueError, r"features contain NaN .* row 0, 12 of 30"),
        ("reference_features", np.ones(D), ValueError, r"expected \(R, D\)"),
        (
            "reference_labels",
            np.zeros(29, int),
            ValueError,
            "reference_labels have shape .* rows of reference_features",
        ),
        ("reference_labels", np.zeros(30), TypeError, "reference_labels have dtype float64"),
        ("reference_labels", np.full(30, C), ValueError, r"reference_labels contain 7, outside \[0, 7\)"),
        ("labels", np.zeros(30, int), ValueError, "labels are of seen classes only"),
        ("labels", np.ones(30, int), ValueError, "labels are of absent classes only"),
    ],
)
def test_wrong_input(rng, name, value, error, match):
    features, labels, old, new = linear_problem(rng, n=30)
    given = {
        "labels": labels,
        "pretrained_logits": scores(features, old),
        "features": features,
        "reference_features": features,
        "reference_labels": labels,
    }
    with pytest.raises(error, match=match):
        finecal.diagnose(scores(features, new), seen_mask=MASK, **(given | {name: value}))


def test_no_samples():
    with pytest.raises(ValueError, match="diagnose has nothing to estimate from"):
        finecal.diagnose(np.ones((0, C)), np.ones(0, int), MASK, pretrained_logits=np.ones((0, C)))
