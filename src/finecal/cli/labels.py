"""Labels of data, which are names or indices of the classes of a model, as indices."""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .samples import Label

_NAMED = 3
_INDEX = re.compile(r"[0-9]{1,18}")


def class_indices(labels: Sequence[Label], class_names: Sequence[str] | None, num_classes: int, path: Path) -> Tensor:
    """Return the class index of each label, `(N,)` int64.

    The labels are names if the model has all of them, and indices if all are integers. Where they could be both and
    mean different classes, and where some are neither, they are refused.

    Parameters
    ----------
    labels : sequence of str or int
        As they stand in the data.
    class_names : sequence of str, or None
        Of the model's C classes, in the order of its outputs, where they are known.
    num_classes : int
        C.
    path : Path
        Of the data, for messages.

    Raises
    ------
    ValueError
        With the labels that the model does not have, and what it has.
    """
    texts = [unicodedata.normalize("NFC", str(label)) for label in labels]  # names of folders come decomposed on macOS
    class_names = class_names and [unicodedata.normalize("NFC", name) for name in class_names]
    distinct = sorted(set(texts))
    by_name, by_index = _by_name(class_names, path, distinct), _by_index(distinct, num_classes)
    unnamed = [label for label in distinct if label not in by_name]
    label = next((label for label in by_name if by_index and by_index[label] != by_name[label]), None)
    if label is not None:
        raise ValueError(
            f"{path}: label {label!r} is the name of class {by_name[label]} of the model, and may mean class "
            f"{by_index[label]}; give names that are no numbers by --class-names, and label by these names or by index"
        )
    index_of = by_index if unnamed else by_name
    if not index_of:
        raise ValueError(f"{path}: {_unknown(unnamed, len(distinct), class_names, num_classes)}")
    return torch.tensor([index_of[text] for text in texts])


def _by_name(class_names: Sequence[str] | None, path: Path, labels: Sequence[str]) -> dict[str, int]:
    """Return the index of each label that is a name, unless two classes have that name."""
    counts = Counter(class_names or ())
    repeated = next((label for label in labels if counts[label] > 1), None)
    if repeated is not None:
        raise ValueError(
            f"{path}: label {repeated!r} is the name of {counts[repeated]} classes of the model; label by index"
        )
    positions = {name: index for index, name in enumerate(class_names or ())}
    return {label: positions[label] for label in labels if label in positions}


def _by_index(labels: Sequence[str], num_classes: int) -> dict[str, int]:
    """Return the labels as indices; nothing if one of them is none."""
    if all(_INDEX.fullmatch(label) and int(label) < num_classes for label in labels):
        return {label: int(label) for label in labels}
    return {}


def _unknown(unnamed: Sequence[str], count: int, class_names: Sequence[str] | None, num_classes: int) -> str:
    """Say which labels the model does not have, and what it has."""
    shown = ", ".join(map(repr, unnamed[:_NAMED])) + (", ..." if len(unnamed) > _NAMED else "")
    indices = f"indices from 0 to {num_classes - 1}"
    if class_names is None:
        return (
            f"labels {shown} are no {indices}, and the names of the {num_classes} classes are not known; give these by "
            "--class-names, one per line in the order of the model's outputs"
        )
    start = f"labels {shown} ({len(unnamed)} of {count}) are not among the {num_classes} classes of the model"
    names = ", ".join(map(repr, class_names[:_NAMED])) + (", ..." if num_classes > _NAMED else "")
    if all(name == f"LABEL_{index}" for index, name in enumerate(class_names)):
        return (
            f"{start}, which have no names but {names}; label by {indices}, or give the names by --class-names, one "
            "per line in the order of the model's outputs"
        )
    near = difflib.get_close_matches(unnamed[0], class_names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; label by name or by {indices}"
    return f"{start}, {names}{hint}"
