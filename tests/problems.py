"""Small problems that tests of several modules share."""

import numpy as np
import torch

import finecal

GOLDEN_MASK = [True, True, False, False]
GOLDEN_LABELS = [0, 1, 0, 2, 3, 2]
GOLDEN_LOGITS = [
    [5.0, 0.0, 1.0, 0.0],  # seen hit, margin 4
    [0.0, 3.0, 1.0, 0.0],  # seen hit, margin 2
    [1.0, 2.0, 0.0, 0.0],  # seen, no hit
    [3.0, 0.0, 2.0, 1.0],  # absent hit, margin 1
    [4.0, 0.0, 0.0, 2.0],  # absent hit, margin 2
    [0.0, 0.0, 1.0, 9.0],  # absent, no hit
]
MASK = np.array([True, False, True, True, False, True, False])
OUTGROWN = np.array([True, True, True, False, False])


def golden(average="micro"):
    return finecal.tradeoff_curve(np.array(GOLDEN_LOGITS), GOLDEN_LABELS, GOLDEN_MASK, average)


def scan_labelled(logits, labels, seen_mask):
    return finecal.Samples(logits, labels).scan(seen_mask)


def mixture(rng, n_seen, n_absent, dtype=np.float32):
    """Seen margins around 8 and absent ones around 2."""
    logits = rng.normal(size=(n_seen + n_absent, 4)).astype(dtype)
    logits[:n_seen, 0] += 8
    logits[n_seen:, 0] += 2
    return logits


def doubtful_problem(rng, n=80, shift=4.0, lead=2.0):
    """Seen samples that the model often mistakes, and absent logits that lag behind by `shift`."""
    labels = rng.choice(np.flatnonzero(MASK), n)
    logits = rng.normal(size=(n, 7)).astype(np.float32)
    logits[np.arange(n), labels] += lead
    logits[:, ~MASK] -= shift
    return logits, labels


def seen_problem(rng, n=60, shift=6.0):
    """Seen samples whose own logit is high, and absent logits that lag behind by `shift`."""
    labels = rng.choice(np.flatnonzero(MASK), n)
    logits = rng.normal(size=(n, 7)).astype(np.float32)
    logits[np.arange(n), labels] += 5
    logits[:, ~MASK] -= shift
    return logits, labels


def data_of_every_kind(rng):
    """Logits of a model whose seen classes have outgrown the others by 3, for every argument."""

    def samples(n, classes):
        labels = rng.choice(classes, size=n)
        return rng.normal(size=(n, 5)) + 4 * np.eye(5)[labels] + 3.0 * OUTGROWN, labels

    folds = []
    for half in finecal.estimators.pseudo_cv_splits(OUTGROWN, n_splits=2):
        logits, labels = samples(90, [0, 1, 2])
        folds.append(finecal.estimators.PseudoFold((logits + 2.0 * half, labels), half))
    return {
        "train": samples(150, [0, 1, 2]),
        "held_out": samples(120, [0, 1, 2]),
        "unlabelled": samples(200, range(5))[0],
        "seen_share": 0.6,
        "folds": folds,
        "labelled": samples(80, range(5)),
        "test": samples(300, range(5)),
    }


def data_with_features(rng):
    """Logits and features of a head that knows the classes worse than the features do; the seen have outgrown by 4."""
    centers = 2 * rng.normal(size=(5, 16))
    head = (centers + 2 * rng.normal(size=(5, 16))) / 8

    def samples(n, classes):
        labels = rng.choice(classes, size=n)
        features = centers[labels] + rng.normal(size=(n, 16))
        return finecal.Samples(features @ head.T + 4.0 * OUTGROWN, labels, features=features)

    unlabelled, train = samples(300, range(5)), samples(150, [0, 1, 2])
    return {
        "train": (train.logits, train.labels),
        "held_out": samples(120, [0, 1, 2]),
        "unlabelled": finecal.Samples(unlabelled.logits, features=unlabelled.features),
        "test": samples(400, range(5)),
    }


def held_back(seed=0, n=300, c=8, scale=2.5, bonus=4.0, dtype=torch.float64):
    """Logits of a model that is right often, with the absent classes (the last three) held back."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(c, (n,), generator=g)
    logits = scale * torch.randn(n, c, generator=g, dtype=torch.float64)
    logits[torch.arange(n), labels] += bonus
    seen = torch.arange(c) < c - 3
    logits[:, ~seen] = 0.5 * logits[:, ~seen] - 2
    return logits.to(dtype), labels, seen
