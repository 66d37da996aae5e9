"""Scores of classifiers of every kind, and gamma and prototypes found from them."""

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsOneClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import finecal
import reference
import sklearn
from animals import ANIMALS, BASES, SEEN, SEEN_MASK, draw, index_of, naive_scores, outgrown
from finecal.sklearn import SeenAbsentCalibratedClassifier
from finecal.sklearn._displays import scores_before_gamma
from finecal.sklearn._gamma import class_scores, features_of
from finecal.sklearn._metrics import log_of_probabilities
from public_names import public

LABELS = {
    "text": ANIMALS,
    "object": ANIMALS.astype(object),
    "gaps in the numbers": np.array([-7, 3, 4, 100, 1000]),
    "whole floats": np.array([-1.0, 1.0, 2.0, 5.0, 9.0]),
}


@pytest.mark.parametrize("names", LABELS.values(), ids=LABELS.keys())
def test_gamma_is_that_of_the_core(names, rng):
    X, y = draw(rng, names=names)
    base = outgrown(X, y, names[SEEN_MASK])
    rows = np.isin(y, names[SEEN_MASK])
    calibrated = SeenAbsentCalibratedClassifier(base).fit(X[rows], y[rows])
    scores, indices = base.decision_function(X), index_of(y, names)
    expected = finecal.estimate_gamma(SEEN_MASK, train=(scores[rows], indices[rows]))
    assert calibrated.gamma_ == expected.gamma
    assert calibrated.estimate_ == expected
    assert calibrated.seen_mask_.tolist() == SEEN_MASK.tolist()
    assert calibrated.classes_.tolist() == names.tolist()
    assert (calibrated.predict(X) == names[finecal.predict(scores, SEEN_MASK, expected)]).all()
    plain = finecal.calibrate_logits(scores, SEEN_MASK, expected)
    assert (calibrated.predict(X) == names[plain.argmax(axis=1)]).all()
    assert calibrated.predict(X).dtype == base.predict(X).dtype
    # It brings the absent classes back.
    assert calibrated.score(X, y) > base.score(X, y) + 0.2


@pytest.mark.filterwarnings("ignore:.*disagree about gamma.*check the share")  # which is made up
def test_held_out_and_unlabelled_samples_go_to_their_estimators(data, seen_data, base, rng):
    X, _ = draw(rng)
    unlabelled = base.decision_function(X)
    pair = base.decision_function(seen_data[0]), index_of(seen_data[1])
    cases = [
        ({"held_out": True}, None, {"held_out": pair}),
        ({"held_out": True}, X, {"held_out": pair, "unlabelled": unlabelled}),
        ({"held_out": True, "seen_share": 0.3}, X, {"held_out": pair, "unlabelled": unlabelled, "seen_share": 0.3}),
        ({"seen_share": 0.3}, X, {"train": pair, "unlabelled": unlabelled, "seen_share": 0.3}),
        ({"seen_share": 0.3}, None, {"train": pair, "seen_share": 0.3}),
        ({"random_state": 3}, None, {"train": pair, "seed": 3}),
    ]
    found = set()
    for params, X_unlabelled, same in cases:
        calibrated = SeenAbsentCalibratedClassifier(base, **params).fit(*seen_data, X_unlabelled=X_unlabelled)
        assert calibrated.estimate_ == finecal.estimate_gamma(SEEN_MASK, **same)
        found.add(calibrated.gamma_)
    assert len(found) >= len(cases) - 1  # the seed need not matter


def test_held_out_samples_of_all_classes_are_searched(data, base):
    X, y = data
    calibrated = SeenAbsentCalibratedClassifier(base, seen_classes=SEEN, held_out=True).fit(X, y)
    scores, indices = base.decision_function(X), index_of(y)
    assert calibrated.estimate_ == finecal.search_gamma(scores, indices, SEEN_MASK)
    assert calibrated.score(X, y) == pytest.approx(reference.best_value(scores, indices, SEEN_MASK, "overall"))


def test_gamma_may_be_a_function_an_estimate_or_a_number(seen_data, base):
    pair = base.decision_function(seen_data[0]), index_of(seen_data[1])
    expected = finecal.estimators.max_logit_gap(*pair, SEEN_MASK)
    by_function = SeenAbsentCalibratedClassifier(base, gamma=finecal.estimators.max_logit_gap).fit(*seen_data)
    assert by_function.estimate_ == expected
    by_estimate = SeenAbsentCalibratedClassifier(base, gamma=expected).fit(*seen_data)
    assert (by_estimate.gamma_, by_estimate.estimate_) == (expected.gamma, expected)
    by_lambda = SeenAbsentCalibratedClassifier(base, gamma=lambda scores, indices, mask: len(indices)).fit(*seen_data)
    assert (by_lambda.gamma_, by_lambda.estimate_) == (len(seen_data[1]), None)
    by_number = SeenAbsentCalibratedClassifier(base, gamma=np.float32(0.5)).fit(*seen_data)
    assert (by_number.gamma_, by_number.estimate_) == (0.5, None)


@pytest.mark.parametrize("name", ["average_logit_gap", "mixed_pair_gap", "residual_gap"])
def test_gamma_may_be_the_name_of_an_estimator(name, seen_data, base):
    calibrated = SeenAbsentCalibratedClassifier(base, gamma=name, held_out=True, random_state=3).fit(*seen_data)
    samples = base.decision_function(seen_data[0]), index_of(seen_data[1]), SEEN_MASK
    assert calibrated.estimate_ == public(name)(*samples, seed=3)


