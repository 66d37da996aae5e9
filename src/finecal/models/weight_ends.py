"""The weights of a model before and after fine-tuning, tensor by tensor, and whether they can be mixed."""

from collections.abc import Collection, Mapping
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..inputs.arrays import dtype_name, shape_of
from ..inputs.warning import error_context
from .adapters import check_adapters, has_adapters, own_base, weights_before
from .fold_record import check_uncalibrated
from .heads import find_head

_KEEP_A_COPY = (
    "fine-tuning changes a model in place: keep a copy.deepcopy(model) from before it, or load the pre-trained weights "
    "again"
)
_NAMED = 3
"""At most so many weights are named in an error: there may be hundreds."""


class WeightPair(NamedTuple):
    """A floating-point parameter or buffer before and after fine-tuning."""

    start: Tensor
    end: Tensor


def changed_weights(pretrained: nn.Module | None, finetuned: nn.Module) -> dict[str, WeightPair]:
    """Return the weights that fine-tuning has changed, by name in the fine-tuned model; a tied one under all its names.

    Raises
    ------
    TypeError, ValueError
        If the two are not of one architecture, or hold what cannot be mixed.
    """
    if pretrained is finetuned:
        raise ValueError(f"pretrained and finetuned are the same object; {_KEEP_A_COPY}")
    after = _checked_weights(finetuned, "finetuned")
    before = _before(pretrained, finetuned, after)
    _check_names(before, after, pretrained, finetuned)
    changed = {}
    for name, end in after.items():
        start = before[name]
        _check_alike(name, start, end, pretrained, finetuned)
        if _mixes(end) and _differ(start, end):
            changed[name] = WeightPair(start, end)
    if not changed:
        raise ValueError(f"pretrained and finetuned have the same weights; {_KEEP_A_COPY}")
    _check_plain(changed)
    return changed


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers; a tied one under all its names."""
    return dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))


def _before(pretrained: nn.Module | None, finetuned: nn.Module, after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights from before fine-tuning, by name in the fine-tuned model."""
    base = None if pretrained is None else _checked_weights(pretrained, "pretrained")
    if base is not None and has_adapters(base):
        raise ValueError(
            "pretrained has LoRA adapters; pass None: a model with LoRA adapters holds its pre-trained weights"
        )
    check_adapters(finetuned, after)
    if has_adapters(after):
        return weights_before(after, own_base(finetuned, after) if base is None else base)
    if base is None:
        raise TypeError("pretrained is None, which is for models with LoRA adapters; pass the model before fine-tuning")
    return base


def _checked_weights(model: nn.Module, argument: str) -> dict[str, Tensor]:
    """Return the parameters and buffers, after refusing models that are calibrated, quantised or without values."""
    with error_context(argument):
        check_uncalibrated(model)
    for path, module in model.named_modules():
        if hasattr(module, "_packed_params"):
            raise ValueError(f"{path or 'the model'} of {argument} is quantised; pass the model before quantisation")
    tensors = named_tensors(model)
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ValueError(f"{name} of {argument} has no shape yet; run the model on a batch first")
        if tensor.is_meta:
            raise ValueError(f"{name} of {argument} is on the meta device and has no values; load the weights first")
    return tensors


def _check_names(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], pretrained: nn.Module | None, finetuned: nn.Module
) -> None:
    only = {"pretrained": [*before.keys() - after.keys()], "finetuned": [*after.keys() - before.keys()]}
    found = [f"{argument} alone has {_listed(names)}" for argument, names in only.items() if names]
    if found:
        kinds = "" if pretrained is None else f" ({type(pretrained).__name__}, {type(finetuned).__name__})"
        raise ValueError(
            f"pretrained and finetuned{kinds} are not of one architecture: {'; '.join(found)}. Pass both as they were "
            "before torch.compile, DataParallel, pruning or quantisation"
        )


def _check_alike(name: str, start: Tensor, end: Tensor, pretrained: nn.Module | None, finetuned: nn.Module) -> None:
    """Refuse tensors of different shapes or kinds, and integer ones that differ, but for counters (0-d)."""
    if start.shape != end.shape:
        classes = _num_classes(pretrained), _num_classes(finetuned)
        if None not in classes and classes[0] != classes[1]:
            raise ValueError(
                f"the head of pretrained has {classes[0]} classes, that of finetuned {classes[1]}; gamma needs logits "
                "of all classes: fine-tune the head of the pre-trained model, or give both the full one"
            )
        raise ValueError(
            f"{name} has shape {shape_of(start)} in pretrained and {shape_of(end)} in finetuned; pass two models of "
            "one architecture"
        )
    if _mixes(start) != _mixes(end) or start.is_complex() != end.is_complex():
        raise ValueError(
            f"{name} has dtype {dtype_name(start)} in pretrained and {dtype_name(end)} in finetuned; pass both before "
            "quantisation"
        )
    if not _mixes(end) and end.ndim and _differ(start, end):
        raise ValueError(
            f"{name} has dtype {dtype_name(end)}, which cannot be mixed, and differs between pretrained and finetuned; "
            "pass two models of one architecture, before quantisation"
        )


def _mixes(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.itemsize > 1


def _differ(start: Tensor, end: Tensor) -> bool:
    if start is end:
        return False
    dtype = torch.promote_types(start.dtype, end.dtype)
    return not torch.equal(start.to(end.device, dtype), end.to(dtype))


def _num_classes(model: nn.Module | None) -> int | None:
    """Return the number of outputs of the head; None if it is not found."""
    try:
        return None if model is None else find_head(model).outputs
    except ValueError:
        return None


def _check_plain(changed: Mapping[str, WeightPair]) -> None:
    """Refuse parametrized weights, and tied weights that were not equal before fine-tuning."""
    starts: dict[int, tuple[str, Tensor]] = {}
    for name, (start, end) in changed.items():
        if "parametrizations" in name.split("."):
            raise ValueError(
                f"{name} is only a part of a parametrized weight; call torch.nn.utils.parametrize."
                "remove_parametrizations on that layer of both models first"
            )
        other, tied = starts.setdefault(id(end), (name, start))
        if _differ(tied, start):
            raise ValueError(f"{other} and {name} are tied in finetuned, but differ in pretrained; tie both or neither")


def _listed(names: Collection[str]) -> str:
    first = sorted(names)[:_NAMED]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
