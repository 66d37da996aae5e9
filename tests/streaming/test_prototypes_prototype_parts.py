"""The steps from sums to prototypes, each by NumPy or by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

import naive_prototypes
from finecal.streaming._prototypes import Whitened, growth, likeliest_scale, spread, trust_in, unit
from profiles import examples


def space_of(features, assigned):
    """Return what `Whitened` makes of the sums of these samples."""
    return Whitened.of(
        len(features), features.sum(0), features.T @ features, assigned.sum(0), assigned.T @ features
    )  # fmt: skip


def drawn(seed, n=40, width=4, classes=3):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + 3 * rng.normal(size=width)
    return features, softmax(3 * rng.normal(size=(n, classes)), 1)


@examples(40)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 5), n=st.integers(3, 30))
def test_whitened_products_are_those_of_the_eigenvalues(seed, width, n):
    features, assigned = drawn(seed, n, width)
    space = space_of(torch.tensor(features), torch.tensor(assigned))
    center, matrix = naive_prototypes.space(features, assigned)
    expected = (features - center) @ matrix
    found = space.to(torch.tensor(features) - space.center).numpy()
    np.testing.assert_allclose(space.center, center, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=1e-6, atol=1e-8)
    assert (found**2).sum(1).mean() == pytest.approx(1, rel=1e-8)


def test_there_and_back(rng):
    features, assigned = map(torch.tensor, drawn(0))
    space = space_of(features, assigned)
    directions = torch.tensor(rng.normal(size=(6, 4)))
    rows = features - space.center
    torch.testing.assert_close(rows @ space.back(directions).T, space.to(rows) @ directions.T)
    stacked = torch.stack([rows, 2 * rows])
    torch.testing.assert_close(space.to(stacked), torch.stack([space.to(rows), 2 * space.to(rows)]))


def test_spread_between_classes_is_no_spread_within_them():
    """Two classes of two points each: by the first feature they differ, by the second their samples do."""
    features = torch.tensor([[-5.0, -1.0], [-5.0, 1.0], [5.0, -1.0], [5.0, 1.0]], dtype=torch.float64)
    assigned = torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2, dtype=torch.float64)
    space = space_of(features, assigned)
    # Within: diag(0, 1), so 0.9 diag(0, 1) + 0.1 * 0.5 identity = diag(0.05, 0.95).
    expected = features / torch.tensor([0.05, 0.95], dtype=torch.float64).sqrt()
    torch.testing.assert_close(space.to(features), expected / math.sqrt(25 / 0.05 + 1 / 0.95))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, -3e-5])
def test_features_that_are_all_alike(value):
    features = torch.full((7, 3), value, dtype=torch.float64)
    space = space_of(features, torch.full((7, 2), 0.5, dtype=torch.float64))
    rows = space.to(features - space.center)
    assert bool(rows.isfinite().all())
    assert float(rows.abs().max()) <= 1


def test_a_class_without_samples_changes_nothing():
    features, assigned = map(torch.tensor, drawn(1))
    more = torch.cat([assigned, torch.zeros(len(features), 2, dtype=torch.float64)], 1)
    rows = features - features.mean(0)
    torch.testing.assert_close(space_of(features, more).to(rows), space_of(features, assigned).to(rows))


def test_unit():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-200]], dtype=torch.float64)
    assert unit(rows)[:2].tolist() == [[0.6, 0.8], [0.0, 0.0]]
    assert unit(rows[:, :0]).shape == (3, 0)


def test_growth_by_hand():
    """The first logit grows with the first feature, against the second one; the third stands by itself."""
    logits = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]], dtype=torch.float64)
    rows = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    assert growth(logits, rows).tolist() == [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]


@examples(40)
@given(seed=st.integers(0, 2**32 - 1))
def test_growth_leaves_masked_classes_out(seed):
    rng = np.random.default_rng(seed)
    logits, rows = rng.normal(size=(15, 4)), rng.normal(size=(15, 3))
    logits[rng.random(logits.shape) < 0.2] = -math.inf
    found = growth(torch.tensor(logits), torch.tensor(rows))
    np.testing.assert_allclose(found, naive_prototypes.growth(logits, rows), atol=1e-9)
    shifted = logits + rng.normal(size=(15, 1))  # a number for each row
    np.testing.assert_allclose(growth(torch.tensor(shifted), torch.tensor(rows)), found, atol=1e-9)


def test_growth_of_nothing():
    nothing = growth(torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64))
    assert nothing.tolist() == [[0.0, 0.0]] * 3
    masked = growth(torch.tensor([[1.0, -math.inf], [2.0, -math.inf]]), torch.ones(2, 2))
    assert masked[1].tolist() == [0.0, 0.0]


def test_spread_by_hand():
    """Distances of 1, 1, 2 and 2 from the means of the rows; what is -inf does not count."""
    rows = torch.tensor([[5.0, 7.0, -math.inf], [1.0, -math.inf, -3.0], [-math.inf] * 3], dtype=torch.float64)
    assert float(spread(rows)) == pytest.approx(math.sqrt((1 + 1 + 4 + 4) / 4))
    assert float(spread(rows[2:])) == 0


def test_trust_is_half_at_three_samples():
    assert trust_in(torch.tensor([3.0])) == 0.5
    assert trust_in(torch.tensor([0.0, 3.0, 9.0, 27.0])) == pytest.approx((0 + 0.5 + 0.75 + 0.9) / 4)


@examples(40)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 5), sharp=st.floats(0.1, 20))
def test_the_scale_is_the_likeliest(seed, classes, sharp):
    rng = np.random.default_rng(seed)
    similarity = rng.normal(size=(30, classes)) / 2
    assigned = softmax(sharp * similarity + 2 * rng.normal(size=similarity.shape), 1) * rng.random((30, 1))
    found = likeliest_scale(torch.tensor(assigned), torch.tensor(similarity))
    scale, explained = naive_prototypes.scale_of(assigned, similarity)
    assert found.scale == pytest.approx(scale, rel=1e-4, abs=1e-4)
    assert found.explained == pytest.approx(explained, rel=1e-4, abs=1e-6)


def test_a_model_that_is_true_explains_everything():
    similarity = torch.randn(200, 4, dtype=torch.float64)
    found = likeliest_scale((7 * similarity).softmax(1), similarity)
    assert found.scale == pytest.approx(7, rel=1e-5)
    assert found.explained == pytest.approx(1, abs=1e-9)


def test_similarities_that_mislead_have_a_negative_scale():
    similarity = torch.randn(200, 4, dtype=torch.float64)
    assert likeliest_scale((-2 * similarity).softmax(1), similarity).scale == pytest.approx(-2, rel=1e-5)


@pytest.mark.parametrize(
    "similarity", [torch.zeros(5, 3), torch.ones(5, 3), torch.arange(5.0)[:, None].expand(5, 3), torch.zeros(0, 3)]
)
def test_similarities_that_tell_nothing(similarity):
    assigned = torch.rand(len(similarity), 3, dtype=torch.float64)
    found = likeliest_scale(assigned, similarity.double())
    assert found.scale == 0
    assert found.explained == pytest.approx(0, abs=1e-9)


def test_assignments_that_tell_nothing():
    similarity = torch.randn(20, 3, dtype=torch.float64)
    found = likeliest_scale(torch.full((20, 3), 1 / 3, dtype=torch.float64), similarity)
    assert found.scale == pytest.approx(0, abs=1e-9)
    assert found.explained == 0
    nothing = likeliest_scale(torch.zeros(20, 3, dtype=torch.float64), similarity)
    assert nothing == (0.0, 0.0)


@pytest.mark.parametrize("lead", [1.0, 0.01])
def test_certain_assignments_that_similarities_tell_without_a_mistake(lead):
    """The likelihood then grows with the scale without end: where nothing is left to tell, it is large enough."""
    assigned = torch.eye(3, dtype=torch.float64)[torch.arange(60) % 3]
    found = likeliest_scale(assigned, lead * assigned)
    assert 15 < lead * found.scale < 100
    assert found.explained == pytest.approx(1, abs=1e-6)
