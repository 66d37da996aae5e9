"""Seen masks from labels, indices or names of classes."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arrays import ArrayLike, Labels, NumpyArray, as_type_of, check_num_classes
from .checks import check_index_dtype, check_index_range, check_mask_values, labels_as_tensor, shape_hint

ClassNames: TypeAlias = Iterable[str] | Mapping[int, str] | Mapping[str, int]
"""One name per column, in order; or a dict that says which column is whose: from indices to names, or the reverse."""


def ordered_class_names(class_names: ClassNames) -> tuple[str, ...]:
    """Return one text per class, in the order of the columns of the logits."""
    if isinstance(class_names, Mapping):
        return _by_index(class_names)
    if isinstance(class_names, (str, bytes)) or not isinstance(class_names, Iterable):
        raise TypeError(f"class_names is a {type(class_names).__name__}; pass a list of str, one per class")
    if isinstance(class_names, (set, frozenset)):
        raise TypeError(
            f"class_names is a {type(class_names).__name__}, which has no order; pass a list of str, in the order of "
            "the columns of the logits"
        )
    if getattr(class_names, "ndim", 1) != 1:
        raise TypeError(f"class_names has {class_names.ndim} dimensions; pass a list of str, one per class")  # type: ignore[attr-defined]
    return _all_texts(class_names)


def check_class_names(class_names: Any, num_classes: int, *, at_least: bool = False) -> tuple[str, ...] | None:
    """One text per class, or for `at_least` perhaps more; None stays."""
    if class_names is None:
        return None
    names = ordered_class_names(class_names)
    if len(names) < num_classes or (len(names) > num_classes and not at_least):
        least = "at least " if at_least else ""
        raise ValueError(
            f"there are {len(names)} class names for {least}{num_classes} classes; give one per class, in order: "
            "class_names=[...]"
        )
    return names


def _by_index(class_names: Mapping[Any, Any]) -> tuple[str, ...]:
    """Sort by the indices: the values (`class_to_idx`, `label2id`) or the keys (`id2label`), texts in some files."""
    keys, values = list(class_names), list(class_names.values())
    if values and all(map(_is_index, values)):
        return _in_order(values, keys)
    of_keys, of_values = list(map(_as_index, keys)), list(map(_as_index, values))
    if not all(map(_is_index, of_keys)):
        if values and all(map(_is_index, of_values)):
            return _in_order(of_values, keys)
        raise TypeError("class_names is a dict without indices; pass {index: name} or {name: index}, or a list of str")
    names = _in_order(of_keys, values)
    could_be_either = all(isinstance(key, str) for key in keys) and set(of_values) == set(of_keys)
    if could_be_either and _in_order(of_values, keys) != names:
        raise ValueError(
            "class_names is a dict from numbers in texts to numbers in texts, which may be {index: name} or {name: "
            "index}; give the indices as integers"
        )
    return names


def _in_order(indices: Sequence[Any], names: Sequence[Any]) -> tuple[str, ...]:
    name_of = dict(zip(indices, names, strict=True))
    missing = [index for index in range(len(names)) if index not in name_of]
    if missing:
        raise ValueError(
            f"class_names is a dict of {len(names)} classes, but none has the index {missing[0]}; give each class its "
            f"own, from 0 to {len(names) - 1}"
        )
    return _all_texts(name_of[index] for index in range(len(names)))


def _as_index(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _is_index(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _all_texts(class_names: Iterable[Any]) -> tuple[str, ...]:
    names = list(class_names)
    other = next((name for name in names if not isinstance(name, str)), None)
    if other is not None or None in names:
        raise TypeError(
            f"class_names are not all texts: one is a {type(other).__name__}; pass a list of str, one per class"
        )
    return tuple(map(str, names))


@overload
def seen_mask_from_labels(labels: Tensor, num_classes: int) -> Tensor: ...
@overload
def seen_mask_from_labels(labels: NumpyArray | Sequence[Any], num_classes: int) -> NDArray[np.bool_]: ...
def seen_mask_from_labels(labels: Labels, num_classes: int) -> Tensor | NumpyArray:
    """Mark the classes that occur among the labels of the fine-tuning data as seen.

    Use the labels of *all* fine-tuning data: a seen class missing from a sample would be taken for absent, and boosted.

    Parameters
    ----------
    labels : (N,) int
        Class indices in ``[0, C)``.
    num_classes : int
        C, the number of columns of the logits.

    Returns
    -------
    (C,) bool
        A tensor on the device of `labels`, or a NumPy array.

    Raises
    ------
    TypeError
        If `labels` is not integer.
    ValueError
        If labels are out of range, or none or all of the classes occur.

    Examples
    --------
    >>> import finecal
    >>> finecal.seen_mask_from_labels([0, 2, 2], num_classes=4)
    array([ True, False,  True, False])
    """
    return _mask_from(labels, num_classes, "labels")


@overload
def seen_mask_from_indices(indices: Tensor, num_classes: int) -> Tensor: ...
@overload
def seen_mask_from_indices(indices: NumpyArray | Sequence[Any], num_classes: int) -> NDArray[np.bool_]: ...
def seen_mask_from_indices(indices: ArrayLike, num_classes: int) -> Tensor | NumpyArray:
    """Mark the classes at `indices` as seen.

    Parameters
    ----------
    indices : (|S|,) int
        Indices of the seen classes in ``[0, C)``.
    num_classes
        As in `seen_mask_from_labels`, which returns the same.

    Raises
    ------
    TypeError
        If `indices` is not integer, for instance a mask already.
    ValueError
        If indices are out of range or come twice, or none or all of the classes are named.

    Examples
    --------
    >>> import finecal
    >>> finecal.seen_mask_from_indices([0, 2], num_classes=4)
    array([ True, False,  True, False])
    """
    return _mask_from(indices, num_classes, "indices", distinct=True)


def seen_mask_from_names(seen_names: Iterable[str], class_names: ClassNames) -> NDArray[np.bool_]:
    """Mark the classes with the given names as seen, in a `(C,)` bool NumPy array.

    Where the classes are tags of entities, a type is seen or absent as a whole, and "O" is marked as seen: "PER" stands
    for "B-PER" and "I-PER". Classes are tags if one is "O" and all others have a prefix B-, I-, E-, S-, L- or U-.

    Parameters
    ----------
    seen_names : iterable of str
        Names of the seen classes; for tags, the seen types, or all tags of these.
    class_names : sequence of C str, or dict
        Names of all classes, in the order of the logits' columns; or a dict from indices to names (``id2label`` of
        Hugging Face) or from names to indices (``class_to_idx`` of torchvision).

    Raises
    ------
    TypeError
        If a single string came in place of several, or a set, which has no order, for `class_names`.
    ValueError
        If indices are missing, a name is unknown or ambiguous, none or all of the classes are named, or only some tags
        of a type.

    Examples
    --------
    >>> import finecal
    >>> finecal.seen_mask_from_names(["cat", "dog"], ["cat", "cow", "dog", "hen"])
    array([ True, False,  True, False])
    >>> finecal.seen_mask_from_names(["PER"], ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"])
    array([ True, False, False,  True,  True])
    """
    wanted = _seen_texts(seen_names)
    classes = ordered_class_names(class_names)
    if (types := types_of_tags(classes)) is not None:
        wanted = _as_tags(wanted, classes, types)
    if len(classes) < 2:
        raise ValueError(f"class_names are {len(classes)}; at least one seen and one absent class are needed")
    unknown = sorted(wanted.difference(classes))
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"class_names start with {', '.join(map(repr, classes[:3]))}"
        raise ValueError(f"seen_names contain {unknown[0]!r} ({len(unknown)} unknown of {len(wanted)} names); {hint}")
    repeated = [name for name, count in Counter(classes).items() if count > 1 and name in wanted]
    if repeated:
        raise ValueError(
            f"class_names contain {repeated[0]!r} more than once, so seen_names do not say which class is meant; "
            f"use seen_mask_from_indices"
        )
    mask = np.array([name in wanted for name in classes], dtype=bool)
    check_mask_values(torch.from_numpy(mask))
    return mask


OUTSIDE = "O"
"""The tag of tokens that belong to no entity."""
_TAG = re.compile(r"[BIESLU]-(.+)", re.DOTALL)


def types_of_tags(class_names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the type of entity of each tag, "" for "O"; None if the classes are not tags."""
    matches = [None if name == OUTSIDE else _TAG.fullmatch(name) for name in class_names]
    if matches.count(None) == len(matches) or matches.count(None) > list(class_names).count(OUTSIDE):
        return None
    types = tuple("" if match is None else match[1] for match in matches)
    return types if "" in types else None


def _as_tags(wanted: set[str], tags: Sequence[str], types: Sequence[str]) -> set[str]:
    """Return "O" and the tags of the named types; a type may also be named by all its tags."""
    unclear = sorted(wanted.intersection(tags).intersection(types))
    if unclear:
        raise ValueError(
            f"seen_names contain {unclear[0]!r}, which is both a tag and a type of class_names; use "
            "seen_mask_from_indices"
        )
    of_tags = {kind for tag, kind in zip(tags, types, strict=True) if tag in wanted and kind}
    for tag, kind in zip(tags, types, strict=True):
        if kind in of_tags - wanted and tag not in wanted:
            raise ValueError(
                f"seen_names contain some tags of the type {kind!r} but not {tag!r}; a type is seen or absent as a "
                f"whole: pass {kind!r}"
            )
    named = {tag for tag, kind in zip(tags, types, strict=True) if kind in wanted}
    return {OUTSIDE} | named | wanted.difference(types)


def _seen_texts(seen_names: object) -> set[str]:
    if isinstance(seen_names, (str, bytes)):
        raise TypeError(f"seen_names is one string, {seen_names!r}; pass a list of class names")
    if not isinstance(seen_names, Iterable) or getattr(seen_names, "ndim", 1) != 1:
        raise TypeError(f"seen_names is a {type(seen_names).__name__}; pass a list of class names")
    names = list(seen_names)
    if not names:
        raise ValueError("seen_names are empty: no class would be seen; pass at least one class name")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"seen_names contain a {type(name).__name__}; pass a list of class names, each a str")
    return set(names)


