"""Scores of any classifier, and the gamma, temperature and prototypes that `SeenAbsentCalibratedClassifier` adds."""

from collections.abc import Callable, Iterator
from functools import partial
from numbers import Integral
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state

from .._calibrators.prototypes import Prototypes, fit_prototypes
from .._calibrators.temperature import fit_temperature
from .._core.arrays import as_tensor, check_choice, check_seed, check_temperature
from .._core.calibrate import calibrate_logits
from .._core.checks import gamma_as_float
from .._core.samples import Samples
from .._core.warning import error_context, warn
from .._estimators.auto import estimate_gamma
from .._estimators.estimate import GammaEstimate
from .._estimators.search import search_gamma
from .._estimators.table import BY_NAME, ESTIMATORS, Data
from ._metrics import Labelled, log_of_probabilities, name_errors, replace_infinite_logs, two_columns

Scores: TypeAlias = NDArray[np.float64]
GammaFunction: TypeAlias = Callable[[Scores, NDArray[np.int64], NDArray[np.bool_]], SupportsFloat]
"""A function of scores, class indices and seen mask that returns gamma, such as `max_logit_gap`."""
NAMED = tuple(estimator.name for estimator in ESTIMATORS if estimator.data in (Data.SEEN, Data.HELD_OUT, Data.LABELLED))
"""Estimators from labelled samples, the only samples that `fit` always has."""
RESPONSE_METHODS = ("decision_function", "predict_log_proba", "predict_proba")
"""In order of preference: decisions are never rounded to 0 or 1, as probabilities are."""


def class_scores(estimator: Any, X: Any, *, response_method: str = "auto") -> NDArray[np.float64]:
    """Return one score before softmax for each sample and class, `(N, C)`, in the order of ``estimator.classes_``.

    "auto" is the first of `RESPONSE_METHODS` with a score per class; 1-D decisions d become the columns (0, d).
    """
    check_choice(response_method, ("auto", *RESPONSE_METHODS), "response_method")
    name = type(estimator).__name__
    num_classes = len(single_target_classes(estimator))
    methods = RESPONSE_METHODS if response_method == "auto" else (response_method,)
    available = [method for method in methods if hasattr(estimator, method)]
    if not available:
        raise AttributeError(f"{name} has no {' or '.join(methods)}; pass a classifier that scores its classes")
    doubts = []
    for method in available:
        # One versus one: for three classes the shape of the decisions does not show it.
        shapes = (getattr(model, "decision_function_shape", None) for model, _ in unwrap(estimator))
        if method == "decision_function" and num_classes > 2 and "ovo" in shapes:
            doubts.append('decision_function scores pairs of classes; set decision_function_shape="ovr"')
            continue
        # Trees compute the logarithm of zeros.
        with np.errstate(divide="ignore"):
            response = np.asarray(getattr(estimator, method)(X))
        if response.ndim == 1 or response.shape[1:] == (1,):
            if num_classes == 2 and method == "decision_function":
                return two_columns(response.reshape(-1))
        elif response.shape[1] == num_classes:
            return _TO_SCORES[method](response)
        if num_classes == 1 and response.size == len(response):
            return np.zeros((len(response), 1))
        doubts.append(f"{method} gives an array of shape {response.shape} for {num_classes} classes")
    raise ValueError(
        f"{name} does not score its classes one by one: {', and '.join(doubts)}. If it takes its classes from the "
        "labels of its last fit, as skorch does, tell it all of them: classes="
    )


def single_target_classes(estimator: Any) -> NDArray[Any]:
    """Return ``classes_`` of a fitted classifier, or raise if there is no such array."""
    name = type(estimator).__name__
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        raise TypeError(f"the estimator {name} has no classes_; pass a fitted classifier")
    if isinstance(classes, list) and len(classes) > 0 and np.ndim(classes[0]) > 0:
        raise TypeError(f"the estimator {name} predicts {len(classes)} targets; pass a classifier of one target")
    return np.asarray(classes)


_TO_SCORES: dict[str, Callable[[NDArray[Any]], NDArray[np.float64]]] = {
    "decision_function": lambda decisions: decisions.astype(np.float64),
    "predict_log_proba": replace_infinite_logs,
    "predict_proba": log_of_probabilities,
}


