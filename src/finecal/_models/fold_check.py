"""Which layers gamma can be folded into, and what is written to their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._calibrators.additive_bias import AdditiveBias
from .._calibrators.class_bias import ClassBias
from .._calibrators.prototypes import Prototypes
from .._core.kernels import wide_dtype
from .added_bias import can_have_bias
from .heads import Convolution, Head, HeadLayer, Usual, adapter_config, find_head, own_parameters, vectors, wrap
from .sharded import check_whole

WRAP_INSTEAD = "calibrate what comes out instead: CalibratedModel(model, calibrator)"
_SLOPE_TOLERANCE = 0.2
_REST_TOLERANCE = 0.25
"""Relative to the variance of the shift: the biases of a trained head differ by far less than gamma."""


def foldable_head(model: nn.Module) -> Head:
    """Return the head, after checking that its biases can be changed and are saved with the model."""
    head = find_head(model)
    check_biases(model, head)
    return head


def head_and_shift(model: nn.Module, calibrator: nn.Module) -> tuple[Head, Tensor]:
    """Return the head, and the shift of its biases for each class, in float32."""
    head = find_head(model)
    weight = weight_of(calibrator)
    if weight is not None:
        _check_weight(model, head, weight)
    shift = shift_by(calibrator, head.outputs)
    if not head.takes(shift.shape[0]):
        raise ValueError(
            f"the head {head} has {head.outputs} outputs, the calibrator is for {shift.shape[0]} classes; if this is "
            "the wrong layer, pass the one that gives the logits"
        )
    check_biases(model, head)
    return head, shift


def shift_by(calibrator: nn.Module, outputs: int = 0) -> Tensor:
    """Return what a calibrator adds to the logits of each class, in float32; one for any number, for `outputs`."""
    _check_additive(calibrator)
    weight = weight_of(calibrator)
    sizes = {buffer.shape[0] for buffer in calibrator.buffers() if buffer.ndim} if weight is None else {weight.shape[0]}
    if len(sizes) > 1:
        raise ValueError(f"the parts of calibrator are for {sorted(sizes)} classes; make all for the same ones")
    classes = max(sizes, default=outputs)
    device = next((buffer.device for buffer in calibrator.buffers()), None)
    if device is not None and device.type == "meta":
        raise ValueError("calibrator is on the meta device and has no values; load its state first")
    sizes_given = (classes,) if weight is None else (classes, weight.shape[1])
    dim = dim_of(calibrator)
    nothing = [torch.zeros(size, device=device).reshape(_shape_along(dim, size)) for size in sizes_given]
    shift: Tensor = calibrator(*nothing).flatten()
    return shift


def dim_of(calibrator: nn.Module) -> int:
    """Return the dimension of the logits along which a calibrator expects the classes."""
    dims = set(_dims(calibrator))
    if len(dims) > 1:
        raise ValueError(f"the parts of calibrator have the classes along dim {sorted(dims)}; give all the same dim")
    return dims.pop() if dims else -1


def shift_of(bias: Tensor, shift: Tensor) -> Tensor:
    """Return the shift of a bias: that of the classes, repeated for each box that the layer scores."""
    return shift.repeat(bias.shape[0] // shift.shape[0])


def weight_of(calibrator: nn.Module) -> Tensor | None:
    """Return the shift of the head's weight: that of `Prototypes`, None for other calibrators."""
    return calibrator.weight if isinstance(calibrator, Prototypes) else None


def _check_additive(calibrator: nn.Module) -> None:
    if not isinstance(calibrator, nn.Module):
        raise TypeError(f"calibrator is a {type(calibrator).__name__}; pass an AdditiveBias, a ClassBias or Prototypes")
    if isinstance(calibrator, Prototypes):
        return
    parts = calibrator if isinstance(calibrator, nn.Sequential) else (calibrator,)
    for part in parts:
        if isinstance(part, nn.Sequential):
            _check_additive(part)
        elif not isinstance(part, (AdditiveBias, ClassBias)):
            raise ValueError(
                f"calibrator holds {part!r}; only AdditiveBias and ClassBias can be folded into a bias, or Prototypes "
                f"by themselves into a head, {WRAP_INSTEAD}"
            )


def _dims(calibrator: Any) -> Iterator[int]:
    """Yield the dimension of each part."""
    if isinstance(calibrator, nn.Sequential):
        for part in calibrator:
            yield from _dims(part)
    else:
        yield getattr(calibrator, "dim", -1)


def _shape_along(dim: int, size: int) -> tuple[int, ...]:
    """Return a shape of `size` along `dim` and 1 elsewhere, with as few dimensions as possible."""
    before = dim if dim >= 0 else 0
    after = 0 if dim >= 0 else -dim - 1
    return (1,) * before + (size,) + (1,) * after


def check_biases(model: nn.Module, head: Head) -> None:
    """Refuse biases that are missing, computed, shared, quantised or without values, or that would not be saved."""
    for layer, name, bias in zip(head.layers, head.names, head.biases, strict=True):
        _check_bias(model, layer, name, bias, head.parameter or "bias")


