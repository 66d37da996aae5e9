"""Functions on logits: add gamma, and predict with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..inputs.arrays import Logits, Mask, NumpyArray, matching
from ..inputs.checks import as_logits, check_gamma, check_mask
from .reductions import winning_classes
from .tiles import wide_dtype


@overload
def calibrate_logits(logits: Tensor, seen_mask: Mask, gamma: SupportsFloat) -> Tensor: ...
@overload
def calibrate_logits(logits: NumpyArray | Sequence[Any], seen_mask: Mask, gamma: SupportsFloat) -> NumpyArray: ...
def calibrate_logits(logits: Logits, seen_mask: Mask, gamma: SupportsFloat) -> Tensor | NumpyArray:
    r"""Add gamma to the logits of the absent classes.

    .. math:: \tilde z_c = z_c + \gamma \, [c \in U]

    Parameters
    ----------
    logits : (..., C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes, with any leading batch dimensions. Gradients flow through; NaN passes
        through.
    seen_mask : (C,) bool
        True for the classes of the fine-tuning data; the others are absent.
    gamma : float, 0-d tensor or GammaEstimate
        In units of the logits. Positive values favour the absent classes.

    Returns
    -------
    (..., C) of the type, dtype and device of `logits`
        The addition is done in float32 or wider and rounded once. Values are not looked at: a sum that the dtype
        cannot hold is inf, and a gamma below its rounding step is lost. Estimators warn of both.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `seen_mask` not boolean, or `gamma` not a number.
    ValueError
        If shapes do not match, `seen_mask` has no seen or no absent class, or `gamma` is not finite in the dtype of
        the logits.

    Notes
    -----
    Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024, section 5. Compiles with ``fullgraph=True``; never
    synchronises a GPU.

    Examples
    --------
    >>> import torch, finecal
    >>> seen_mask = torch.tensor([True, True, False])
    >>> finecal.calibrate_logits(torch.tensor([[4.0, 1.0, 3.0]]), seen_mask, gamma=1.5)
    tensor([[4.0000, 1.0000, 4.5000]])
    """
    x = as_logits(logits, any_batch=True)
    mask = check_mask(seen_mask, x.shape[-1], x.device)
    shift = check_gamma(gamma, x.device, x.dtype)
    result: Tensor | NumpyArray = matching(logits)(add_gamma(x, absent_indicator(mask, x.dtype), shift))
    return result


@overload
def predict(logits: Tensor, seen_mask: Mask, gamma: SupportsFloat = 0.0) -> Tensor: ...
@overload
def predict(logits: NumpyArray | Sequence[Any], seen_mask: Mask, gamma: SupportsFloat = 0.0) -> NDArray[np.int64]: ...
def predict(logits: Logits, seen_mask: Mask, gamma: SupportsFloat = 0.0) -> Tensor | NumpyArray:
    r"""Predict a class for each sample, with gamma added to the absent logits.

    .. math:: \hat y = \begin{cases}
        \arg\max_{c \in U} z_c & \text{if } \max_{c \in S} z_c - \max_{c \in U} z_c < \gamma \\
        \arg\max_{c \in S} z_c & \text{otherwise}
        \end{cases}

    with the lowest index at a tie within a group. This equals ``calibrate_logits(...).argmax(-1)`` except at exact ties
    between the groups, where the seen class wins, and within one rounding step of the logits' dtype.

    Parameters
    ----------
    logits : (..., C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes.
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        In units of the logits.

    Returns
    -------
    (...) int64 of the type and device of `logits`
        Class indices in ``[0, C)``; for a row with NaN any of them.

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
    """
    x = as_logits(logits, any_batch=True).detach()
    mask = check_mask(seen_mask, x.shape[-1], x.device)
    shift = check_gamma(gamma, x.device)
    classes = winning_classes(x.reshape(-1, x.shape[-1]), mask, shift)
    result: Tensor | NumpyArray = matching(logits)(classes.reshape(x.shape[:-1]))
    return result


def add_gamma(logits: Tensor, absent: Tensor, gamma: float | Tensor) -> Tensor:
    """Add gamma where `absent` (from `absent_indicator`) is 1, in float32 or wider, rounded once."""
    return (logits + gamma * absent).to(logits.dtype)


def absent_indicator(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 on absent columns and 0 on seen ones, in the dtype in which gamma is added to logits of `dtype`."""
    return (~mask).to(wide_dtype(dtype))
