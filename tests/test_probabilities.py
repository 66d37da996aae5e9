import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

import finecal
import reference
from profiles import examples

INF = math.inf
GROUPS = ("all", "seen", "absent")
NUMBERS = ("accuracy", "confidence", "nll", "brier", "ece", "ece_equal_mass", "classwise_ece")


def problem(rng, n=60, classes=6, spread=2.0):
    mask = rng.permutation(np.arange(classes) < rng.integers(1, classes))
    labels = rng.integers(0, classes, n)
    labels[:2] = np.flatnonzero(mask)[0], np.flatnonzero(~mask)[0]
    return rng.normal(size=(n, classes)) * spread, labels, mask


def softmax(logits, mask, gamma):
    shifted = np.where(mask, logits, logits + gamma)
    weight = np.exp(shifted - shifted.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def which_bin(value, edges):
    return next(b for b in range(len(edges) - 1) if value <= edges[b + 1])


def calibration_error(probability, outcome, edges):
    """Bin by bin: the share of the values times the distance of their mean outcome to their mean probability."""
    bins = [which_bin(p, edges) for p in probability]
    error = 0.0
    for b in set(bins):
        inside = [i for i, other in enumerate(bins) if other == b]
        gap = reference.mean(outcome[i] for i in inside) - reference.mean(probability[i] for i in inside)
        error += len(inside) / len(bins) * abs(gap)
    return error


def expected(logits, labels, mask, gamma, n_bins, group):
    p = softmax(logits, mask, gamma)
    predicted = np.array([reference.predict(row, mask, gamma) for row in logits])
    every = np.arange(len(labels))
    confidence, correct = p[every, predicted], predicted == labels
    width = [b / n_bins for b in range(n_bins + 1)]
    inner = [sorted(confidence)[math.ceil(b * len(labels) / n_bins) - 1] for b in range(1, n_bins)]
    member = {"all": labels >= 0, "seen": mask[labels], "absent": ~mask[labels]}[group]
    classes = {"all": mask | ~mask, "seen": mask, "absent": ~mask}[group]
    return {
        "accuracy": correct[member].mean(),
        "confidence": confidence[member].mean(),
        "nll": -np.log(p[every, labels])[member].mean(),
        "brier": ((p - np.eye(len(mask))[labels]) ** 2).sum(1)[member].mean(),
        "ece": calibration_error(confidence[member], correct[member], width),
        "ece_equal_mass": calibration_error(confidence[member], correct[member], [0, *inner, 1]),
        "classwise_ece": np.mean([calibration_error(p[:, c], labels == c, width) for c in np.flatnonzero(classes)]),
    }


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_samples_in_place_of_logits_and_labels(rng, convert):
    logits, labels, mask = problem(rng)
    expected = finecal.probabilities.evaluate_probabilities(convert(logits), convert(labels), mask, 1.7, n_bins=4)
    samples = finecal.Samples(convert(logits), convert(labels))
    for _ in range(2):  # the second time what was found the first time is used
        found = finecal.probabilities.evaluate_probabilities(samples, mask, 1.7, n_bins=4)
        assert repr(found.to_dict()) == repr(expected.to_dict())  # with NaN in empty bins
        assert type(found.all.bins.edges) is type(expected.all.bins.edges)


@pytest.mark.parametrize(("gamma", "n_bins"), [(0.0, 15), (1.7, 4), (-3.0, 1)])
def test_equals_the_definitions(rng, gamma, n_bins, device, dtype):
    logits, labels, mask = problem(rng)
    tensor = torch.tensor(logits).to(device, dtype)
    report = finecal.probabilities.evaluate_probabilities(
        tensor, torch.tensor(labels, device=device), mask, gamma, n_bins
    )
    assert report.gamma == gamma
    for group in GROUPS:
        scores = getattr(report, group)
        wanted = expected(tensor.double().cpu().numpy(), labels, mask, gamma, n_bins, group)
        assert {name: getattr(scores, name) for name in NUMBERS} == pytest.approx(wanted, abs=1e-12)
        assert scores.bins.accuracy.dtype == scores.bins.confidence.dtype == torch.float64
        assert scores.bins.count.dtype == torch.int64
        assert all(value.device.type == device.type for value in vars(scores.bins).values())
    assert report.all.n == 60 == report.seen.n + report.absent.n


def test_an_example_by_hand():
    p = [[0.9, 0.05, 0.05], [0.75, 0.2, 0.05], [0.3, 0.6, 0.1], [0.1, 0.35, 0.55]]
    report = finecal.probabilities.evaluate_probabilities(np.log(p), [0, 1, 1, 0], [True, True, False], n_bins=2)
    # one bin holds all confidences (0.7 on average), of which half are right
    assert report.all.ece == pytest.approx(0.2)
    # 0.55 and 0.6 with one right, 0.75 and 0.9 with one right
    assert report.all.ece_equal_mass == pytest.approx((0.075 + 0.325) / 2)
    assert report.all.equal_mass_bins.edges == pytest.approx(np.array([0, 0.6, 1]))
    # class 0: {.3, .1} hold one, {.9, .75} one; class 1: {.05, .2, .35} hold one, {.6} one; class 2: none
    by_class = [(0.6 + 0.65) / 4, (0.4 + 0.4) / 4, (0.2 + 0.55) / 4]
    assert report.all.classwise_ece == pytest.approx(np.mean(by_class))
    assert report.seen.classwise_ece == pytest.approx(np.mean(by_class[:2]))
    assert report.absent.classwise_ece == pytest.approx(by_class[2])
    assert report.all.brier == pytest.approx((0.015 + 1.205 + 0.26 + 1.235) / 4)
    assert report.all.nll == pytest.approx(-math.log(0.9 * 0.2 * 0.6 * 0.1) / 4)


@pytest.mark.parametrize("seed", range(100))
def test_equals_torchmetrics_and_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    n, classes, n_bins, gamma = (
        int(rng.integers(2, 200)),
        int(rng.integers(2, 9)),
        int(rng.integers(1, 25)),
        rng.normal(),
    )
    logits, labels, mask = problem(rng, n, classes, rng.choice([0.3, 1, 4]))
    scores = finecal.probabilities.evaluate_probabilities(logits, labels, mask, gamma, n_bins).all
    p = softmax(logits, mask, gamma)
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), classes, n_bins, "l1")
    assert scores.ece == pytest.approx(float(theirs), abs=2e-6)  # they add in float32
    assert scores.nll == pytest.approx(log_loss(labels, p, labels=range(classes)), rel=1e-12)
    if classes == 2:
        assert scores.brier == pytest.approx(2 * brier_score_loss(labels, p[:, 1]), rel=1e-12)
    for bins, strategy in ((scores.bins, "uniform"), (scores.equal_mass_bins, None)):
        correct, filled = p.argmax(1) == labels, bins.count > 0
        if strategy == "uniform":
            accuracy, confidence = calibration_curve(correct, p.max(1), n_bins=n_bins, strategy=strategy)
            assert bins.accuracy[filled] == pytest.approx(accuracy)
            assert bins.confidence[filled] == pytest.approx(confidence)
        assert np.isnan(bins.accuracy[~filled]).all()
        assert bins.count.sum() == n


