"""Moments of each class's logits batch by batch."""

import math

import numpy as np
import pytest
import torch

from finecal.streaming import ClassSums
from streams import batches, samples

INF = math.inf


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_class_moments_equal_a_loop(rng, offset, device):
    logits, labels, mask = samples(rng, 60)
    logits = logits.astype(np.float64) + offset
    logits[:, 1] = -INF
    state = ClassSums(mask).to(device)
    for part in batches(rng, 60):
        state.update(torch.tensor(logits[part], device=device), torch.tensor(labels[part], device=device))
    loc, scale, counts = (value.cpu() for value in state.compute())
    for c in range(6):
        values = logits[(labels != c) & (logits[:, c] > -INF), c] - offset
        assert counts[c] == len(values)
        if len(values):
            assert loc[c] - offset == pytest.approx(values.mean(), abs=1e-6 if offset else 1e-12)
            assert scale[c] == pytest.approx(values.std(), rel=1e-6 if offset else 1e-12)
    assert counts[1] == 0
    assert loc[1].isnan()
    assert scale[1].isnan()


def test_class_moments_of_many_tiles(rng):
    labels = rng.integers(0, 300, 3000)
    logits = rng.normal(size=(3000, 600)).astype(np.float32) * 5
    logits[np.arange(3000), labels] = 1e30
    loc, scale, counts = ClassSums(np.arange(600) < 300).update(logits, labels).compute()
    others = np.ma.masked_greater(logits.astype(np.float64), 1e29)
    assert (counts.numpy() == others.count(0)).all()
    assert loc.numpy() == pytest.approx(others.mean(0).data, rel=1e-12, abs=1e-14)
    assert scale.numpy() == pytest.approx(others.std(0).data, rel=1e-12)


def test_class_moments_of_no_samples():
    loc, scale, counts = ClassSums([True, False]).compute()
    assert loc.isnan().all()
    assert scale.isnan().all()
    assert counts.tolist() == [0, 0]
