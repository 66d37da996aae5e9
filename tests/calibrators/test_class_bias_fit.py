import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import finecal
from finecal._calibrators import class_bias_fit
from finecal._core.groups import check_groups
from finecal._core.warning import without_warnings
from problems import scan_labelled

MASK = np.array([True, True, True, False, False, False])


@pytest.fixture
def data(rng):
    """600 samples of six classes, each with a bias of its own."""
    labels = rng.integers(6, size=600)
    logits = rng.normal(size=(600, 6)) + 3 * np.eye(6)[labels] + np.array([4.0, 2.0, 3.0, 0.0, 1.0, -1.0])
    return logits, labels


def accuracies(calibrator, logits, labels):
    hit = calibrator(torch.as_tensor(logits)).argmax(1).numpy() == labels
    seen = MASK[labels]
    return hit.mean(), (hit[seen].mean() + hit[~seen].mean()) / 2


def softmax(scores):
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("objective", ["overall", "balanced"])
@pytest.mark.parametrize("shrinkage", [50.0, 0.5])
def test_minimises_the_penalised_nll(data, objective, shrinkage):
    logits, labels = data[0][:200], data[1][:200]
    calibrator = finecal.calibrators.fit_class_bias(logits, labels, MASK, shrinkage, objective)
    gamma = float(finecal.search_gamma(logits, labels, MASK, objective))
    temperature = float(finecal.calibrators.fit_temperature(logits + gamma * ~MASK, labels).temperature)
    seen = MASK[labels]
    weight = np.ones(200) if objective == "overall" else np.where(seen, 100 / seen.sum(), 100 / (~seen).sum())
    start = (logits + gamma * ~MASK) / temperature

    def loss(delta):
        p = softmax(start + delta)
        value = -(weight * np.log(p[np.arange(200), labels])).sum() + shrinkage / 2 * delta @ delta
        return value, weight @ (p - np.eye(6)[labels]) + shrinkage * delta

    best = minimize(loss, np.zeros(6), jac=True, tol=1e-12)
    delta = (calibrator.bias.double().numpy() - gamma * ~MASK) / temperature
    assert loss(delta)[0] == pytest.approx(best.fun, rel=1e-9)
    np.testing.assert_allclose(delta, best.x, atol=1e-5)


def test_much_data_beats_gamma_on_fresh_samples(data, rng):
    logits, labels = data
    calibrator = finecal.calibrators.fit_class_bias(logits, labels, MASK)
    fresh_labels = rng.integers(6, size=4000)
    fresh = rng.normal(size=(4000, 6)) + 3 * np.eye(6)[fresh_labels] + np.array([4.0, 2.0, 3.0, 0.0, 1.0, -1.0])
    with_bias = accuracies(calibrator, fresh, fresh_labels)
    with_gamma = accuracies(finecal.AdditiveBias(MASK, calibrator.report.gamma), fresh, fresh_labels)
    assert with_bias[0] > with_gamma[0] + 0.05
    # Cross-validated figures are those of fresh data, within four standard errors of 600 samples.
    assert calibrator.report.acc_all == pytest.approx(with_bias[0], abs=0.04)
    assert calibrator.report.balanced_gamma == pytest.approx(with_gamma[1], abs=0.06)


@pytest.mark.parametrize("objective", ["overall", "balanced"])
def test_nothing_to_gain_is_gamma(rng, objective):
    labels = rng.integers(6, size=300)
    logits = rng.normal(size=(300, 6)) + 2 * np.eye(6)[labels] + 3.0 * MASK
    calibrator = finecal.calibrators.fit_class_bias(logits, labels, MASK, objective=objective)
    gamma = float(finecal.search_gamma(logits, labels, MASK, objective))
    assert math.isinf(calibrator.report.shrinkage)
    assert calibrator.report.gamma == gamma
    assert torch.equal(calibrator.bias, torch.tensor(gamma * ~MASK, dtype=torch.float32))
    assert calibrator.report.acc_all == calibrator.report.acc_all_gamma
    assert "gamma alone" in str(calibrator.report)


def test_infinite_shrinkage_is_gamma(data):
    calibrator = finecal.calibrators.fit_class_bias(*data, MASK, shrinkage=math.inf)
    assert torch.equal(calibrator.bias, torch.tensor(calibrator.report.gamma * ~MASK, dtype=torch.float32))


