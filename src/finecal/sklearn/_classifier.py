"""The meta-estimator: any classifier, with gamma added to the scores of classes absent from its last training data."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Self, SupportsFloat

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_consistent_length, check_is_fitted, has_fit_parameter

from sklearn import get_config

from .._core.arrays import check_choice, check_flag, check_share
from .._core.calibrate import predict
from .._core.samples import Samples
from .._core.seen_mask import check_complete_sample
from .._core.warning import warn
from .._estimators.estimate import GammaEstimate
from ._gamma import (
    RESPONSE_METHODS,
    GammaFunction,
    Scores,
    add_gamma,
    add_prototypes,
    check_gamma_source,
    check_temperature_source,
    class_scores,
    features_of,
    find_gamma,
    find_prototypes,
    find_temperature,
    single_target_classes,
)
from ._metrics import Labelled, check_weights, class_indices, label_array, mask_of, name_errors


def _scores_classes(self: SeenAbsentCalibratedClassifier) -> bool:
    """Return True; AttributeError if the inner classifier has no scores."""
    estimator = getattr(self, "estimator_", self.estimator)
    methods = RESPONSE_METHODS if self.response_method == "auto" else (self.response_method,)
    if not any(hasattr(estimator, method) for method in methods):
        raise AttributeError(f"{type(estimator).__name__} has no {' or '.join(methods)}")
    return True


class SeenAbsentCalibratedClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    r"""A classifier of all classes that was last trained on a subset of them, with gamma for the others.

    .. math:: \tilde z_c = z_c + \gamma \, [c \in U]

    z are the scores of `estimator`, U the classes absent from the data of `fit`. See :doc:`/how-to/scikit-learn`.

    Parameters
    ----------
    estimator : classifier
        With ``decision_function``, ``predict_log_proba`` or ``predict_proba`` over all classes. A fitted one, or a
        ``FrozenEstimator``, is never changed. An unfitted one is cloned and fitted on the data of `fit`, and has only
        their classes unless an option of its own names others.
    gamma : "auto", str, float, GammaEstimate or callable, default "auto"
        "auto": `finecal.estimate_gamma`, or `finecal.search_gamma` for held-out samples of seen and absent classes. Or
        the name of an estimator from labelled samples, such as "max_logit_gap". A callable gets
        ``(scores, class_indices, seen_mask)`` and returns a number or a `GammaEstimate`.
    seen_classes : "auto" or array-like of labels, default "auto"
        "auto": the classes in the data of `fit`. Name them if these data may lack a class of the training.
    held_out : bool, default False
        Whether the fitted `estimator` was *not* trained on the samples given to `fit`.
    seen_share : float in (0, 1), optional
        Share of seen-class samples in use, for ``gamma="auto"`` and estimators with this option; default: estimated
        from `X_unlabelled` if `held_out`, else |S| / C.
    temperature : None, "auto" or float, default None
        Divides the calibrated scores in `predict_proba`. "auto": `finecal.calibrators.fit_temperature` on the
        samples given to `fit`, which should be held out.
    response_method : {"auto", "decision_function", "predict_log_proba", "predict_proba"}, default "auto"
        Source of the scores; "auto" is the first with a score per class. Decisions d of a binary classifier are the
        scores (0, d); logarithms of zero are replaced by finite numbers.
    random_state : int, RandomState or None, default 0
        Seed of the estimator of gamma.
    prototypes : bool, default False
        Whether to add prototypes by `finecal.calibrators.fit_prototypes`, from `X_unlabelled` in `fit`. The features
        are the inputs of the linear layer: X for a classifier with `coef_`, else the output of its `transform`, after
        the earlier steps of a pipeline. Sparse features can have up to 4096 columns. If `held_out`, samples of seen
        classes serve as a check.

    Attributes
    ----------
    estimator_ : classifier
        `estimator` if it was fitted, else the fitted clone.
    classes_ : (C,) array
        Classes of `estimator_`, in its order.
    seen_mask_ : (C,) bool
        True for the seen classes.
    gamma_ : float
        0 if every class is seen.
    estimate_ : GammaEstimate or None
        The estimate of `gamma_`, if it was estimated.
    temperature_ : float
        1 without `temperature`.
    prototypes_ : Prototypes or None
        None unless `prototypes` is True and a class is absent.

    Notes
    -----
    ``clone``, ``GridSearchCV`` and ``cross_val_score`` replace a fitted `estimator` by an unfitted copy, with a
    `FinecalWarning`: wrap it in ``sklearn.frozen.FrozenEstimator``.

    Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024.

    Examples
    --------
    After an update with the digits 0 to 4 only:

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import SGDClassifier
    >>> from finecal.sklearn import SeenAbsentCalibratedClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X / 16
    >>> sgd = SGDClassifier(loss="log_loss", alpha=2e-4, random_state=0).fit(
    ...     X[:600], y[:600]
    ... )
    >>> X_new, y_new = X[600:1200][y[600:1200] < 5], y[600:1200][y[600:1200] < 5]
    >>> for _ in range(20):
    ...     sgd = sgd.partial_fit(X_new, y_new)
    >>> calibrated = SeenAbsentCalibratedClassifier(sgd).fit(X_new, y_new)
    >>> calibrated.classes_[calibrated.seen_mask_]
    array([0, 1, 2, 3, 4])
    >>> [round(model.score(X[1200:], y[1200:]), 2) for model in (sgd, calibrated)]
    [0.59, 0.87]
    """

    def __init__(
        self,
        estimator: Any,
        *,
        gamma: str | SupportsFloat | GammaFunction = "auto",
        seen_classes: Any = "auto",
        held_out: bool = False,
        seen_share: float | None = None,
        temperature: str | float | None = None,
        response_method: str = "auto",
        random_state: Any = 0,
        prototypes: bool = False,
    ) -> None:
        self.estimator = estimator
        self.gamma = gamma
        self.seen_classes = seen_classes
        self.held_out = held_out
        self.seen_share = seen_share
        self.temperature = temperature
        self.response_method = response_method
        self.random_state = random_state
        self.prototypes = prototypes

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_unlabelled: Any = None,
        **fit_params: Any,
    ) -> Self:
        """Find the seen classes and gamma, after fitting `estimator` if it is not fitted.

        Parameters
        ----------
        X : array-like, sparse matrix, data frame or list of N samples
            Passed to `estimator` unchecked.
        y : (N,) array-like
            Class labels, all known to a fitted `estimator`.
        sample_weight : (N,) array-like, optional
            For the fit of `estimator`. Gamma and temperature use the samples of nonzero weight, equally.
        X_unlabelled : array-like, sparse matrix, data frame or list of samples, optional
            Samples of all classes, in the proportions of use: for ``gamma="auto"`` with `held_out` or `seen_share`, and
            for `prototypes`.
        **fit_params
            For the fit of `estimator`.

        Raises
        ------
        TypeError, ValueError
            As the fit of `estimator` and the estimator of gamma; if there is not one score per class, `estimator` does
            not have a label or one of `seen_classes`, training samples include absent classes, or `prototypes` lack
            samples or features.

        Warns
        -----
        FinecalWarning
            As the estimator of gamma and `finecal.calibrators.fit_prototypes`; and if an argument has no effect.
        """
        check_gamma_source(self.gamma, self.held_out)
        if self.seen_share is not None:
            check_share(self.seen_share, "seen_share")
        check_temperature_source(self.temperature)
        if check_flag(self.prototypes, "prototypes") and X_unlabelled is None:
            raise ValueError("prototypes are made of unlabelled samples; pass them to fit as X_unlabelled=")
        labels = label_array(y, "y", warn=True)
        with name_errors("X and y"):
            check_consistent_length(X, labels)
        weights = check_weights(sample_weight, len(labels))
        estimator = self._fitted_estimator(X, labels, sample_weight, fit_params)
        classes = single_target_classes(estimator)
        scores, indices = self._scores_of(estimator, X), class_indices(labels, classes)
        # scikit-learn treats a sample of weight 0 as missing.
        scores, indices = scores[weights > 0], indices[weights > 0]
        samples = Labelled(scores, indices, self._seen_mask(indices, classes))
        unlabelled = None if X_unlabelled is None else self._scores_of(estimator, X_unlabelled)
        gamma, estimate = self._find_gamma(samples, unlabelled)
        prototypes, calibrated = None, add_gamma(scores, samples.seen_mask, gamma)
        if self.prototypes and unlabelled is not None and not samples.seen_mask.all():
            features = features_of(estimator, X)[weights > 0]
            others = Samples(unlabelled, features=features_of(estimator, X_unlabelled))
            found = gamma if estimate is None else estimate
            prototypes = find_prototypes(others, samples, features, found, held_out=self.held_out)
            calibrated = add_prototypes(scores, features, prototypes)
        temperature = find_temperature(self.temperature, calibrated, indices)
        # Set all attributes at the end: a fit that fails changes none.
        self.estimator_: Any = estimator
        self.classes_: NDArray[Any] = classes
        self.seen_mask_: NDArray[np.bool_] = samples.seen_mask
        self.gamma_: float = gamma
        self.estimate_: GammaEstimate | None = estimate
        self.temperature_: float = temperature
        self.prototypes_ = prototypes
        return self

    @property
    def n_features_in_(self) -> int:
        """Number of features that `estimator_` was fitted on."""
        count: int = self.estimator_.n_features_in_
        return count

    @property
    def feature_names_in_(self) -> NDArray[np.object_]:
        """Names of the features that `estimator_` was fitted on."""
        names: NDArray[np.object_] = self.estimator_.feature_names_in_
        return names

    @available_if(_scores_classes)
    def decision_function(self, X: Any) -> Scores:
        """Return the calibrated scores `(N, C)`; for two classes `(N,)`, the second score minus the first."""
        scores = self._calibrated_scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    @available_if(_scores_classes)
    def predict(self, X: Any) -> NDArray[Any]:
        """Return the `(N,)` labels of the largest calibrated scores; a seen class wins a tie."""
        scores, gamma = self._scores(X), self.gamma_
        if self.prototypes_ is not None:
            scores, gamma = add_prototypes(scores, features_of(self.estimator_, X), self.prototypes_), 0.0
        winners = scores.argmax(axis=1) if self.seen_mask_.all() else predict(scores, self.seen_mask_, gamma)
        labels: NDArray[Any] = self.classes_[winners]
        return labels

    @available_if(_scores_classes)
    def predict_proba(self, X: Any) -> Scores:
        """Return the softmax of the calibrated scores over the temperature, `(N, C)` in the order of `classes_`."""
        probabilities: Scores = np.exp(self.predict_log_proba(X))
        return probabilities

    @available_if(_scores_classes)
    def predict_log_proba(self, X: Any) -> Scores:
        """Return the logarithms of `predict_proba`, computed without underflow."""
        scores = self._calibrated_scores(X) / self.temperature_
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_probabilities: Scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return log_probabilities

    def get_metadata_routing(self) -> MetadataRouter:
        """Return the routing of metadata; `sample_weight` is passed on to `estimator`, `X_unlabelled` is not."""
        to_fit = MethodMapping().add(caller="fit", callee="fit")
        return MetadataRouter(owner=self).add_self_request(self).add(estimator=self.estimator, method_mapping=to_fit)

    def __sklearn_tags__(self) -> Any:
        tags, inner = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.input_tags = deepcopy(inner.input_tags)
        tags.non_deterministic = inner.non_deterministic
        if inner.classifier_tags is not None:
            tags.classifier_tags.multi_class = inner.classifier_tags.multi_class
            tags.classifier_tags.poor_score = inner.classifier_tags.poor_score
        return tags

    def __sklearn_clone__(self) -> SeenAbsentCalibratedClassifier:
        if not isinstance(self.estimator, FrozenEstimator) and _is_fitted(self.estimator):
            warn(
                f"clone() takes away what the fitted {type(self.estimator).__name__} has learned, the absent classes "
                "with it; for GridSearchCV, cross_val_score and the like wrap it: FrozenEstimator(estimator)"
            )
        copy: SeenAbsentCalibratedClassifier = super().__sklearn_clone__()
        return copy

    def _fitted_estimator(
        self, X: Any, y: NDArray[Any], sample_weight: ArrayLike | None, fit_params: dict[str, Any]
    ) -> Any:
        if get_config()["enable_metadata_routing"]:
            params = process_routing(self, "fit", sample_weight=sample_weight, **fit_params).estimator.fit
        else:
            params = fit_params if sample_weight is None else {**fit_params, "sample_weight": sample_weight}
        if _is_fitted(self.estimator):
            if fit_params:
                raise TypeError(
                    f"fit got {', '.join(fit_params)}, but estimator is fitted and stays as it is; leave these out"
                )
            return self.estimator
        if self.held_out:
            raise ValueError(
                "held_out is True, but estimator is not fitted: it would be trained on these very samples; pass a "
                "fitted one (in FrozenEstimator, if this is a clone), or leave held_out out"
            )
        if "sample_weight" in params and not has_fit_parameter(self.estimator, "sample_weight"):
            raise TypeError(
                f"sample_weight cannot be passed on: fit of {type(self.estimator).__name__} does not take it; leave it "
                "out, or name the step of a pipeline: fit(X, y, step__sample_weight=...)"
            )
        return clone(self.estimator).fit(X, y, **params)

    def _seen_mask(self, indices: NDArray[np.int64], classes: NDArray[Any]) -> NDArray[np.bool_]:
        if len(indices) == 0:
            raise ValueError("sample_weight is zero for every sample; pass at least one sample of positive weight")
        if not isinstance(self.seen_classes, str):
            return mask_of(self.seen_classes, classes)
        check_choice(self.seen_classes, ("auto",), "seen_classes")
        mask = np.bincount(indices, minlength=len(classes)) > 0
        if not mask.all():
            instead = 'pass seen_classes= the labels of all of them, instead of "auto"'
            check_complete_sample(torch.from_numpy(indices), "the labels y", instead)
        return mask

    def _find_gamma(self, samples: Labelled, unlabelled: Scores | None) -> tuple[float, GammaEstimate | None]:
        if not samples.seen_mask.all():
            return find_gamma(
                self.gamma,
                samples,
                unlabelled,
                held_out=self.held_out,
                seen_share=self.seen_share,
                random_state=self.random_state,
                prototypes=self.prototypes,
            )
        if isinstance(self.gamma, SupportsFloat) and float(self.gamma) != 0:
            warn(
                f"gamma = {float(self.gamma):.4g} has no effect, as every class is seen: y, or seen_classes, holds all "
                "that estimator knows; name the seen ones with seen_classes="
            )
        elif _is_fitted(self.estimator) and isinstance(self.seen_classes, str):
            warn(
                "y holds every class that the fitted estimator knows, so none is taken for absent, and gamma is 0; if "
                "it was last trained on some of them, name these with seen_classes=, or fit on their samples only"
            )
        return 0.0, None

    def _scores(self, X: Any) -> Scores:
        check_is_fitted(self)
        return self._scores_of(self.estimator_, X)

    def _scores_of(self, estimator: Any, X: Any) -> Scores:
        return class_scores(estimator, X, response_method=self.response_method)

    def _calibrated_scores(self, X: Any) -> Scores:
        scores = self._scores(X)
        if self.prototypes_ is None:
            return add_gamma(scores, self.seen_mask_, self.gamma_)
        return add_prototypes(scores, features_of(self.estimator_, X), self.prototypes_)


def _is_fitted(estimator: Any) -> bool:
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True
