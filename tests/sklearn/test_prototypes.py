"""Prototypes in the meta-estimator, against `finecal.fit_prototypes` and sums written by hand."""

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import finecal
import sklearn
from animals import ANIMALS, SEEN, SEEN_MASK, draw, index_of
from finecal.sklearn import SeenAbsentCalibratedClassifier
from finecal.sklearn._prototypes import features_of
from finecal.sklearn._scored import scores_before_gamma


@pytest.fixture
def unlabelled(rng):
    return draw(rng, n=300)[0]


def fitted(base, data, unlabelled, **params):
    return SeenAbsentCalibratedClassifier(base, prototypes=True, **params).fit(*data, X_unlabelled=unlabelled)


def by_hand(prototypes, scores, features):
    told = (features - prototypes.center.numpy()) @ prototypes.weight.numpy().T.astype(float)
    return scores + float(prototypes.gamma) * ~SEEN_MASK + told


# --- fit and predictions ----------------------------------------------------------------------------------------------


def test_prototypes_are_those_of_the_function(data, seen_data, base, unlabelled):
    calibrated = fitted(base, seen_data, unlabelled)
    alone = SeenAbsentCalibratedClassifier(base).fit(*seen_data)
    scores = base.decision_function(unlabelled)
    expected = finecal.fit_prototypes(scores, unlabelled, SEEN_MASK, alone.estimate_)
    found = calibrated.prototypes_
    assert calibrated.gamma_ == alone.gamma_
    assert (found.estimate, found.report) == (alone.estimate_, expected.report)
    np.testing.assert_array_equal(found.weight, expected.weight)
    np.testing.assert_array_equal(found.center, expected.center)
    assert found.weight.any()

    X, _ = data
    sums = by_hand(found, base.decision_function(X), X)
    np.testing.assert_allclose(calibrated.decision_function(X), sums)
    assert calibrated.predict(X).tolist() == ANIMALS[sums.argmax(axis=1)].tolist()
    softmax = np.exp(sums) / np.exp(sums).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrated.predict_proba(X), softmax, rtol=1e-6)
    assert alone.prototypes_ is None


def test_a_temperature_is_fitted_to_scores_with_prototypes(data, base, unlabelled):
    params = {"gamma": 5.0, "seen_classes": SEEN, "held_out": True, "temperature": "auto"}
    calibrated = fitted(base, data, unlabelled, **params)
    sums = by_hand(calibrated.prototypes_, base.decision_function(data[0]), data[0])
    expected = float(finecal.fit_temperature(sums, index_of(data[1])).temperature)
    assert calibrated.temperature_ == pytest.approx(expected, rel=1e-5)


def test_unlabelled_samples_help_gamma_where_they_can(seen_data, base, unlabelled):
    """Where they cannot, nothing is said of it, for prototypes are made of them."""
    for params in ({"held_out": True}, {"seen_share": 0.5}):
        expected = SeenAbsentCalibratedClassifier(base, **params).fit(*seen_data, X_unlabelled=unlabelled)
        assert fitted(base, seen_data, unlabelled, **params).estimate_ == expected.estimate_
    for gamma in ("auto", "max_logit_gap", 2.5, finecal.max_logit_gap):
        expected = SeenAbsentCalibratedClassifier(base, gamma=gamma).fit(*seen_data)
        assert fitted(base, seen_data, unlabelled, gamma=gamma).gamma_ == expected.gamma_


def test_held_out_samples_of_seen_classes_are_the_check(data, base, unlabelled):
    X, y = data
    weight = np.arange(len(y)) % 4 > 0
    scores, seen = base.decision_function(X), np.isin(y, SEEN) & weight
    calibrated = SeenAbsentCalibratedClassifier(base, held_out=True, seen_classes=SEEN, prototypes=True)
    calibrated.fit(X, y, sample_weight=weight.astype(float), X_unlabelled=unlabelled)
    held_out = scores[seen], index_of(y)[seen], X[seen]
    expected = finecal.fit_prototypes(
        base.decision_function(unlabelled), unlabelled, SEEN_MASK, calibrated.gamma_, held_out=held_out
    )
    assert calibrated.prototypes_.report == expected.report
    assert calibrated.prototypes_.report.acc_seen_within is not None
    not_checked = fitted(base, (X[seen], y[seen]), unlabelled)
    assert not_checked.prototypes_.report.acc_seen_within is None


