"""Checks of what is inside a model: its linear head, and the features that the head takes."""

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .arrays import ArrayLike, as_tensor, dtype_name, shape_of, to_float
from .checks import check_same_device

LinearHead: TypeAlias = nn.Linear | tuple[ArrayLike, ArrayLike | None]
"""The layer that gives the logits, or its weight `(C, D)` and bias `(C,)`."""
_CHECKED_SCORES = 1 << 22
_HEAD_TOLERANCE = 2.0**-6
"""Features, weight and product may each be rounded to bfloat16 (mixed precision), by up to 2^-8 of their sizes."""


def check_linear(linear: object, name: str = "linear") -> nn.Linear:
    """A linear layer whose weight and bias are its own parameters, in floating point: neither computed nor packed."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name} is a {type(linear).__name__}; pass the nn.Linear that gives the logits")
    own = all(key in linear._parameters for key in ("weight", "bias"))
    if not own or not linear.weight.is_floating_point():
        raise TypeError(
            f"{name} computes its weight or bias (weight_norm, another parametrization) or is quantised; "
            f"pass a layer with plain parameters: torch.nn.utils.parametrize.remove_parametrizations({name}, 'weight')"
        )
    return linear


def check_features(features: object, num_samples: int | None, device: torch.device, name: str = "features") -> Tensor:
    """Floating point, finite, `(N, D)`, on the device of the logits; any number of rows if `num_samples` is None."""
    tensor = as_tensor(features, name).detach()
    if not tensor.is_floating_point() or tensor.itemsize == 1:
        raise TypeError(
            f"{name} have dtype {dtype_name(tensor)}; pass floating-point features: {to_float(features, name)}"
        )
    if tensor.ndim != 2 or tensor.shape[1] == 0 or (num_samples is not None and tensor.shape[0] != num_samples):
        rows = "R" if num_samples is None else str(num_samples)
        raise ValueError(f"{name} have shape {shape_of(tensor)}; expected ({rows}, D), one row of features per sample")
    check_same_device(tensor, device, name)
    low, high = torch.aminmax(tensor, dim=1)
    wrong = ~((low > -math.inf) & (high < math.inf))
    if bool(wrong.any()):
        raise ValueError(
            f"{name} contain NaN or infinity (first in row {int(wrong.nonzero()[0])}, {int(wrong.sum())} of "
            f"{tensor.shape[0]} rows); drop these samples or repair the model"
        )
    return tensor


def check_head(head: object, num_classes: int, device: torch.device, name: str = "head") -> tuple[Tensor, Tensor]:
    """A linear head, `nn.Linear` or (weight, bias): weight `(C, D)` and bias `(C,)`, zeros for None, on `device`."""
    if isinstance(head, nn.Linear):
        pair: tuple[object, object] = head.weight, head.bias
    elif isinstance(head, (tuple, list)) and len(head) == 2:
        pair = head[0], head[1]
    else:
        raise TypeError(
            f"{name} is a {type(head).__name__}; pass the nn.Linear that gives the logits, or (weight, bias)"
        )
    weight = as_tensor(pair[0], f"the weight of {name}").detach()
    bias = weight.new_zeros(weight.shape[:1]) if pair[1] is None else as_tensor(pair[1], f"the bias of {name}").detach()
    if weight.ndim != 2 or weight.shape[0] != num_classes or bias.shape != (num_classes,):
        raise ValueError(
            f"{name} has a weight of shape {shape_of(weight)} and a bias of shape {shape_of(bias)} for logits of "
            f"{num_classes} classes; expected ({num_classes}, D) and ({num_classes},), one row per column of the logits"
        )
    for what, tensor in (("weight", weight), ("bias", bias)):
        if not tensor.is_floating_point() or tensor.itemsize == 1:
            raise TypeError(f"the {what} of {name} has dtype {dtype_name(tensor)}; pass it in floating point")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the {what} of {name} contains NaN or infinity; repair the model")
    return weight.to(device), bias.to(device)


def head_warnings(logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, prefix: str = "") -> list[str]:
    """Return a warning where the head, applied to the features, does not give the logits; `prefix` is of their names.

    Up to rounding and to a constant per row (log-probabilities); checked on the first rows.
    """
    if features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{prefix}features have {features.shape[1]} columns, {prefix}head takes {weight.shape[1]}; pass the inputs "
            "of this head"
        )
    count = max(1, _CHECKED_SCORES // logits.shape[1])
    rows, scores = features[:count].float(), logits[:count].float()
    weight, bias = weight.float(), bias.float()
    difference = torch.addmm(bias, rows, weight.T) - scores
    difference = (difference - difference.masked_fill(~scores.isfinite(), math.nan).nanmean(1, keepdim=True)).abs()
    size = rows.norm(dim=1, keepdim=True) * weight.norm(dim=1) + bias.abs()
    excess = difference.masked_fill(~scores.isfinite(), 0) > _HEAD_TOLERANCE * size
    wrong = int(excess.any(1).sum())
    if not wrong:
        return []
    return [
        f"{prefix}head applied to {prefix}features does not give {prefix}logits: they differ by up to "
        f"{float(difference[excess].max()):.3g} in {wrong} of {rows.shape[0]} samples checked; pass the head of one "
        "model, its inputs and its outputs in eval mode, for the same samples in the same order"
    ]
