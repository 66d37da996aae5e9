"""The meta-estimator against the core on hand-made scores and a naive rule per sample."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import DataConversionWarning, NotFittedError, UnsetMetadataPassedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

import finecal
import reference
import sklearn
from animals import ANIMALS, BASES, SEEN, SEEN_MASK, draw, index_of, naive_scores, outgrown
from finecal.sklearn import SeenAbsentCalibratedClassifier

# --- predictions ------------------------------------------------------------------------------------------------------


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


def test_a_forest_that_excludes_the_absent_classes_gets_them_back(rng):
    X, y = draw(rng, spread=0.1)
    forest = RandomForestClassifier(n_estimators=3, random_state=0).fit(X, y)
    assert (forest.predict_proba(X) == 0).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated = SeenAbsentCalibratedClassifier(forest, gamma=100.0, seen_classes=SEEN).fit(X, y)
        assert np.isfinite(calibrated.predict_log_proba(X)).all()
    assert set(calibrated.predict(X)) == {"cat", "fox"}


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
        SeenAbsentCalibratedClassifier(base, gamma=finecal.estimators.max_logit_gap).fit(*seen_data),
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
    for params in ({"gamma": 1.0}, {"gamma": finecal.estimators.max_logit_gap}):
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
