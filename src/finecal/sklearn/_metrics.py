"""Accuracies on seen and absent classes, and the area under their curve, as scikit-learn's metrics are called."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_array, check_consistent_length

from ..evaluation.accuracies import AVERAGES, harmonic_mean, weigh_correct
from ..evaluation.evaluate import tradeoff_curve
from ..inputs.numbers import check_choice
from ..inputs.warning import without_warnings
from ._inputs import check_whole, checked_weights, class_indices, label_array, mask_of, reading, seen_labels
from ._scores import log_of_probabilities, two_columns

_SUM_TOLERANCE = 1e-3


def seen_accuracy_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    seen_classes: ArrayLike,
    average: str = "micro",
    sample_weight: ArrayLike | None = None,
) -> float:
    """Return `Acc_{S/Y}`: the accuracy on the samples of seen classes, every class allowed as the prediction.

    Parameters
    ----------
    y_true : (N,) array-like
        Class labels.
    y_pred : (N,) array-like
        Predicted labels.
    seen_classes : (|S|,) array-like
        Labels of the seen classes; all others are absent.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.
    sample_weight : (N,) array-like, optional

    Returns
    -------
    float
        In [0, 1]; NaN without samples of seen classes.

    Raises
    ------
    TypeError, ValueError
        If lengths differ, labels mix strings and numbers, or `seen_classes` is empty or no list of labels.

    Warns
    -----
    sklearn.exceptions.UndefinedMetricWarning
        Without samples of seen classes.

    Examples
    --------
    >>> from finecal.sklearn import seen_accuracy_score
    >>> seen_accuracy_score(
    ...     ["cat", "cat", "dog", "owl"],
    ...     ["cat", "dog", "dog", "cat"],
    ...     seen_classes=["cat", "dog"],
    ... )
    0.6666666666666666
    """
    return _accuracies(y_true, y_pred, seen_classes, average, sample_weight, groups=("seen",))[0]


def absent_accuracy_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    seen_classes: ArrayLike,
    average: str = "micro",
    sample_weight: ArrayLike | None = None,
) -> float:
    """Return `Acc_{U/Y}`: the accuracy on the samples of absent classes, every class allowed as the prediction.

    Parameters
    ----------
    y_true : (N,) array-like
        Class labels.
    y_pred : (N,) array-like
        Predicted labels.
    seen_classes : (|S|,) array-like
        Labels of the seen classes; all others are absent.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.
    sample_weight : (N,) array-like, optional

    Returns
    -------
    float
        In [0, 1]; NaN without samples of absent classes.

    Raises
    ------
    TypeError, ValueError
        As `seen_accuracy_score`.

    Warns
    -----
    sklearn.exceptions.UndefinedMetricWarning
        Without samples of absent classes.

    Examples
    --------
    >>> from finecal.sklearn import absent_accuracy_score
    >>> absent_accuracy_score(
    ...     ["cat", "cat", "owl", "owl"],
    ...     ["cat", "dog", "owl", "cat"],
    ...     seen_classes=["cat", "dog"],
    ... )
    0.5
    """
    return _accuracies(y_true, y_pred, seen_classes, average, sample_weight, groups=("absent",))[0]


def harmonic_mean_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    seen_classes: ArrayLike,
    average: str = "micro",
    sample_weight: ArrayLike | None = None,
) -> float:
    """Return the harmonic mean of `Acc_{S/Y}` and `Acc_{U/Y}`.

    Parameters
    ----------
    y_true : (N,) array-like
        Class labels.
    y_pred : (N,) array-like
        Predicted labels.
    seen_classes : (|S|,) array-like
        Labels of the seen classes; all others are absent.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.
    sample_weight : (N,) array-like, optional

    Returns
    -------
    float
        In [0, 1]; 0 if either accuracy is, NaN without samples of seen or without samples of absent classes.

    Raises
    ------
    TypeError, ValueError
        As `seen_accuracy_score`.

    Warns
    -----
    sklearn.exceptions.UndefinedMetricWarning
        Without samples of seen or without samples of absent classes.

    Examples
    --------
    >>> from finecal.sklearn import harmonic_mean_score
    >>> harmonic_mean_score(
    ...     ["cat", "dog", "owl", "owl"],
    ...     ["cat", "dog", "owl", "cat"],
    ...     seen_classes=["cat", "dog"],
    ... )
    0.6666666666666666
    """
    seen, absent = _accuracies(y_true, y_pred, seen_classes, average, sample_weight, groups=("seen", "absent"))
    return harmonic_mean(seen, absent)


def ausuc_score(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    seen_classes: ArrayLike,
    labels: ArrayLike | None = None,
    average: str = "micro",
    sample_weight: ArrayLike | None = None,
) -> float:
    """Return the area under the seen-absent curve: `Acc_{U/Y}` over `Acc_{S/Y}` while gamma runs over the reals.

    Parameters
    ----------
    y_true : (N,) array-like
        Class labels.
    y_score : (N, C) array-like, or (N,) for the second of two classes
        Decisions or log-probabilities, or probabilities: these are recognised, and their logarithms taken.
    seen_classes : (|S|,) array-like
        Labels of the seen classes; the others are absent.
    labels : (C,) array-like, optional
        The label of each column of `y_score`, as in ``classes_`` of a classifier; default: the sorted labels that occur
        in `y_true` and `seen_classes`, if they are as many as the columns.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.
    sample_weight : (N,) array-like, optional

    Returns
    -------
    float
        In [0, 1]; NaN without samples of seen or without samples of absent classes.

    Raises
    ------
    TypeError, ValueError
        As `finecal.tradeoff_curve` and `seen_accuracy_score`; ValueError if `labels` do not fit the columns, or no
        class or all classes are seen.

    Warns
    -----
    sklearn.exceptions.UndefinedMetricWarning
        Without samples of seen or without samples of absent classes.

    Notes
    -----
    Gamma added to the scores beforehand does not change it. `O(NC + N log N)`. Chao et al., ECCV 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.sklearn import ausuc_score
    >>> scores = np.array(
    ...     [[4.0, 1.0, 3.0], [1.0, 4.0, 0.0], [2.0, 1.0, 0.0], [2.0, 5.0, 1.5]]
    ... )
    >>> ausuc_score(["cat", "dog", "owl", "owl"], scores, seen_classes=["cat", "dog"])
    0.5
    """
    check_choice(average, AVERAGES, "average")
    scores, indices, mask = scores_and_labels(y_true, y_score, seen_classes, labels)
    weight = _weights(indices, average, sample_weight)
    # Labels are found by name, so that they cannot be re-indexed ones.
    with without_warnings():
        curve = tradeoff_curve(scores, indices, mask)
    is_seen = curve.samples.is_seen
    totals = weight[is_seen].sum(), weight[~is_seen].sum()
    for group, total in zip(("seen", "absent"), totals, strict=True):
        if total == 0:
            _warn_undefined(group, stacklevel=3)
    if 0 in totals:
        return float("nan")
    hit = curve.samples.hit
    margin, hit_weight, hit_is_seen = (torch.from_numpy(v[hit]) for v in (curve.samples.margin, weight, is_seen))
    seen, absent = weigh_correct(margin, hit_weight, hit_is_seen, torch.from_numpy(curve.breakpoints))
    return float(torch.trapezoid(absent / totals[1], -seen / totals[0]))


def scores_and_labels(
    y_true: Any, y_score: Any, seen_classes: Any, labels: Any
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """Return scores `(N, C)` before softmax, class indices `(N,)` and the mask `(C,)` from what users pass."""
    labelled = label_array(y_true, "y_true")
    with reading("y_score"):
        check_whole(y_score)
        scores = check_array(
            y_score, dtype=[np.float64, np.float32], ensure_2d=False, ensure_all_finite=False, input_name="y_score"
        )
    if (np.isnan(scores) | np.isposinf(scores)).any():
        raise ValueError("y_score has NaN or +inf entries; pass finite scores (-inf masks a class)")
    with reading("y_true and y_score"):
        check_consistent_length(labelled, scores)
    classes = _column_labels(labelled, seen_classes, labels)
    if scores.ndim == 1:
        is_share = bool(((scores >= 0) & (scores <= 1)).all())
        scores = np.stack([1 - scores, scores], axis=1) if is_share else two_columns(scores)
    if scores.ndim == 2 and _are_probabilities(scores):
        scores = log_of_probabilities(scores)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        source = "the labels that occur in y_true and seen_classes" if labels is None else "labels"
        raise ValueError(
            f"y_score has shape {np.shape(y_score)}, and {source} are {len(classes)} classes: pass labels=, the class "
            "of each column (classes_ of the classifier)"
        )
    mask = mask_of(seen_classes, classes)
    if mask.all():
        raise ValueError(f"seen_classes holds all {len(mask)} classes, so that none is absent; name the seen ones only")
    indices = class_indices(labelled, classes, "y_true")
    return scores, indices, mask


def _accuracies(
    y_true: Any, y_pred: Any, seen_classes: Any, average: str, sample_weight: Any, groups: tuple[str, ...]
) -> list[float]:
    """Return the accuracy on each of `groups`, NaN with a warning where it has no samples."""
    check_choice(average, AVERAGES, "average")
    y_true, y_pred = label_array(y_true, "y_true"), label_array(y_pred, "y_pred")
    with reading("y_true and y_pred"):
        check_consistent_length(y_true, y_pred)
        classes = unique_labels(y_true, y_pred)
    classes = _with_seen(classes, seen_classes)
    indices = class_indices(y_true, classes, "y_true")
    weight = _weights(indices, average, sample_weight)
    is_seen, correct = mask_of(seen_classes, classes)[indices], y_true == y_pred
    accuracies = []
    for group in groups:
        members = is_seen if group == "seen" else ~is_seen
        total = weight[members].sum()
        if total == 0:
            _warn_undefined(group, stacklevel=4)
        accuracies.append(float(weight[members & correct].sum() / total) if total else float("nan"))
    return accuracies


def _weights(indices: NDArray[np.int64], average: str, sample_weight: ArrayLike | None) -> NDArray[np.float64]:
    """Return the weight of each sample, under "macro" as a share of its class."""
    weight = checked_weights(sample_weight, len(indices))
    if average == "macro":
        totals = np.bincount(indices, weight)[indices]
        weight = np.divide(weight, totals, out=np.zeros_like(weight), where=totals > 0)
    return weight


def _column_labels(y_true: NDArray[Any], seen_classes: Any, labels: Any) -> NDArray[Any]:
    if labels is None:
        with reading("y_true"):
            occurring = unique_labels(y_true)
        return _with_seen(occurring, seen_classes)
    classes = label_array(labels, "labels")
    if len(np.unique(classes)) < len(classes):
        raise ValueError("labels repeat a class; pass the class of each column of y_score once")
    return classes


def _with_seen(occurring: NDArray[Any], seen_classes: Any) -> NDArray[Any]:
    """Return the classes that occur and the seen ones, sorted."""
    seen = seen_labels(seen_classes, occurring)
    with reading("seen_classes"):
        classes: NDArray[Any] = unique_labels(occurring, seen)
    return classes


def _are_probabilities(scores: NDArray[Any]) -> bool:
    return bool((scores >= 0).all()) and bool((abs(scores.sum(axis=1) - 1) < _SUM_TOLERANCE).all())


def _warn_undefined(group: str, stacklevel: int) -> None:
    warnings.warn(
        f"y_true holds no samples of {group} classes (of weight above 0), so the score is undefined; it is set to NaN",
        UndefinedMetricWarning,
        stacklevel=stacklevel,
    )
