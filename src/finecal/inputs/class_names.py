"""Names of classes, in the order of the columns of the logits."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

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
