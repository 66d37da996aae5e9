import math

import numpy as np
import pytest
import torch

from finecal._calibrators.class_likelihood import Likelihoods
from problems import scan_labelled

N, C = 400, 8
MASK = np.arange(C) < 5
GAMMAS, SHRINKAGES, TEMPERATURE = [0.5, -0.25, 0.0], [20.0, 0.5], 1.5


@pytest.fixture
def data(rng):
    """Classes of different frequency and bias; none of class 6, and the last is masked where it is not the label."""
    labels = rng.choice(C, size=N, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.0, 0.1])
    logits = rng.normal(size=(N, C)) + 2 * np.eye(C)[labels] + 2 * rng.normal(size=C)
    logits[labels != C - 1, C - 1] = -math.inf
    return logits, labels, rng.integers(3, size=N)


def likelihoods(data, objective, arithmetic, kept):
    logits, labels, folds = data
    scan = scan_labelled(torch.tensor(logits), torch.tensor(labels), torch.tensor(MASK))
    return Likelihoods(scan, torch.tensor(folds), kept, GAMMAS, SHRINKAGES, TEMPERATURE, objective, arithmetic)


def gradient_and_hessian(data, objective, kept, gamma, shrinkage, delta):
    """Sum over the samples that count, of the formula of `fit_class_bias`."""
    logits, labels, folds = data
    counts = kept[folds]
    logits, labels = logits[counts], labels[counts]
    n, seen = len(labels), MASK[labels]
    weight = np.ones(n) if objective == "overall" else np.where(seen, n / seen.sum() / 2, n / (~seen).sum() / 2)
    scores = (logits + gamma * ~MASK) / TEMPERATURE + delta
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = weight @ (p - np.eye(C)[labels]) + shrinkage * delta
    return gradient, np.diag(weight @ p) - (p.T * weight) @ p + shrinkage * np.eye(C)


@pytest.mark.parametrize("objective", ["overall", "balanced"])
@pytest.mark.parametrize(
    ("arithmetic", "nearly"), [(torch.float64, False), (torch.float32, False), (torch.float32, True)]
)
def test_gradients_vanish(data, objective, arithmetic, nearly):
    kept = ~torch.eye(3, dtype=torch.bool)
    fits = likelihoods(data, objective, arithmetic, kept)
    delta = (fits.nearly_best if nearly else fits.best)(torch.zeros(3, 1, C, dtype=torch.float64))
    assert delta.shape == (3, 2, C)
    np.testing.assert_allclose(delta.sum(-1), 0, atol=1e-9)
    for fold, gamma in enumerate(GAMMAS):
        for found, shrinkage in zip(delta[fold].numpy(), SHRINKAGES, strict=True):
            gradient, hessian = gradient_and_hessian(data, objective, kept[fold].numpy(), gamma, shrinkage, found)
            step = np.linalg.solve(hessian, gradient)
            if nearly:
                # Newton's step to the minimum against a standard error, root mean square.
                assert math.sqrt(step @ hessian @ step / C) < 0.02
            else:
                assert np.abs(gradient).max() <= 1.1e-5 * shrinkage
                assert np.abs(step).max() <= 2e-5


def test_a_start_does_not_matter(data, rng):
    kept = torch.ones((3, 3), dtype=torch.bool)
    from_zero = likelihoods(data, "overall", torch.float64, kept).best(torch.zeros(3, 1, C, dtype=torch.float64))
    start = torch.tensor(5 * rng.normal(size=(3, 1, C)))
    from_afar = likelihoods(data, "overall", torch.float64, kept).best(start)
    torch.testing.assert_close(from_afar, from_zero, rtol=0, atol=4e-5)
