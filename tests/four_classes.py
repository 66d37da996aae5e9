"""Samples of four classes, two of them seen, for `estimate_gamma`, and what it says of them."""

import warnings

import numpy as np

import finecal

MASK = np.array([True, True, False, False])


def labelled(rng, n=200, lead=1.8):
    """Samples of two seen classes, of which the model mistakes some, one in ten; the absent classes lag behind."""
    labels = np.arange(n) % 2
    logits = rng.normal(size=(n, 4))
    logits[:, :2] += 3
    logits[np.arange(n), labels] += lead
    return logits, labels


def sentences_of(seen_mask=MASK, **data):
    """Return the estimate and its warnings, each of which was also issued."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        estimate = finecal.estimate_gamma(seen_mask, **data)
    assert [str(warning.message) for warning in record if warning.category is finecal.FinecalWarning] == [
        f"{estimate.function}: {sentence}" for sentence in estimate.warnings
    ]
    return estimate, estimate.warnings
