"""The meta-estimator against the core on hand-made scores and a naive rule per sample."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import DataConversionWarning, NotFittedError, UnsetMetadataPassedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsOneClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

import finecal
import reference
import sklearn
from finecal.sklearn import SeenAbsentCalibratedClassifier
from finecal.sklearn._scores import class_scores, log_of_probabilities

ANIMALS = np.array(["cat", "dog", "elk", "fox", "gnu"])
SEEN = np.array(["dog", "elk", "gnu"])
SEEN_MASK = np.isin(ANIMALS, SEEN)
LABELS = {
    "text": ANIMALS,
    "object": ANIMALS.astype(object),
    "gaps in the numbers": np.array([-7, 3, 4, 100, 1000]),
    "whole floats": np.array([-1.0, 1.0, 2.0, 5.0, 9.0]),
}
BASES = [
    LogisticRegression(),
    SGDClassifier(random_state=0),
    SGDClassifier(loss="log_loss", random_state=0),
    RidgeClassifier(),
    Perceptron(random_state=0),
    LinearSVC(),
    SVC(),
    GaussianNB(),
    KNeighborsClassifier(),
    DecisionTreeClassifier(random_state=0),
    RandomForestClassifier(n_estimators=5, random_state=0),
    HistGradientBoostingClassifier(max_iter=5, random_state=0),
    MLPClassifier(hidden_layer_sizes=(5,), max_iter=2000, tol=1e-2, random_state=0),
    CalibratedClassifierCV(LinearSVC(), cv=2),
    make_pipeline(StandardScaler(), LogisticRegression()),
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2),
]
PAIRWISE = SVC(decision_function_shape="ovo")


def draw(rng, n=200, names=ANIMALS, spread=0.7):
    """Samples around one corner per class, of every class alike."""
    index = np.arange(n) % len(names)
    return 2 * np.eye(len(names))[index] + spread * rng.normal(size=(n, len(names))), names[index]


def outgrown(X, y, seen=SEEN, by=5.0):
    """A classifier whose seen classes have outgrown the others."""
    base = LogisticRegression().fit(X, y)
    base.intercept_[np.isin(base.classes_, seen)] += by
    return base


@pytest.fixture
def data(rng):
    return draw(rng)


@pytest.fixture
def seen_data(data):
    X, y = data
    rows = np.isin(y, SEEN)
    return X[rows], y[rows]


@pytest.fixture
def base(data):
    return outgrown(*data)


def index_of(y, classes=ANIMALS):
    return np.array([list(classes).index(label) for label in y])


def naive_scores(base, X):
    """By one method, chosen by hand: decisions where there are any, logarithms of probabilities elsewhere."""
    if hasattr(base, "decision_function"):
        scores = base.decision_function(X)
        return scores if scores.ndim == 2 else np.column_stack([0 * scores, scores])
    if isinstance(base, GaussianNB):
        return base.predict_log_proba(X)
    probabilities = base.predict_proba(X)
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    for row in logs:
        floor = min(np.log(np.finfo(float).eps), row[np.isfinite(row)].min())
        row[row == -np.inf] = floor
    return logs


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES, ids=str)
def test_scores_are_those_of_the_base(base, data):
    X, y = data
    base = clone(base).fit(X, y)
    scores = class_scores(base, X)
    np.testing.assert_allclose(scores, naive_scores(base, X), rtol=1e-12)
    assert scores.dtype == np.float64
    assert scores.shape == (200, 5)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.7, -3.0, 1e9, -1e9])
def test_predictions_are_those_of_the_rule(base, gamma, data, seen_data):
    X, y = data
    base = clone(base).fit(X, y)
    calibrated = SeenAbsentCalibratedClassifier(base, gamma=gamma).fit(*seen_data)
    scores = naive_scores(base, X)
    expected = [ANIMALS[reference.predict(row, SEEN_MASK, gamma)] for row in scores]
    assert calibrated.predict(X).tolist() == expected
    assert calibrated.estimator_ is base
    np.testing.assert_allclose(calibrated.decision_function(X), scores + gamma * ~SEEN_MASK)
    assert calibrated.score(X, y) == np.mean(np.array(expected) == y)
    assert len(set(expected)) >= 2


@pytest.mark.parametrize("base", BASES, ids=str)
def test_probabilities_are_the_softmax_after_gamma(base, data, seen_data):
    X, y = data
    base = clone(base).fit(X, y)
    calibrated = SeenAbsentCalibratedClassifier(base, gamma=0.7, temperature=2.5).fit(*seen_data)
    exponentials = np.exp((naive_scores(base, X) + 0.7 * ~SEEN_MASK) / 2.5)
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrated.predict_proba(X), expected, rtol=1e-9)
    np.testing.assert_allclose(calibrated.predict_log_proba(X), np.log(expected), rtol=1e-9, atol=1e-12)
    # A temperature moves no prediction.
    assert calibrated.temperature_ == 2.5
    assert (calibrated.predict(X) == clone_with(calibrated, temperature=None).fit(*seen_data).predict(X)).all()


def clone_with(calibrated, **params):
    return SeenAbsentCalibratedClassifier(**{**calibrated.get_params(deep=False), **params})


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


def test_a_forest_that_excludes_the_absent_classes_gets_them_back(rng):
    X, y = draw(rng, spread=0.1)
    forest = RandomForestClassifier(n_estimators=3, random_state=0).fit(X, y)
    assert (forest.predict_proba(X) == 0).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated = SeenAbsentCalibratedClassifier(forest, gamma=100.0, seen_classes=SEEN).fit(X, y)
        assert np.isfinite(calibrated.predict_log_proba(X)).all()
    assert set(calibrated.predict(X)) == {"cat", "fox"}


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


# --- gamma ------------------------------------------------------------------------------------------------------------


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
    expected = finecal.max_logit_gap(*pair, SEEN_MASK)
    by_function = SeenAbsentCalibratedClassifier(base, gamma=finecal.max_logit_gap).fit(*seen_data)
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
    assert calibrated.estimate_ == getattr(finecal, name)(*samples, seed=3)


def test_named_estimators_get_the_share_if_they_take_it(seen_data, base):
    options = {"held_out": True, "seen_share": 0.9}
    calibrated = SeenAbsentCalibratedClassifier(base, gamma="residual_gap", **options).fit(*seen_data)
    samples = base.decision_function(seen_data[0]), index_of(seen_data[1]), SEEN_MASK
    assert calibrated.gamma_ == finecal.residual_gap(*samples, 0.9).gamma
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
        float(finecal.fit_temperature(scores, index_of(seen_data[1])).temperature)
    )
    assert calibrated.temperature_ != 1


@pytest.mark.parametrize("gamma", ["auto", 0.0, finecal.max_logit_gap])
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


# --- fitted, unfitted, frozen -----------------------------------------------------------------------------------------


def test_a_fitted_base_is_used_as_it_is(seen_data, base):
    before = pickle.dumps(base)
    for estimator in (base, FrozenEstimator(base)):
        calibrated = SeenAbsentCalibratedClassifier(estimator).fit(*seen_data)
        assert calibrated.estimator_ is estimator
        assert calibrated.estimator is estimator
    assert pickle.dumps(base) == before


def test_an_unfitted_base_is_cloned_and_fitted(seen_data):
    base = LogisticRegression(C=0.5)
    calibrated = SeenAbsentCalibratedClassifier(base).fit(*seen_data)
    assert not hasattr(base, "coef_")
    np.testing.assert_array_equal(calibrated.estimator_.coef_, LogisticRegression(C=0.5).fit(*seen_data).coef_)
    assert calibrated.classes_.tolist() == SEEN.tolist()


def test_another_fit_starts_anew(data, seen_data):
    calibrated = SeenAbsentCalibratedClassifier(LogisticRegression()).fit(*seen_data).fit(*data)
    assert calibrated.classes_.tolist() == ANIMALS.tolist()


def test_a_fit_that_fails_changes_nothing(data, seen_data, base):
    X, y = data
    calibrated = SeenAbsentCalibratedClassifier(base).fit(*seen_data)
    before = {name: value for name, value in vars(calibrated).items() if name.endswith("_")}
    calibrated.set_params(gamma=lambda scores, indices, mask: float("nan"), seen_classes=["cat"])
    with pytest.raises(ValueError, match="gamma"):
        calibrated.fit(X, y)
    assert all(getattr(calibrated, name) is value for name, value in before.items())


def test_clone_says_that_it_unfits(base):
    with pytest.warns(finecal.FinecalWarning, match="FrozenEstimator"):
        copy = clone(SeenAbsentCalibratedClassifier(base, gamma=1.0))
    assert copy.gamma == 1.0
    assert not hasattr(copy.estimator, "coef_")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = clone(SeenAbsentCalibratedClassifier(FrozenEstimator(base), gamma=1.0))
        clone(SeenAbsentCalibratedClassifier(LogisticRegression()))
    assert kept.estimator.estimator is base


def test_pickle_keeps_it(data, seen_data, base):
    calibrated = SeenAbsentCalibratedClassifier(base).fit(*seen_data)
    restored = pickle.loads(pickle.dumps(calibrated))
    assert restored.gamma_ == calibrated.gamma_
    np.testing.assert_array_equal(restored.predict_proba(data[0]), calibrated.predict_proba(data[0]))


@pytest.mark.filterwarnings("ignore:Number of classes:RuntimeWarning")
def test_the_case_in_which_calibrated_classifier_cv_raises(data, seen_data, base):
    X, y = data
    calibrated = SeenAbsentCalibratedClassifier(FrozenEstimator(base)).fit(*seen_data)
    assert calibrated.score(X, y) > base.score(X, y)
    for ensemble, error in ((True, ValueError), (False, IndexError)):
        with pytest.raises(error):
            CalibratedClassifierCV(FrozenEstimator(base), ensemble=ensemble).fit(*seen_data)


# --- the rest of scikit-learn -----------------------------------------------------------------------------------------


def test_in_a_pipeline_and_around_one(data, seen_data):
    X, y = data
    scaler = StandardScaler().fit(X)
    base = outgrown(scaler.transform(X), y)
    expected = SeenAbsentCalibratedClassifier(base).fit(scaler.transform(seen_data[0]), seen_data[1])
    inside = make_pipeline(FrozenEstimator(scaler), SeenAbsentCalibratedClassifier(base)).fit(*seen_data)
    around = SeenAbsentCalibratedClassifier(make_pipeline(scaler, base)).fit(*seen_data)
    assert inside[-1].gamma_ == expected.gamma_
    assert around.gamma_ == expected.gamma_
    probabilities = expected.predict_proba(scaler.transform(X))
    np.testing.assert_array_equal(inside.predict_proba(X), probabilities)
    np.testing.assert_array_equal(around.predict_proba(X), probabilities)
    unfitted = SeenAbsentCalibratedClassifier(make_pipeline(StandardScaler(), LogisticRegression())).fit(X, y)
    assert unfitted.score(X, y) == make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y).score(X, y)


def test_texts_go_to_the_base_as_they_are():
    texts = ["a meow", "meow", "a bark", "bark bark", "a moo", "moo moo"]
    y = np.repeat(["cat", "dog", "cow"], 2)
    base = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, y)
    calibrated = SeenAbsentCalibratedClassifier(base, gamma=0.5).fit(texts[:4], y[:4])
    assert calibrated.predict(texts).tolist() == y.tolist()
    assert calibrated.seen_mask_.tolist() == [True, False, True]


def test_grid_search_over_gamma(data, base):
    X, y = data
    grid = [0.0, 1.0, 2.0, 4.0, 50.0]
    calibrated = SeenAbsentCalibratedClassifier(FrozenEstimator(base), seen_classes=SEEN)
    search = GridSearchCV(calibrated, {"gamma": grid}, cv=5).fit(X, y)
    # Nothing is fitted, so that the mean over equally large folds is the accuracy on all.
    accuracies = [np.mean(ANIMALS[finecal.predict(base.decision_function(X), SEEN_MASK, gamma)] == y) for gamma in grid]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], accuracies)
    assert search.best_params_["gamma"] == 4.0
    assert search.best_estimator_.gamma_ == 4.0


def test_grid_search_over_the_base(data):
    tree = SeenAbsentCalibratedClassifier(DecisionTreeClassifier(random_state=0))
    search = GridSearchCV(tree, {"estimator__max_depth": [1, 6]}, cv=2).fit(*data)
    assert search.best_params_ == {"estimator__max_depth": 6}  # a tree of depth 1 knows two classes


def test_cross_validation_of_a_fitted_base_warns(data, base):
    with pytest.warns(finecal.FinecalWarning, match="FrozenEstimator"):
        cross_val_score(SeenAbsentCalibratedClassifier(base), *data, cv=2)


def test_data_frames_keep_their_names(data, rng):
    X, y = data
    frame = pd.DataFrame(X, columns=list("abcde"))
    series = pd.Series(y, index=np.arange(len(y))[::-1], dtype="string")
    rows = np.isin(y, SEEN)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).set_output(transform="pandas")
    pipeline.fit(frame, series)
    for labels in (series, series.astype("category"), series.astype(object), y):
        calibrated = SeenAbsentCalibratedClassifier(pipeline, gamma=0.5).fit(frame[rows], labels[rows])
        assert calibrated.feature_names_in_.tolist() == list("abcde")
        assert calibrated.n_features_in_ == 5
        assert calibrated.seen_mask_.tolist() == SEEN_MASK.tolist()
    step = make_pipeline(StandardScaler(), SeenAbsentCalibratedClassifier(LogisticRegression()))
    step.set_output(transform="pandas").fit(frame, series)
    assert step[-1].feature_names_in_.tolist() == list("abcde")
    assert (step.predict(frame) == make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y).predict(X)).all()
    with pytest.raises(ValueError, match="feature names"):
        calibrated.predict(frame[list("edcba")])


def test_sparse_input(data, seen_data):
    X, y = data
    base = outgrown(scipy.sparse.csr_matrix(X), y)
    dense = SeenAbsentCalibratedClassifier(base).fit(*seen_data)
    for make in (scipy.sparse.csr_matrix, scipy.sparse.csr_array):
        sparse = SeenAbsentCalibratedClassifier(base).fit(make(seen_data[0]), seen_data[1])
        assert sparse.gamma_ == pytest.approx(dense.gamma_)
        assert (sparse.predict(make(X)) == dense.predict(X)).all()


def test_sample_weights_go_to_the_fit_of_the_base(data, seen_data, base, rng):
    X, y = data
    weight = rng.integers(0, 3, len(y))
    calibrated = SeenAbsentCalibratedClassifier(LogisticRegression()).fit(X, y, sample_weight=weight)
    expected = LogisticRegression().fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(calibrated.estimator_.coef_, expected.coef_)
    # A weight of zero takes the class of a sample out of the seen ones.
    absent = ~np.isin(y, SEEN)
    weighted = SeenAbsentCalibratedClassifier(base).fit(X, y, sample_weight=np.where(absent, 0, 2.5))
    assert weighted.gamma_ == SeenAbsentCalibratedClassifier(base).fit(*seen_data).gamma_
    assert weighted.seen_mask_.tolist() == SEEN_MASK.tolist()


def test_fit_params_go_to_the_fit_of_the_base(data):
    pipeline = make_pipeline(StandardScaler(), SGDClassifier(random_state=0))
    coef = np.ones((5, 5))
    calibrated = SeenAbsentCalibratedClassifier(pipeline).fit(*data, sgdclassifier__coef_init=coef)
    expected = clone(pipeline).fit(*data, sgdclassifier__coef_init=coef)
    np.testing.assert_array_equal(calibrated.estimator_[-1].coef_, expected[-1].coef_)


def test_metadata_routing(data, seen_data, base, rng):
    X, _ = draw(rng)
    expected = SeenAbsentCalibratedClassifier(base, held_out=True).fit(*seen_data, X_unlabelled=X)
    assert expected.gamma_ != SeenAbsentCalibratedClassifier(base, held_out=True).fit(*seen_data).gamma_
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = FrozenEstimator(StandardScaler(with_mean=False, with_std=False).fit(X))
        step = SeenAbsentCalibratedClassifier(base, held_out=True).set_fit_request(X_unlabelled=True)
        pipeline = make_pipeline(scaler, step, transform_input=["X_unlabelled"])
        assert pipeline.fit(*seen_data, X_unlabelled=X)[-1].gamma_ == expected.gamma_
        unset = make_pipeline(scaler, SeenAbsentCalibratedClassifier(base, held_out=True))
        with pytest.raises(UnsetMetadataPassedError, match="X_unlabelled"):
            unset.fit(*seen_data, X_unlabelled=X)

        weight = rng.uniform(1, 2, len(data[1]))
        inner = LogisticRegression().set_fit_request(sample_weight=True)
        weighted = SeenAbsentCalibratedClassifier(inner).fit(*data, sample_weight=weight)
        direct = LogisticRegression().fit(*data, sample_weight=weight)
        np.testing.assert_array_equal(weighted.estimator_.coef_, direct.coef_)
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            SeenAbsentCalibratedClassifier(LogisticRegression()).fit(*data, sample_weight=weight)


def test_html_representation_shows_the_base(seen_data, base):
    for calibrated in (
        SeenAbsentCalibratedClassifier(base),
        SeenAbsentCalibratedClassifier(base, gamma=finecal.max_logit_gap).fit(*seen_data),
    ):
        html = calibrated._repr_html_()
        assert "SeenAbsentCalibratedClassifier" in html
        assert "LogisticRegression" in html
        assert "LogisticRegression" in repr(calibrated)


# --- what comes in wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"gamma": "mlg"}, ValueError, "gamma is 'mlg'; pass \"auto\""),
        ({"gamma": None}, TypeError, "gamma"),
        ({"gamma": float("inf")}, ValueError, "gamma"),
        ({"gamma": [1.0, 2.0]}, TypeError, "gamma"),
        ({"gamma": lambda *_: None}, TypeError, "gamma"),
        ({"temperature": "fit"}, ValueError, "temperature is 'fit'"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"seen_classes": "dog"}, ValueError, "seen_classes"),
        ({"seen_classes": 3}, TypeError, "seen_classes is 3"),
        ({"seen_classes": []}, ValueError, "seen_classes is empty"),
        ({"seen_classes": ["dog", "yak"]}, ValueError, "seen_classes contains 'yak', unknown to the classifier"),
        ({"seen_classes": SEEN_MASK}, TypeError, "seen_classes is a boolean mask"),
        ({"seen_classes": [["dog", "elk"]]}, ValueError, "seen_classes has shape"),
        ({"seen_classes": ["dog", "elk"]}, ValueError, "y contains 40 samples of classes that are not in seen_classes"),
        ({"response_method": "proba"}, ValueError, "response_method"),
        ({"seen_share": 1.5}, ValueError, "seen_share"),
        ({"held_out": ("X", "y")}, TypeError, "held_out is a tuple; pass True or False"),
        ({"random_state": "a"}, ValueError, "a"),
    ],
)
def test_parameters_are_checked(params, error, message, seen_data, base):
    with pytest.raises(error, match=message):
        SeenAbsentCalibratedClassifier(base, **params).fit(*seen_data)


def test_labels_are_checked(data, seen_data, base):
    X, y = seen_data
    calibrated = SeenAbsentCalibratedClassifier(base)
    for labels, message in [
        (np.where(y == "dog", "yak", y), "y contains 'yak', unknown to the classifier, whose classes are 'cat', 'dog'"),
        (index_of(y), "y contains 1, 2, 4, unknown"),
        (y[:-1], "inconsistent numbers of samples"),
        (np.stack([y, y], axis=1), "y should be a 1d array"),
        (np.where(y == "dog", None, y), "y mixes labels of types NoneType, str"),
        (np.where(np.arange(len(y)) == 0, 1, y.astype(object)), "y mixes labels of types int, str"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            calibrated.fit(X, labels)
    with pytest.raises(ValueError, match="the labels y have a single sample of 1 of the 4 classes.*pass seen_classes="):
        calibrated.fit(np.append(X, X[:1], axis=0), np.append(y, "cat"))  # one sample: not all seen classes may be here
    with pytest.warns(DataConversionWarning):
        calibrated.fit(X, y[:, None])


def test_weights_are_checked(seen_data, base):
    X, y = seen_data
    calibrated = SeenAbsentCalibratedClassifier(base)
    with pytest.raises(ValueError, match="sample_weight is zero for every sample"):
        calibrated.fit(X, y, sample_weight=np.zeros(len(y)))
    with pytest.raises(ValueError, match=r"sample_weight has shape \(3,\)"):
        calibrated.fit(X, y, sample_weight=np.ones(3))
    with pytest.raises(ValueError, match="sample_weight has negative"):
        calibrated.fit(X, y, sample_weight=np.full(len(y), np.nan))
    with pytest.raises(TypeError, match="sample_weight holds <U1; pass numbers"):
        calibrated.fit(X, y, sample_weight=["1"] * len(y))
    with pytest.raises(TypeError, match="fit of KNeighborsClassifier does not take it"):
        SeenAbsentCalibratedClassifier(KNeighborsClassifier()).fit(X, y, sample_weight=np.ones(len(y)))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    with pytest.raises(TypeError, match="step__sample_weight"):
        SeenAbsentCalibratedClassifier(pipeline).fit(X, y, sample_weight=np.ones(len(y)))


def test_what_does_not_fit_a_fitted_base_is_refused(seen_data, base):
    with pytest.raises(TypeError, match="coef_init, but estimator is fitted"):
        SeenAbsentCalibratedClassifier(base).fit(*seen_data, coef_init=1)
    with pytest.raises(ValueError, match="held_out is True, but estimator is not fitted"):
        SeenAbsentCalibratedClassifier(LogisticRegression(), held_out=True).fit(*seen_data)


def test_what_has_no_effect_is_said(data, seen_data, base):
    X, _ = data
    for params in ({"gamma": 1.0}, {"gamma": finecal.max_logit_gap}):
        with pytest.warns(finecal.FinecalWarning, match="X_unlabelled has no effect"):
            SeenAbsentCalibratedClassifier(base, **params).fit(*seen_data, X_unlabelled=X)
        with pytest.warns(finecal.FinecalWarning, match="seen_share has no effect"):
            SeenAbsentCalibratedClassifier(base, seen_share=0.5, **params).fit(*seen_data)
    with pytest.warns(finecal.FinecalWarning, match="X_unlabelled|unlabelled samples were not used"):
        SeenAbsentCalibratedClassifier(base).fit(*seen_data, X_unlabelled=X)


class NoScores(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.repeat(self.classes_[:1], len(X))


class TwoScores(NoScores):
    def predict_proba(self, X):
        return np.full((len(X), 2), 0.5)


def test_bases_are_checked(data, seen_data):
    X, y = data
    with pytest.raises(AttributeError, match="NoScores has no decision_function or predict_log_proba or predict_proba"):
        SeenAbsentCalibratedClassifier(NoScores()).fit(X, y)
    assert not hasattr(SeenAbsentCalibratedClassifier(NoScores()), "predict_proba")
    with pytest.raises(ValueError, match=r"predict_proba gives an array of shape \(200, 2\) for 5 classes"):
        SeenAbsentCalibratedClassifier(TwoScores()).fit(X, y)
    two_targets = DummyClassifier().fit(X, np.stack([y, y], axis=1))
    with pytest.raises(TypeError, match="DummyClassifier predicts 2 targets"):
        SeenAbsentCalibratedClassifier(two_targets).fit(*seen_data)


def test_nothing_is_there_before_fit(data):
    calibrated = SeenAbsentCalibratedClassifier(LogisticRegression())
    with pytest.raises(NotFittedError):
        calibrated.predict(data[0])
    assert not hasattr(calibrated, "n_features_in_")
    assert not hasattr(calibrated, "feature_names_in_")


def test_no_samples_to_predict_is_for_the_base_to_judge(seen_data, base):
    calibrated = SeenAbsentCalibratedClassifier(base).fit(*seen_data)
    with pytest.raises(ValueError, match="minimum of 1"):
        calibrated.predict(np.empty((0, 5)))
