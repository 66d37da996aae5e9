import math
from functools import partial

import numpy as np
import pytest
import torch

import finecal
import reference
from problems import MASK, seen_problem

INF = math.inf
ESTIMATORS = [
    (finecal.estimators.average_logit_gap, reference.average_gap),
    (finecal.estimators.max_logit_gap, reference.max_gap),
]
both = pytest.mark.parametrize(("estimator", "gap"), ESTIMATORS, ids=["average", "max"])


@both
def test_equals_the_formula(rng, estimator, gap, device, dtype):
    logits, labels = seen_problem(rng)
    tensor = torch.tensor(logits).to(device, dtype)
    estimate = estimator(tensor, torch.tensor(labels, device=device), MASK)
    expected = reference.mean(gap(row, y, MASK) for row, y in zip(tensor.double().tolist(), labels, strict=True))
    assert estimate.gamma == pytest.approx(expected, rel=1e-12)
    assert type(estimate.gamma) is float
    assert estimate.method == estimator.__name__
    assert estimate.data == "60 labelled samples (seen classes)"
    assert estimate.n == 60
    assert estimate.interval is None
    assert estimate.warnings == ()
    acc_seen = reference.accuracies(tensor.double().tolist(), labels, MASK, estimate.gamma)[0]
    assert estimate.acc_seen_at_gamma == pytest.approx(acc_seen)


@both
def test_invariances(rng, estimator, gap):
    logits, labels = seen_problem(rng)
    gamma = estimator(logits, labels, MASK).gamma
    per_row = rng.normal(size=(60, 1)).astype(np.float32) * 3
    assert estimator(logits + per_row, labels, MASK).gamma == pytest.approx(gamma, abs=1e-5)
    order = rng.permutation(7)
    assert estimator(logits[:, order], np.argsort(order)[labels], MASK[order]).gamma == pytest.approx(gamma)
    calibrated = finecal.calibrate_logits(logits.astype(np.float64), MASK, gamma - 1)
    assert estimator(calibrated, labels, MASK).gamma == pytest.approx(1, abs=1e-9)  # what is left of the gap


@both
@pytest.mark.filterwarnings("ignore:.*is lost in float32")
def test_the_labels_own_logit_does_not_matter(rng, estimator, gap):
    logits, labels = seen_problem(rng)
    expected = estimator(logits, labels, MASK).gamma
    logits[np.arange(60), labels] = 1e30
    assert estimator(logits, labels, MASK).gamma == pytest.approx(expected, rel=1e-12)


@both
def test_bootstrap_interval_is_that_of_a_mean(rng, estimator, gap):
    logits, labels = seen_problem(rng, n=400)
    estimate = estimator(logits, labels, MASK, n_bootstrap=2000)
    gaps = [gap(row, y, MASK) for row, y in zip(logits, labels, strict=True)]
    half = 1.96 * np.std(gaps) / 20
    assert estimate.interval == pytest.approx((estimate.gamma - half, estimate.gamma + half), abs=0.15 * half)
    assert estimate.interval == estimator(logits, labels, MASK, n_bootstrap=2000).interval
    assert estimate.interval != estimator(logits, labels, MASK, n_bootstrap=2000, seed=1).interval


def test_average_gap_leaves_masked_logits_out(rng):
    logits, labels = seen_problem(rng)
    logits[0, 1] = logits[1, 2] = logits[2, 4] = logits[3, labels[3]] = -INF
    expected = reference.mean(reference.average_gap(row, y, MASK) for row, y in zip(logits, labels, strict=True))
    assert finecal.estimators.average_logit_gap(logits, labels, MASK).gamma == pytest.approx(expected, rel=1e-6)


@both
def test_samples_with_a_masked_group_are_left_out_with_a_warning(rng, estimator, gap):
    logits, labels = seen_problem(rng)
    logits[0, ~MASK] = -INF
    rest = estimator(logits[1:], labels[1:], MASK)
    with pytest.warns(finecal.FinecalWarning, match="1 of 60 samples were left out"):
        estimate = estimator(logits, labels, MASK)
    assert estimate.gamma == pytest.approx(rest.gamma)
    assert estimate.n == 59
    logits[:, ~MASK] = -INF
    with pytest.raises(ValueError, match="nothing to estimate from"):
        estimator(logits, labels, MASK)


@both
def test_one_sample_and_one_absent_class(estimator, gap):
    estimate = estimator(np.array([[9.0, 4.0, 1.0]]), [0], [True, True, False])
    assert estimate.gamma == 3.0
    assert estimate.acc_seen_at_gamma == 1.0


@both
def test_no_gap_is_warned_of(rng, estimator, gap):
    logits, labels = seen_problem(rng, shift=-4.0)
    with pytest.warns(finecal.FinecalWarning, match="seen logits have not outgrown") as record:
        estimate = estimator(logits, labels, MASK)
    assert estimate.gamma < 0
    assert len(estimate.warnings) == len(record) == 1
    assert estimate.warnings[0] in str(record[0].message)
    assert record[0].filename == __file__


