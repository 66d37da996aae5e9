"""The meta-estimator against scikit-learn's own checks."""

import warnings

import pytest
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from finecal.sklearn import SeenAbsentCalibratedClassifier

LOGISTIC, FOREST = LogisticRegression(), RandomForestClassifier(n_estimators=5, random_state=0)
RESAMPLES = "a bootstrap of rows is not one of weights: the forest by itself does not pass either"
NOT_IN_PRINCIPLE = {f"check_sample_weight_equivalence_on_{kind}_data": RESAMPLES for kind in ("dense", "sparse")}


class FittedBefore(SeenAbsentCalibratedClassifier):
    """Gets its base fitted, as a user would give it; the checks bring data of their own, which no other base knows."""

    freeze = False

    def fit(self, X, y, sample_weight=None):
        given = self.estimator
        fitted = clone(given).fit(X, y, sample_weight)
        self.estimator = FrozenEstimator(fitted) if self.freeze else fitted
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "y holds every class that the fitted estimator knows")
                return super().fit(X, y, sample_weight)
        finally:
            self.estimator = given

    fit.__doc__ = SeenAbsentCalibratedClassifier.fit.__doc__


class FrozenBefore(FittedBefore):
    freeze = True


CHECKED = [
    wrap(base)
    for base in (LOGISTIC, FOREST)
    for wrap in (
        SeenAbsentCalibratedClassifier,
        lambda base: SeenAbsentCalibratedClassifier(clone(base).fit(*make_blobs(random_state=0))),
        FittedBefore,
        FrozenBefore,
    )
]


@parametrize_with_checks(
    CHECKED,
    expected_failed_checks=lambda estimator: (
        NOT_IN_PRINCIPLE if isinstance(estimator.estimator, RandomForestClassifier) else {}
    ),
)
@pytest.mark.filterwarnings("ignore:clone.. takes away:finecal.FinecalWarning")
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", NOT_IN_PRINCIPLE)
def test_the_forest_by_itself_does_not_pass_either(name):
    with pytest.raises(AssertionError):
        getattr(estimator_checks, name)("RandomForestClassifier", clone(FOREST))
