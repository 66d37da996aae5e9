"""Prototypes a second way: NumPy, float64, Σ^(-1/2) by eigenvalues, and a scale that SciPy finds."""

from types import SimpleNamespace

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax, xlogy

import finecal

GOLDEN = 0x9E3779B97F4A7C15


def clusters(seed=0, n=240, classes=6, width=8, spread=1.0, seen=3, lead=4.0, dtype=torch.float32):
    """Return features in a cluster per class, logits of a head that is roughly right, labels and a mask."""
    g = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(classes, width, generator=g)
    labels = torch.randint(classes, (n,), generator=g)
    features = centers[labels] + spread * torch.randn(n, width, generator=g)
    head = centers + 2 * torch.randn(classes, width, generator=g)
    seen_mask = torch.arange(classes) < seen
    return (features @ head.T / 5 + lead * seen_mask).to(dtype), features.to(dtype), labels, seen_mask


def with_features(logits, features, labels=None):
    """Samples as prototypes take them, for a test that has their parts."""
    return finecal.Samples(logits, labels, features=features)


def keys_of(features):
    """Return the hash of each row of float32 numbers, by integers that cannot overflow."""
    keys = []
    for row in (np.asarray(features, dtype=np.float32) + np.float32(0)).view(np.int32).tolist():
        key = sum(bits * (2 * place + 1) for place, bits in enumerate(row)) * GOLDEN % 2**64
        for shift in (32, 29, 32):
            key = (key ^ (key >> shift)) * GOLDEN % 2**64
        keys.append(key % 2**62)
    return np.array(keys)


def unit(rows):
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def growth(z, x):
    finite = np.isfinite(z)
    v = np.where(finite, z, np.nan)
    with np.errstate(all="ignore"):
        v = np.where(finite, v - np.nansum(v, 1, keepdims=True) / finite.sum(1, keepdims=True), np.nan)
        v = np.where(finite, v - np.nansum(v, 0) / np.maximum(finite.sum(0), 1), 0.0)
    return unit(v.T @ x)


def space(f, p):
    """Return the center and the matrix by which centred features are multiplied."""
    center, n = f.mean(0), p.sum(0)
    means = (p.T @ f)[n > 0] / n[n > 0, None] - center
    total = (f - center).T @ (f - center) / len(f)
    within = total - means.T @ (means * n[n > 0, None]) / len(f)
    values, vectors = np.linalg.eigh(0.9 * within + 0.1 * np.trace(within) / len(center) * np.eye(len(center)))
    root = vectors / np.sqrt(values) @ vectors.T
    return center, root / np.sqrt((((f - center) @ root) ** 2).sum(1).mean())


def scale_of(p, similarity):
    """Return the likeliest scale, and what it explains."""
    mass = p.sum(1)

    def loss(s):
        return -(p * log_softmax(s * similarity, 1)).sum()

    s = minimize_scalar(loss, bracket=(0.0, 1.0), tol=1e-10).x
    chance = mass.sum() * np.log(p.shape[1])
    known = chance + xlogy(p, p / np.maximum(mass[:, None], 1e-300)).sum()
    return s, (chance - loss(s)) / known


def spread(v):
    rows = [row[np.isfinite(row)] for row in v]
    distances = np.concatenate([row - row.mean() for row in rows if len(row)] or [np.zeros(1)])
    return np.sqrt((distances**2).mean())


def naive(logits, features, seen_mask, gamma, halves=None):
    z, f = np.asarray(torch.as_tensor(logits).double()), np.asarray(torch.as_tensor(features).double())
    absent = ~np.asarray(seen_mask)
    rows = np.isfinite(z).any(1)
    z, f = z[rows], f[rows]
    half = keys_of(f) % 2 if halves is None else np.asarray(halves)[rows]
    before = z + gamma * absent
    p = softmax(before, 1)
    center, matrix = space(f, p)
    x = (f - center) @ matrix
    own = [unit(p[half == h].T @ x[half == h] + growth(z[half == h], x[half == h])) for h in (0, 1)]
    others = np.where((half == 0)[:, None], x @ own[1].T, x @ own[0].T)
    classes = absent if absent.sum() > 1 else np.full(len(absent), True)
    s, explained = scale_of(p[:, classes], others[:, classes])
    s = min(s, spread(z[:, classes]) / max(spread(others[:, classes]), 1e-300))
    n = p.sum(0)
    trust = (n / (n + 3))[absent].mean()
    weight = trust * max(0.0, s) * unit(p.T @ x + growth(z, x)) @ matrix.T
    changed = ((before + (f - center) @ weight.T).argmax(1) != before.argmax(1)).mean()
    return SimpleNamespace(
        weight=weight, center=center, counts=n, trust=trust, scale=s, explained=explained, changed=changed,
        samples=len(f),
    )  # fmt: skip