def test_a_gamma_that_costs_everything_is_warned_of():
    # every sample is right by a margin below the average gap
    logits = np.array([[3.0, 2.9, 1.0, -9.0], [2.9, 3.0, 1.0, -9.0]])
    with pytest.warns(finecal.FinecalWarning, match="costs the seen classes everything"):
        finecal.estimators.average_logit_gap(logits, [0, 1], [True, True, False, False])


@both
def test_one_seen_class_is_an_error(estimator, gap):
    with pytest.raises(ValueError, match="seen_mask has one seen class"):
        estimator(np.array([[3.0, 2.0, 1.0]]), [0], [True, False, False])


@pytest.mark.parametrize("estimator", [*(e for e, _ in ESTIMATORS), finecal.estimators.mixed_pair_gap])
def test_gamma_scales_with_the_logits(rng, estimator):
    logits, labels = seen_problem(rng)
    if estimator is finecal.estimators.mixed_pair_gap:
        estimator = partial(estimator, seen_share=0.5)
    gamma = estimator(logits.astype(np.float64), labels, MASK).gamma
    assert estimator(logits.astype(np.float64) * 64, labels, MASK).gamma == pytest.approx(gamma * 64)


@pytest.mark.parametrize("estimator", [*(e for e, _ in ESTIMATORS), finecal.estimators.mixed_pair_gap])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_are_widened_first(rng, estimator, half):
    logits, labels = seen_problem(rng)
    narrow = torch.tensor(logits).to(half)
    assert estimator(narrow, labels, MASK).gamma == estimator(narrow.float(), labels, MASK).gamma


def test_names_itself():
    for estimator in (
        finecal.estimators.average_logit_gap,
        finecal.estimators.max_logit_gap,
        finecal.estimators.mixed_pair_gap,
    ):
        with pytest.raises(ValueError, match=f"{estimator.__name__} needs seen-class samples only"):
            estimator(np.ones((2, 7)) * 3, [0, 1], MASK)


def test_a_gap_of_exactly_zero_is_no_gap():
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimators.max_logit_gap(np.array([[9.0, 4.0, 4.0], [4.0, 9.0, 4.0]]), [0, 1], [True, True, False])
    assert str(record[0].message) == (
        "max_logit_gap: the gap is 0: the seen logits have not outgrown the absent ones, as in a distilled or "
        "already balanced model; the estimate may have the wrong sign: check it with search_gamma or mixture_gamma"
    )


def test_messages_are_whole_sentences(rng):
    logits, labels = seen_problem(rng)
    logits[0, ~MASK] = -INF
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimators.max_logit_gap(logits, labels, MASK)
    assert str(record[0].message) == (
        "max_logit_gap: 1 of 60 samples were left out: -inf logits mask all their absent classes, or all seen ones "
        "but the label"
    )
    logits[:, ~MASK] = -INF
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finecal.estimators.max_logit_gap(logits, labels, MASK)
    assert str(error.value) == (
        "logits are -inf on all absent classes, or on all seen ones but the label, in each of the 60 samples; "
        "max_logit_gap has nothing to estimate from: pass logits in which both groups are scored"
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finecal.estimators.max_logit_gap(np.array([[3.0, 2.0, 1.0]]), [0], [True, False, False])
    assert str(error.value) == (
        "seen_mask has one seen class; max_logit_gap compares the seen classes that a sample does not belong to "
        "and needs two: use search_gamma or known_share_gamma"
    )


def test_samples_that_were_wrong_before_are_not_blamed_on_gamma():
    # right at gamma = 0 by a margin of 0.5 only: before is measured at 0, not above
    logits = np.array([[3.0, 2.9, 2.5, -9.0], [2.9, 3.0, 2.5, -9.0]])
    with pytest.warns(finecal.FinecalWarning, match=r"none of the given samples stays correct \(50.0 % were\)"):
        finecal.estimators.average_logit_gap(logits, [0, 0], [True, True, False, False])
    wrong = np.array([[1.0, 2.9, -2.5, -9.0], [2.9, 1.0, -2.5, -9.0]])
    assert finecal.estimators.average_logit_gap(wrong, [0, 1], [True, True, False, False]).acc_seen_at_gamma == 0


def test_a_model_that_hardly_knows_the_samples_is_warned_of(rng):
    mask = np.arange(12) < 6
    logits = rng.normal(size=(600, 12))
    logits[:, ~mask] -= 4
    labels = rng.integers(0, 6, 600)
    with pytest.warns(finecal.FinecalWarning, match=r"only 1\d\.\d % of 600 samples are told apart"):
        finecal.estimators.max_logit_gap(logits, labels, mask)
    logits[np.arange(600), labels] += 1.5
    finecal.estimators.max_logit_gap(logits, labels, mask)


def test_the_cost_is_what_was_correct_before(rng):
    logits, labels = seen_problem(rng, shift=3.0)
    estimate = finecal.estimators.max_logit_gap(logits, labels, MASK)
    assert estimate.acc_seen_at_zero == finecal.evaluate(logits, labels, MASK).acc_seen
