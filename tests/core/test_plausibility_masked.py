"""Masks by large negative numbers, in place of -inf."""

import numpy as np
import pytest
import torch

import finecal
from finecal._core.plausibility import mask_warnings

MASK = np.arange(9) < 5
LOOKS = "look masked by a large number"


def drawn(rng, n=200, dtype=torch.float32):
    labels = rng.integers(0, 9, n)
    logits = 3 * rng.normal(size=(n, 9)) + 4 * MASK
    logits[np.arange(n), labels] += 6
    return torch.tensor(logits).to(dtype), torch.tensor(labels)


def masks(dtype):
    return [-1e3, -1e4, float(torch.finfo(dtype).min)] + ([-1e9] if dtype != torch.float16 else [])


@pytest.mark.parametrize("added", [False, True])
def test_masks_are_told_from_scores(rng, dtype, added):
    logits, _ = drawn(rng, dtype=dtype)
    for mask in masks(dtype):
        for columns in ([7], [5, 6, 7, 8], list(range(5))):
            masked = logits.clone()
            masked[:, columns] = torch.clamp(masked[:, columns].double() * added + mask, min=masks(dtype)[2]).to(dtype)
            (sentence,) = mask_warnings(masked)
            assert LOOKS in sentence
            assert f"for class {', '.join(map(str, columns))} in every row" in sentence
            cut = float(sentence.split("[logits < ")[1].split("]")[0])
            expected = torch.isin(torch.arange(9), torch.tensor(columns))
            assert torch.equal(masked < cut, expected.expand(len(masked), 9))
    assert not mask_warnings(logits)
    assert not mask_warnings(logits.masked_fill(torch.arange(9) > 6, -torch.inf))


def test_masks_that_differ_from_row_to_row(rng):
    logits, _ = drawn(rng)
    masked = logits.masked_fill(torch.tensor(rng.random((200, 9)) < 0.3), -1e9)
    (sentence,) = mask_warnings(masked)
    assert "are about -1e+09 for 9 classes in some rows each" in sentence


def test_scores_of_any_scale_and_a_few_outliers_are_none(rng):
    logits, _ = drawn(rng)
    outliers = logits.clone()
    outliers[3, 4] = outliers[70, 2] = -1e6
    for fine in (
        1000 * logits,
        logits - 1e4,
        (100 * logits).log_softmax(1),
        outliers,
        torch.full((9, 9), -1e4),
        logits[:0],
    ):
        assert not mask_warnings(fine)


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
@pytest.mark.parametrize("mask", [-1e4, -1e9, float(np.finfo(np.float32).min)])
def test_every_estimate_names_the_cause(rng, mask):
    logits, labels = drawn(rng)
    logits[:, ~MASK] = mask
    seen = torch.tensor(MASK)[labels]
    samples = logits[seen], labels[seen]
    others = drawn(rng)[0]
    others[:, ~MASK] = mask
    estimates = [
        *(
            estimate(*samples, MASK)
            for estimate in (finecal.estimators.average_logit_gap, finecal.estimators.max_logit_gap)
        ),
        *(
            estimate(*samples, MASK)
            for estimate in (finecal.estimators.mixed_pair_gap, finecal.estimators.residual_gap)
        ),
        finecal.estimators.seen_budget_gamma(*samples, MASK, 0.5),
        finecal.search_gamma(logits, labels, MASK),
        finecal.estimators.known_share_gamma(logits, MASK, 0.5),
        finecal.estimators.mixture_gamma(samples[0], others, MASK),
        finecal.estimate_gamma(MASK, held_out=samples),
        finecal.estimate_gamma(MASK, held_out=samples, unlabelled=others),
    ]
    for estimate in estimates:
        assert any(LOOKS in sentence for sentence in estimate.warnings), estimate.method


def margins(logits, labels, mask):
    return finecal.Samples(logits, labels).margins(mask)


@pytest.mark.parametrize("function", [margins, finecal.evaluate, finecal.probabilities.evaluate_probabilities])
def test_accuracies_warn_too(rng, function):
    logits, labels = drawn(rng)
    logits[:, 8] = -1e9
    with pytest.warns(finecal.FinecalWarning, match=LOOKS):
        function(logits, labels, MASK)
