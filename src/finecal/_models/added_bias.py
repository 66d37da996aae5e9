"""A bias for the final linear layer of a model that was built without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._core.warning import warn
from .heads import find_head
from .sharded import shards_parameters

_LOADERS = ("save_pretrained", "load_from_checkpoint")
"""Methods of models whose classes are built again from a configuration, which says that the head has no bias."""


def can_have_bias(model: nn.Module, layer: nn.Module, name: str) -> bool:
    """Whether a layer without a bias can be given one that the model uses, and keeps when it is loaded."""
    if type(layer) is not nn.Linear or "bias" not in layer._parameters or layer._parameters["bias"] is not None:
        return False
    parts = name.split(".")
    around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    weight = layer.weight
    return (
        not any(hasattr(module, loader) for module in around for loader in _LOADERS)
        and not any(map(shards_parameters, model.modules()))
        and not (is_lazy(weight) or weight.is_meta or hasattr(weight, "placements"))
        and weight.is_floating_point()
    )


@contextmanager
def bias_added(model: nn.Module) -> Iterator[list[str]]:
    """Give the head a bias of zeros for the time; it is kept if a fold has changed it, and named in the list."""
    kept: list[str] = []
    added = dict(_without_bias(model))
    for layer in added:
        zeros = torch.zeros(layer.out_features, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.bias = nn.Parameter(zeros, requires_grad=layer.weight.requires_grad)
    try:
        yield kept
    finally:
        for layer, name in added.items():
            if bool(layer.bias.any()):
                kept.append(f"{name}.bias".removeprefix("."))
            else:
                layer.bias = None  # type: ignore[assignment]


def warn_of_keys(kept: list[str]) -> None:
    """Say what a program that loads the weights has to know."""
    if kept:
        warn(
            "fold_into_head: the head had no bias and has one now, so the state_dict has one key more, "
            f"{' and '.join(kept)}: a program that loads it has to build the head with bias=True; where it cannot, "
            "keep CalibratedModel(model, calibrator)"
        )


def _without_bias(model: nn.Module) -> Iterator[tuple[nn.Linear, str]]:
    """Yield the layers of the head that can have a bias, and their names."""
    try:
        head = find_head(model)
    except Exception:  # `fold_into_head` says it, or tries other layers; methods of the user's model may raise any
        return
    for layer, name in zip(head.layers, head.names, strict=True):
        if head.parameter is None and isinstance(layer, nn.Linear) and can_have_bias(model, layer, name):
            yield layer, name