def test_samples_of_absent_classes_alone_are_no_check(data, base, unlabelled):
    X, y = data
    absent = ~np.isin(y, SEEN)
    params = {"gamma": 5.0, "held_out": True, "seen_classes": SEEN}
    assert fitted(base, (X[absent], y[absent]), unlabelled, **params).prototypes_.report.acc_seen_within is None


def test_without_an_absent_class_there_are_none(data, unlabelled):
    calibrated = fitted(LogisticRegression(), data, unlabelled)
    assert calibrated.prototypes_ is None
    assert (calibrated.predict(data[0]) == LogisticRegression().fit(*data).predict(data[0])).all()


def test_two_classes(rng):
    X, y = draw(rng, names=ANIMALS[:2], spread=1.0)
    base = LogisticRegression().fit(X, y)
    base.intercept_ -= 3.0  # the decision is that of the dog
    calibrated = fitted(base, (X[y == "cat"], y[y == "cat"]), X, gamma=3.0, seen_classes=["cat"])
    prototypes = calibrated.prototypes_
    assert prototypes.weight.any()
    told = (X - prototypes.center.numpy()) @ prototypes.weight.numpy().T.astype(float)
    expected = base.decision_function(X) + 3.0 + told[:, 1] - told[:, 0]
    np.testing.assert_allclose(calibrated.decision_function(X), expected)
    assert calibrated.predict(X).tolist() == ANIMALS[(expected > 0).astype(int)].tolist()


# --- the rest of scikit-learn -----------------------------------------------------------------------------------------


def test_pickle_and_clone(data, seen_data, base, unlabelled):
    calibrated = fitted(FrozenEstimator(base), seen_data, unlabelled)
    restored = pickle.loads(pickle.dumps(calibrated))
    np.testing.assert_array_equal(restored.predict_proba(data[0]), calibrated.predict_proba(data[0]))
    copy = clone(calibrated)
    assert copy.get_params()["prototypes"] is True
    assert not hasattr(copy, "prototypes_")
    again = copy.fit(*seen_data, X_unlabelled=unlabelled)
    np.testing.assert_array_equal(again.predict_proba(data[0]), calibrated.predict_proba(data[0]))


def test_as_the_last_step_of_a_pipeline(data, seen_data, base, unlabelled):
    scaler = FrozenEstimator(StandardScaler(with_mean=False, with_std=False).fit(unlabelled))
    with sklearn.config_context(enable_metadata_routing=True):
        step = SeenAbsentCalibratedClassifier(base, prototypes=True).set_fit_request(X_unlabelled=True)
        pipeline = make_pipeline(scaler, step, transform_input=["X_unlabelled"])
        pipeline.fit(*seen_data, X_unlabelled=unlabelled)
    expected = fitted(base, seen_data, unlabelled)
    np.testing.assert_array_equal(pipeline.predict_proba(data[0]), expected.predict_proba(data[0]))


def test_displays_show_the_scores_that_gamma_is_added_to(data, seen_data, base, unlabelled):
    calibrated = fitted(base, seen_data, unlabelled)
    (scores, indices, mask), gamma = scores_before_gamma(calibrated, *data, None)
    np.testing.assert_allclose(scores + gamma * ~mask, calibrated.decision_function(data[0]))
    report = finecal.evaluate(scores, indices, mask, gamma)
    assert report.acc_all == calibrated.score(*data)


# --- features ---------------------------------------------------------------------------------------------------------