def test_scale_constants_and_order_do_not_matter(data, rng):
    logits, labels = data
    expected = finecal.calibrators.fit_class_bias(logits, labels, MASK, shrinkage=3).bias.numpy()
    scaled = finecal.calibrators.fit_class_bias(1000 * logits + rng.normal(size=(600, 1)), labels, MASK, shrinkage=3)
    np.testing.assert_allclose(scaled.bias / 1000, expected, atol=1e-4)
    rows, columns = rng.permutation(600), rng.permutation(6)
    moved = finecal.calibrators.fit_class_bias(
        logits[rows][:, columns], np.argsort(columns)[labels[rows]], MASK[columns], shrinkage=3
    )
    np.testing.assert_allclose(moved.bias, expected[columns], atol=1e-4)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e25])
def test_units_do_not_matter(data, factor):
    logits, labels = data
    for y in (labels, logits.argmax(1)):
        expected = finecal.calibrators.fit_class_bias(logits, y, MASK, shrinkage=3).bias.numpy()
        scaled = (
            finecal.calibrators.fit_class_bias(factor * logits, y, MASK, shrinkage=3).bias.double().numpy() / factor
        )
        np.testing.assert_allclose(scaled, expected, atol=1e-4)


def test_what_gamma_makes_of_logits_may_look_like_probabilities():
    logits = np.array([[0.8, -0.8], [0.2, -0.2]] * 3)
    calibrator = finecal.calibrators.fit_class_bias(logits, [0, 1] * 3, [True, False], shrinkage=1)
    assert calibrator.report.gamma == 1
    assert calibrator(torch.tensor(logits)).argmax(1).tolist() == [0, 1] * 3


def test_little_shrinkage_is_minimised_all_the_same(data):
    """No sample is of class 4: at the minimum its probabilities add up to -shrinkage * delta."""
    logits, labels = data[0][data[1] != 4], data[1][data[1] != 4]
    with pytest.warns(finecal.FinecalWarning, match="first: 4"):
        calibrator = finecal.calibrators.fit_class_bias(logits, labels, MASK, shrinkage=1e-6)
    temperature = float(
        finecal.calibrators.fit_temperature(logits + calibrator.report.gamma * ~MASK, labels).temperature
    )
    delta = (calibrator.bias.double().numpy() - calibrator.report.gamma * ~MASK) / temperature
    p = softmax((logits + calibrator.bias.double().numpy()) / temperature)
    assert p[:, 4].sum() == pytest.approx(-1e-6 * delta[4], rel=1e-4)


def test_samples_in_place_of_logits_and_labels(data):
    expected, samples = finecal.calibrators.fit_class_bias(*data, MASK, 3, "balanced"), finecal.Samples(*data)
    for _ in range(2):  # the second time what was found the first time is used
        found = finecal.calibrators.fit_class_bias(samples, MASK, 3, "balanced")
        assert torch.equal(found.bias, expected.bias)
        assert found.report == expected.report


def test_any_default_device(data):
    expected = finecal.calibrators.fit_class_bias(*data, MASK)
    with torch.device("meta"):
        assert torch.equal(finecal.calibrators.fit_class_bias(*data, MASK).bias, expected.bias)


def test_devices_and_dtypes(data, device, dtype):
    logits, labels = torch.tensor(data[0]).to(device, dtype), torch.tensor(data[1], device=device)
    calibrator = finecal.calibrators.fit_class_bias(logits, labels, MASK)
    assert calibrator.bias.device.type == device.type
    assert calibrator.report.acc_all > calibrator.report.acc_all_gamma + 0.05
    assert calibrator.method == "fit_class_bias(objective='overall')"
    with torch.inference_mode():
        again = finecal.calibrators.fit_class_bias(logits, labels, MASK)
    assert torch.equal(again.bias, calibrator.bias)


def test_seed_chooses_the_folds(data):
    reports = [
        finecal.calibrators.fit_class_bias(*data, MASK, shrinkage=3, seed=seed).report.acc_all for seed in (0, 0, 1, 2)
    ]
    assert reports[0] == reports[1]
    assert len(set(reports)) > 1


def test_masked_classes(data):
    logits, labels = data
    logits = logits.copy()
    logits[labels != 5, 5] = -math.inf
    calibrator = finecal.calibrators.fit_class_bias(logits, labels, MASK, shrinkage=3)
    assert calibrator.bias.isfinite().all()
    assert not calibrator.report.warnings

    logits[:2] = -math.inf
    with pytest.warns(finecal.FinecalWarning, match="2 of 600 samples were left out"):
        calibrator = finecal.calibrators.fit_class_bias(logits, labels, MASK, shrinkage=3)
    assert calibrator.report.n == 598
    rest = finecal.calibrators.fit_class_bias(logits[2:], labels[2:], MASK, shrinkage=3)
    np.testing.assert_allclose(calibrator.bias, rest.bias, atol=1e-4)