@pytest.mark.filterwarnings("ignore:labels are exactly")
@examples(40)
@given(st.integers(0, 2**32 - 1), st.floats(-4, 4))
def test_invariances(seed, gamma):
    rng = np.random.default_rng(seed)
    logits, labels, mask = reference.integer_problem(rng)
    logits = logits.astype(np.float64)
    report = finecal.probabilities.evaluate_probabilities(logits, labels, mask, gamma, 5)
    assert report.all.accuracy == finecal.evaluate(logits, labels, mask, gamma).acc_all
    assert report.all.classwise_ece == pytest.approx(
        (report.seen.classwise_ece * mask.sum() + report.absent.classwise_ece * (~mask).sum()) / len(mask)
    )
    rows = rng.permutation(len(labels))
    shifted = finecal.probabilities.evaluate_probabilities(logits[rows] + 100, labels[rows], mask, gamma, 5)
    for group in GROUPS:
        a, b = getattr(report, group), getattr(shifted, group)
        for name in ("nll", "brier", "confidence"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-12)
    again = finecal.probabilities.evaluate_probabilities(logits[rows], labels[rows], mask, gamma, 5)
    for group in GROUPS:  # equal confidences are never separated, so that no order of the samples matters
        a, b = getattr(report, group), getattr(again, group)
        assert {n: getattr(a, n) for n in NUMBERS} == pytest.approx({n: getattr(b, n) for n in NUMBERS}, abs=1e-12)
        assert (a.equal_mass_bins.count == b.equal_mass_bins.count).all()


def test_a_confidence_of_one_counts():
    logits = np.array([[900.0, 0, 0], [900.0, 0, -INF]])
    scores = finecal.probabilities.evaluate_probabilities(logits, [0, 1], [True, True, False]).all
    assert (scores.confidence, scores.ece, scores.ece_equal_mass) == (1, 0.5, 0.5)
    assert scores.bins.count.tolist() == [0] * 14 + [2]
    assert (scores.nll, scores.brier) == (450, 1)


