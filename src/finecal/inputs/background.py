"""Background classes: those that are neither seen nor absent, as "background" is for detectors and for segmentation."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
from torch import Tensor

from .arrays import NumpyArray
from .checks import as_bool_mask, check_index_dtype, check_index_range, labels_as_tensor, named_classes

Classes = int | Sequence[int] | NumpyArray | Tensor


def check_background(background: Classes | None, seen_mask: Tensor) -> Tensor:
    """Return which classes are background, `(C,)` bool on the device of the mask, in which they must be seen."""
    mask = as_bool_mask(seen_mask)
    chosen = torch.zeros_like(mask)
    if background is None:
        return chosen
    classes = sorted(background) if isinstance(background, Set) else background
    indices = labels_as_tensor([classes] if isinstance(classes, int) else classes, "background")
    if indices.ndim > 1:
        raise ValueError(
            f"background has shape {tuple(indices.shape)}; pass the index of the background class, or a list of several"
        )
    if indices.numel() == 0:
        return chosen
    indices = check_index_range(check_index_dtype(indices, "background"), len(mask), "background", "number of classes")
    chosen[indices.flatten().to(mask.device)] = True
    if bool((wrong := chosen & ~mask).any()):
        raise ValueError(
            f"background contains {named_classes(wrong)}, which seen_mask says is absent: gamma would be added to it; "
            "set seen_mask to True there"
        )
    return chosen
