"""An ``nn.Sequential`` of a model and an `AdditiveBias`, which refuses to run once gamma is in the model's head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..calibrators.additive_bias import AdditiveBias
from .fold_record import FOLDED
from .heads import HeadLayer, possible_heads


class FoldedAlready:
    """A hook of a sequence, called before it runs: it refuses a folded head in front of the first `AdditiveBias`.

    `fold_into_head` knows nothing of what else holds the model, so that the sequence has to look. It does not see what
    comes into it by ``insert``, nor a head that is replaced within a part.
    """

    def __init__(self) -> None:
        self._parts: tuple[nn.Module | None, ...] = ()
        self._heads: tuple[HeadLayer, ...] = ()

    def __call__(self, sequence: nn.Sequential, args: tuple[Any, ...]) -> None:
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling:
            self.look(sequence)
        for head in self._heads:
            # torch.compile guards what `hasattr` finds, which takes longer.
            if hasattr(head, FOLDED) if is_compiling else FOLDED in head.__dict__:
                raise ValueError(
                    "a calibrator is folded into the head of the model that comes before an AdditiveBias in this "
                    "Sequential, so gamma would be added twice: use the model alone, which is calibrated now, or take "
                    "the folded calibrator out again with unfold_from_head"
                )

    def look(self, sequence: nn.Sequential) -> None:
        """Find the heads anew, if the parts are others than before."""
        parts = tuple(sequence._modules.values())
        if parts != self._parts:
            self._parts, self._heads = parts, _heads_before_bias(sequence)


def _guard(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Put the hook on a plain sequence that is given an `AdditiveBias`, alone or within sequences."""
    if not isinstance(parent, nn.Sequential) or not _is_plain(parent):
        return
    hooks = [hook for hook in parent._forward_pre_hooks.values() if isinstance(hook, FoldedAlready)]
    if not hooks and child is not None and any(isinstance(layer, AdditiveBias) for layer in _layers(child)):
        hooks.append(FoldedAlready())
        parent.register_forward_pre_hook(hooks[0])
    for hook in hooks:
        # The new part is not in the sequence yet.
        hook._parts = ()
        hook._heads = _heads_before_bias(parent, {name: child})


def _heads_before_bias(
    sequence: nn.Sequential, new: dict[str, nn.Module | None] | None = None
) -> tuple[HeadLayer, ...]:
    """Return the layers of which one may be the head of the model in front of the first `AdditiveBias`."""
    before: list[nn.Module] = []
    for part in {**sequence._modules, **(new or {})}.values():
        for layer in () if part is None else _layers(part):
            if isinstance(layer, AdditiveBias):
                return possible_heads(nn.Sequential(*before))
            before.append(layer)
    return ()


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what runs one after the other."""
    if isinstance(module, nn.Sequential) and _is_plain(module):
        for part in module:
            yield from _layers(part)
    else:
        yield module


def _is_plain(sequence: nn.Sequential) -> bool:
    return type(sequence).forward is nn.Sequential.forward


def watch_sequences() -> None:
    """Let every sequence that is given an `AdditiveBias` from now on look for a folded head."""
    register_module_module_registration_hook(_guard)
