"""The shift of bias and weight that a calibrator stands for, checks that a head can take it, and signs that it did."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..calibrators.additive_bias import AdditiveBias
from ..calibrators.class_bias import ClassBias
from ..calibrators.prototypes import Prototypes
from ..logits.tiles import wide_dtype
from .heads import Head, HeadLayer, adapter_config, find_head, outputs_of

WRAP_INSTEAD = "calibrate what comes out instead: CalibratedModel(model, calibrator)"
_SLOPE_TOLERANCE = 0.2
_REST_TOLERANCE = 0.25
"""Relative to the variance of the shift: the biases of a trained head differ by far less than gamma."""


def foldable_head(model: nn.Module) -> Head:
    """Return the head, after checking that its biases can be changed and are saved with the model."""
    head = find_head(model)
    for layer, name in zip(head.layers, head.names, strict=True):
        _check_bias(model, layer, name)
    return head


def head_and_shift(model: nn.Module, calibrator: nn.Module) -> tuple[Head, Tensor]:
    """Return the head, and the shift of its biases for each class, in float32."""
    head = find_head(model)
    _check_additive(calibrator)
    weight = weight_of(calibrator)
    if weight is None:
        sizes = {buffer.shape[0] for buffer in calibrator.buffers() if buffer.ndim}
    else:
        sizes = {weight.shape[0]}
        _check_weight(model, head, weight)
    classes = max(sizes, default=head.outputs)
    for layer, name in zip(head.layers, head.names, strict=True):
        if sizes - {classes} or not head.takes(classes):
            raise ValueError(
                f"the head {head} has {outputs_of(layer)} outputs, the calibrator is for {classes} classes; if this is "
                "the wrong layer, pass the one that gives the logits"
            )
        _check_bias(model, layer, name)
    device = next((buffer.device for buffer in calibrator.buffers()), None)
    if device is not None and device.type == "meta":
        raise ValueError("calibrator is on the meta device and has no values; load its state first")
    sizes_given = (classes,) if weight is None else (classes, weight.shape[1])
    dim = dim_of(calibrator)
    nothing = [torch.zeros(size, device=device).reshape(_shape_along(dim, size)) for size in sizes_given]
    return head, calibrator(*nothing).flatten()


def dim_of(calibrator: nn.Module) -> int:
    """Return the dimension of the logits along which a calibrator expects the classes."""
    dims = set(_dims(calibrator))
    if len(dims) > 1:
        raise ValueError(f"the parts of calibrator have the classes along dim {sorted(dims)}; give all the same dim")
    return dims.pop() if dims else -1


def shift_of(layer: HeadLayer, shift: Tensor) -> Tensor:
    """Return the shift of a layer's bias: that of the classes, repeated for each box that the layer scores."""
    return shift.repeat(outputs_of(layer) // shift.shape[0])


def bias_of(layer: HeadLayer) -> Tensor:
    """Return the bias of a layer that is known to have one."""
    assert layer.bias is not None
    return layer.bias


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


def _check_bias(model: nn.Module, layer: HeadLayer, name: str) -> None:
    """Refuse a bias that is missing, computed, shared, quantised or offloaded, or that would not be saved."""
    head = f"the head {name}" if name else "the head"
    if layer.bias is None:
        raise ValueError(
            f"{head} has no bias, and one that is added now would be dropped without a word when the model is loaded "
            f"again; build the model with bias=True in its head before training, or {WRAP_INSTEAD}"
        )
    if layer._parameters.get("bias") is None:
        raise ValueError(f"{head} computes its bias (a parametrization); remove it first, or {WRAP_INSTEAD}")
    if layer.bias.is_meta or not layer.bias.is_floating_point():
        raise ValueError(
            f"the bias of {head} has dtype {str(layer.bias.dtype).removeprefix('torch.')} on {layer.bias.device}; "
            "fold before the model is quantised or offloaded"
        )
    for path, module in model.named_modules():
        if module is not layer and any(parameter is layer.bias for parameter in module._parameters.values()):
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
        raise ValueError(f"the head {head} is a convolution; prototypes can be folded into an nn.Linear only")
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
    """Whether the model's head can take the calibrator, and its biases look as if it had been folded in."""
    try:
        head, shift = head_and_shift(model, calibrator)
    except ValueError:
        return False
    return biases_show(head, shift)


def biases_show(head: Head, shift: Tensor) -> bool:
    """Whether the biases, regressed on the shift, have a slope near 1 and little else."""
    biases = [bias_of(layer).detach().float().reshape(-1, shift.shape[0]).mean(0) for layer in head.layers]
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
    sums = [rounded_sum(bias_of(layer).detach(), shift_of(layer, shift)) for layer in head.layers]
    for total in sums:
        if not bool(total.isfinite().all()):
            dtype = str(total.dtype).removeprefix("torch.")
            raise ValueError(f"the bias of the head {head} is not finite in {dtype} once folded; {WRAP_INSTEAD}")
    return sums


def shifted_weight(layer: HeadLayer, added: Tensor) -> Tensor:
    """Return the weight of a layer plus `added`, formed in float32 or wider and rounded once."""
    total = rounded_sum(layer.weight.detach(), added)
    if not bool(total.isfinite().all()):
        dtype = str(total.dtype).removeprefix("torch.")
        raise ValueError(f"the weight of the head is not finite in {dtype} once folded; {WRAP_INSTEAD}")
    return total


def set_weight(layer: HeadLayer, weight: Tensor) -> None:
    """Write to the weight of a layer."""
    with torch.no_grad():
        layer.weight.copy_(weight)


def set_biases(head: Head, biases: list[Tensor]) -> None:
    """Write to the biases of a head."""
    with torch.no_grad():
        for layer, bias in zip(head.layers, biases, strict=True):
            bias_of(layer).copy_(bias)
