"""Split batches into inputs and labels, and move them to the device and dtype of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..inputs.devices import check_device, under_autocast
from .output import described

SplitBatch: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""From a batch, as the loader gives it, to ``(inputs, labels)``."""

_LABEL_KEYS = ("labels", "label", "targets", "target")
BY_NAME = (
    f"labels are taken from under {', '.join(map(repr, _LABEL_KEYS[:-1]))} or {_LABEL_KEYS[-1]!r}, and everything else "
    "is passed to the model by name"
)
_HALF = (torch.float16, torch.bfloat16)
_SHOWN = 6
"""Sequences of up to so many items are described item by item."""


def check_split(batch: object) -> SplitBatch | None:
    """Check that `batch`, if given, is a function from a batch to inputs and labels."""
    if batch is not None and (isinstance(batch, type) or not callable(batch)):
        raise TypeError(
            f"batch is {described(batch)}; pass a function from a batch to (inputs, labels), such as "
            "lambda b: (b[0], b[1])"
        )
    return batch


def suggest_batch_function(batch: object) -> str:
    """Describe a batch and, if it holds several items, suggest a function for the argument `batch`."""
    found = f"a batch is {_in_detail(batch)}"
    if not isinstance(batch, (Mapping, tuple, list)) or len(batch) < 2:
        return found
    items = dict(batch) if isinstance(batch, Mapping) else dict(enumerate(batch))
    keys = list(items)
    place = next((place for place, key in enumerate(keys) if isinstance(items[key], Tensor) and items[key].ndim > 1), 0)
    inputs = keys.pop(place)
    labels = next((key for key in keys if key in _LABEL_KEYS), keys[min(place, len(keys) - 1)])  # else what follows
    example = "b[1][0], b[1][1]" if _is_numbered(batch) else f"b[{inputs!r}], b[{labels!r}]"
    return f"{found}; say which are the inputs and the labels, as in batch=lambda b: ({example})"


class Feed:
    """Splits batches, and moves them to the device of a model, in half precision if the model is so altogether.

    Parameters
    ----------
    model : nn.Module
        Read for its device and dtype, never changed.
    device : torch.device or str, optional
        Default: that of the model's first parameter or buffer.
    split : callable, optional
        From a batch to inputs and labels; default: as documented in `collect_logits`.
    """

    def __init__(
        self, model: nn.Module, device: torch.device | str | None = None, split: SplitBatch | None = None
    ) -> None:
        self._device = device_of(model) if device is None else check_device(device)
        self._dtype = _half_of(model)
        self._split = check_split(split)

    def split_batch(self, batch: Any) -> tuple[Any, Any]:
        """Return the inputs, on the device and in the dtype of the model, and the labels as they come."""
        inputs, labels = _inputs_and_labels(batch) if self._split is None else _checked_pair(self._split(batch))
        return self.to_model_device(inputs), labels

    def to_model_device(self, inputs: Any) -> Any:
        """Return inputs on the device of the model, and in its dtype if that is half precision."""
        return move_to(inputs, self._device, self._dtype)


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device for the inputs; None if the model has no parameters or buffers, or all are offloaded."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), None)


def move_to(value: Any, device: torch.device | None, dtype: torch.dtype | None = None) -> Any:
    """Move a nested value to a device, and cast its floating-point tensors to `dtype` except under autocast."""
    if isinstance(value, Mapping):
        return {key: move_to(item, device, dtype) for key, item in value.items()}
    if isinstance(value, Tensor):
        target = value.device if device is None else device
        cast = dtype is not None and value.is_floating_point() and not under_autocast(target)
        return value.to(device=target, dtype=dtype if cast else value.dtype)
    if hasattr(value, "to") and device is not None:
        return value.to(device)
    if isinstance(value, (tuple, list)):
        items = [move_to(item, device, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _half_of(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of a model whose parameters are all in one half precision; None for others."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return next(iter(dtypes)) if len(dtypes) == 1 and dtypes.issubset(_HALF) else None


def _inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        labels = [inputs.pop(key) for key in _LABEL_KEYS if key in inputs]
        if len(labels) > 1:
            found = [key for key in _LABEL_KEYS if key in batch]
            raise ValueError(
                f"a batch has labels under {' and '.join(map(repr, found))}; keep one of them, or say which they are: "
                f"batch=lambda b: (inputs, b[{found[0]!r}])"
            )
        return inputs, labels[0] if labels else None
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) not in (1, 2) or _is_numbered(batch):
        raise TypeError(f"expected batches of the form (inputs, labels), but {suggest_batch_function(batch)}")
    return batch[0], batch[1] if len(batch) == 2 else None


def _is_numbered(batch: Any) -> bool:
    """Whether a batch is ``(indices, (inputs, labels))`` or the like: labels would be one array, not several."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], (tuple, list)):
        return False
    return any(isinstance(part, (Tensor, np.ndarray)) and part.ndim > 0 for part in batch[1])


def _checked_pair(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"batch returned {_in_detail(pair)}; it must return (inputs, labels), with None for labels that there are "
            "none of"
        )
    return pair[0], pair[1]


def _in_detail(value: Any) -> str:
    """Describe the contents of a batch, with shapes and dtypes."""
    if isinstance(value, (Tensor, np.ndarray)):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} {'tensor' if isinstance(value, Tensor) else 'array'} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_in_detail(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)) and len(value) <= _SHOWN:
        inner = ", ".join(map(_in_detail, value))
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    return described(value)
