"""The scores of classifiers of every kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsOneClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import reference
from animals import ANIMALS, BASES, SEEN_MASK, draw, naive_scores
from finecal.sklearn import SeenAbsentCalibratedClassifier
from finecal.sklearn._scores import class_scores, log_of_probabilities

PAIRWISE = SVC(decision_function_shape="ovo")


@pytest.mark.parametrize("base", BASES, ids=str)
def test_scores_are_those_of_the_base(base, data):
    X, y = data
    base = clone(base).fit(X, y)
    scores = class_scores(base, X)
    np.testing.assert_allclose(scores, naive_scores(base, X), rtol=1e-12)
    assert scores.dtype == np.float64
    assert scores.shape == (200, 5)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("base", [PAIRWISE, make_pipeline(StandardScaler(), PAIRWISE)], ids=str)
def test_decisions_on_pairs_of_classes_are_refused(base, data):
    X, y = data
    for rows in (slice(None), np.isin(y, ANIMALS[:3])):  # of three classes, there are three pairs
        fitted = clone(base).fit(X[rows], y[rows])
        with pytest.raises(ValueError, match='decision_function_shape="ovr"'):
            class_scores(fitted, X)
        votes = OneVsOneClassifier(GaussianNB()).fit(X[rows], y[rows])  # for each class, although won against others
        np.testing.assert_array_equal(class_scores(votes, X), votes.decision_function(X))


def test_a_frozen_or_searched_one_versus_one_is_found(data):
    X, y = data
    rows = np.isin(y, ANIMALS[:3])
    fitted = clone(PAIRWISE).fit(X[rows], y[rows])
    search = GridSearchCV(clone(PAIRWISE), {"C": [1.0]}, cv=2).fit(X[rows], y[rows])
    for base in (FrozenEstimator(fitted), search):
        with pytest.raises(ValueError, match="pairs"):
            class_scores(base, X)


@given(arrays(float, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(0, 1)))
def test_logarithms_of_probabilities_are_finite_and_keep_the_order(weights):
    weights[:, 0] += 0.1
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    logs = log_of_probabilities(probabilities)
    assert np.isfinite(logs).all()
    positive = probabilities > 0
    np.testing.assert_array_equal(logs[positive], np.log(probabilities[positive]))
    for row, log in zip(probabilities, logs, strict=True):
        for zero in np.flatnonzero(row == 0):
            assert (log[zero] <= log).all()
            assert log[zero] <= np.log(np.finfo(float).eps)


@pytest.mark.parametrize("base", [LogisticRegression(), SVC(), GaussianNB(), RidgeClassifier()], ids=str)
@pytest.mark.parametrize("seen", ["cat", "dog"])
def test_binary_decisions_become_two_columns(base, seen, rng):
    X, y = draw(rng, names=ANIMALS[:2])
    base = clone(base).fit(X, y)
    rows = y == seen
    calibrated = SeenAbsentCalibratedClassifier(base, gamma=1.25).fit(X[rows], y[rows])
    mask = np.array(["cat", "dog"]) == seen
    scores = naive_scores(base, X)
    if hasattr(base, "decision_function"):
        np.testing.assert_array_equal(scores, np.column_stack([np.zeros(200), base.decision_function(X)]))
    assert calibrated.seen_mask_.tolist() == mask.tolist()
    assert calibrated.predict(X).tolist() == [ANIMALS[reference.predict(row, mask, 1.25)] for row in scores]
    decision = calibrated.decision_function(X)
    assert decision.shape == (200,)
    np.testing.assert_allclose(decision, scores[:, 1] - scores[:, 0] + (1.25 if seen == "cat" else -1.25))
    np.testing.assert_allclose(calibrated.predict_proba(X)[:, 1], 1 / (1 + np.exp(-decision)))


@pytest.mark.parametrize("method", ["decision_function", "predict_log_proba", "predict_proba"])
def test_response_method_says_where_scores_come_from(method, data, seen_data, base):
    X, _ = data
    calibrated = SeenAbsentCalibratedClassifier(base, gamma=0.5, response_method=method).fit(*seen_data)
    scores = getattr(base, method)(X)
    scores = np.log(scores) if method == "predict_proba" else scores
    np.testing.assert_allclose(calibrated.decision_function(X), scores + 0.5 * ~SEEN_MASK)


def test_no_samples_to_predict_is_for_the_base_to_judge(seen_data, base):
    calibrated = SeenAbsentCalibratedClassifier(base).fit(*seen_data)
    with pytest.raises(ValueError, match="minimum of 1"):
        calibrated.predict(np.empty((0, 5)))
