"""Gamma as a module: one number, added to every absent logit."""

from __future__ import annotations

from typing import Any, SupportsFloat

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from ..gamma.estimate import GammaEstimate
from ..inputs.arrays import Mask
from ..inputs.checks import as_bool_mask, check_gamma, check_mask_values, gamma_as_float
from ..inputs.numbers import check_dim
from ..logits.dense import per_class_view
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
    dim : int, default -1
        Dimension of the classes in the logits: 1 for `(B, C, H, W)`.

    Attributes
    ----------
    seen_mask : (C,) bool buffer
        `forward` follows whatever is written to it or put in its place.
    gamma : 0-d float32 buffer
        Casts of the module (``.half()``) move it but never round it.
    method, estimate, dim : str or None, GammaEstimate or None, int
        Name of the estimator (None once another gamma is loaded), the estimate given, and the argument. Not part of the
        `state_dict`, which holds tensors only; `finecal.save` writes them.

    Raises
    ------
    TypeError
        If `seen_mask` is not boolean, `gamma` not a number, or `dim` not an integer; in `forward`, if the logits are
        not a floating-point tensor.
    ValueError
        If `seen_mask` has no seen or no absent class, or `gamma` is not finite in float32; in `forward`, if the logits
        have no dimension `dim`, or another number of classes.

    Notes
    -----
    `forward` takes logits of any floating dtype, `(..., C)` or with the classes along `dim`. It returns the same shape,
    dtype and memory format; the sum is formed in float32 or wider. It compiles with ``fullgraph=True``, exports, and
    never synchronises a GPU.

    Behind a model into whose head `fold_into_head` has put gamma already, it adds gamma a second time without a
    warning; `CalibratedModel` refuses such a model.

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
    _absent: Tensor | None = None
    """1 on absent classes and 0 on seen ones: kept, as a sample at a time pays for each operation."""
    _made_of: Tensor | None = None
    _made_at: int = 0
    """The mask that `_absent` was made from, and its version: it may be written to, loaded, moved or replaced."""
    estimate: GammaEstimate | None = None
    _values = "gamma"

    def __init__(self, seen_mask: Mask, gamma: SupportsFloat, *, dim: int = -1) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        mask = check_mask_values(as_bool_mask(seen_mask, abstract=True)).clone()
        self.estimate = gamma if isinstance(gamma, GammaEstimate) else None
        self.method = None if self.estimate is None else self.estimate.method
        self.register_buffer("seen_mask", mask)
        self.register_buffer("gamma", gamma_buffer(gamma, mask.device))

    def forward(self, logits: Tensor) -> Tensor:
        absent, dim = self._indicator(), self.dim
        check_columns(logits, absent, dim=dim)
        if dim != -1:
            absent = per_class_view(absent, logits.ndim, dim)
        if logits.dtype == torch.float32:
            return torch.addcmul(logits, self.gamma, absent)
        return add_gamma(logits, absent, self.gamma)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Drop the cached indicator: a copy of the mask has a version counter of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._absent = self._made_of = None

    def _indicator(self) -> Tensor:
        """Return 1 on absent classes and 0 on seen ones, as the mask is now."""
        mask = self._buffers["seen_mask"]
        assert mask is not None
        # A graph is to follow the mask as well; tensors of inference mode count no changes.
        if torch.compiler.is_compiling() or is_tracing() or mask.is_inference():  # type: ignore[no-untyped-call]
            return absent_indicator(mask, torch.float32)
        absent, version = self._absent, mask._version
        if absent is None or self._made_of is not mask or self._made_at != version:
            absent = absent_indicator(mask, torch.float32)
            self._absent, self._made_at, self._made_of = absent, version, mask
        return absent

    def _shown(self) -> str:
        return f"gamma={float(self.gamma):.6g}"


def gamma_buffer(gamma: SupportsFloat, device: torch.device) -> Tensor:
    if isinstance(gamma, Tensor) and gamma.is_meta:
        check_gamma(gamma, gamma.device, abstract=True)
        return torch.empty_like(gamma, dtype=torch.float32)
    return torch.tensor(gamma_as_float(gamma, torch.float32), dtype=torch.float32, device=device)