def test_a_masked_label_is_infinitely_unlikely():
    logits = np.array([[1.0, -INF, 0], [1.0, 0, -INF]])
    report = finecal.probabilities.evaluate_probabilities(logits, [1, 0], [True, True, False])
    assert report.all.nll == report.seen.nll == INF
    p = 1 / (1 + math.exp(-1))
    assert report.all.brier == pytest.approx((p**2 + (1 - p) ** 2 + 1 + 2 * (1 - p) ** 2) / 2)


def test_a_row_without_a_finite_logit_is_uniform():
    logits = np.array([[-INF] * 4, [3.0, 0, 0, 0]])
    with pytest.warns(finecal.FinecalWarning, match="-inf on all classes in 1 of 2 samples"):
        report = finecal.probabilities.evaluate_probabilities(logits, [0, 3], [True, True, False, False], gamma=5.0)
    assert report.seen.nll == pytest.approx(math.log(4))
    assert report.seen.brier == pytest.approx(0.75)
    assert (report.seen.accuracy, report.seen.confidence) == (1, 0.25)


def test_one_sample_of_one_group():
    report = finecal.probabilities.evaluate_probabilities(np.log([[0.6, 0.3, 0.1]]), [0], [True, True, False])
    assert report.all.ece == report.all.ece_equal_mass == report.seen.ece == pytest.approx(0.4)
    assert report.absent.n == 0
    for name in NUMBERS[:-1]:
        assert math.isnan(getattr(report.absent, name)), name
    assert report.absent.classwise_ece == pytest.approx(0.1)  # of classes, on all samples
    assert "nan" not in str(report)
    assert " - |" in str(report)


def test_no_samples():
    report = finecal.probabilities.evaluate_probabilities(np.zeros((0, 3)), [], [True, True, False])
    for group in GROUPS:
        scores = getattr(report, group)
        assert scores.n == 0
        assert all(math.isnan(getattr(scores, name)) for name in NUMBERS)


def test_many_tiles_and_classes(rng):
    logits, labels, mask = problem(rng, 700, 1000, 4.0)
    scores = finecal.probabilities.evaluate_probabilities(logits, labels, mask, 1.0).all
    p = softmax(logits, mask, 1.0)
    width = np.arange(16) / 15
    assert scores.nll == pytest.approx(-np.log(p[np.arange(700), labels]).mean(), rel=1e-12)
    some = [
        finecal.probabilities.evaluate_probabilities(logits, labels, np.arange(1000) == c, 0.0).seen
        for c in range(0, 1000, 97)
    ]
    p0 = softmax(logits, mask, 0.0)
    by_class = [calibration_error(p0[:, c], labels == c, width) for c in range(0, 1000, 97)]
    assert [s.classwise_ece for s in some] == pytest.approx(by_class, abs=1e-12)


def test_types_follow_the_logits(rng):
    logits, labels, mask = problem(rng)
    for like, kind in ((logits, np.ndarray), (logits.tolist(), np.ndarray), (torch.tensor(logits), torch.Tensor)):
        scores = finecal.probabilities.evaluate_probabilities(like, labels, mask).all
        for bins in (scores.bins, scores.equal_mass_bins):
            assert all(isinstance(value, kind) for value in vars(bins).values())
        assert type(scores.nll) is float
        assert type(scores.n) is int


def test_inputs_stay_as_they_are(rng):
    logits, labels, mask = problem(rng)
    before = logits.copy()
    finecal.probabilities.evaluate_probabilities(logits, labels, mask, 1.0)
    assert (logits == before).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"n_bins": 0}, ValueError, "n_bins is 0; pass at least 1"),
        ({"n_bins": 2.5}, TypeError, "n_bins is a float"),
        ({"gamma": INF}, ValueError, "gamma is inf; it must be finite"),
        ({"labels": [0, 3]}, ValueError, "labels contain 3"),
        ({"logits": np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])}, ValueError, "logits look like probabilities"),
        ({"logits": np.array([[math.nan, 0, 1], [0, 1, 2]])}, ValueError, "logits contain NaN"),
    ],
)
def test_wrong_input(change, error, match):
    good = {"logits": np.array([[1.0, 2, 3], [4, 5, 7]]), "labels": [0, 2], "seen_mask": [True, True, False]}
    with pytest.raises(error, match=match):
        finecal.probabilities.evaluate_probabilities(**{**good, **change})