def test_few_samples():
    logits, labels = np.array([[5.0, 1.0, 2.0], [4.0, 0.0, 3.0]]), [0, 2]
    mask = [True, True, False]
    with pytest.warns(finecal.FinecalWarning, match="too few samples to cross-validate.*gamma alone"):
        calibrator = finecal.calibrators.fit_class_bias(logits, labels, mask)
    assert calibrator(torch.tensor(logits)).argmax(1).tolist() == labels
    assert calibrator.report.folds == 0
    assert math.isnan(calibrator.report.acc_all)
    with pytest.warns(finecal.FinecalWarning, match="class"):
        calibrator = finecal.calibrators.fit_class_bias(logits, labels, mask, shrinkage=1)
    assert calibrator(torch.tensor(logits)).argmax(1).tolist() == labels


def test_classes_without_samples(data):
    logits, labels = data[0][data[1] != 4], data[1][data[1] != 4]
    with pytest.warns(finecal.FinecalWarning, match=r"1 of 6 classes have no sample \(first: 4\)"):
        calibrator = finecal.calibrators.fit_class_bias(logits, labels, MASK)
    assert calibrator.bias[4] == calibrator.bias[3:].min()


def test_a_trade_is_said(rng):
    """Rare absent samples that overlap with seen ones: overall accuracy is bought with balanced accuracy."""
    labels = np.where(rng.random(1000) < 0.15, 3, rng.integers(3, size=1000))
    logits = rng.normal(size=(1000, 4)) + 1.5 * np.eye(4)[labels] + [0, 1.5, 0, 1.0]
    mask = [True, True, True, False]
    with pytest.warns(finecal.FinecalWarning, match="overall accuracy is .* points below that of gamma alone"):
        calibrator = finecal.calibrators.fit_class_bias(logits, labels, mask, shrinkage=1, objective="balanced")
    assert calibrator.report.balanced > calibrator.report.balanced_gamma
    assert calibrator.report.warnings[0] in str(calibrator.report)


@pytest.fixture
def large(monkeypatch):
    """Treat input as large: most passes are in float32, and those for the temperature on some rows first."""
    monkeypatch.setattr(class_bias_fit, "_LARGE", 0)
    monkeypatch.setattr(class_bias_fit, "_FIRST_ROWS", 40)


@pytest.mark.parametrize("objective", ["overall", "balanced"])
def test_large_input_is_fitted_as_precisely(data, objective, dtype, request):
    logits, labels = torch.tensor(data[0]).to(dtype), data[1]
    small = {
        value: finecal.calibrators.fit_class_bias(logits, torch.tensor(labels), MASK, value, objective)
        for value in ("cv", 1)
    }
    request.getfixturevalue("large")
    for shrinkage, expected in small.items():
        found = finecal.calibrators.fit_class_bias(logits, torch.tensor(labels), MASK, shrinkage, objective)
        np.testing.assert_allclose(found.bias, expected.bias, atol=1e-4)
        assert found.report.shrinkage == expected.report.shrinkage
        assert found.report.acc_all == pytest.approx(expected.report.acc_all, abs=1 / 600)
        assert found.report.acc_all_gamma == expected.report.acc_all_gamma


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 2.5])
def test_temperature_of_many_rows_is_that_of_all(data, gamma, large):
    logits, labels = data
    scan = scan_labelled(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels), torch.tensor(MASK))
    expected = float(finecal.calibrators.fit_temperature(logits + gamma * ~MASK, labels).temperature)
    assert class_bias_fit._temperature(scan, gamma) == pytest.approx(expected, rel=1e-5)


def test_temperature_of_many_rows_that_leave_no_doubt(data, large):
    """Of some rows no mistake is seen, of all rows one."""
    logits, labels = data
    logits = 50 * np.eye(6)[labels] + logits
    labels = labels.copy()
    scan = scan_labelled(torch.tensor(logits), torch.tensor(labels), torch.tensor(MASK))
    coldest = class_bias_fit._temperature(scan, 0.0)
    labels[1] = (labels[1] + 1) % 6
    scan = scan_labelled(torch.tensor(logits), torch.tensor(labels), torch.tensor(MASK))
    expected = float(finecal.calibrators.fit_temperature(logits, labels).temperature)
    assert class_bias_fit._temperature(scan, 0.0) == pytest.approx(expected, rel=1e-5)
    assert coldest < expected / 100


