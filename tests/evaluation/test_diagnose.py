"""What is compared, and what goes in: logits, features and heads, before and after fine-tuning."""

import math
from itertools import product

import numpy as np
import pytest
import torch

import finecal
import reference
from before_and_after import MASK, C, D, diagnosed, linear_problem, reference_samples, samples_of, scores

INF = math.inf


# --- accuracies -------------------------------------------------------------------------------------------------------


def test_reports_are_those_of_evaluate(rng, device, dtype):
    features, labels, old, (weight, bias) = linear_problem(rng, noise=2.0, shift=4.0)
    new = weight + rng.normal(size=weight.shape), bias
    logits, before = (torch.tensor(scores(features, head)).to(device, dtype) for head in (new, old))
    y = torch.tensor(labels, device=device)
    diagnosis = finecal.diagnose(finecal.Samples(logits, y, pretrained_logits=before), MASK)
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
    logits, before = scores(features, new), scores(features, old)

    def of(convert, mask):
        samples, reference = (
            finecal.Samples(
                convert(logits[rows]),
                convert(labels[rows]),
                pretrained_logits=convert(before[rows]),
                features=convert(features[rows]),
            )
            for rows in (slice(None), slice(None, None, -1))
        )
        return finecal.diagnose(samples, mask, reference=reference)

    expected = of(np.asarray, MASK)
    assert (
        of(lambda values: torch.tensor(values.copy(), requires_grad=values.dtype == float), torch.tensor(MASK))
        == expected
    )
    assert of(np.ndarray.tolist, MASK.tolist()) == expected


def test_invariances(rng):
    features, labels, old, new = linear_problem(rng, noise=2.0, shift=4.0)
    reference = reference_samples(labels[:300], features=features[:300])
    expected = diagnosed((features, labels, old, new), features=features, reference=reference)
    # a constant per row, the order of samples, the scale of features
    logits, before = scores(features, new) + 8 * rng.normal(size=(400, 1)), scores(features, old)
    order = rng.permutation(400)
    samples = finecal.Samples(logits, labels, pretrained_logits=before, features=1e4 * features)
    small = reference_samples(labels[:300], features=1e-4 * features[:300])
    moved = finecal.diagnose(samples[order], MASK, reference=small)
    # the order of classes
    renamed = rng.permutation(C)
    inverse = np.argsort(renamed)
    samples = finecal.Samples(
        scores(features, new)[:, renamed],
        inverse[labels],
        pretrained_logits=before[:, renamed],
        features=features,
    )
    permuted = finecal.diagnose(samples, MASK[renamed], reference=samples[:300])
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
    optional = ("features", "pretrained_features", "reference", "means", "pretrained_means", "head", "pretrained_head")
    accepted = 0
    for given in product([False, True], repeat=len(optional)):
        has = dict(zip(optional, given, strict=True))
        if has["means"] + has["pretrained_means"] > 2 * has["reference"]:
            continue  # means are features of the reference
        usable = has["head"] == has["pretrained_head"]
        for prefix in ("", "pretrained_"):
            own, means = has[f"{prefix}features"], has[f"{prefix}means"]
            usable &= not means or own
            usable &= not own or means or has["head"]
        usable &= not has["reference"] or has["means"] or has["pretrained_means"]
        arguments = {name: features for name in ("features", "pretrained_features") if has[name]}
        if has["reference"]:
            means = {f"{prefix}features": features for prefix in ("", "pretrained_") if has[f"{prefix}means"]}
            arguments["reference"] = reference_samples(labels, **means)
        arguments |= {name: head for name, head in (("head", new), ("pretrained_head", old)) if has[name]}
        if not usable:
            with pytest.raises(ValueError, match="pass both|pass either|reference has neither"):
                diagnosed(problem, **arguments)
            continue
        accepted += 1
        diagnosis = diagnosed(problem, **arguments)
        assert (diagnosis.finetuned_ncm is not None) == has["means"]
        assert (diagnosis.pretrained_ncm is not None) == has["pretrained_means"]
        assert (diagnosis.ncm_absent_change is not None) == (has["means"] and has["pretrained_means"])
        assert (diagnosis.head_rows is not None) == has["head"]
        text = str(diagnosis)
        assert max(map(len, text.splitlines())) <= 120
        assert ("NCM" in text) == has["reference"]
        assert ("head rows" in text) == has["head"]
    assert accepted == 13


def part(**change):
    """Thirty samples of `linear_problem`, in the fields of `Samples`, but for `change`."""
    features, labels, old, new = linear_problem(np.random.default_rng(0), n=30)
    fields = {"labels": labels, "pretrained_logits": scores(features, old), "features": features}
    return {"logits": scores(features, new)} | fields | change