class Network(ClassifierMixin, BaseEstimator):
    """A classifier that is not linear in X, but in the output of its `transform`."""

    def fit(self, X, y):
        self.linear_ = LogisticRegression().fit(self.transform(X), y)
        self.classes_ = self.linear_.classes_
        return self

    def transform(self, X):
        return np.maximum(X @ np.eye(5)[:, ::-1], 0)

    def decision_function(self, X):
        return self.linear_.decision_function(self.transform(X))


def scaled(X):
    return (X - X.mean(axis=0)) / X.std(axis=0)


@pytest.mark.parametrize(
    ("base", "features"),
    [
        (LogisticRegression(), lambda X: X),
        (SVC(kernel="linear"), lambda X: X),
        (LinearDiscriminantAnalysis(), lambda X: X),
        (Network(), lambda X: np.maximum(X[:, ::-1], 0)),
        (make_pipeline(LogisticRegression()), lambda X: X),
        (make_pipeline(StandardScaler(), LogisticRegression()), scaled),
        (make_pipeline(StandardScaler(), make_pipeline("passthrough", LogisticRegression())), scaled),
        (make_pipeline(StandardScaler(), Network()), lambda X: np.maximum(scaled(X)[:, ::-1], 0)),
        (GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {}, cv=2), scaled),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),  # the same in all processes
)
def test_features_are_what_the_classifier_is_linear_in(base, features, data, seen_data):
    X, y = data
    base = clone(base).fit(X, y)
    for estimator in (base, FrozenEstimator(base)):
        np.testing.assert_allclose(features_of(estimator, X), features(X), atol=1e-12)
    calibrated = fitted(base, seen_data, X, gamma=2.0)
    sums = by_hand(calibrated.prototypes_, base.decision_function(X), features(X))
    np.testing.assert_allclose(calibrated.decision_function(X), sums)


def test_features_of_any_kind_are_read(data, base):
    X, _ = data
    for given in (X.tolist(), pd.DataFrame(X), scipy.sparse.csr_matrix(X), scipy.sparse.csc_array(X)):
        np.testing.assert_array_equal(features_of(base, given), X)
    counts = np.arange(10, dtype=np.uint8).reshape(2, 5)
    np.testing.assert_array_equal(features_of(base, counts), counts.astype(float))


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (MLPClassifier(hidden_layer_sizes=(3,), max_iter=9, tol=1.0, random_state=0), "MLPClassifier"),
        (RandomForestClassifier(n_estimators=3, random_state=0), "RandomForestClassifier"),
        (SVC(), "SVC"),
        (make_pipeline(StandardScaler(), SVC()), "SVC"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_classifiers_without_features_are_refused(base, name, data, seen_data):
    base = clone(base).fit(*data)
    with pytest.raises(ValueError, match=f"^{name} has no features to make prototypes of, as it is not linear"):
        fitted(base, seen_data, data[0], gamma=2.0)


def test_wide_sparse_features_are_refused():
    texts, y = ["meow", "bark", "moo"] * 4, ["cat", "dog", "cow"] * 4
    base = make_pipeline(HashingVectorizer(n_features=5000), LogisticRegression()).fit(texts, y)
    calibrated = SeenAbsentCalibratedClassifier(base, gamma=1.0, seen_classes=["cat"], prototypes=True)
    with pytest.raises(ValueError, match="the features are sparse, of 5000 columns, and .* of at most 4096"):
        calibrated.fit(texts, y, X_unlabelled=texts)


def test_parameters_are_checked(seen_data, base):
    with pytest.raises(ValueError, match="pass them to fit as X_unlabelled="):
        SeenAbsentCalibratedClassifier(base, prototypes=True).fit(*seen_data)
    with pytest.raises(TypeError, match="prototypes is a str; pass True or False"):
        SeenAbsentCalibratedClassifier(base, prototypes="yes").fit(*seen_data)