def unwrap(estimator: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield `estimator` and the estimators inside it that receive X, each with the steps that transform X before."""
    steps: list[Any] = []
    while estimator is not None:
        yield estimator, steps
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            steps = [*steps, estimator[:-1]] if len(estimator) > 1 else steps
            estimator = estimator[-1]
        else:
            estimator = getattr(estimator, "best_estimator_", None)


def check_gamma_source(gamma: object, held_out: object) -> None:
    """Raise unless gamma is "auto", the name of an estimator, a number or a function, and `held_out` a boolean."""
    if not isinstance(held_out, bool | np.bool_):
        raise TypeError(f"held_out is a {type(held_out).__name__}; pass True or False, and the samples to fit")
    if isinstance(gamma, str):
        if gamma not in ("auto", *NAMED):
            raise ValueError(
                f'gamma is {gamma!r}; pass "auto", a number, a function, or the name of an estimator from labelled '
                f"samples: {', '.join(NAMED)}"
            )
        if gamma in NAMED and BY_NAME[gamma].data is Data.HELD_OUT and not held_out:
            raise ValueError(
                f"gamma is {gamma!r}, which needs samples that the estimator was not trained on: pass held_out=True if "
                "the samples to fit are such"
            )
    elif not callable(gamma):
        gamma_as_float(gamma)


def find_gamma(
    gamma: str | SupportsFloat | GammaFunction,
    samples: Labelled,
    unlabelled: Scores | None,
    *,
    held_out: bool,
    seen_share: float | None,
    random_state: Any,
    prototypes: bool,
) -> tuple[float, GammaEstimate | None]:
    """Return gamma and, if it was estimated, the `GammaEstimate`."""
    only_seen = bool(samples.seen_mask[samples.indices].all())
    if prototypes and not (gamma == "auto" and only_seen and (held_out or seen_share is not None)):
        unlabelled = None  # given for the prototypes: no warning that gamma does not use them
    found: SupportsFloat
    if isinstance(gamma, str) and gamma in NAMED:
        options = {"seen_share": seen_share} if "seen_share" in BY_NAME[gamma].options else {}
        function = partial(BY_NAME[gamma].function, **options, seed=_seed(random_state))
        found = function(samples.scores, samples.indices, samples.seen_mask)
        seen_share = None if options else seen_share
    elif not isinstance(gamma, str):
        found = gamma(samples.scores, samples.indices, samples.seen_mask) if callable(gamma) else gamma
    elif only_seen and samples.seen_mask.sum() == 1 and unlabelled is None:
        raise ValueError(
            'only one class is seen, and gamma="auto" has none to compare with: pass X_unlabelled, with seen_share or '
            "held-out samples, or gamma as a number"
        )
    elif only_seen:
        pair = samples.scores, samples.indices
        found = estimate_gamma(
            samples.seen_mask,
            train=None if held_out else pair,
            held_out=pair if held_out else None,
            unlabelled=unlabelled,
            seen_share=seen_share,
            seed=_seed(random_state),
        )
    elif held_out:
        found = search_gamma(samples.scores, samples.indices, samples.seen_mask)
    else:
        count = int((~samples.seen_mask[samples.indices]).sum())
        raise ValueError(
            f"y contains {count} samples of classes that are not in seen_classes: if the estimator was not trained on "
            "any of these samples, pass held_out=True, and gamma is searched for on them; otherwise drop them, or pass "
            "gamma as a number"
        )
    if not (gamma == "auto" and only_seen):
        for name, value in (("X_unlabelled", unlabelled), ("seen_share", seen_share)):
            if value is not None:
                warn(f'{name} has no effect: it is for gamma="auto" with samples of seen classes only')
    return gamma_as_float(found), found if isinstance(found, GammaEstimate) else None


def add_gamma(scores: Scores, seen_mask: NDArray[np.bool_], gamma: float) -> Scores:
    """Add gamma to the scores of absent classes, if there are any."""
    return scores if seen_mask.all() else calibrate_logits(scores, seen_mask, gamma)


def check_temperature_source(temperature: object) -> None:
    """Raise unless the temperature is None, "auto" or a positive number."""
    if isinstance(temperature, str) and temperature != "auto":
        raise ValueError(f'temperature is {temperature!r}; pass "auto", a positive number, or None')
    if temperature is not None and not isinstance(temperature, str):
        check_temperature(temperature, "temperature")


def find_temperature(temperature: str | float | None, scores: Scores, indices: NDArray[np.int64]) -> float:
    """Return the temperature for calibrated scores."""
    if temperature is None or scores.shape[1] < 2:
        return 1.0
    return float(fit_temperature(scores, indices).temperature if isinstance(temperature, str) else temperature)


def _seed(random_state: Any) -> int:
    """Return an integer random state unchanged; draw a seed from any other."""
    with error_context("random_state"):
        if isinstance(random_state, Integral):
            return check_seed(int(random_state))
        return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


Features: TypeAlias = NDArray[np.float64]
_WIDEST_SPARSE = 4096
"""Most columns of a sparse matrix that becomes dense: prototypes need the products of all pairs of columns."""


def features_of(estimator: Any, X: Any) -> Features:
    """Return the inputs of the linear layer of a fitted classifier, `(N, D)`: X for `coef_`, else its `transform`."""
    *_, (model, steps) = unwrap(estimator)
    for step in steps:
        X = step.transform(X)
    if hasattr(model, "coef_"):
        return _to_dense(X)
    if hasattr(model, "transform"):
        return _to_dense(model.transform(X))
    raise ValueError(
        f"{type(model).__name__} has no features to make prototypes of, as it is not linear and has no transform; "
        "pass a classifier with coef_, or a pipeline that ends with one, or leave prototypes out"
    )


def find_prototypes(
    unlabelled: Samples, samples: Labelled, features: Features, gamma: SupportsFloat, *, held_out: bool
) -> Prototypes:
    """Fit prototypes to unlabelled samples; held-out samples of seen classes serve as a check."""
    seen = samples.seen_mask[samples.indices]
    check = Samples(samples.scores[seen], samples.indices[seen], features=features[seen]) if seen.any() else None
    return fit_prototypes(unlabelled, samples.seen_mask, gamma, held_out=check if held_out else None)


def add_prototypes(scores: Scores, features: Features, prototypes: Prototypes) -> Scores:
    """Return scores with gamma and the scores of the prototypes added."""
    calibrated: Scores = prototypes(as_tensor(scores, "scores"), as_tensor(features, "features")).numpy()
    return calibrated


def _to_dense(features: Any) -> Features:
    if hasattr(features, "toarray"):
        if features.shape[1] > _WIDEST_SPARSE:
            raise ValueError(
                f"the features are sparse, of {features.shape[1]} columns, and prototypes are made of at most "
                f"{_WIDEST_SPARSE}; reduce them before it, by TruncatedSVD for example"
            )
        features = features.toarray()
    with name_errors("X"):
        return np.asarray(features, dtype=np.float64)
