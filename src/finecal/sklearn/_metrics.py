"""Metrics on seen and absent classes, and the labels, weights and scores of scikit-learn that they read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d

from .._core.arrays import check_choice
from .._core.curve import tradeoff_curve
from .._core.report import AVERAGES, harmonic_mean, weigh_correct
from .._core.warning import without_warnings

_SUM_TOLERANCE = 1e-3
"""Largest deviation from 1 of the sum of probabilities."""


class Labelled(NamedTuple):
    """Scores before softmax ``(N, C)``, class indices ``(N,)`` and the mask of the seen classes ``(C,)``."""

    scores: NDArray[Any]
    indices: NDArray[np.int64]
    seen_mask: NDArray[np.bool_]


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
        If the score is NaN.

    Examples
    --------
    >>> from finecal.sklearn import seen_accuracy_score
    >>> seen_accuracy_score(["cat", "cat"], ["cat", "owl"], seen_classes=["cat"])
    0.5
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

    Parameters, errors and warnings are those of `seen_accuracy_score`; NaN without samples of absent classes.

    Examples
    --------
    >>> from finecal.sklearn import absent_accuracy_score
    >>> absent_accuracy_score(["owl", "owl"], ["owl", "cat"], seen_classes=["cat"])
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
    """Return the harmonic mean of `Acc_{S/Y}` and `Acc_{U/Y}`; 0 if either is 0.

    Parameters, errors and warnings are those of `seen_accuracy_score`; NaN without samples of either group.

    Examples
    --------
    >>> from finecal.sklearn import harmonic_mean_score
    >>> y_true, y_pred = ["cat", "owl", "owl"], ["cat", "owl", "cat"]
    >>> harmonic_mean_score(y_true, y_pred, seen_classes=["cat"])
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
        Decisions, log-probabilities, or probabilities, which are recognised and replaced by their logarithms.
    seen_classes, average, sample_weight
        As in `seen_accuracy_score`.
    labels : (C,) array-like, optional
        Label of each column of `y_score`, such as ``classes_``; default: the sorted labels in `y_true` and
        `seen_classes`.

    Returns
    -------
    float
        In [0, 1]; NaN, with a warning, without samples of either group.

    Raises
    ------
    TypeError, ValueError
        As `finecal.tradeoff_curve` and `seen_accuracy_score`; ValueError if `labels` do not fit the columns, or no
        class or all classes are seen.

    Notes
    -----
    Independent of gamma. `O(NC + N log N)`. Chao et al., ECCV 2016.

    Examples
    --------
    >>> from finecal.sklearn import ausuc_score
    >>> scores = [[4.0, 1.0, 3.0], [2.0, 1.0, 0.0], [2.0, 5.0, 4.5]]
    >>> ausuc_score(["cat", "owl", "owl"], scores, seen_classes=["cat", "dog"])
    0.5
    """
    check_choice(average, AVERAGES, "average")
    scores, indices, mask = scores_and_labels(y_true, y_score, seen_classes, labels)
    weight = _weights(indices, average, sample_weight)
    # Re-indexed labels, the subject of a warning, are impossible: indices come from class names.
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


def scores_and_labels(y_true: Any, y_score: Any, seen_classes: Any, labels: Any) -> Labelled:
    """Return the arguments of users as checked samples; ValueError or TypeError if they do not fit."""
    labelled = label_array(y_true, "y_true")
    with name_errors("y_score"):
        check_whole(y_score)
        scores = check_array(
            y_score, dtype=[np.float64, np.float32], ensure_2d=False, ensure_all_finite=False, input_name="y_score"
        )
    if (np.isnan(scores) | np.isposinf(scores)).any():
        raise ValueError("y_score has NaN or +inf entries; pass finite scores (-inf masks a class)")
    with name_errors("y_true and y_score"):
        check_consistent_length(labelled, scores)
    if labels is None:
        with name_errors("y_true"):
            occurring = unique_labels(labelled)
        classes = _add_seen(occurring, seen_classes)
    else:
        classes = label_array(labels, "labels")
        if len(np.unique(classes)) < len(classes):
            raise ValueError("labels repeat a class; pass the class of each column of y_score once")
    if scores.ndim == 1:
        is_share = bool(((scores >= 0) & (scores <= 1)).all())
        scores = np.stack([1 - scores, scores], axis=1) if is_share else two_columns(scores)
    if scores.ndim == 2 and (scores >= 0).all() and (abs(scores.sum(axis=1) - 1) < _SUM_TOLERANCE).all():
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
    return Labelled(scores, indices, mask)


def _accuracies(
    y_true: Any, y_pred: Any, seen_classes: Any, average: str, sample_weight: Any, groups: tuple[str, ...]
) -> list[float]:
    """Return the accuracy on each of `groups`; NaN, with a warning, without samples."""
    check_choice(average, AVERAGES, "average")
    y_true, y_pred = label_array(y_true, "y_true"), label_array(y_pred, "y_pred")
    with name_errors("y_true and y_pred"):
        check_consistent_length(y_true, y_pred)
        classes = unique_labels(y_true, y_pred)
    classes = _add_seen(classes, seen_classes)
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
    """Return the weight of each sample; for "macro", divided by the total of its class."""
    weight = check_weights(sample_weight, len(indices))
    if average == "macro":
        totals = np.bincount(indices, weight)[indices]
        weight = np.divide(weight, totals, out=np.zeros_like(weight), where=totals > 0)
    return weight


def _add_seen(occurring: NDArray[Any], seen_classes: Any) -> NDArray[Any]:
    """Return the classes that occur and the seen ones, sorted."""
    seen = seen_labels(seen_classes, occurring)
    with name_errors("seen_classes"):
        classes: NDArray[Any] = unique_labels(occurring, seen)
    return classes


def _warn_undefined(group: str, stacklevel: int) -> None:
    warnings.warn(
        f"y_true holds no samples of {group} classes (of weight above 0), so the score is undefined; it is set to NaN",
        UndefinedMetricWarning,
        stacklevel=stacklevel,
    )


_NAMED_LABELS = 10
_LABEL_KINDS = "OUSbiufM"


@contextmanager
def name_errors(name: str) -> Iterator[None]:
    """Convert any error to a TypeError or ValueError that begins with the name of the argument."""
    try:
        yield
    except Exception as error:  # the value's own __array__ can raise any type
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} cannot be read: {error}") from error


def check_whole(values: Any) -> None:
    """Raise for masked entries and dates, which scikit-learn would read as numbers."""
    if np.ma.is_masked(values):
        raise TypeError("it is a masked array with masked entries; fill or drop them")
    if getattr(getattr(values, "dtype", None), "kind", "") in ("M", "m"):
        raise TypeError(f"it has dtype {values.dtype}; pass numbers")


def label_array(labels: Any, name: str, *, warn: bool = False) -> NDArray[Any]:
    """Return `(N,)` class labels of one type as an array."""
    with name_errors(name):
        array: NDArray[Any] = column_or_1d(labels, warn=warn)
        if array.dtype.kind not in _LABEL_KINDS:
            raise TypeError(f"it has dtype {array.dtype}; pass class labels, which are texts or integers")
    find_distinct(array, name)
    return array


def find_distinct(labels: NDArray[Any], name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct labels, sorted, and the position of each of `labels` among them."""
    try:
        found, inverse = np.unique(labels, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels.tolist()})
        raise TypeError(f"{name} mixes labels of types {', '.join(kinds)}; pass labels of one type") from error
    return found, inverse.reshape(-1)