def _check_bias(model: nn.Module, layer: HeadLayer, name: str, bias: Tensor | None, parameter: str) -> None:
    head = f"the head {name}" if name else "the head"
    if bias is None:
        if can_have_bias(model, layer, name):
            raise ValueError(
                f"{head} has no bias; fold_into_head(model, calibrator, inputs=...) gives it one, and checks that the "
                f"model uses it; or {WRAP_INSTEAD}"
            )
        raise ValueError(
            f"{head} has no bias, and one that is added now would be dropped without a word when the model is loaded "
            f"again; build the model with bias=True in its head before training, or {WRAP_INSTEAD}. Servers of "
            "language models, and generation_config.sequence_bias of Hugging Face, take a bias of tokens: "
            "finecal.sequences.logit_bias"
        )
    if is_lazy(bias):
        raise ValueError(f"the bias of {head}, a {type(layer).__name__}, has no shape yet; run the model once first")
    check_whole(model, layer, bias, head)
    if parameter not in own_parameters(layer):
        raise ValueError(f"{head} computes its bias (a parametrization); remove it first, or {WRAP_INSTEAD}")
    if bias.is_meta:
        raise ValueError(
            f"the bias of {head} is on the meta device and has no values; load the weights first, and fold before "
            "the model is offloaded"
        )
    if not bias.is_floating_point():
        raise ValueError(
            f"the bias of {head} has dtype {str(bias.dtype).removeprefix('torch.')}; fold before the model is quantised"
        )
    for path, module in model.named_modules():
        if module is layer or isinstance(module, nn.ParameterDict):  # which lists parameters, and computes nothing
            continue
        if any(other is bias for other in own_parameters(module).values()):
            raise ValueError(f"{head} shares its bias with {path}; {WRAP_INSTEAD}")
    adapter = adapter_config(model)
    if adapter is not None and ".modules_to_save." not in f".{name}":
        saved = getattr(adapter, "bias", None)
        if saved != "all" and not (saved == "lora_only" and name.endswith(".base_layer")):
            raise ValueError(
                f"save_pretrained would not save the bias of {head}, which is no part of the adapter; fold after "
                "merge_and_unload(), or train with the head in modules_to_save"
            )


def _check_weight(model: nn.Module, head: Head, weight: Tensor) -> None:
    """Refuse a weight that is computed, shared, quantised or offloaded, has another width, or would not be saved."""
    linear, name = head.layers[0], head.names[0]
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"the head {head} is of type {type(linear).__name__}; prototypes can be folded into an nn.Linear only"
        )
    if len(head.layers) > 1:
        raise ValueError(f"the model averages the logits of {head}, and prototypes are of one of them; {WRAP_INSTEAD}")
    where = f"the head {name}" if name else "the head"
    if linear.in_features != weight.shape[1]:
        raise ValueError(
            f"{where} takes {linear.in_features} features, the prototypes are of {weight.shape[1]}; if this is the "
            "wrong layer, pass the one that gives the logits"
        )
    own = linear._parameters.get("weight")
    if own is None or own.is_meta or not own.is_floating_point():
        raise ValueError(
            f"{where} computes its weight, or is quantised or offloaded; fold before that, or {WRAP_INSTEAD}"
        )
    for path, module in model.named_modules():
        if module is not linear and any(parameter is own for parameter in module._parameters.values()):
            raise ValueError(f"{where} shares its weight with {path}; {WRAP_INSTEAD}")
    if adapter_config(model) is not None and ".modules_to_save." not in f".{name}":
        raise ValueError(
            f"save_pretrained would not save the weight of {where}, which is no part of the adapter; fold after "
            "merge_and_unload(), or train with the head in modules_to_save"
        )


def looks_folded(model: nn.Module, calibrator: nn.Module) -> bool:
    """Whether biases that can take the calibrator look as if it had been folded in."""
    try:
        head, shift = head_and_shift(model, calibrator)
    except ValueError:
        try:
            shift = shift_by(calibrator)
        except ValueError:
            return False
        return weight_of(calibrator) is None and any(
            biases_show(head, shift) for head in vectors(model, shift.shape[0]) if is_changeable(model, head)
        )
    return biases_show(head, shift)


def is_changeable(model: nn.Module, head: Head) -> bool:
    """Whether `check_biases` refuses nothing."""
    try:
        check_biases(model, head)
    except ValueError:
        return False
    return True


def biases_show(head: Head, shift: Tensor) -> bool:
    """Whether the biases, regressed on the shift, have a slope near 1 and little else."""
    biases = [bias.detach().float().reshape(-1, shift.shape[0]).mean(0) for bias in head.biases]
    bias = torch.stack(biases).mean(0).to(shift.device)
    bias, shift = bias - bias.mean(), shift - shift.mean()
    size = shift.square().sum()
    slope = (bias * shift).sum() / size  # NaN, and False below, for a shift that is the same for all classes
    rest = (bias - slope * shift).square().sum() / size
    return bool(((slope - 1).abs() < _SLOPE_TOLERANCE) & (rest < _REST_TOLERANCE))


