"""The features of samples: the inputs of the final linear layer of a model, recorded by a hook."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .heads import HeadLayer, find_head


class HeadInputs:
    """A hook that records the inputs of a layer between `arm` and `pop`, for each thread by itself."""

    def __init__(self) -> None:
        self._recorded: dict[int, list[Tensor]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = self._recorded.get(_thread())
        if rows is not None:
            rows.append(args[0] if args else kwargs["input"])

    def arm(self) -> None:
        """Start to record the inputs of the layer, in this thread."""
        self._recorded[_thread()] = []

    def clear(self) -> None:
        """Stop, and drop what was recorded."""
        self._recorded.pop(_thread(), None)

    def pop(self) -> Tensor:
        """Stop, and return the inputs of the one call that was recorded."""
        rows = self._recorded.pop(_thread(), [])
        if len(rows) != 1:
            raise ValueError(
                f"the final linear layer ran {len(rows)} times for one batch, so its inputs are not one row per "
                "sample; pass the model itself, before torch.compile or DataParallel"
            )
        return rows[0]


def attach_head_inputs(linear: nn.Linear) -> HeadInputs:
    """Return the hook of a layer, and add it if there is none: hooks that come and go cannot be compiled."""
    for hook in linear._forward_pre_hooks.values():
        if isinstance(hook, HeadInputs):
            return hook
    inputs = HeadInputs()
    linear.register_forward_pre_hook(inputs, with_kwargs=True)
    return inputs


def detach_head_inputs(linear: nn.Linear) -> None:
    """Remove the hook of `attach_head_inputs` from a layer."""
    for key, hook in list(linear._forward_pre_hooks.items()):
        if isinstance(hook, HeadInputs):
            del linear._forward_pre_hooks[key]
            linear._forward_pre_hooks_with_kwargs.pop(key, None)


@contextmanager
def capture_head_inputs(linear: HeadLayer | None) -> Iterator[HeadInputs]:
    """Put a hook on the layer within a ``with`` block; nothing is recorded for None."""
    inputs = HeadInputs()
    handle = None if linear is None else linear.register_forward_pre_hook(inputs, with_kwargs=True)
    try:
        yield inputs
    finally:
        if handle is not None:
            handle.remove()


def single_head(model: nn.Module) -> nn.Linear:
    """Return the one linear layer that gives the logits."""
    head = find_head(model)
    if len(head.layers) > 1:
        raise ValueError(
            f"the model averages the logits of {head}, which have inputs of their own: there is no one row of features "
            "per sample"
        )
    if not isinstance(head.layers[0], nn.Linear):
        raise ValueError(
            f"the head {head} is a convolution, whose inputs are no one row of features per sample; use what needs no "
            "features"
        )
    return head.layers[0]


def _thread() -> int:
    """Return the number of this thread; 0 in compiled calls, whose records no other call sees."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
