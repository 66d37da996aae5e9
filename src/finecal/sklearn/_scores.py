"""One score per class from any classifier: what scikit-learn spreads over three methods and two shapes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from ..inputs.numbers import check_choice

RESPONSE_METHODS = ("decision_function", "predict_log_proba", "predict_proba")
"""In the order of preference: decisions are never rounded to 0 or 1."""


def class_scores(estimator: Any, X: Any, *, response_method: str = "auto") -> NDArray[np.float64]:
    """Return one score before softmax for each sample and class, in the order of ``estimator.classes_``.

    Parameters
    ----------
    estimator : fitted classifier
    X : array-like, sparse matrix, data frame or list of N samples
        As `estimator` takes it; passed on as it is.
    response_method : {"auto", "decision_function", "predict_log_proba", "predict_proba"}
        "auto" takes the first of the three that gives a score per class.

    Returns
    -------
    (N, C) float64
        Decisions, or log-probabilities. The 1-D decisions d of a binary classifier become the columns (0, d).

    Raises
    ------
    AttributeError
        If `estimator` has none of the methods, or not the one named.
    TypeError
        If `estimator` has no ``classes_``, or several targets.
    ValueError
        If no method gives one column per class.

    Notes
    -----
    The logarithm of a probability of zero is the rounding step of its dtype, -36.04 in float64, or the smallest other
    score of the sample if that is lower: finite, and never above another class.
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
        if method == "decision_function" and num_classes > 2 and _is_one_versus_one(estimator):
            doubts.append('decision_function scores pairs of classes; set decision_function_shape="ovr"')
            continue
        # Trees take the logarithm of zeros themselves.
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
    """Return ``classes_`` of a fitted classifier, or say why there is no such array."""
    name = type(estimator).__name__
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        raise TypeError(f"the estimator {name} has no classes_; pass a fitted classifier")
    if isinstance(classes, list) and len(classes) > 0 and np.ndim(classes[0]) > 0:
        raise TypeError(f"the estimator {name} predicts {len(classes)} targets; pass a classifier of one target")
    return np.asarray(classes)


def two_columns(decision: NDArray[Any]) -> NDArray[np.float64]:
    """Return `(N,)` decisions of a binary classifier as the scores (0, d) of its two classes."""
    return np.stack([np.zeros(len(decision)), decision.astype(np.float64)], axis=1)


def log_of_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logarithms of `(N, C)` probabilities, of zeros a finite one."""
    with np.errstate(divide="ignore"):
        return _floored(np.log(probabilities))


def _floored(log_probabilities: NDArray[Any]) -> NDArray[np.float64]:
    zero = np.isneginf(log_probabilities)
    floor = np.log(np.finfo(log_probabilities.dtype).eps)
    smallest = np.where(zero, 0, log_probabilities).min(axis=1, keepdims=True, initial=floor)
    return np.where(zero, smallest, log_probabilities).astype(np.float64)


_TO_SCORES: dict[str, Callable[[NDArray[Any]], NDArray[np.float64]]] = {
    "decision_function": lambda decisions: decisions.astype(np.float64),
    "predict_log_proba": _floored,
    "predict_proba": log_of_probabilities,
}


def _is_one_versus_one(estimator: Any) -> bool:
    """Whether the decisions are those of pairs, of which three classes have three, too."""
    return any(getattr(model, "decision_function_shape", None) == "ovo" for model in _nested(estimator))


def _nested(estimator: Any) -> Iterator[Any]:
    """Yield `estimator` and, as far as they are known, the fitted ones whose decisions it passes on."""
    while estimator is not None:
        yield estimator
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            estimator = estimator.steps[-1][1]
        else:
            estimator = getattr(estimator, "best_estimator_", None)