def rounded_sum(values: Tensor, added: Tensor) -> Tensor:
    """Return the sum, formed in float32 or wider and rounded once to the dtype of `values`."""
    return (values.to(wide_dtype(values.dtype)) + added.to(values.device)).to(values.dtype)


def shifted_biases(head: Head, shift: Tensor) -> list[Tensor]:
    """Return the biases of a head plus the shift, formed in float32 or wider and rounded once."""
    sums = [rounded_sum(bias.detach(), shift_of(bias, shift)) for bias in head.biases]
    for total in sums:
        if not bool(total.isfinite().all()):
            dtype = str(total.dtype).removeprefix("torch.")
            raise ValueError(f"the bias of the head {head} is not finite in {dtype} once folded; {WRAP_INSTEAD}")
    return sums


def shifted_weight(layer: nn.Linear, added: Tensor) -> Tensor:
    """Return the weight of a layer plus `added`, formed in float32 or wider and rounded once."""
    total = rounded_sum(layer.weight.detach(), added)
    if not bool(total.isfinite().all()):
        dtype = str(total.dtype).removeprefix("torch.")
        raise ValueError(f"the weight of the head is not finite in {dtype} once folded; {WRAP_INSTEAD}")
    return total


def write_to(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Write values to parameters, those made under inference mode among them."""
    for parameter, value in zip(parameters, values, strict=True):
        with torch.inference_mode(parameter.is_inference()), torch.no_grad():
            parameter.copy_(value)


_NAMED = 3
"""Layers that an error names."""
_KNOWN = frozenset({"torch", "torchvision", "timm", "transformers", "peft", "ultralytics"})
"""Libraries whose models return what the head gives, or a log-softmax of it, wherever `find_head` finds one."""
_AUXILIARY = frozenset({"aux_classifier", "auxiliary_head"})
"""Auxiliary heads of segmentation models in torchvision and Hugging Face, which are for training only."""


def check_only_head(model: nn.Module, head: Head) -> None:
    """Refuse a model in which another module could give the logits, since without a run that cannot be decided."""
    layer = head.layers[0]
    assert isinstance(layer, Usual)
    classes, features = head.outputs, _features_of(layer)
    own = {module for layer in head.layers for module in layer.modules()}
    if isinstance(layer, Convolution):
        own |= {module for name, module in model.named_modules() if not _AUXILIARY.isdisjoint(name.split("."))}
    others = {m for m in _running(_last_part(model, layer)) if m not in own and _rows(m, classes, features)}
    if others:
        names = [name for name, module in model.named_modules() if module in others]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ValueError(
            f"the head {head} has a row of weights for each of {classes} classes, and so has "
            f"{', '.join(names[:_NAMED])}{more}: finecal cannot tell which gives the logits; pass inputs=, what the "
            "model is called with, to have it checked, or the layer that gives the logits in place of the model"
        )


def unread_code(model: nn.Module, head: Head) -> str | None:
    """Return the class of a module around the head whose `forward`, of no known library, may change its output."""
    for name in () if head.is_certain else head.names:
        parts = name.split(".")
        around = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts)))
        kind = next((type(each) for each in around if type(each).__module__.partition(".")[0] not in _KNOWN), None)
        if kind is not None:
            return kind.__name__
    return None


def _last_part(module: nn.Module, layer: HeadLayer) -> nn.Module:
    """Return the last part of a plain ``nn.Sequential`` that has the layer; other modules as they are."""
    inner = wrap(module)
    if module is layer:
        return module
    if inner is not None:
        return _last_part(inner, layer)
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return _last_part(next(part for part in reversed(module) if layer in set(part.modules())), layer)
    return module


def _running(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that run: without those of adapters, and without the originals that PEFT has copied."""
    inner = wrap(module)
    if inner is not None:
        yield from _running(inner)
        return
    yield module
    for child in module.children():
        yield from _running(child)


def _features_of(layer: Usual) -> int:
    """Return the number of inputs of each output."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels // layer.groups * math.prod(layer.kernel_size)


def _rows(module: nn.Module, classes: int, features: int) -> bool:
    """Whether a module has weights `(C, ...)`, or `(D, C)` as in some custom layers.

    Convolutions and embeddings count only if they have as many inputs as the head: inner ones of C channels are common.
    """
    for weight in module._parameters.values():
        if weight is None or is_lazy(weight) or weight.ndim < 2:
            continue
        inputs = weight[0].numel()
        is_inner = isinstance(module, (Convolution, nn.Embedding)) and inputs != features
        transposed = not isinstance(module, nn.Linear) and weight.shape == (features, classes)
        if (weight.shape[0] == classes and not is_inner) or transposed:
            return True
    return False
