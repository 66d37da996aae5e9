"""Base class of the calibrators."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..inputs.checks import check_logits, check_module_device, check_num_columns


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

    def _shown(self) -> str:
        """Return the values as `repr` shows them."""
        raise NotImplementedError

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