def test_named_estimators_get_the_share_if_they_take_it(seen_data, base):
    options = {"held_out": True, "seen_share": 0.9}
    calibrated = SeenAbsentCalibratedClassifier(base, gamma="residual_gap", **options).fit(*seen_data)
    samples = base.decision_function(seen_data[0]), index_of(seen_data[1]), SEEN_MASK
    assert calibrated.gamma_ == finecal.estimators.residual_gap(*samples, 0.9).gamma
    with pytest.warns(finecal.FinecalWarning, match="seen_share has no effect"):
        SeenAbsentCalibratedClassifier(base, gamma="max_logit_gap", **options).fit(*seen_data)


def test_names_of_estimators_are_checked(seen_data, base):
    with pytest.raises(ValueError, match="gamma is 'mixture_gamma'; pass .* labelled samples: average_logit_gap, max_"):
        SeenAbsentCalibratedClassifier(base, gamma="mixture_gamma").fit(*seen_data)
    with pytest.raises(ValueError, match="gamma is 'residual_gap', which needs .*: pass held_out=True"):
        SeenAbsentCalibratedClassifier(base, gamma="residual_gap").fit(*seen_data)


def test_temperature_is_fitted_after_gamma(seen_data, base):
    calibrated = SeenAbsentCalibratedClassifier(base, held_out=True, temperature="auto").fit(*seen_data)
    scores = base.decision_function(seen_data[0]) + calibrated.gamma_ * ~SEEN_MASK
    assert calibrated.temperature_ == pytest.approx(
        float(finecal.calibrators.fit_temperature(scores, index_of(seen_data[1])).temperature)
    )
    assert calibrated.temperature_ != 1


@pytest.mark.parametrize("gamma", ["auto", 0.0, finecal.estimators.max_logit_gap])
def test_all_classes_seen_means_gamma_zero(gamma, data, base):
    X, y = data
    unfitted = LogisticRegression()
    for estimator in (unfitted, base, FrozenEstimator(base)):
        calibrated = SeenAbsentCalibratedClassifier(estimator, gamma=gamma)
        if estimator is unfitted:
            calibrated.fit(X, y)
        else:
            with pytest.warns(finecal.FinecalWarning, match="y holds every class that the fitted estimator knows"):
                calibrated.fit(X, y)
        assert calibrated.gamma_ == 0
        assert calibrated.estimate_ is None
        assert calibrated.seen_mask_.all()
        assert (calibrated.predict(X) == calibrated.estimator_.predict(X)).all()
        np.testing.assert_allclose(calibrated.predict_proba(X), calibrated.estimator_.predict_proba(X))


def test_a_number_without_effect_is_said(data, base):
    with pytest.warns(finecal.FinecalWarning, match="gamma = 2 has no effect"):
        SeenAbsentCalibratedClassifier(base, gamma=2).fit(*data)


def test_one_class_is_enough_for_a_number(data, base):
    X, y = data
    rows = y == "dog"
    calibrated = SeenAbsentCalibratedClassifier(base, gamma=3.0).fit(X[rows], y[rows])
    assert calibrated.seen_mask_.tolist() == [False, True, False, False, False]
    calibrated = SeenAbsentCalibratedClassifier(base, seen_share=0.2).fit(X[rows], y[rows], X_unlabelled=X)
    assert np.mean(calibrated.predict(X) == "dog") == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match="only one class is seen"):
        SeenAbsentCalibratedClassifier(base).fit(X[rows], y[rows])


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
    samples = finecal.Samples(base.decision_function(unlabelled), features=unlabelled)
    expected = finecal.calibrators.fit_prototypes(samples, SEEN_MASK, alone.estimate_)
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
    expected = float(finecal.calibrators.fit_temperature(sums, index_of(data[1])).temperature)
    assert calibrated.temperature_ == pytest.approx(expected, rel=1e-5)


def test_unlabelled_samples_help_gamma_where_they_can(seen_data, base, unlabelled):
    """Where they cannot, nothing is said of it, for prototypes are made of them."""
    for params in ({"held_out": True}, {"seen_share": 0.5}):
        expected = SeenAbsentCalibratedClassifier(base, **params).fit(*seen_data, X_unlabelled=unlabelled)
        assert fitted(base, seen_data, unlabelled, **params).estimate_ == expected.estimate_
    for gamma in ("auto", "max_logit_gap", 2.5, finecal.estimators.max_logit_gap):
        expected = SeenAbsentCalibratedClassifier(base, gamma=gamma).fit(*seen_data)
        assert fitted(base, seen_data, unlabelled, gamma=gamma).gamma_ == expected.gamma_


def test_held_out_samples_of_seen_classes_are_the_check(data, base, unlabelled):
    X, y = data
    weight = np.arange(len(y)) % 4 > 0
    scores, seen = base.decision_function(X), np.isin(y, SEEN) & weight
    calibrated = SeenAbsentCalibratedClassifier(base, held_out=True, seen_classes=SEEN, prototypes=True)
    calibrated.fit(X, y, sample_weight=weight.astype(float), X_unlabelled=unlabelled)
    held_out = finecal.Samples(scores[seen], index_of(y)[seen], features=X[seen])
    samples = finecal.Samples(base.decision_function(unlabelled), features=unlabelled)
    expected = finecal.calibrators.fit_prototypes(samples, SEEN_MASK, calibrated.gamma_, held_out=held_out)
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
    for features in (X.tolist(), pd.DataFrame(X), scipy.sparse.csr_matrix(X), scipy.sparse.csc_array(X)):
        np.testing.assert_array_equal(features_of(base, features), X)
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
