"""Warn if gamma is lost or overflows when it is added in the dtype of the logits."""

import math

import torch
from torch import Tensor

from ..inputs.arrays import dtype_name
from ..logits.tiles import wide_dtype

_LOOKED_AT = 1024


def rounding_warnings(logits: Tensor, gamma: float) -> list[str]:
    """Return a warning if gamma overflows in the dtype of the checked logits, or is lost beside numbers of their size.

    Gamma is chosen from margins, and `predict` compares these with gamma. A sum in the dtype of the logits is another
    matter, and nothing looks at it when it is formed.
    """
    n = len(logits)
    top = logits[:: max(1, n // _LOOKED_AT)].to(wide_dtype(logits.dtype)).amax(1).abs()
    top = top[top.isfinite()]
    if gamma == 0 or len(top) == 0:
        return []
    dtype, limits = dtype_name(logits), torch.finfo(logits.dtype)
    if float(top.max()) + abs(gamma) > limits.max:
        return [
            f"gamma = {gamma:.4g} overflows in {dtype}, which ends at {limits.max:.4g}: calibrate_logits would give "
            "inf; convert the logits with .double() first, or check the estimate"
        ]
    size = float(top.median())
    step = limits.eps * 2.0 ** math.floor(math.log2(size)) if size > 0 else 0.0
    if abs(gamma) >= step:
        return []
    return [
        f"gamma = {gamma:.4g} is lost in {dtype}: neighbouring numbers of the size of these logits ({size:.4g}) are "
        f"{step:.3g} apart. Added to them, gamma is lost or rounded to more than it is, while predict and evaluate "
        "count it in full: subtract from each row of logits its maximum, or convert them to a wider dtype"
    ]
