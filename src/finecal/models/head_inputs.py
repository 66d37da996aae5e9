"""The features of a sample: what the final linear layer of a model is called with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .heads import HeadLayer, find_head


class HeadInputs:
    """What a layer is called with, while that is wanted: a hook. Threads that share a model have each its own."""

    def __init__(self) -> None:
        self._recorded: dict[int, list[Tensor]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = self._recorded.get(_thread())
        if rows is not None:
            rows.append(args[0] if args else kwargs["input"])

    def arm(self) -> None:
        """Record what the layer is called with from now on, in this thread."""
        self._recorded[_thread()] = []

    def clear(self) -> None:
        """Record no further."""
        self._recorded.pop(_thread(), None)

    def pop(self) -> Tensor:
        """Return what the layer was called with, and record no further."""
        rows = self._recorded.pop(_thread(), [])
        if len(rows) != 1:
            raise ValueError(
                f"the final linear layer ran {len(rows)} times for one batch, so its inputs are not one row per "
                "sample; pass the model itself, before torch.compile or DataParallel"
            )
        return rows[0]


def attach_head_inputs(linear: nn.Linear) -> HeadInputs:
    """Return the hook of a layer, put there if it has none: one that came and went at each call cannot be compiled."""
    for hook in linear._forward_pre_hooks.values():
        if isinstance(hook, HeadInputs):
            return hook
    inputs = HeadInputs()
    linear.register_forward_pre_hook(inputs, with_kwargs=True)
    return inputs


def detach_head_inputs(linear: nn.Linear) -> None:
    """Take the hook of `attach_head_inputs` from a layer."""
    for key, hook in list(linear._forward_pre_hooks.items()):
        if isinstance(hook, HeadInputs):
            del linear._forward_pre_hooks[key]
            linear._forward_pre_hooks_with_kwargs.pop(key, None)


@contextmanager
def capture_head_inputs(linear: HeadLayer | None) -> Iterator[HeadInputs]:
    """Put a hook on a layer, if there is one, for the time being."""
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
    """Return which thread this is; a compiled call keeps what it records to itself."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