def _mask_from(indices: ArrayLike, num_classes: int, name: str, distinct: bool = False) -> Tensor | NumpyArray:
    count = check_num_classes(num_classes)
    if isinstance(indices, Set):
        indices = sorted(indices)
    tensor = labels_as_tensor(indices, name)
    if tensor.numel() == 0:
        raise ValueError(f"{name} are empty: no class would be seen; pass at least one class index")
    if tensor.ndim != 1:
        raise ValueError(
            f"{name} have shape {tuple(tensor.shape)}; expected one dimension of class indices"
            f"{shape_hint(tensor, name, count)}"
        )
    positions = check_index_range(check_index_dtype(tensor, name), count, name, "number of classes")
    values, counts = torch.unique(positions, return_counts=True)
    if distinct and values.numel() < positions.numel():  # a list of labels, or a mask of 0 and 1
        raise ValueError(
            f"{name} contain {int(values[counts > 1][0])} more than once; name each seen class once: for labels use "
            f"seen_mask_from_labels, and convert a mask of 0 and 1 to bool"
        )
    mask = torch.zeros(count, dtype=torch.bool, device=tensor.device)
    mask[positions] = True
    result: Tensor | NumpyArray = as_type_of(indices)(check_mask_values(mask))
    return result


def check_complete_sample(
    labels: Tensor, name: str = "labels", instead: str = "name the seen classes explicitly"
) -> None:
    """Refuse to take the classes that occur for all seen ones where classes with a single sample suggest more."""
    counts = torch.bincount(labels)
    once, classes = int((counts == 1).sum()), int((counts > 0).sum())
    if once:
        raise ValueError(
            f"{name} have a single sample of {once} of the {classes} classes that occur, so about "
            f"{100 * once / labels.numel():.2g} % of the data (Good-Turing estimate) are of seen classes missing from "
            f"this sample, which would be taken for absent: {instead}"
        )
