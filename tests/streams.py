"""Samples in batches, and results that agree up to the rounding of sums."""

import math
import warnings

import numpy as np
import pytest
import torch

import finecal

INF = math.inf


def samples(rng, n=40, classes=6, masked=True, only_seen=True):
    """Return logits, some of them -inf, labels and a mask with at least two seen classes."""
    mask = rng.permutation(np.arange(classes) < rng.integers(2, classes))
    labels = rng.choice(np.flatnonzero(mask), n) if only_seen else rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)).astype(np.float32) * 3 + 5
    if masked:
        logits[rng.random(logits.shape) < 0.1] = -INF
    logits[np.arange(n), labels] = 9
    return logits, labels, mask


def batches(rng, n):
    """Cut a random order of n samples into batches, of which some may be empty."""
    order = rng.permutation(n)
    return np.split(order, np.sort(rng.integers(0, n + 1, int(rng.integers(0, 6)))))


def flat(result):
    """Return all numbers of a result in one list, and all its counts in another."""
    if isinstance(result, finecal.GammaEstimate):
        return [result.gamma], [result.n, result.acc_seen_at_zero]
    if isinstance(result, (str, type(None))):
        return [], [result]
    if isinstance(result, (float, int)):
        return ([result], []) if isinstance(result, float) else ([], [result])
    if isinstance(result, torch.Tensor):
        return (result.flatten().tolist(), []) if result.is_floating_point() else ([], result.flatten().tolist())
    parts = [flat(part) for part in (result if isinstance(result, tuple) else vars(result).values())]
    return [x for sums, _ in parts for x in sums], [x for _, counts in parts for x in counts]


def assert_equal(one, other):
    (sums, counts), (other_sums, other_counts) = flat(one), flat(other)
    assert counts == other_counts
    assert sums == pytest.approx(other_sums, rel=1e-12, abs=1e-12, nan_ok=True)


def quietly(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        return function(*args)


def tied(seed, rounded=False, masked=False, dtype=np.float32):
    """A few samples of both groups, some with ties or -inf logits."""
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(2, 7)), int(rng.integers(2, 50))
    mask = rng.permutation(np.arange(classes) < rng.integers(1, classes))
    logits = (rng.normal(size=(n, classes)) * 3).astype(dtype)
    if rounded:
        logits = np.round(logits)
    if masked:
        logits[rng.random(logits.shape) < 0.2] = -INF
    labels = rng.integers(0, classes, n)
    labels[:2] = mask.argmax(), mask.argmin()
    return logits, labels, mask
