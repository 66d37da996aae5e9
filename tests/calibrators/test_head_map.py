import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from finecal._calibrators.head_map import (
    DrawnRows,
    Expected,
    MapSums,
    expected_accuracy,
    fit_head_map,
    fit_head_map_from_sums,
    restored_gap,
    restored_head,
    scale_of_map,
)
from finecal._estimators.mixed_pairs import mixed_pair_gap

SIZES = [(60, 8), (25, 40)]


def drawn(samples, features, classes=6, noise=0.5, seed=0):
    """Draw features and old logits that are nearly linear in them, and the weight that makes them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, features)) * np.linspace(0.5, 2, features) + rng.normal(size=features)
    weight = rng.normal(size=(classes, features))
    y = x @ weight.T + rng.normal(size=classes) + noise * rng.normal(size=(samples, classes))
    return tuple(map(torch.from_numpy, (x, y, weight)))


def ridge(x, y, penalty, weight=None):
    """Fit scikit-learn's ridge to what the old head leaves; the penalty is in units of all the samples' variance."""
    start = np.zeros((y.shape[1], x.shape[1])) if weight is None else weight.numpy()
    fitted = Ridge(penalty, solver="cholesky").fit(x.numpy(), y.numpy() - x.numpy() @ start.T)
    return fitted.coef_ + start, fitted.intercept_


def absolute(head_map, x):
    return head_map.penalty * float((x - x.mean(0)).square().sum(0).mean())


@pytest.mark.parametrize("sizes", [[500], [1, 499], [40, 10, 200, 250], [7] * 71 + [3]])
def test_drawn_rows_depend_on_the_seed_alone(sizes):
    x, y, _ = drawn(500, 3)
    number = torch.arange(500)
    rows = DrawnRows(3, 50)
    for part in zip(*(torch.split(column, sizes) for column in (x, y, number)), strict=True):
        rows.add(*part)
        assert len(rows.columns[0]) <= 50
    marks = torch.rand(500, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = sorted(range(500), key=lambda row: float(marks[row]))[:50]
    assert rows.columns[2].tolist() == sorted(expected)
    assert torch.equal(rows.columns[0], x[rows.columns[2]])
    assert torch.equal(rows.columns[1], y[rows.columns[2]])
    for found, whole in zip(rows.sums, MapSums.of(x, y), strict=True):
        np.testing.assert_allclose(found, whole)


def test_no_more_rows_than_needed_are_copied():
    x, y, _ = drawn(100, 3)
    rows = DrawnRows(0)
    rows.add(x, y)
    assert rows.columns[0] is x
    nothing = DrawnRows(0, 0)
    nothing.add(x, y)
    assert [column.shape for column in nothing.columns] == [(0, 3), (0, 6)]


@pytest.mark.parametrize(("samples", "features"), SIZES)
@pytest.mark.parametrize("pulled", [False, True])
class TestFit:
    def test_is_a_ridge_regression(self, samples, features, pulled):
        x, y, weight = drawn(samples, features)
        old = weight + 0.3 if pulled else None
        head_map = fit_head_map(x, y, old)
        coefficients, intercept = ridge(x, y, absolute(head_map, x), old)
        np.testing.assert_allclose(head_map.weight, coefficients, atol=1e-8)
        np.testing.assert_allclose(head_map.bias, intercept, atol=1e-8)
        np.testing.assert_allclose(head_map(x), x.numpy() @ coefficients.T + intercept, atol=1e-8)

    def test_leaves_one_out_as_fits_without_it_do(self, samples, features, pulled):
        x, y, weight = drawn(samples, features)
        old = weight + 0.3 if pulled else None
        head_map = fit_head_map(x, y, old)
        found = head_map.leave_one_out(x, y)
        for i in range(0, samples, 7):
            kept = torch.arange(samples) != i
            coefficients, intercept = ridge(x[kept], y[kept], absolute(head_map, x), old)
            np.testing.assert_allclose(found[i], coefficients @ x[i].numpy() + intercept, atol=1e-6)

    def test_leaves_a_class_out_as_a_fit_without_it_does(self, samples, features, pulled):
        x, y, weight = drawn(samples, features)
        old = weight + 0.3 if pulled else None
        classes = torch.arange(samples) % 2
        classes[: samples // 5] = 4
        head_map = fit_head_map(x, y, old)
        found = head_map.leave_class_out(x, y, classes)
        for c in (0, 1, 4):
            kept = classes != c
            coefficients, intercept = ridge(x[kept], y[kept], absolute(head_map, x), old)
            expected = x[~kept].numpy() @ coefficients[c] + intercept[c]
            np.testing.assert_allclose(found[~kept], expected, atol=1e-5)

    def test_explains_as_much_as_generalised_cross_validation_says(self, samples, features, pulled):
        x, y, weight = drawn(samples, features)
        old = weight + 0.3 if pulled else None
        head_map = fit_head_map(x, y, old)
        centred = (x - x.mean(0)).numpy()
        inverse = np.linalg.inv(centred.T @ centred + absolute(head_map, x) * np.eye(features))
        left = 1 - (1 + np.trace(centred @ inverse @ centred.T)) / samples
        errors = (y - head_map(x)).square().sum(0) / left**2
        np.testing.assert_allclose(head_map.explained, 1 - errors / (y - y.mean(0)).square().sum(0), atol=1e-6)

    def test_batches_add_up(self, samples, features, pulled):
        x, y, weight = drawn(samples, features)
        old = weight if pulled else None
        sums = MapSums.of(x[:10], y[:10]).merge(MapSums.of(x[10:], y[10:]))
        in_batches, whole = fit_head_map_from_sums(sums, old), fit_head_map(x, y, old)
        assert in_batches.penalty == whole.penalty
        torch.testing.assert_close(in_batches.weight, whole.weight, atol=1e-7, rtol=0)


def test_recovers_logits_that_are_linear_in_the_features():
    x, y, weight = drawn(50, 6, noise=0)
    head_map = fit_head_map(x, y)
    torch.testing.assert_close(head_map.weight, weight, atol=1e-2, rtol=0)
    assert float(head_map.explained.min()) > 0.999


def test_keeps_the_old_head_where_features_did_not_change():
    x, y, weight = drawn(20, 50, noise=0)
    head_map = fit_head_map(x, y, weight)
    torch.testing.assert_close(head_map.weight, weight)
    torch.testing.assert_close(head_map(x), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_narrow_types(dtype):
    x, y, weight = (part.to(dtype) for part in drawn(60, 8))
    narrow = fit_head_map(x, y, weight)
    assert narrow.weight.dtype == narrow.explained.dtype == torch.float64
    wide = fit_head_map(x.double(), y.double(), weight.double())
    torch.testing.assert_close(narrow.weight, wide.weight)
    left_out = narrow.leave_one_out(x, y)
    assert left_out.dtype == torch.float32
    torch.testing.assert_close(left_out, wide.leave_one_out(x.double(), y.double()).float())


def test_gives_finite_numbers_for_one_sample_and_for_constant_features():
    x, y, _ = drawn(30, 4)
    for head_map in (fit_head_map(x[:1], y[:1]), fit_head_map(torch.ones_like(x), y)):
        assert head_map.weight.isfinite().all()
        torch.testing.assert_close(head_map.weight, torch.zeros_like(head_map.weight))
    torch.testing.assert_close(head_map.bias, y.mean(0))


@pytest.fixture
def restored():
    """Three of six old classes and one of its own, and labelled samples."""
    x, y, weight = drawn(80, 8, seed=1)
    new_to_old = torch.tensor([4, -1, 0, 2])
    new = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head_map = fit_head_map(x, y, weight)
    rows = restored_head(head_map, new, torch.arange(4.0), new_to_old, x, y)
    labels = rows.classes[(x @ new.T + torch.arange(4.0)).argmax(1)]
    return rows, new, x, y, labels


class TestRestoredHead:
    def test_has_the_new_rows_and_scaled_ones_that_follow_half_of_the_change(self, restored):
        rows, new, x, _, _ = restored
        assert rows.classes.tolist() == [4, 6, 0, 2]
        assert rows.seen_mask.tolist() == [True, False, True, False, True, False, True]
        torch.testing.assert_close(rows(x)[:, rows.classes], x @ new.T + torch.arange(4.0))
        mapped = rows.scale * rows.head_map(x)
        change = (rows(x) - torch.nn.functional.pad(mapped, (0, 1)))[:, [0, 2, 4]].mean(1)
        for c in (1, 3, 5):
            torch.testing.assert_close(rows(x)[:, c], mapped[:, c] + change / 2)

    def test_leaves_one_out(self, restored):
        rows, new, x, y, _ = restored
        kept = torch.arange(len(x)) != 3
        weight, intercept = ridge(x[kept], y[kept], absolute(rows.head_map, x), drawn(80, 8, seed=1)[2])
        mapped = rows.scale * (weight @ x[3].numpy() + intercept)
        fresh = (x @ new.T + torch.arange(4.0))[3].numpy()
        change = (fresh[[2, 3, 0]] - mapped[[0, 2, 4]]).mean()
        found = rows.leave_one_out(x, y)[3]
        np.testing.assert_allclose(found[[1, 3, 5]], mapped[[1, 3, 5]] + change / 2, atol=1e-6)
        np.testing.assert_allclose(found[[4, 6, 0, 2]], fresh)

    def test_as_if_absent_changes_the_logit_of_the_own_class_alone(self, restored):
        rows, _, x, y, labels = restored
        logits, own = rows.as_if_absent(rows.leave_one_out(x, y), x, y, labels)
        known = labels != 6
        assert own.tolist() == labels[known].tolist()
        others = torch.ones_like(logits, dtype=torch.bool).scatter(1, own[:, None], False)
        expected = rows.leave_one_out(x, y)[known]
        torch.testing.assert_close(logits[others], expected[others])

    def test_scale_compares_how_far_the_largest_logits_rise(self):
        mapped = torch.tensor([[3.0, 0.0, 9.0], [0.0, 1.0, 9.0]])
        new = torch.tensor([[0.0, 6.0], [2.0, 0.0]])
        assert scale_of_map(mapped, new, torch.tensor([1, 0])) == pytest.approx((3 + 1) / (1.5 + 0.5))
        assert scale_of_map(mapped, new, torch.tensor([1, -1])) == 1
        assert scale_of_map(mapped, new, torch.tensor([-1, -1])) == 1

    def test_scale_is_that_of_the_new_logits(self, restored):
        rows, new, x, y, _ = restored
        doubled = restored_head(rows.head_map, 2 * new, 2 * torch.arange(4.0), torch.tensor([4, -1, 0, 2]), x, y)
        torch.testing.assert_close(doubled.weight, 2 * rows.weight)


class TestRestoredGap:
    def test_is_that_of_mixed_pairs_at_most(self, restored):
        rows, _, x, y, labels = restored
        logits = rows.leave_one_out(x, y)
        every = torch.ones(len(y), 6, dtype=torch.float64) * torch.arange(6.0).flip(0)
        # An old model that always predicts an absent class sets no limit; one that never does sets the lowest one.
        absent, seen = every.clone(), every.clone()
        absent[:, 1] = seen[:, 0] = 100
        pairs = mixed_pair_gap(logits, labels, rows.seen_mask).gamma
        found = restored_gap(logits, labels, rows.seen_mask, absent, rows.shared)
        most = (logits[:, rows.seen_mask].amax(1) - logits[:, ~rows.seen_mask].amax(1))[labels != 6]
        assert found.gamma(4 / 7) == pytest.approx(min(pairs, float(most.max())))
        found = restored_gap(logits, labels, rows.seen_mask, seen, rows.shared)
        assert found.gamma(4 / 7) == pytest.approx(min(pairs, float(most.min())))

    def test_does_without_pairs(self, restored):
        rows, _, x, y, labels = restored
        wrong = torch.where(labels == 4, 2, 4)
        found = restored_gap(rows.leave_one_out(x, y), wrong, rows.seen_mask, y, rows.shared)
        assert np.isfinite(found.gap)


def test_expected_accuracy_counts_samples_as_seen_and_as_absent(restored):
    rows, _, x, y, labels = restored
    gamma = 0.7
    found = expected_accuracy(rows, rows.leave_one_out(x, y), x, y, labels, gamma)
    logits = rows.leave_one_out(x, y).numpy()
    pseudo, own = (part.numpy() for part in rows.as_if_absent(rows.leave_one_out(x, y), x, y, labels))
    absent = ~rows.seen_mask.numpy()
    on_seen = [np.argmax(z + gamma * absent) == c for z, c in zip(logits, labels.numpy(), strict=True)]
    on_absent = [np.argmax(z + gamma * (absent | (np.arange(7) == c))) == c for z, c in zip(pseudo, own, strict=True)]
    assert found.restored == pytest.approx(4 / 7 * np.mean(on_seen) + 3 / 7 * np.mean(on_absent))
    assert found.pretrained == pytest.approx(float((y.argmax(1) == labels).double().mean()))
    assert found.fine_tuned == pytest.approx(4 / 7)  # the labels are its predictions


def test_doubts_what_is_not_expected_to_gain_three_points_or_ten_on_training_samples():
    found = [Expected(0.5, *others) for others in itertools.product((0.42, 0.48), repeat=2)]
    assert [of.is_doubtful(True) for of in found] == [False, True, True, True]
    assert found[0].is_doubtful(False)
    assert not Expected(0.5, 0.39, 0.39).is_doubtful(False)