@pytest.mark.parametrize("objective", ["overall", "balanced"])
def test_cross_validated_accuracies_are_those_of_fits_without_the_fold(data, objective):
    """Fit each part anew by SciPy; at the edge of a decision one sample may fall either way."""
    logits, labels = data[0][:150], data[1][:150]
    report = finecal.calibrators.fit_class_bias(logits, labels, MASK, 2.0, objective, seed=3).report
    temperature = float(finecal.calibrators.fit_temperature(logits + report.gamma * ~MASK, labels).temperature)
    folds = class_bias_fit._folds(torch.tensor(MASK[labels]), 3).numpy()
    hits, gamma_hits = np.zeros(150, bool), np.zeros(150, bool)
    for fold in range(5):
        rest, part = folds != fold, folds == fold
        gamma = float(finecal.search_gamma(logits[rest], labels[rest], MASK, objective))
        seen, n = MASK[labels[rest]], rest.sum()
        weight = np.ones(n) if objective == "overall" else np.where(seen, n / 2 / seen.sum(), n / 2 / (~seen).sum())
        start = (logits[rest] + gamma * ~MASK) / temperature

        def loss(delta, start=start, weight=weight, own=labels[rest]):
            p = softmax(start + delta)
            value = -(weight * np.log(p[np.arange(len(own)), own])).sum() + delta @ delta
            return value, weight @ (p - np.eye(6)[own]) + 2 * delta

        delta = minimize(loss, np.zeros(6), jac=True, tol=1e-10).x
        gamma_hits[part] = (logits[part] + gamma * ~MASK).argmax(1) == labels[part]
        hits[part] = (logits[part] + gamma * ~MASK + temperature * delta).argmax(1) == labels[part]
    assert report.acc_all_gamma == pytest.approx(gamma_hits.mean(), abs=1e-12)
    assert report.acc_all == pytest.approx(hits.mean(), abs=1.01 / 150)


def test_the_first_of_equal_classes_counts(rng):
    """Scores from few values, of which many are equal, and some masked."""
    logits = rng.integers(3, size=(500, 6)).astype(np.float32)
    logits[rng.random((500, 6)) < 0.2] = -math.inf
    labels, folds = rng.integers(6, size=500), rng.integers(3, size=500)
    logits[np.arange(500), labels] = rng.integers(3, size=500)
    biases = rng.integers(2, size=(3, 4, 6)).astype(float)
    scan = scan_labelled(torch.tensor(logits), torch.tensor(labels), torch.tensor(MASK))
    found = class_bias_fit._correct(scan, torch.tensor(folds), torch.tensor(biases))
    for row in range(4):
        expected = (logits + biases[folds, row]).argmax(1) == labels
        assert found[row].tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
@pytest.mark.parametrize(("n_seen", "folds"), [(1, 0), (2, 2), (3, 3)])
@pytest.mark.parametrize("shrinkage", [1.0, 1e-3, "cv"])
def test_one_sample_of_each_class(rng, n_seen, folds, shrinkage):
    mask = np.arange(6) < n_seen
    logits = rng.normal(size=(6, 6)) + 2 * np.eye(6) + 3 * mask
    calibrator = finecal.calibrators.fit_class_bias(logits, np.arange(6), mask, shrinkage)
    assert calibrator.bias.isfinite().all()
    assert calibrator.report.folds == folds


def test_large_numbers(data):
    """A constant of each row, and classes masked by a large number, take no digits from the rest."""
    logits, labels = data
    expected = finecal.calibrators.fit_class_bias(logits, labels, MASK, 1.0)
    with without_warnings():
        moved = finecal.calibrators.fit_class_bias(logits + 1e6 * labels[:, None], labels, MASK, 1.0)
        wide = np.concatenate([logits, np.full((600, 1), -1e30)], 1)
        masked = finecal.calibrators.fit_class_bias(wide, labels, [*MASK, False], 1.0)
    np.testing.assert_allclose(moved.bias, expected.bias, atol=1e-4)
    np.testing.assert_allclose(
        masked.bias[:6] - masked.bias[:6].mean(), expected.bias - expected.bias.mean(), atol=1e-3
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shrinkage": "loo"}, ValueError, "shrinkage is 'loo'; choose one of 'cv'"),
        ({"shrinkage": 0}, ValueError, "shrinkage is 0.0; it must be positive"),
        ({"shrinkage": None}, TypeError, "shrinkage is a NoneType"),
        ({"objective": "harmonic"}, ValueError, "objective is 'harmonic'"),
        ({"seed": -1}, ValueError, "seed is -1"),
    ],
)
def test_bad_arguments(data, arguments, error, message):
    with pytest.raises(error, match=message):
        finecal.calibrators.fit_class_bias(*data, MASK, **arguments)


