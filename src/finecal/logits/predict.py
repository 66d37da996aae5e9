"""Functions on logits: add gamma, and predict with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..inputs.arrays import Logits, Mask, NumpyArray, as_type_of
from ..inputs.checks import as_logits, check_gamma, check_mask
from ..inputs.numbers import check_dim
from .dense import per_class_view, rows_of, shape_without
from .reductions import winning_classes
from .tiles import wide_dtype

_FEW_POSITIONS = 64
_COPIED_ROWS = 4096
"""An item of so few positions takes less time to copy, with others, than to look at by itself."""


@overload
def calibrate_logits(logits: Tensor, seen_mask: Mask, gamma: SupportsFloat, *, dim: int = -1) -> Tensor: ...
@overload
def calibrate_logits(
    logits: NumpyArray | Sequence[Any], seen_mask: Mask, gamma: SupportsFloat, *, dim: int = -1
) -> NumpyArray: ...
def calibrate_logits(logits: Logits, seen_mask: Mask, gamma: SupportsFloat, *, dim: int = -1) -> Tensor | NumpyArray:
    r"""Add gamma to the logits of the absent classes.

    .. math:: \tilde z_c = z_c + \gamma \, [c \in U]

    Parameters
    ----------
    logits : (..., C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes, with any other dimensions. Gradients flow through; NaN passes through.
    seen_mask : (C,) bool
        True for the classes of the fine-tuning data; the others are absent.
    gamma : float, 0-d tensor or GammaEstimate
        In units of the logits. Positive values favour the absent classes.
    dim : int, default -1
        Where the classes are: 1 for the logits `(B, C, H, W)` of a segmentation model.

    Returns
    -------
    of the type, shape, dtype, device and memory format of `logits`
        The addition is done in float32 or wider and rounded once. Values are not looked at: a sum that the dtype
        cannot hold is inf, and a gamma below its rounding step is lost. Estimators warn of both.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `seen_mask` not boolean, `gamma` not a number, or `dim` not an integer.
    ValueError
        If shapes do not match, `logits` has no dimension `dim`, `seen_mask` has no seen or no absent class, or `gamma`
        is not finite in the dtype of the logits.

    Notes
    -----
    Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024, section 5. The logits are neither copied nor
    transposed, wherever the classes are. Compiles with ``fullgraph=True``; never synchronises a GPU.

    Examples
    --------
    >>> import torch, finecal
    >>> seen_mask = torch.tensor([True, True, False])
    >>> finecal.calibrate_logits(torch.tensor([[4.0, 1.0, 3.0]]), seen_mask, gamma=1.5)
    tensor([[4.0000, 1.0000, 4.5000]])

    Three classes for each pixel of two pictures:

    >>> pictures = torch.zeros(2, 3, 4, 4)
    >>> calibrated = finecal.calibrate_logits(pictures, seen_mask, 1.5, dim=1)
    >>> calibrated[0, :, 0, 0]
    tensor([0.0000, 0.0000, 1.5000])
    """
    dim = check_dim(dim)
    x = as_logits(logits, any_batch=True, dim=dim)
    mask = check_mask(seen_mask, x.shape[dim], x.device, x.shape)
    shift = check_gamma(gamma, x.device, x.dtype)
    absent = per_class_view(absent_indicator(mask, x.dtype), x.ndim, dim)
    result: Tensor | NumpyArray = as_type_of(logits)(add_gamma(x, absent, shift))
    return result


@overload
def predict(logits: Tensor, seen_mask: Mask, gamma: SupportsFloat = 0.0, *, dim: int = -1) -> Tensor: ...
@overload
def predict(
    logits: NumpyArray | Sequence[Any], seen_mask: Mask, gamma: SupportsFloat = 0.0, *, dim: int = -1
) -> NDArray[np.int64]: ...
def predict(logits: Logits, seen_mask: Mask, gamma: SupportsFloat = 0.0, *, dim: int = -1) -> Tensor | NumpyArray:
    r"""Predict a class for each sample, or each pixel, with gamma added to the absent logits.

    .. math:: \hat y = \begin{cases}
        \arg\max_{c \in U} z_c & \text{if } \max_{c \in S} z_c - \max_{c \in U} z_c < \gamma \\
        \arg\max_{c \in S} z_c & \text{otherwise}
        \end{cases}

    with the lowest index at a tie within a group. This equals ``calibrate_logits(...).argmax(dim)`` except at exact
    ties between the groups, where the seen class wins, and within one rounding step of the logits' dtype.

    Parameters
    ----------
    logits, seen_mask, gamma, dim
        As in `calibrate_logits`; gamma is 0 by default.

    Returns
    -------
    (...) int64 of the type and device of `logits`
        Class indices in ``[0, C)``, in the shape of `logits` without `dim`; where there is NaN, any of them.

    Raises
    ------
    TypeError, ValueError
        As `calibrate_logits`.

    Notes
    -----
    `O(NC)` time; the memory beyond the result does not grow with N. Compiles with ``fullgraph=True``; never
    synchronises a GPU.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> seen_mask = np.array([True, True, False])
    >>> finecal.predict(np.array([[4.0, 1.0, 3.0]]), seen_mask)
    array([0])
    >>> finecal.predict(np.array([[4.0, 1.0, 3.0]]), seen_mask, gamma=1.5)
    array([2])
    >>> finecal.predict(np.zeros((2, 3, 4, 4)), seen_mask, 1.5, dim=1).shape
    (2, 4, 4)
    """
    dim = check_dim(dim)
    x = as_logits(logits, any_batch=True, dim=dim).detach()
    mask = check_mask(seen_mask, x.shape[dim], x.device, x.shape)
    shift = check_gamma(gamma, x.device)
    parts = [winning_classes(rows, mask, shift) for rows in _rows(x, dim)]
    classes = parts[0] if len(parts) == 1 else torch.cat(parts)
    result: Tensor | NumpyArray = as_type_of(logits)(classes.reshape(shape_without(x, dim)))
    return result


def _rows(logits: Tensor, dim: int) -> Iterable[Tensor]:
    """Return all positions as `(n, C)` rows, in order: views, or small copies where an item has few positions."""
    last, classes = logits.movedim(dim, -1), logits.shape[dim]
    if dim in (-1, logits.ndim - 1) or last.is_contiguous() or torch.compiler.is_compiling():
        return [last.reshape(-1, classes)]
    positions = last[0].numel() // classes
    if dim in (0, -logits.ndim) or positions > _FEW_POSITIONS:
        return rows_of(logits, dim)
    return (part.reshape(-1, classes) for part in torch.split(last, _COPIED_ROWS // positions))


def add_gamma(logits: Tensor, absent: Tensor, gamma: float | Tensor) -> Tensor:
    """Add gamma where `absent` (from `absent_indicator`) is 1, in float32 or wider, rounded once."""
    return (logits + gamma * absent).to(logits.dtype)


def absent_indicator(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 on absent columns and 0 on seen ones, in the dtype in which gamma is added to logits of `dtype`."""
    return (~mask).to(wide_dtype(dtype))
