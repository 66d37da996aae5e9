"""Labelled samples of a fitted classifier, before and after gamma, for whoever evaluates it."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ._classifier import SeenAbsentCalibratedClassifier
from ._gamma import with_gamma
from ._inputs import mask_of
from ._metrics import scores_and_labels
from ._prototypes import features_of, with_prototypes
from ._scores import class_scores

Samples: TypeAlias = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]
"""Scores `(N, C)` before softmax, class indices `(N,)` and the mask `(C,)`."""


class Scored(NamedTuple):
    """Samples, and gamma if the classifier has one."""

    samples: Samples
    gamma: float | None


class _Found(NamedTuple):
    """A classifier with gamma, and the samples as it takes them."""

    classifier: SeenAbsentCalibratedClassifier
    X: Any


def scores_before_gamma(estimator: Any, X: Any, y: Any, seen_classes: Any) -> Scored:
    """Return what `SeenAbsentCalibratedClassifier` adds gamma to, prototypes included; of others, their scores."""
    found = _find(estimator, X)
    named = _seen_classes(estimator, found, seen_classes)
    if found is None:
        return Scored(scores_and_labels(y, class_scores(estimator, X), named, estimator.classes_), None)
    classifier = found.classifier
    scores = class_scores(classifier.estimator_, found.X, response_method=classifier.response_method)
    if classifier.prototypes_ is not None:
        calibrated = with_prototypes(scores, features_of(classifier.estimator_, found.X), classifier.prototypes_)
        scores = with_gamma(calibrated, classifier.seen_mask_, -classifier.gamma_)
    return Scored(scores_and_labels(y, scores, named, classifier.classes_), classifier.gamma_)


def scores_after_gamma(estimator: Any, X: Any, y: Any, seen_classes: Any) -> Scored:
    """Return logarithms of the classifier's probabilities, gamma included."""
    found = _find(estimator, X)
    named = _seen_classes(estimator, found, seen_classes)
    method = "predict_log_proba" if hasattr(estimator, "predict_log_proba") else "predict_proba"
    scores = class_scores(estimator, X, response_method=method)
    gamma = None if found is None else found.classifier.gamma_
    return Scored(scores_and_labels(y, scores, named, estimator.classes_), gamma)


def _find(estimator: Any, X: Any) -> _Found | None:
    """Find the classifier with gamma that `estimator` is or ends in; None without one, or if it has no absent class."""
    before = []
    while not isinstance(estimator, SeenAbsentCalibratedClassifier):
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            if len(estimator) > 1:
                before.append(estimator[:-1])
            estimator = estimator[-1]
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            return None
    check_is_fitted(estimator)
    if estimator.seen_mask_.all():
        return None
    for steps in before:
        X = steps.transform(X)
    return _Found(estimator, X)


def _seen_classes(estimator: Any, found: _Found | None, seen_classes: Any) -> Any:
    """Return the labels of the seen classes, or say which ones they should be."""
    if found is None:
        if seen_classes is None:
            raise TypeError(
                f"seen_classes is None, and {type(estimator).__name__} knows of no absent classes: pass the labels of "
                "the seen ones"
            )
        return seen_classes
    classes, mask = found.classifier.classes_, found.classifier.seen_mask_
    if seen_classes is not None and (mask_of(seen_classes, classes) != mask).any():
        raise ValueError(
            "seen_classes are others than those of the SeenAbsentCalibratedClassifier, and its gamma is for those: "
            "leave seen_classes out"
        )
    return classes[mask]
