"""The seen classes, from a file or from the labels of logits."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..inputs.arrays import as_tensor
from ..inputs.checks import check_mask
from ..inputs.seen_mask import (
    check_complete_sample,
    seen_mask_from_indices,
    seen_mask_from_labels,
    seen_mask_from_names,
)
from ..inputs.warning import error_context
from ..logits.file import LogitsFile, read_array
from ..results.files import read_lines

_INTEGER_MASK = "a mask has booleans; save mask.astype(bool), or write class indices into a text file"


def read_seen_mask(spec: str, content: LogitsFile) -> Tensor:
    """Return the seen classes `(C,)` bool that `spec` stands for.

    Parameters
    ----------
    spec : str
        - ``labels``: the classes that occur among the labels of `content`. Refused where classes with a single sample
          suggest that others are missing.
        - A `.npy` file with a mask: one boolean per class.
        - A text file with class names, one per line, or class indices, separated by lines, blanks or commas. Blank
          lines and comments, which start with ``#``, do not count; a line that is a class name is no comment, and where
          a class name starts with ``#``, comments need a blank after it. Numbers are names if one of them is a class
          name, and indices otherwise.
    content : LogitsFile
        Tells the number of classes, their names and the labels.

    Raises
    ------
    OSError, ValueError
        As `finecal.logits.file.read_logits`.
    """
    num_classes = content.logits.shape[1]
    if spec == "labels":
        return _mask_from_labels(content.labels, num_classes)
    path = Path(spec)
    if path.suffix.lower() == ".npy":
        array = read_array(path, "seen_mask")
        with error_context(path, ValueError):
            return _mask_from_array(array, num_classes)
    lines = read_lines(path, content.class_names or ())
    with error_context(path, ValueError):
        return _mask_from_lines(lines, num_classes, content.class_names)


def _mask_from_labels(labels: Tensor | None, num_classes: int) -> Tensor:
    with error_context("seen classes from 'labels'", ValueError):
        if labels is None:
            raise ValueError("the logits have none; give the labels too, or the seen classes")
        check_complete_sample(labels)
        return seen_mask_from_labels(labels, num_classes)


def _mask_from_array(array: object, num_classes: int) -> Tensor:
    mask = as_tensor(array, "seen_mask")
    if mask.dtype != torch.bool:
        if bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(_INTEGER_MASK)
        dtype = str(mask.dtype).removeprefix("torch.")
        raise ValueError(f"dtype is {dtype}, but a mask has booleans; write class indices into a text file")
    return check_mask(mask, num_classes, mask.device)


def _mask_from_lines(lines: list[str], num_classes: int, class_names: Sequence[str] | None) -> Tensor:
    fields = [re.findall(r"[^\s,]+", line) for line in lines]
    words = [line for line, tokens in zip(lines, fields, strict=True) if not all(map(_is_index, tokens))]
    entries = lines if words else [token for tokens in fields for token in tokens]
    if not entries:
        raise ValueError("there is no class in it; name at least one seen class")
    repeated = [entry for entry, count in Counter(entries).items() if count > 1]
    if repeated:
        if len(entries) == num_classes and set(entries) <= {"0", "1"}:
            raise ValueError(_INTEGER_MASK)
        # A list of labels must not pass for a list of classes.
        raise ValueError(f"{repeated[0]!r} comes more than once; name each seen class once")
    if not words and not set(entries) & set(class_names or ()):
        return seen_mask_from_indices(torch.tensor([int(entry) for entry in entries]), num_classes)
    if class_names is None:
        raise ValueError(
            f"{words[0]!r} is no class index, and the class names are not known; give these too, one per line in a "
            "text file (--class-names)"
        )
    return torch.from_numpy(seen_mask_from_names(entries, class_names))


def _is_index(token: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,18}", token) is not None
