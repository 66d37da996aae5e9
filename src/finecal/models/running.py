"""One batch through a model: what of it are the inputs, where they go, and in which mode the model runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from .output import described

_LABEL_KEYS = ("labels", "label", "targets", "target")
NAMES = (
    f"labels are taken from under {', '.join(map(repr, _LABEL_KEYS[:-1]))} or {_LABEL_KEYS[-1]!r}, and all else is for "
    "the model: pass a generator of (inputs, labels), such as ((batch['x'], batch['y']) for batch in loader)"
)
"""What is done with a mapping, and the way out where its keys are others."""


def device_of(model: nn.Module) -> torch.device | None:
    """Return where the model's inputs go; None if it does not tell (no parameters, or offloaded ones)."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), None)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Restore the flags one by one, after `train` has undone what else the `eval` of some modules does."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(flags[0][1])
        for module, flag in flags:
            module.training = flag


def inputs_and_labels(batch: object) -> tuple[object, object]:
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        labels = [inputs.pop(key) for key in _LABEL_KEYS if key in inputs]
        if len(labels) > 1:
            found = [key for key in _LABEL_KEYS if key in batch]
            raise ValueError(f"a batch has labels under {' and '.join(map(repr, found))}; keep one of them")
        return inputs, labels[0] if labels else None
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) not in (1, 2):
        raise TypeError(
            f"a batch is a {type(batch).__name__} of {len(batch)} items; expected (inputs, labels): pass a generator "
            "that picks these, such as ((x, y) for x, y, path in loader)"
        )
    return batch[0], batch[1] if len(batch) == 2 else None


def called(model: nn.Module, inputs: object) -> object:
    """Call the model; where it cannot take the inputs as they come, say what they are."""
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        positional = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")
        return model(*inputs) if positional else model(inputs)  # type: ignore[misc]
    except (TypeError, AttributeError) as error:
        if _holds_array(inputs):
            raise TypeError(
                f"the inputs of a batch are {_described(inputs)} in place of tensors, which "
                f"{_name(model)} does not take ({error}); convert them by torch.from_numpy, or let a DataLoader do so"
            ) from error
        if isinstance(inputs, Mapping) and isinstance(error, TypeError):
            raise TypeError(
                f"the inputs of a batch are {described(inputs)}, which are passed to {_name(model)} by name, and it "
                f"failed ({error}); {NAMES}"
            ) from error
        raise


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _described(inputs: object) -> str:
    return "a NumPy array" if isinstance(inputs, np.ndarray) else f"{described(inputs)} with NumPy arrays"


def _holds_array(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return any(map(_holds_array, value))
    return isinstance(value, np.ndarray)


def moved(value: Any, device: torch.device | None) -> Any:
    if device is None:
        return value
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
