"""Labels and weights as scikit-learn has them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import column_or_1d

_NAMED_LABELS = 10
_LABEL_KINDS = "OUSbiufM"


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Name the argument in what scikit-learn and NumPy say of it, and raise nothing but TypeError and ValueError."""
    try:
        yield
    except Exception as error:  # of any kind: some comes out of the value's own __array__
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} cannot be read: {error}") from error


def check_whole(values: Any) -> None:
    """Refuse entries that scikit-learn would take although they are no values: masked ones, and dates as numbers."""
    if np.ma.is_masked(values):
        raise TypeError("it is a masked array with masked entries; fill or drop them")
    if getattr(getattr(values, "dtype", None), "kind", "") in ("M", "m"):
        raise TypeError(f"it has dtype {values.dtype}; pass numbers")


def label_array(labels: Any, name: str, *, warn: bool = False) -> NDArray[Any]:
    """Return `(N,)` class labels of one type as an array."""
    with reading(name):
        array: NDArray[Any] = column_or_1d(labels, warn=warn)
        if array.dtype.kind not in _LABEL_KINDS:
            raise TypeError(f"it has dtype {array.dtype}; pass class labels, which are texts or integers")
    distinct(array, name)
    return array


def distinct(labels: NDArray[Any], name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the labels that occur, sorted, and where each of `labels` is among these."""
    try:
        found, inverse = np.unique(labels, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels.tolist()})
        raise TypeError(f"{name} mixes labels of types {', '.join(kinds)}; pass labels of one type") from error
    return found, inverse.reshape(-1)


def class_indices(y: NDArray[Any], classes: NDArray[Any], name: str = "y") -> NDArray[np.int64]:
    """Return the position in `classes` of each label in `y`, ``(N,)``; `name` is how messages call `y`."""
    known = {label: index for index, label in enumerate(classes.tolist())}
    found, inverse = distinct(y, name)
    unknown = [label for label in found.tolist() if label not in known]
    if unknown:
        raise ValueError(
            f"{name} contains {_listed(unknown)}, unknown to the classifier, whose classes are "
            f"{_listed(classes.tolist())}: drop these, or check that labels are spelt as in its training"
        )
    positions = np.array([known[label] for label in found.tolist()], dtype=np.int64)
    return positions[inverse]


def mask_of(seen_classes: Any, classes: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask `(C,)` of `seen_classes` among `classes`."""
    mask = np.zeros(len(classes), dtype=bool)
    mask[class_indices(seen_labels(seen_classes, classes), classes, "seen_classes")] = True
    return mask


def seen_labels(seen_classes: Any, classes: NDArray[Any]) -> NDArray[Any]:
    """Return `seen_classes` as an array of labels, or say why they are none."""
    if isinstance(seen_classes, str) or not np.iterable(seen_classes):
        raise TypeError(f"seen_classes is {seen_classes!r}; pass a list or an array of class labels")
    if isinstance(seen_classes, Mapping) or getattr(seen_classes, "ndim", 1) > 1:
        raise TypeError(f"seen_classes is a {type(seen_classes).__name__}; pass one dimension of class labels")
    with reading("seen_classes"):
        labels = np.asarray(list(seen_classes))
    if labels.size == 0:
        raise ValueError("seen_classes is empty; name at least one class")
    if labels.ndim != 1:
        raise ValueError(f"seen_classes has shape {labels.shape}; pass one dimension of class labels")
    if labels.dtype == bool and classes.dtype != bool:
        raise TypeError("seen_classes is a boolean mask; pass the labels of the seen classes: classes[mask]")
    return labels


def _listed(labels: list[Any]) -> str:
    more = f" and {len(labels) - _NAMED_LABELS} more" if len(labels) > _NAMED_LABELS else ""
    return ", ".join(map(repr, labels[:_NAMED_LABELS])) + more


def checked_weights(sample_weight: Any, num_samples: int) -> NDArray[np.float64]:
    """Return `sample_weight` as ``(num_samples,)`` finite numbers of at least 0; None gives ones."""
    if sample_weight is None:
        return np.ones(num_samples)
    with reading("sample_weight"):
        check_whole(sample_weight)
        weights = np.asarray(sample_weight)
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight holds {weights.dtype}; pass numbers")
    if weights.shape != (num_samples,):
        raise ValueError(f"sample_weight has shape {weights.shape}; pass one number for each of {num_samples} samples")
    if not ((weights >= 0) & np.isfinite(weights)).all():
        raise ValueError("sample_weight has negative, infinite or NaN entries; pass finite weights of at least 0")
    return weights.astype(np.float64)
