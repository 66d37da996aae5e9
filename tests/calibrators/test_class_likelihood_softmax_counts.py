import math

import numpy as np
import pytest
import torch

from finecal._calibrators import class_likelihood as softmax_counts
from finecal._calibrators.class_likelihood import counts_and_squares, expected_counts, shortfall_and_variance

N, C, GROUPS = 200, 7, 4
FOLDS, SHRINKAGES = 3, 2


@pytest.fixture
def problem(rng):
    logits = rng.normal(size=(N, C)) * 3
    logits[::5, 2] = -math.inf
    biases = rng.normal(size=(FOLDS, SHRINKAGES, C))
    groups, weights = rng.integers(GROUPS, size=N), rng.random((FOLDS, GROUPS)) * (rng.random((FOLDS, GROUPS)) > 0.3)
    return logits, biases, groups, weights


def naive(logits, scale, biases, groups, weights, power):
    found = np.zeros(biases.shape)
    for f in range(len(biases)):
        for i in range(biases.shape[1]):
            scores = scale * logits + biases[f, i]
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            found[f, i] = weights[f, groups] @ p**power
    return found


def tensors(logits, biases, groups, weights, device="cpu", dtype=torch.float64):
    """Return what the functions take, around the scale and the dtype."""
    rest = [torch.tensor(value, device=device) for value in (biases, groups, weights)]
    return torch.tensor(logits).to(device, dtype), *rest


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_as_softmax_by_softmax(problem, scale, device, dtype):
    logits, *rest = tensors(*problem, device, dtype)
    rounded = logits.double().cpu().numpy()
    for arithmetic, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        counts, squares = counts_and_squares(logits, scale, *rest, arithmetic)
        again = expected_counts(logits, scale, *rest, arithmetic)
        assert counts.dtype == torch.float64
        assert torch.equal(counts, again)
        np.testing.assert_allclose(counts.cpu(), naive(rounded, scale, *problem[1:], 1), rtol=tolerance)
        np.testing.assert_allclose(squares.cpu(), naive(rounded, scale, *problem[1:], 2), rtol=tolerance)


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [90.0, 2000.0])
def test_biases_that_lie_far_apart(problem, arithmetic, spread):
    """No exponential of a bias is to overflow, nor the sum of a row to vanish."""
    logits, biases, groups, weights = problem
    biases[0, 0, :3] += spread
    biases[1, 1, 3:] -= spread / 2
    biases[2] += spread
    given = logits, biases, groups, weights
    first, *rest = tensors(*given)
    found = counts_and_squares(first, 1.0, *rest, arithmetic)
    for power, counts in enumerate(found, 1):
        expected = naive(logits, 1.0, biases, groups, weights, power)
        assert np.isfinite(counts.numpy()).all()
        np.testing.assert_allclose(counts, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_tiles_do_not_matter(problem, monkeypatch, rows):
    given = tensors(*problem)
    expected = counts_and_squares(given[0], 1.0, *given[1:], torch.float64)
    variance = shortfall_and_variance(given[0], 1.0, given[1][0, 0], torch.float64)
    monkeypatch.setattr(softmax_counts, "tile_rows", lambda _: rows)
    found = counts_and_squares(given[0], 1.0, *given[1:], torch.float64)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    assert shortfall_and_variance(given[0], 1.0, given[1][0, 0], torch.float64) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize(("arithmetic", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_shortfall_and_variance(problem, arithmetic, tolerance):
    logits, biases, *_ = problem
    scores = np.where(np.isinf(logits), -1e6, 1.5 * logits + biases[0, 0])
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = (p * scores).sum(1)
    variance = (p * (scores - mean[:, None]) ** 2).sum(1)
    found = shortfall_and_variance(torch.tensor(logits), 1.5, torch.tensor(biases[0, 0]), arithmetic)
    assert found == pytest.approx(((scores.max(1) - mean).mean(), variance.mean()), rel=tolerance)
