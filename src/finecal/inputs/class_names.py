"""Names of classes, in the order of the columns of the logits."""

from collections.abc import Iterable, Mapping
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
    """Sort by the indices: the values (`class_to_idx`, `label2id`) or the keys (`id2label`, texts in JSON)."""
    if class_names and all(map(_is_index, class_names.values())):
        name_of = {index: name for name, index in class_names.items()}
    else:
        name_of = {
            int(key) if isinstance(key, str) and key.isdecimal() else key: class_names[key] for key in class_names
        }
    if not all(map(_is_index, name_of)):
        raise TypeError("class_names is a dict without indices; pass {index: name} or {name: index}, or a list of str")
    missing = [index for index in range(len(class_names)) if index not in name_of]
    if missing:
        raise ValueError(
            f"class_names is a dict of {len(class_names)} classes, but none has the index {missing[0]}; give each "
            f"class its own, from 0 to {len(class_names) - 1}"
        )
    return _all_texts(name_of[index] for index in range(len(name_of)))


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
