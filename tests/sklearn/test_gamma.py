"""Where gamma comes from: estimated, given, or by the name of an estimator."""

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

import finecal
import reference
from animals import ANIMALS, SEEN, SEEN_MASK, draw, index_of, outgrown
from finecal.sklearn import SeenAbsentCalibratedClassifier

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
