"""Background classes: those that are neither seen nor absent, as "background" is for detectors and for segmentation."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TypeAlias

import torch
from torch import Tensor

from .arrays import NumpyArray, shape_of
from .checks import check_index_dtype, check_index_range, labels_as_tensor, named_classes

Background: TypeAlias = int | Sequence[int] | NumpyArray | Tensor
"""The index of a background class, or several."""


def background_indices(background: Background, name: str = "background") -> Tensor:
    """Return the indices of background classes, `(n,)`, of which it is not yet known whether there are such classes."""
    several = sorted(background) if isinstance(background, Set) else background
    single = hasattr(several, "__index__") and getattr(several, "ndim", 0) == 0
    indices = labels_as_tensor([several] if single else several, name)
    if indices.ndim != 1 or indices.numel() == 0:
        raise ValueError(f"{name} has shape {shape_of(indices)}; pass a class index, or a list of at least one")
    return check_index_dtype(indices, name)


def check_background(background: Background | None, seen_mask: Tensor, name: str = "background") -> Tensor:
    """Return which classes are background, `(C,)` bool on the device of the mask, in which they must be seen.

    None stands for no such class.
    """
    chosen = torch.zeros_like(seen_mask)
    if background is None:
        return chosen
    indices = check_index_range(background_indices(background, name), len(seen_mask), name, "number of classes")
    chosen[indices.to(seen_mask.device)] = True
    if bool((wrong := chosen & ~seen_mask).any()):
        raise ValueError(
            f"{name} contains {named_classes(wrong)}, which seen_mask says is absent: gamma would be added to it; set "
            "seen_mask to True there"
        )
    return chosen
