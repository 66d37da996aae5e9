"""Gamma as a module: one number, added to every absent logit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self, SupportsFloat

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from .._core.arrays import Mask, as_tensor, as_type_of, check_dim, is_array
from .._core.calibrate import absent_indicator, add_gamma, per_class_view
from .._core.checks import (
    LIKE_PROBABILITIES,
    are_probabilities,
    as_bool_mask,
    check_gamma,
    check_logits,
    check_mask_values,
    check_module_device,
    check_num_columns,
    gamma_as_float,
)
from .._core.warning import warn
from .._estimators.estimate import GammaEstimate

_LOOKED_AT = 16
"""Rows along each dimension."""


class Calibrator(nn.Module):
    """A module from logits to logits of the same shape and dtype. Private: what all calibrators share.

    The state is float32 (or wider) buffers, which casts of the module (``.half()``) move but never round, so that
    `state_dict` holds tensors only. `method` says in words where the values come from.
    """

    method: str | None = None
    dim: int = -1
    """Where the classes are in the logits: the last dimension, unless the constructor takes another."""
    _values: str
    """Name of the values, shown where there are none."""
    _has_looked: bool = False
    """Whether the values of logits have been looked at: one look finds a softmax before the calibrator."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`, which takes tensors, also with arrays of other libraries, and return their kind."""
        logits: Any = args[0] if args else kwargs.get("logits")
        if isinstance(logits, Tensor) or not is_array(logits):
            return super().__call__(*args, **kwargs)
        given = [as_tensor(value, "logits") if is_array(value) else value for value in (*args, *kwargs.values())]
        calibrated = super().__call__(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))
        return as_type_of(logits)(calibrated)

    def _shown(self) -> str:
        """Return the values as `repr` shows them."""
        raise NotImplementedError

    def _look(self, logits: Tensor) -> None:
        """Warn, at the first call in eager mode on the CPU, of checked logits that are probabilities."""
        if torch.compiler.is_compiling() or self._has_looked:
            return
        if type(logits) is not Tensor or not logits.is_cpu or is_tracing():  # type: ignore[no-untyped-call]
            return
        if logits.numel() == 0 or logits.shape[self.dim] == 1:
            return
        rows = logits.detach().movedim(self.dim, -1)
        few = rows[tuple(slice(_LOOKED_AT) for _ in rows.shape[:-1])]
        try:
            if not bool(few.any()):  # as a fold asks what is added to no logits
                return
            found = are_probabilities(few.reshape(-1, few.shape[-1]))
        except RuntimeError:  # within a transform of torch.func, where tensors have no values
            return
        self._has_looked = True
        if found:
            warn(f"{type(self).__name__}: logits {LIKE_PROBABILITIES}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_has_looked"}

    def extra_repr(self) -> str:
        buffers = dict(self.named_buffers())
        is_meta = any(buffer.is_meta for buffer in buffers.values())
        parts = [f"{self._values} on the meta device" if is_meta else self._shown()]
        if self.method is not None:
            parts.append(f"method={self.method!r}")
        mask = buffers.get("seen_mask")
        if mask is not None and not is_meta:
            seen = int(mask.sum())
            parts.append(f"seen={seen}, absent={mask.shape[0] - seen}")
        else:
            parts += [f"classes={buffer.shape[0]}" for buffer in buffers.values() if buffer.ndim][:1]
        if self.dim != -1:
            parts.append(f"dim={self.dim}")
        return ", ".join(parts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `fn` move the buffers, and undo a change of their dtypes."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.named_buffers():
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load values that the constructor accepts, and forget where its own came from if others are loaded.

        Those of a module that was made on the meta device are checked here for the first time.
        """
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        refusal = self._refusal({name: state_dict[prefix + name] for name in before if prefix + name in state_dict})
        if refusal:
            error_msgs: list[str] = kwargs["error_msgs"] if "error_msgs" in kwargs else args[-1]
            error_msgs.append(f"{prefix}{type(self).__name__} cannot hold what was given: {refusal}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name, buffer in self.named_buffers():
            if buffer.dtype != before[name].dtype:  # with assign=True
                setattr(self, name, buffer.to(before[name].dtype))
        if any(
            buffer.is_meta or before[name].is_meta or not torch.equal(buffer, before[name].to(buffer.device))
            for name, buffer in self.named_buffers()
        ):
            for name in ("method", "estimate", "report"):
                if getattr(self, name, None) is not None:
                    setattr(self, name, None)

    def _refusal(self, given: Mapping[str, Tensor]) -> str:
        """Return why the constructor, which takes the buffers, does not take these; shapes are checked by torch."""
        own = dict(self.named_buffers())
        if any(name not in given or given[name].shape != buffer.shape for name, buffer in own.items()):
            return ""
        values = {name: value.detach().to(own[name].dtype) for name, value in given.items()}
        if any(value.is_meta for value in values.values()):
            return ""
        try:
            type(self)(**{name: value.cpu() for name, value in values.items()})
        except (TypeError, ValueError) as error:
            return str(error)
        return ""


def check_columns(logits: Tensor, per_class: Tensor, name: str = "seen_mask", dim: int = -1) -> None:
    """Check logits in `forward` against a buffer with one entry per class: shapes, dtypes and devices only."""
    check_logits(logits, any_batch=True, dim=dim)
    shape = logits.shape
    check_num_columns(shape[dim], per_class.shape[0], name, shape)
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
    It takes logits of any floating dtype, `(..., C)` or with the classes along `dim`, as tensors or as arrays of NumPy,
    JAX and others, and returns the same kind, shape, dtype and memory format; the sum is formed in float32 or wider. It
    compiles with ``fullgraph=True``, exports, and never synchronises a GPU. An `nn.Sequential` of calibrators takes
    arrays as well.

    Behind a model into whose head `fold_into_head` has put gamma already, it adds gamma a second time without a
    warning; `CalibratedModel` refuses such a model.

    Examples
    --------
    >>> import torch, finecal
    >>> calibrator = finecal.AdditiveBias([True, True, False], gamma=1.5)
    >>> calibrator(torch.tensor([[4.0, 1.0, 3.0]]))
    tensor([[4.0000, 1.0000, 4.5000]])
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
        self.dim: int = check_dim(dim)
        mask = check_mask_values(as_bool_mask(seen_mask, abstract=True)).clone()
        self.estimate = gamma if isinstance(gamma, GammaEstimate) else None
        self.method: str | None = None if self.estimate is None else self.estimate.method
        self.register_buffer("seen_mask", mask)
        self.register_buffer("gamma", gamma_buffer(gamma, mask.device))

    def forward(self, logits: Tensor) -> Tensor:
        absent, dim = self._indicator(), self.dim
        check_columns(logits, absent, dim=dim)
        self._look(logits)
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
