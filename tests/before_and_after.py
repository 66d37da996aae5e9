"""A linear classifier before and after fine-tuning, for tests of its diagnosis."""

import numpy as np

import finecal

MASK = np.array([True, False, True, False, True, False, False])
C, D = len(MASK), 12


def linear_problem(rng, n=400, noise=1.0, shift=0.0, shuffle=False):
    """Samples around their class's head row; fine-tuning raised the seen logits, and swapped two absent rows."""
    labels = rng.integers(0, C, n)
    old = 3 * np.linalg.qr(rng.normal(size=(D, C)))[0].T
    features = old[labels] + noise * rng.normal(size=(n, D))
    new = old.copy()
    if shuffle:
        new[[5, 6]] = new[[6, 5]]
    bias = shift * MASK
    return features, labels, (old, np.zeros(C)), (new, bias)


def scores(features, head):
    return features @ head[0].T + head[1]


def samples_of(problem, **more):
    features, labels, old, new = problem
    return finecal.Samples(scores(features, new), labels, pretrained_logits=scores(features, old), **more)


def reference_samples(labels, classes=C, **features):
    """Labelled samples with features, whose logits do not matter."""
    return finecal.Samples(np.zeros((len(labels), classes)), labels, **features)


def diagnosed(problem, features=None, pretrained_features=None, **more):
    samples = samples_of(problem, features=features, pretrained_features=pretrained_features)
    return finecal.diagnose(samples, MASK, **more)
