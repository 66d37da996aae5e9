"""The metrics against the core, a naive rule per sample, numbers worked by hand, and scikit-learn's scorers."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.neighbors import KNeighborsClassifier

import finecal
import reference
import sklearn
from finecal.sklearn import (
    SeenAbsentCalibratedClassifier,
    absent_accuracy_score,
    ausuc_score,
    harmonic_mean_score,
    seen_accuracy_score,
)
from finecal.sklearn._metrics import scores_and_labels

NAMES = np.array(["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"])
ACCURACIES = (seen_accuracy_score, absent_accuracy_score, harmonic_mean_score)
SEEDS = st.integers(0, 2**32 - 1)


def problem(seed):
    """Integer scores full of ties, and labels as text, in an order of columns that is not alphabetical."""
    rng = np.random.default_rng(seed)
    scores, indices, mask = reference.integer_problem(rng)
    classes = rng.permutation(NAMES)[: len(mask)]
    return scores, indices, mask, classes


# --- worked by hand ---------------------------------------------------------------------------------------------------

# Seen: two of three cats and the dog are right. Absent: one of four owls is right, and the elk.
TRUE = ["cat", "cat", "cat", "dog", "owl", "owl", "owl", "owl", "elk"]
PREDICTED = ["cat", "cat", "owl", "dog", "owl", "cat", "cat", "dog", "elk"]
WEIGHT = [1, 1, 2, 4, 3, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("average", "weight", "seen", "absent"),
    [
        ("micro", None, 3 / 4, 2 / 5),
        ("macro", None, (2 / 3 + 1) / 2, (1 / 4 + 1) / 2),
        ("micro", WEIGHT, 6 / 8, 4 / 4),
        ("macro", WEIGHT, (2 / 4 + 1) / 2, 1),
    ],
)
@pytest.mark.parametrize("convert", [list, np.array, pd.Series, lambda x: np.array(x, dtype=object)])
def test_accuracies_by_hand(average, weight, seen, absent, convert):
    values = [
        score(convert(TRUE), convert(PREDICTED), seen_classes={"dog", "cat"}, average=average, sample_weight=weight)
        for score in ACCURACIES
    ]
    assert values == pytest.approx([seen, absent, 2 * seen * absent / (seen + absent)])
    assert all(type(value) is float for value in values)


def test_a_class_that_is_only_predicted_does_not_count():
    for score in ACCURACIES:
        value = score(["cat", "owl"], ["yak", "owl"], seen_classes=["cat", "ape"], average="macro")
        assert value == (1 if score is absent_accuracy_score else 0)


def test_area_by_hand():
    # Margins: seen hits 1 and 4; absent hits 3 and -2; the last one is no hit. Of the four pairs, the seen sample has
    # the larger margin in three; Acc_{S/S} = 1 and Acc_{U/U} = 2/3.
    scores = [[5, 2, 4, 0], [1, 6, 2, 1], [4, 1, 1, 0], [1, 1, 2, 3], [2, 1, 4, 3]]
    labels = ["cat", "dog", "elk", "fox", "fox"]
    assert ausuc_score(labels, scores, seen_classes=["cat", "dog"]) == pytest.approx(3 / 4 * 2 / 3)
    # A fox counts half under "macro": Acc_{U/U} = (1 + 1/2) / 2, and the pairs with the elk weigh twice as much.
    macro = ausuc_score(labels, scores, seen_classes=["cat", "dog"], average="macro")
    assert macro == pytest.approx(1 / 2 * 1 / 2 + 1 / 4 * 1)
    # Weights: 3 for the cat, whose margin 1 only the fox of -2 stays below.
    weighted = ausuc_score(labels, scores, seen_classes=["cat", "dog"], sample_weight=[3, 1, 1, 1, 0])
    assert weighted == pytest.approx(1 / 2 * 1 / 4 + 1 / 2 * 1)


# --- against the core and the naive rule ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:labels are exactly 0:finecal.FinecalWarning")
@given(SEEDS, st.sampled_from(["micro", "macro"]), st.integers(-9, 9))
def test_accuracies_are_those_of_the_core_and_of_the_rule(seed, average, gamma):
    scores, indices, mask, classes = problem(seed)
    report = finecal.evaluate(scores, indices, mask, gamma / 2, average)
    naive = reference.accuracies(scores, indices, mask, gamma / 2, average)
    predicted = finecal.predict(scores, mask, gamma / 2)
    values = [
        score(classes[indices], classes[predicted], seen_classes=classes[mask], average=average) for score in ACCURACIES
    ]
    assert values == pytest.approx([report.acc_seen, report.acc_absent, report.harmonic_mean])
    assert values[:2] == pytest.approx(naive[:2])


@pytest.mark.filterwarnings("ignore:labels are exactly 0:finecal.FinecalWarning")
@given(SEEDS, st.sampled_from(["micro", "macro"]), st.sampled_from([None, 1.0, 0.25]))
def test_area_is_that_of_the_core(seed, average, weight):
    scores, indices, mask, classes = problem(seed)
    weights = None if weight is None else np.full(len(indices), weight)
    value = ausuc_score(
        classes[indices],
        scores,
        seen_classes=classes[mask],
        labels=classes,
        average=average,
        sample_weight=weights,
    )
    assert value == pytest.approx(finecal.tradeoff_curve(scores, indices, mask, average).ausuc)
    if average == "micro":
        assert value == pytest.approx(reference.ausuc(scores, indices, mask))


@given(SEEDS, st.sampled_from(["micro", "macro"]))
def test_whole_weights_are_repetitions(seed, average):
    scores, indices, mask, classes = problem(seed)
    weight = np.random.default_rng(seed).integers(1, 4, len(indices))
    repeated = np.repeat(np.arange(len(indices)), weight)
    predicted, params = finecal.predict(scores, mask), {"seen_classes": classes[mask], "average": average}
    for score in ACCURACIES:
        once = score(classes[indices], classes[predicted], sample_weight=weight, **params)
        assert once == pytest.approx(score(classes[indices][repeated], classes[predicted][repeated], **params))
    once = ausuc_score(classes[indices], scores, labels=classes, sample_weight=weight, **params)
    assert once == pytest.approx(ausuc_score(classes[indices][repeated], scores[repeated], labels=classes, **params))


@given(SEEDS)
def test_a_weight_of_zero_takes_a_sample_out(seed):
    scores, indices, mask, classes = problem(seed)
    weight = np.random.default_rng(seed).integers(0, 2, len(indices))
    weight[:2] = 1  # one sample of each group
    kept, predicted = weight > 0, finecal.predict(scores, mask)
    for average in ("micro", "macro"):
        params = {"seen_classes": classes[mask], "average": average}
        for score in ACCURACIES:
            value = score(classes[indices], classes[predicted], sample_weight=weight, **params)
            assert value == pytest.approx(score(classes[indices][kept], classes[predicted][kept], **params))
        value = ausuc_score(classes[indices], scores, labels=classes, sample_weight=weight, **params)
        assert value == pytest.approx(ausuc_score(classes[indices][kept], scores[kept], labels=classes, **params))


@given(SEEDS, st.sampled_from(["micro", "macro"]))
def test_area_keeps_its_value_under_gamma_shifts_and_an_exchange_of_groups(seed, average):
    scores, indices, mask, classes = problem(seed)
    params = {"labels": classes, "average": average}
    value = ausuc_score(classes[indices], scores, seen_classes=classes[mask], **params)
    changed = scores + 0.5 * ~mask + np.arange(len(scores))[:, None]
    assert ausuc_score(classes[indices], changed, seen_classes=classes[mask], **params) == pytest.approx(value)
    assert ausuc_score(classes[indices], scores, seen_classes=classes[~mask], **params) == pytest.approx(value)
    scores = scores + np.random.default_rng(seed).uniform(size=scores.shape)  # of equal ones, the first column wins
    value = ausuc_score(classes[indices], scores, seen_classes=classes[mask], **params)
    order = np.argsort(classes)
    by_name = ausuc_score(
        classes[indices], scores[:, order], seen_classes=classes[mask], **{**params, "labels": classes[order]}
    )
    assert by_name == pytest.approx(value)


def test_macro_without_absent_classes_is_balanced_accuracy(rng):
    true, predicted = NAMES[rng.integers(0, 3, 60)], NAMES[rng.integers(0, 3, 60)]
    value = seen_accuracy_score(true, predicted, seen_classes=NAMES[:3], average="macro")
    assert value == pytest.approx(balanced_accuracy_score(true, predicted))


def test_area_of_two_classes_is_that_under_the_roc_curve(rng):
    decision, true = rng.normal(size=50).round(1), NAMES[rng.integers(0, 2, 50)]
    expected = roc_auc_score(true == "bee", decision)
    probability = 1 / (1 + np.exp(-decision))
    for scores in (decision, decision[:, None] * [0, 1], probability, np.column_stack([1 - probability, probability])):
        for seen in ("ant", "bee"):
            assert ausuc_score(true, scores, seen_classes=[seen]) == pytest.approx(expected)


def test_probabilities_are_recognised(rng):
    logits, indices = rng.normal(size=(60, 4)), np.arange(60) % 4
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    of_logits = ausuc_score(NAMES[indices], logits, seen_classes=NAMES[:2])
    assert ausuc_score(NAMES[indices], probabilities, seen_classes=NAMES[:2]) == pytest.approx(of_logits)
    assert ausuc_score(NAMES[indices], np.log(probabilities), seen_classes=NAMES[:2]) == pytest.approx(of_logits)
    # As scores they would order the margins in another way.
    assert finecal.tradeoff_curve(2 * probabilities, indices, np.arange(4) < 2).ausuc != pytest.approx(of_logits)


def test_masked_classes_count_as_in_the_core():
    scores = np.array([[1.0, -np.inf, 0.0], [2.0, 3.0, 1.0], [-np.inf, -np.inf, 1.0], [0.0, 1.0, -np.inf]])
    expected = finecal.tradeoff_curve(scores, [0, 1, 2, 2], [True, True, False]).ausuc
    assert ausuc_score(["a", "b", "c", "c"], scores, seen_classes=["a", "b"]) == pytest.approx(expected)


def test_scores_of_two_classes_become_two_columns(rng):
    decision, true = 3 * rng.normal(size=50), NAMES[rng.integers(0, 2, 50)]
    probability = 1 / (1 + np.exp(-decision))
    for given_scores in (decision, probability):
        scores, indices, mask = scores_and_labels(true, given_scores, ["ant"], None)
        np.testing.assert_allclose(scores[:, 1] - scores[:, 0], decision)
        assert (NAMES[indices] == true).all()
        assert mask.tolist() == [True, False]


# --- as scorers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def samples(rng):
    index = np.arange(200) % 5
    return 2 * np.eye(5)[index] + 0.7 * rng.normal(size=(200, 5)), NAMES[index]


@pytest.fixture
def base(samples):
    base = LogisticRegression().fit(*samples)
    base.intercept_[:3] += 5
    return base


def test_scorers_choose_gamma_in_a_grid_search(samples, base):
    X, y = samples
    seen, mask, grid = NAMES[:3], np.arange(5) < 3, [-50.0, 0.0, 5.0, 50.0]
    scoring = {score.__name__: make_scorer(score, seen_classes=seen) for score in ACCURACIES}
    scoring["ausuc_score"] = make_scorer(
        ausuc_score, response_method=("decision_function", "predict_proba"), seen_classes=seen, labels=base.classes_
    )
    calibrated = SeenAbsentCalibratedClassifier(FrozenEstimator(base), seen_classes=seen)
    search = GridSearchCV(calibrated, {"gamma": grid}, cv=4, scoring=scoring, refit="harmonic_mean_score").fit(X, y)
    assert search.best_params_ == {"gamma": 5.0}
    scores, indices = base.decision_function(X), np.arange(200) % 5
    reports = [finecal.evaluate(scores, indices, mask, gamma) for gamma in grid]
    results = search.cv_results_
    # Nothing is fitted, and the folds are equally large, of seen and of absent samples alike.
    np.testing.assert_allclose(results["mean_test_seen_accuracy_score"], [r.acc_seen for r in reports])
    np.testing.assert_allclose(results["mean_test_absent_accuracy_score"], [r.acc_absent for r in reports])
    assert np.ptp(results["mean_test_ausuc_score"]) < 1e-12
    assert results["mean_test_ausuc_score"][0] == pytest.approx(reports[0].ausuc, abs=0.05)


@pytest.mark.parametrize("response", ["decision_function", "predict_proba"])
@pytest.mark.parametrize("count", [2, 5])
def test_area_as_a_scorer_of_any_classifier(response, count, samples):
    X, y = samples
    rows = np.isin(y, NAMES[:count])
    estimator = LogisticRegression() if response == "decision_function" else KNeighborsClassifier(15)
    scorer = make_scorer(ausuc_score, response_method=response, seen_classes=["ant"])
    values = cross_val_score(estimator, X[rows], y[rows], scoring=scorer, cv=3)
    assert ((values > 0.8) & (values <= 1)).all()


def test_weights_reach_a_scorer(samples, base):
    X, y = samples
    weight = np.where(base.predict(X) == y, 1.0, 0.0)
    for score, method in [(s, "predict") for s in ACCURACIES] + [(ausuc_score, "decision_function")]:
        scorer = make_scorer(score, response_method=method, seen_classes=NAMES[:3])
        plain, weighted = scorer(base, X, y), scorer(base, X, y, sample_weight=weight)
        assert plain < weighted == pytest.approx(1)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(seen_accuracy_score, seen_classes=NAMES[:3]).set_score_request(sample_weight=True)
        values = cross_validate(FrozenEstimator(base), X, y, scoring=scorer, cv=2, params={"sample_weight": weight})
        assert values["test_score"].tolist() == [1, 1]


# --- what comes in wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("weight", [None, [1.0, 1.0, 0.0]])
def test_a_group_without_samples_leaves_nan(average, weight):
    true = ["cat", "dog", "dog"] if weight is None else ["cat", "dog", "owl"]
    params = {"average": average, "sample_weight": weight}
    scores = np.eye(3)[[0, 1, 0]] * 2
    only_absent = {"seen_classes": ["owl"], **params}
    only_seen = {"seen_classes": ["cat", "dog"], **params}
    for score in (seen_accuracy_score, harmonic_mean_score):
        with pytest.warns(UndefinedMetricWarning, match="no samples of seen classes") as record:
            assert math.isnan(score(true, true, **only_absent))
        assert record[0].filename == __file__
    for score in (absent_accuracy_score, harmonic_mean_score):
        with pytest.warns(UndefinedMetricWarning, match="no samples of absent classes"):
            assert math.isnan(score(true, true, **only_seen))
    for arguments, group in ((only_absent, "seen"), (only_seen, "absent")):
        with pytest.warns(UndefinedMetricWarning, match=f"no samples of {group} classes") as record:
            assert math.isnan(ausuc_score(true, scores, labels=["cat", "dog", "owl"], **arguments))
        assert record[0].filename == __file__
    assert seen_accuracy_score(true, true, **only_seen) == 1


@pytest.mark.parametrize("score", ACCURACIES)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seen_classes": "cat"}, TypeError, "seen_classes is 'cat'; pass a list"),
        ({"seen_classes": None}, TypeError, "seen_classes is None"),
        ({"seen_classes": []}, ValueError, "seen_classes is empty"),
        ({"seen_classes": [1, 2]}, ValueError, "Mix of label input types"),
        ({"seen_classes": [True, False]}, TypeError, "seen_classes is a boolean mask"),
        ({"average": "weighted"}, ValueError, "average"),
        ({"sample_weight": [1.0]}, ValueError, r"sample_weight has shape \(1,\)"),
        ({"sample_weight": [1.0, -1.0, 1.0]}, ValueError, "sample_weight has negative"),
        ({"sample_weight": [1.0, float("nan"), 1.0]}, ValueError, "sample_weight"),
        ({"y_pred": ["cat"]}, ValueError, "inconsistent"),
        ({"y_pred": [1, 2, 3]}, ValueError, "Mix of label input types"),
        ({"y_pred": np.eye(3)}, ValueError, "y_pred|1d|Mix"),
    ],
)
def test_arguments_of_the_accuracies_are_checked(score, arguments, error, message):
    defaults = {"y_true": ["cat", "dog", "owl"], "y_pred": ["cat", "owl", "owl"], "seen_classes": ["cat", "dog"]}
    with pytest.raises(error, match=message):
        score(**{**defaults, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seen_classes": "cat"}, TypeError, "seen_classes is 'cat'; pass a list"),
        ({"seen_classes": ["cat", "dog", "owl"]}, ValueError, "seen_classes holds all 3 classes"),
        ({"seen_classes": ["cat", "yak"], "labels": ["cat", "dog", "owl"]}, ValueError, "seen_classes contains 'yak'"),
        ({"seen_classes": ["cat", "yak"]}, ValueError, r"y_score has shape \(3, 3\).* are 4 classes: pass labels="),
        ({"labels": ["cat", "dog"]}, ValueError, r"y_score has shape \(3, 3\), and labels are 2 classes"),
        ({"labels": ["cat", "dog", "dog"]}, ValueError, "labels repeat a class"),
        ({"labels": ["cat", "dog", "yak"]}, ValueError, "y_true contains 'owl'"),
        ({"average": "weighted"}, ValueError, "average"),
        ({"y_score": [1.0, 2.0, 3.0]}, ValueError, r"y_score has shape \(3,\)"),
        ({"y_score": [[1.0, 2.0, float("nan")]] * 3}, ValueError, "y_score has NaN"),
        ({"y_score": [[1.0, 2.0, float("inf")]] * 3}, ValueError, r"y_score has NaN or \+inf"),
        ({"y_score": [["a", "b", "c"]] * 3}, ValueError, "could not convert string"),
        ({"y_score": [[1.0, 2.0, 3.0]]}, ValueError, "inconsistent"),
        ({"y_true": [], "y_score": np.empty((0, 3))}, ValueError, "0 sample"),
        ({"sample_weight": [1.0, -1.0, 1.0]}, ValueError, "sample_weight has negative"),
    ],
)
def test_arguments_of_the_area_are_checked(arguments, error, message):
    defaults = {"y_true": ["cat", "dog", "owl"], "y_score": np.eye(3) * 2, "seen_classes": ["cat", "dog"]}
    with pytest.raises(error, match=message):
        ausuc_score(**{**defaults, **arguments})