def test_bad_data(data):
    logits, labels = data
    seen = MASK[labels]
    with pytest.raises(ValueError, match="labels are of seen classes only"):
        finecal.calibrators.fit_class_bias(logits[seen], labels[seen], MASK)
    with pytest.raises(ValueError, match="logits are empty"):
        finecal.calibrators.fit_class_bias(logits[:0], labels[:0], MASK)
    logits = logits.copy()
    logits[~seen, labels[~seen]] = -math.inf
    with pytest.raises(ValueError, match="labels are of seen classes only.*masked by -inf"):
        finecal.calibrators.fit_class_bias(logits, labels, MASK)


def of_pictures(rng, pictures=30, positions=20):
    """Samples of pictures, some with seen classes alone, some with absent ones alone."""
    groups = np.repeat(rng.permutation(pictures), positions)
    only = groups % 3
    seen = np.where(only == 2, rng.random(len(groups)) < 0.5, only == 0)
    return torch.tensor(seen), check_groups(groups, len(groups))


@pytest.mark.parametrize("pictures", [6, 7, 30])
def test_folds_are_of_whole_groups_and_of_both_sides(rng, pictures):
    is_seen, groups = of_pictures(rng, pictures)
    for seed in range(10):
        folds = class_bias_fit._folds(is_seen, seed, groups)
        count = int(folds.max()) + 1
        assert count == min(5, int(groups.sides(is_seen).sum(1).min()))
        for number in range(groups.number):
            assert len(set(folds[groups.index == number].tolist())) == 1
        sizes = torch.bincount(folds) / 20
        assert sizes.max() - sizes.min() <= 1
        for fold in range(count):
            assert bool(is_seen[folds != fold].any())
            assert bool((~is_seen)[folds != fold].any())
    assert not torch.equal(folds, class_bias_fit._folds(is_seen, 3, groups))


def test_too_few_groups_to_cross_validate(data):
    logits, labels = data
    groups = np.where(MASK[labels], 1, np.arange(len(labels)) % 4 + 2)  # all seen samples are of one
    with pytest.warns(finecal.FinecalWarning, match="too few groups to cross-validate: two of seen and two of absent"):
        fitted = finecal.calibrators.fit_class_bias(finecal.Samples(logits, labels, groups=groups), MASK)
    assert math.isinf(fitted.report.shrinkage)


def test_the_standard_error_is_over_groups(rng):
    """Gains of samples that come four times are no more certain than those of the samples."""
    gains = rng.choice([-1, 0, 1], p=[0.2, 0.5, 0.3], size=(6, 80))
    before = rng.random((6, 80)) < 0.5
    correct = torch.tensor(np.concatenate([np.zeros((1, 80), bool), gains > 0]))
    weight = torch.tensor(0.5 + before[0])
    one = class_bias_fit._one_standard_error(correct, weight, None)
    each = check_groups(rng.permutation(80), 80)
    assert class_bias_fit._one_standard_error(correct, weight, each) == one
    # One gain in a hundred and none lost is just above one standard error; in groups of ten alike, far from it.
    alone = torch.zeros((2, 1000), dtype=torch.bool)
    alone[1, :20] = True
    assert class_bias_fit._one_standard_error(alone, torch.ones(1000), None) == 1
    groups = check_groups(np.arange(1000) // 20, 1000)
    assert class_bias_fit._one_standard_error(alone, torch.ones(1000), groups) == 0


def test_groups_of_a_class_bias(data, rng):
    """Samples with a masked label are left out with their groups."""
    logits, labels = data[0].copy(), data[1]
    groups = rng.integers(25, size=len(labels))
    logits[:5][np.arange(5), labels[:5]] = -np.inf
    with pytest.warns(finecal.FinecalWarning, match="left out"):
        found = finecal.calibrators.fit_class_bias(finecal.Samples(logits, labels, groups=groups), MASK)
    assert found.report.folds == 5
    renamed = finecal.Samples(logits, labels, groups=50 - groups)
    with pytest.warns(finecal.FinecalWarning, match="left out"):
        assert torch.equal(found.bias, finecal.calibrators.fit_class_bias(renamed, MASK).bias)
    with pytest.raises(ValueError, match="groups have shape"):
        finecal.Samples(logits, labels, groups=groups[1:])