def class_indices(y: NDArray[Any], classes: NDArray[Any], name: str = "y") -> NDArray[np.int64]:
    """Return the index in `classes` of each label in `y`, ``(N,)``; messages use `name` for `y`."""
    known = {label: index for index, label in enumerate(classes.tolist())}
    found, inverse = find_distinct(y, name)
    unknown = [label for label in found.tolist() if label not in known]
    if unknown:
        raise ValueError(
            f"{name} contains {_list_labels(unknown)}, unknown to the classifier, whose classes are "
            f"{_list_labels(classes.tolist())}: drop these, or check that labels are spelt as in its training"
        )
    positions = np.array([known[label] for label in found.tolist()], dtype=np.int64)
    return positions[inverse]


def mask_of(seen_classes: Any, classes: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask `(C,)` of `seen_classes` among `classes`."""
    mask = np.zeros(len(classes), dtype=bool)
    mask[class_indices(seen_labels(seen_classes, classes), classes, "seen_classes")] = True
    return mask


def seen_labels(seen_classes: Any, classes: NDArray[Any]) -> NDArray[Any]:
    """Return `seen_classes` as an array of labels; raise if they are not a list of labels."""
    if isinstance(seen_classes, str) or not np.iterable(seen_classes):
        raise TypeError(f"seen_classes is {seen_classes!r}; pass a list or an array of class labels")
    if isinstance(seen_classes, Mapping) or getattr(seen_classes, "ndim", 1) > 1:
        raise TypeError(f"seen_classes is a {type(seen_classes).__name__}; pass one dimension of class labels")
    with name_errors("seen_classes"):
        labels = np.asarray(list(seen_classes))
    if labels.size == 0:
        raise ValueError("seen_classes is empty; name at least one class")
    if labels.ndim != 1:
        raise ValueError(f"seen_classes has shape {labels.shape}; pass one dimension of class labels")
    if labels.dtype == bool and classes.dtype != bool:
        raise TypeError("seen_classes is a boolean mask; pass the labels of the seen classes: classes[mask]")
    return labels


def _list_labels(labels: list[Any]) -> str:
    more = f" and {len(labels) - _NAMED_LABELS} more" if len(labels) > _NAMED_LABELS else ""
    return ", ".join(map(repr, labels[:_NAMED_LABELS])) + more


def check_weights(sample_weight: Any, num_samples: int) -> NDArray[np.float64]:
    """Return `sample_weight` as ``(num_samples,)`` finite numbers of at least 0; None gives ones."""
    if sample_weight is None:
        return np.ones(num_samples)
    with name_errors("sample_weight"):
        check_whole(sample_weight)
        weights = np.asarray(sample_weight)
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight holds {weights.dtype}; pass numbers")
    if weights.shape != (num_samples,):
        raise ValueError(f"sample_weight has shape {weights.shape}; pass one number for each of {num_samples} samples")
    if not ((weights >= 0) & np.isfinite(weights)).all():
        raise ValueError("sample_weight has negative, infinite or NaN entries; pass finite weights of at least 0")
    return weights.astype(np.float64)


def two_columns(decision: NDArray[Any]) -> NDArray[np.float64]:
    """Return `(N,)` decisions of a binary classifier as the scores (0, d) of its two classes."""
    return np.stack([np.zeros(len(decision)), decision.astype(np.float64)], axis=1)


def log_of_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logarithms of `(N, C)` probabilities; those of zeros are finite, see `replace_infinite_logs`."""
    with np.errstate(divide="ignore"):
        return replace_infinite_logs(np.log(probabilities))


def replace_infinite_logs(log_probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Replace -inf by the logarithm of the rounding step of the dtype, -36.04 in float64, so that all is finite.

    It is replaced by the smallest other score of the sample if that is lower, so that it never exceeds another class.
    """
    zero = np.isneginf(log_probabilities)
    floor = np.log(np.finfo(log_probabilities.dtype).eps)
    smallest = np.where(zero, 0, log_probabilities).min(axis=1, keepdims=True, initial=floor)
    return np.where(zero, smallest, log_probabilities).astype(np.float64)
