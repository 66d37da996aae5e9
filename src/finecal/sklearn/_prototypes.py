"""Prototypes for classifiers of scikit-learn: where their features are, and scores with prototypes added."""

from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from ..calibrators.prototypes import Prototypes
from ..calibrators.prototypes_fit import fit_prototypes
from ..inputs.arrays import as_tensor
from ._gamma import Labelled, Scores
from ._inputs import reading

Features: TypeAlias = NDArray[np.float64]
_WIDEST_SPARSE = 4096
"""Columns of a sparse matrix that is made dense: prototypes need the products of all pairs of columns."""


def features_of(estimator: Any, X: Any) -> Features:
    """Return what a fitted classifier is linear in, `(N, D)`.

    That is X for a classifier with `coef_`, and the output of `transform` for another that has it. Behind the first
    steps of a pipeline, X is what they make of it. ValueError for all other classifiers.
    """
    if isinstance(estimator, FrozenEstimator):
        return features_of(estimator.estimator, X)
    if hasattr(estimator, "best_estimator_"):
        return features_of(estimator.best_estimator_, X)
    if isinstance(estimator, Pipeline):
        return features_of(estimator[-1], estimator[:-1].transform(X) if len(estimator) > 1 else X)
    if hasattr(estimator, "coef_"):
        return _dense(X)
    if hasattr(estimator, "transform"):
        return _dense(estimator.transform(X))
    raise ValueError(
        f"{type(estimator).__name__} has no features to make prototypes of, as it is not linear and has no transform; "
        "pass a classifier with coef_, or a pipeline that ends with one, or leave prototypes out"
    )


def find_prototypes(
    unlabelled: tuple[Scores, Features],
    samples: Labelled,
    features: Features,
    gamma: SupportsFloat,
    *,
    held_out: bool,
) -> Prototypes:
    """Return prototypes of unlabelled samples, checked on the samples of seen classes if these are held out."""
    seen = samples.seen_mask[samples.indices]
    check = samples.scores[seen], samples.indices[seen], features[seen]
    return fit_prototypes(*unlabelled, samples.seen_mask, gamma, held_out=check if held_out and seen.any() else None)


def with_prototypes(scores: Scores, features: Features, prototypes: Prototypes) -> Scores:
    """Add gamma and what prototypes tell to the scores."""
    calibrated: Scores = prototypes(as_tensor(scores, "scores"), as_tensor(features, "features")).numpy()
    return calibrated


def _dense(features: Any) -> Features:
    if hasattr(features, "toarray"):
        if features.shape[1] > _WIDEST_SPARSE:
            raise ValueError(
                f"the features are sparse, of {features.shape[1]} columns, and prototypes are made of at most "
                f"{_WIDEST_SPARSE}; reduce them before it, by TruncatedSVD for example"
            )
        features = features.toarray()
    with reading("X"):
        return np.asarray(features, dtype=np.float64)
