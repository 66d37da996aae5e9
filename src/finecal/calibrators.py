"""Calibrators: torch modules that are complete once constructed. Here is what all share, and the additive bias."""

from collections.abc import Callable
from typing import Any, Self, SupportsFloat

import torch
from torch import Tensor, nn

from ._arrays import ArrayLike
from ._checks import (
    as_bool_mask,
    check_logits,
    check_mask_values,
    check_module_device,
    check_num_columns,
    gamma_as_float,
)
from .gamma import GammaEstimate
from .logits import absent_indicator, add_gamma


class Calibrator(nn.Module):
    """A module from logits `(..., C)` to logits of the same shape and dtype. Private: what all calibrators share.

    The state is float32 (or wider) buffers, which casts of the module (``.half()``) move but never round, so that
    `state_dict` holds tensors only. `method` says in words where the values come from.
    """

    method: str | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `fn` move the buffers, and undo a change of their dtypes."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.named_buffers():
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Forget where the values came from if others are loaded: they are of another fit."""
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        super()._load_from_state_dict(*args, **kwargs)
        if any(buffer.is_meta or not torch.equal(buffer, before[name]) for name, buffer in self.named_buffers()):
            for name in ("method", "estimate", "report"):
                if getattr(self, name, None) is not None:
                    setattr(self, name, None)


def check_columns(logits: Tensor, per_class: Tensor, name: str = "seen_mask") -> None:
    """Check logits in `forward` against a buffer with one entry per class: shapes, dtypes and devices only."""
    check_logits(logits, any_batch=True)
    check_num_columns(logits.shape[-1], per_class.shape[0], name)
    check_module_device(per_class.device, logits.device)


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

    def __init__(self, seen_mask: ArrayLike, gamma: SupportsFloat) -> None:
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

    def extra_repr(self) -> str:
        method = "" if self.method is None else f", method={self.method!r}"
        if self.gamma.is_meta:
            return f"gamma on the meta device{method}, classes={self.seen_mask.shape[0]}"
        seen = int(self.seen_mask.sum())
        return f"gamma={float(self.gamma):.6g}{method}, seen={seen}, absent={self.seen_mask.shape[0] - seen}"
