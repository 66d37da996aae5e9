"""Gamma as a module: one number, added to every absent logit."""

from __future__ import annotations

from typing import Any, SupportsFloat

import torch
from torch import Tensor

from ..gamma.estimate import GammaEstimate
from ..inputs.arrays import Mask
from ..inputs.checks import as_bool_mask, check_mask_values, gamma_as_float
from ..logits.predict import absent_indicator, add_gamma
from .base import Calibrator, check_columns


class AdditiveBias(Calibrator):
    r"""Add gamma to the logits of the absent classes.

    .. math:: \tilde z_c = z_c + \gamma \, [c \in U]

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate
        In units of the logits. An estimate also gives the module its `method`, and is kept.

    Attributes
    ----------
    seen_mask : (C,) bool buffer
    gamma : 0-d float32 buffer
        Casts of the module (``.half()``) move it but never round it.
    method : str or None
        The estimator's name. Not part of the `state_dict`, which holds tensors only; None once another gamma is loaded.
    estimate : GammaEstimate or None
        The `gamma` given, if it was an estimate. Not part of the `state_dict`, as `method`; `finecal.save` writes it.

    Raises
    ------
    TypeError
        If `seen_mask` is not boolean, or `gamma` not a number; in `forward`, if the logits are not a floating-point
        tensor.
    ValueError
        If `seen_mask` has no seen or no absent class, or `gamma` is not finite in float32; in `forward`, if the number
        of classes differs.

    Notes
    -----
    `forward` takes `(..., C)` logits of any floating dtype and returns the same dtype; the sum is formed in float32 or
    wider. It compiles with ``fullgraph=True``, exports, and never synchronises a GPU.

    Examples
    --------
    >>> import torch, finecal
    >>> calibrator = finecal.AdditiveBias([True, True, False], gamma=1.5)
    >>> calibrator
    AdditiveBias(gamma=1.5, seen=2, absent=1)
    >>> calibrator(torch.tensor([[4.0, 1.0, 3.0]]))
    tensor([[4.0000, 1.0000, 4.5000]])
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 3), calibrator)
    """

    seen_mask: Tensor
    gamma: Tensor
    _absent: Tensor
    """1 on absent classes and 0 on seen ones: kept, as a sample at a time pays for each operation."""
    estimate: GammaEstimate | None = None
    _values = "gamma"

    def __init__(self, seen_mask: Mask, gamma: SupportsFloat) -> None:
        super().__init__()
        mask = check_mask_values(as_bool_mask(seen_mask)).clone()
        value = torch.tensor(gamma_as_float(gamma, torch.float32), dtype=torch.float32, device=mask.device)
        self.estimate = gamma if isinstance(gamma, GammaEstimate) else None
        self.method = None if self.estimate is None else self.estimate.method
        self.register_buffer("seen_mask", mask)
        self.register_buffer("gamma", value)
        self.register_buffer("_absent", absent_indicator(mask, torch.float32), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        check_columns(logits, self._absent)
        if logits.dtype == torch.float32:
            return torch.addcmul(logits, self.gamma, self._absent)
        return add_gamma(logits, self._absent, self.gamma)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load another mask with what is made of it."""
        super()._load_from_state_dict(*args, **kwargs)
        self._absent = absent_indicator(self.seen_mask, torch.float32)

    def _shown(self) -> str:
        return f"gamma={float(self.gamma):.6g}"