@pytest.mark.parametrize(
    ("change", "reference", "error", "match"),
    [
        ({"pretrained_logits": np.full((30, C), np.nan)}, {}, ValueError, "^pretrained_logits contain NaN"),
        ({"pretrained_logits": np.full((30, C), 1 / C)}, {}, ValueError, "^pretrained_logits look like probabilities"),
        (
            {"pretrained_logits": None},
            {},
            TypeError,
            r"^samples has no pretrained_logits; pass samples=Samples\(logits, ",
        ),
        ({"labels": None}, {}, TypeError, r"^samples has no labels; pass samples=Samples\(logits, labels, pretrained_"),
        (
            {"features": np.ones((30, D - 1))},
            {},
            ValueError,
            "^reference: features have 12 columns, those of samples 11",
        ),
        ({}, {"labels": None}, TypeError, r"^reference has no labels; pass reference=Samples\(logits, labels\)"),
        (
            {},
            {"logits": np.ones((30, C + 1)), "pretrained_logits": None},
            ValueError,
            "^reference has 8 classes, samples 7",
        ),
        ({"labels": np.zeros(30, int)}, {}, ValueError, "labels are of seen classes only"),
        ({"labels": np.ones(30, int)}, {}, ValueError, "labels are of absent classes only"),
    ],
)
def test_wrong_input(change, reference, error, match):
    with pytest.raises(error, match=match):
        finecal.diagnose(finecal.Samples(**part(**change)), MASK, reference=finecal.Samples(**part(**reference)))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {"pretrained_logits": np.ones((29, C))},
            ValueError,
            r"pretrained_logits have shape \(29, 7\), logits \(30, 7\)",
        ),
        ({"pretrained_logits": np.ones((30, C), int)}, TypeError, "pretrained_logits has dtype int64"),
        ({"features": np.ones((29, D))}, ValueError, r"features have shape \(29, 12\); expected \(30, D\)"),
        ({"features": np.ones(D)}, ValueError, r"features have shape \(12,\); expected \(30, D\)"),
        ({"features": np.ones((30, D), int)}, TypeError, "features have dtype int64"),
        (
            {"features": np.full((30, D), INF)},
            ValueError,
            r"features contain NaN or infinity \(first in row 0, 30 of 30",
        ),
        ({"features": np.ones((30, 0))}, ValueError, r"features have shape \(30, 0\)"),
        ({"features": np.where(np.eye(30, D), np.nan, 1)}, ValueError, r"features contain NaN .* row 0, 12 of 30"),
        (
            {"pretrained_features": np.ones(D)},
            ValueError,
            r"pretrained_features have shape \(12,\); expected \(30, D\)",
        ),
        ({"labels": np.zeros(29, int)}, ValueError, "labels have shape .* rows of logits"),
        ({"labels": np.zeros(30)}, TypeError, "labels have dtype float64"),
        ({"labels": np.full(30, C)}, ValueError, r"labels contain 7, outside \[0, 7\)"),
    ],
)
def test_what_no_samples_have(change, error, match):
    with pytest.raises(error, match=f"^{match}"):
        finecal.Samples(**part(**change))


def test_what_is_no_samples():
    samples = finecal.Samples(**part())
    with pytest.raises(TypeError, match=r"^samples is a ndarray; pass samples=Samples\(logits, labels, pretrained_log"):
        finecal.diagnose(part()["logits"], MASK)
    with pytest.raises(TypeError, match=r"^reference is a tuple; pass reference=Samples\(logits, labels\)"):
        finecal.diagnose(samples, MASK, reference=(samples.features, samples.labels))


def test_logits_of_the_reference_are_not_looked_at():
    samples = finecal.Samples(**part())
    other = finecal.Samples(**part(logits=np.full((30, C), np.nan), pretrained_logits=None))
    assert finecal.diagnose(samples, MASK, reference=other) == finecal.diagnose(samples, MASK, reference=samples)


def test_samples_of_which_something_is_known_give_the_same(rng):
    problem = linear_problem(rng, shift=4.0)
    expected = finecal.diagnose(samples_of(problem), MASK)
    known = samples_of(problem, groups=np.arange(400) // 4)
    finecal.search_gamma(known, MASK)
    finecal.evaluate(known, MASK)
    assert finecal.diagnose(known, MASK) == finecal.diagnose(known, MASK) == expected


def test_no_samples():
    with pytest.raises(ValueError, match="diagnose has nothing to estimate from"):
        finecal.diagnose(samples_of(linear_problem(np.random.default_rng(0)))[:0], MASK)
