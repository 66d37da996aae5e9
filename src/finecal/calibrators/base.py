"""What all calibrators have in common."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..inputs.checks import check_logits, check_module_device, check_num_columns


class Calibrator(nn.Module):
    """A module from logits `(..., C)` to logits of the same shape and dtype. Private: what all calibrators share.

    The state is float32 (or wider) buffers, which casts of the module (``.half()``) move but never round, so that
    `state_dict` holds tensors only. `method` says in words where the values come from.
    """

    method: str | None = None
    _values: str
    """What the values are called where there are none to show."""

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
        return ", ".join(parts)

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
