import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import finecal
import reference

MASK = np.array([True, False, True, True, False, True, False])
SEEN, ABSENT = np.flatnonzero(MASK), np.flatnonzero(~MASK)


def drifted(rng, n=120, width=5):
    """Samples of seen classes with features, and heads of which the absent rows have moved alike, if noisily."""
    labels = rng.choice(SEEN, n)
    before = rng.normal(size=(7, width)), rng.normal(size=7)
    features = before[0][labels] + rng.normal(size=(n, width))
    drift = -0.6 * before[0][SEEN].mean(0) + rng.normal(size=(7, width)) * 0.1 - 0.3
    after = before[0] + np.where(MASK[:, None], 0.2, 1) * drift, before[1] - ~MASK * 0.5
    return features, labels, before, after


def scores(features, head):
    return features @ head[0].T + head[1]


def estimate(problem, logits=None, **options):
    features, labels, before, after = problem
    logits = scores(features, after) if logits is None else logits
    return finecal.estimators.head_drift_gamma(
        logits, labels, MASK, features=features, head=after, pretrained_head=before, **options
    )


def expected(problem):
    """Build the twins one by one, and search gamma on samples and twins by brute force."""
    features, labels, before, after = problem
    drift = [sum(after[0][u] - before[0][u] for u in ABSENT) / 3, sum(after[1][u] - before[1][u] for u in ABSENT) / 3]
    cases = []
    for f, y, row in zip(features, labels, scores(features, after).tolist(), strict=True):
        absent = max(row[u] for u in ABSENT)
        rival = max(row[s] for s in SEEN if s != y)
        cases.append((max(row[s] for s in SEEN) - absent, True, row[y] >= rival))
        twin = float(f @ (before[0][y] + drift[0]) + before[1][y] + drift[1])
        cases.append((rival - max(twin, absent), False, twin > absent))

    def correct(gamma):
        return sum(hit and (margin >= gamma) == is_seen for margin, is_seen, hit in cases)

    ends = sorted({margin for margin, _, hit in cases if hit})
    middles = [ends[0] - 1, *((a + b) / 2 for a, b in pairwise(ends)), ends[-1] + 1]
    return correct, max(map(correct, middles))


def test_is_the_best_for_samples_and_twins(device):
    for seed in range(20):
        problem = drifted(np.random.default_rng(seed))
        correct, most = expected(problem)
        features, labels, before, after = problem
        on_device = [torch.tensor(x, device=device) for x in (scores(features, after), labels, features)]
        found = finecal.estimators.head_drift_gamma(
            on_device[0], on_device[1], MASK, features=on_device[2], head=after, pretrained_head=before
        )
        assert correct(found.gamma) == most
        assert (found.n, found.method, found.data) == (120, "head_drift_gamma", "120 labelled samples (seen classes)")
        accuracies = reference.accuracies(scores(features, after).tolist(), labels, MASK, found.gamma)
        assert found.acc_seen_at_gamma == pytest.approx(accuracies[0])


def test_takes_layers_and_log_probabilities(rng):
    problem = drifted(rng)
    features, labels, before, after = problem
    gamma = estimate(problem).gamma
    layers = []
    for weight, bias in (before, after):
        layers.append(nn.Linear(5, 7).double())
        layers[-1].load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    logits = torch.log_softmax(layers[1](torch.tensor(features)), dim=1)
    found = finecal.estimators.head_drift_gamma(
        logits, torch.tensor(labels), MASK, features=torch.tensor(features), head=layers[1], pretrained_head=layers[0]
    )
    assert found.gamma == pytest.approx(gamma, abs=1e-9)


def test_no_bias_is_a_bias_of_zero(rng):
    features, labels, before, after = drifted(rng)
    zero = np.zeros(7)
    with_zeros = estimate((features, labels, (before[0], zero), (after[0], zero)))
    logits = scores(features, (after[0], zero))
    without = finecal.estimators.head_drift_gamma(
        logits, labels, MASK, features=features, head=(after[0], None), pretrained_head=(before[0], None)
    )
    assert without == with_zeros


def test_classes_may_come_in_any_order(rng):
    features, labels, before, after = problem = drifted(rng)
    order = rng.permutation(7)
    found = finecal.estimators.head_drift_gamma(
        scores(features, after)[:, order],
        np.argsort(order)[labels],
        MASK[order],
        features=features,
        head=(after[0][order], after[1][order]),
        pretrained_head=(before[0][order], before[1][order]),
    )
    assert found.gamma == pytest.approx(estimate(problem).gamma)


def test_samples_and_twins_are_drawn_together(rng):
    problem = drifted(rng)
    found = estimate(problem, n_bootstrap=100)
    assert found.interval == estimate(problem, n_bootstrap=100).interval != estimate(problem, n_bootstrap=100, seed=1)
    features, labels, before, after = problem
    again = []
    for _ in range(100):
        rows = rng.integers(0, 120, 120)
        again.append(estimate((features[rows], labels[rows], before, after)).gamma)
    low, high = np.quantile(again, [0.025, 0.975])
    assert found.interval == pytest.approx((low, high), abs=0.5 * (high - low))


def test_half_features_will_do(rng):
    features, labels, before, after = drifted(rng)
    half = features.astype(np.float16)
    found = finecal.estimators.head_drift_gamma(
        scores(half.astype(float), after).astype(np.float32),
        labels,
        MASK,
        features=half,
        head=after,
        pretrained_head=before,
    )
    assert math.isfinite(found.gamma)


def test_what_does_not_belong_together_is_warned_of(rng):
    features, labels, before, after = problem = drifted(rng)
    with pytest.warns(finecal.FinecalWarning, match="head applied to features does not give logits"):
        estimate(problem, logits=scores(features, before))
    with pytest.warns(finecal.FinecalWarning, match="head and pretrained_head are equal"):
        estimate((features, labels, after, after))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": np.ones((3, 5))}, ValueError, r"features have shape \(3, 5\); expected \(120, D\)"),
        ({"features": np.full((120, 5), np.nan)}, ValueError, "features contain NaN"),
        ({"head": np.ones((7, 5))}, TypeError, "head is a ndarray; pass the nn.Linear"),
        ({"pretrained_head": (np.ones((6, 5)), None)}, ValueError, "pretrained_head has a weight of shape"),
        ({"pretrained_head": (np.ones((7, 4)), None)}, ValueError, "pretrained_head takes 4 features, head takes 5"),
        ({"features": np.ones((120, 4))}, ValueError, "features have 4 columns, head takes 5"),
    ],
)
def test_errors_name_the_argument(rng, changes, error, message):
    features, labels, before, after = drifted(rng)
    given = {"features": features, "head": after, "pretrained_head": before, **changes}
    with pytest.raises(error, match=message):
        finecal.estimators.head_drift_gamma(scores(features, after), labels, MASK, **given)
