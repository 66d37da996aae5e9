"""What a calibrator would add to the bias and weight of a head, whether they can take it, and whether they seem to."""

import torch
from torch import Tensor, nn

from ..calibrators.additive_bias import AdditiveBias
from ..calibrators.class_bias import ClassBias
from ..calibrators.prototypes import Prototypes
from ..logits.tiles import wide_dtype
from .heads import Head, adapter_config, find_head

WAY_OUT = "calibrate what comes out instead: CalibratedModel(model, calibrator)"
_SLOPE_TOLERANCE = 0.2
_REST_TOLERANCE = 0.25
"""Of the variance of the shift: a trained head's biases differ by far less than gamma."""


def foldable_head(model: nn.Module) -> Head:
    """Return the head, whose biases can be changed, and are saved with the model."""
    head = find_head(model)
    for linear, name in zip(head.linears, head.names, strict=True):
        _check_bias(model, linear, name)
    return head


def head_and_shift(model: nn.Module, calibrator: nn.Module) -> tuple[Head, Tensor]:
    """Return the head, and what its biases gain, in float32."""
    head = find_head(model)
    _check_additive(calibrator)
    weight = weight_of(calibrator)
    if weight is None:
        sizes = {buffer.shape[0] for buffer in calibrator.buffers() if buffer.ndim}
    else:
        sizes = {weight.shape[0]}
        _check_weight(model, head, weight)
    for linear, name in zip(head.linears, head.names, strict=True):
        if sizes - {linear.out_features}:
            raise ValueError(
                f"the head {head} has {linear.out_features} outputs, the calibrator is for {max(sizes)} classes; if "
                "this is the wrong layer, pass the nn.Linear that gives the logits"
            )
        _check_bias(model, linear, name)
    device = next((buffer.device for buffer in calibrator.buffers()), None)
    if device is not None and device.type == "meta":
        raise ValueError("calibrator is on the meta device and has no values; load its state first")
    nothing = [torch.zeros(head.linears[0].out_features, device=device)]
    if weight is not None:
        nothing.append(torch.zeros(weight.shape[1], device=device))
    return head, calibrator(*nothing)


def weight_of(calibrator: nn.Module) -> Tensor | None:
    """Return what the calibrator adds to the weight of a head: prototypes do."""
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
                f"by themselves into a head, {WAY_OUT}"
            )


def _check_bias(model: nn.Module, linear: nn.Linear, name: str) -> None:
    """The bias is a parameter of its own, at hand, and saved with the model."""
    head = f"the head {name}" if name else "the head"
    if linear.bias is None:
        raise ValueError(
            f"{head} has no bias, and one that is added now would be dropped without a word when the model is loaded "
            f"again; build the model with bias=True in its head before training, or {WAY_OUT}"
        )
    if linear._parameters.get("bias") is None:
        raise ValueError(f"{head} computes its bias (a parametrization); remove it first, or {WAY_OUT}")
    if linear.bias.is_meta or not linear.bias.is_floating_point():
        raise ValueError(
            f"the bias of {head} has dtype {str(linear.bias.dtype).removeprefix('torch.')} on {linear.bias.device}; "
            "fold before the model is quantised or offloaded"
        )
    for path, module in model.named_modules():
        if module is not linear and any(parameter is linear.bias for parameter in module._parameters.values()):
            raise ValueError(f"{head} shares its bias with {path}; {WAY_OUT}")
    adapter = adapter_config(model)
    if adapter is not None and ".modules_to_save." not in f".{name}":
        saved = getattr(adapter, "bias", None)
        if saved != "all" and not (saved == "lora_only" and name.endswith(".base_layer")):
            raise ValueError(
                f"save_pretrained would not save the bias of {head}, which is no part of the adapter; fold after "
                "merge_and_unload(), or train with the head in modules_to_save"
            )


def _check_weight(model: nn.Module, head: Head, weight: Tensor) -> None:
    """The weight of a single layer is a parameter of its own, at hand, saved with the model, and of the right width."""
    if len(head.linears) > 1:
        raise ValueError(f"the model averages the logits of {head}, and prototypes are of one of them; {WAY_OUT}")
    (linear,), (name,) = head.linears, head.names
    where = f"the head {name}" if name else "the head"
    if linear.in_features != weight.shape[1]:
        raise ValueError(
            f"{where} takes {linear.in_features} features, the prototypes are of {weight.shape[1]}; if this is the "
            "wrong layer, pass the nn.Linear that gives the logits"
        )
    own = linear._parameters.get("weight")
    if own is None or own.is_meta or not own.is_floating_point():
        raise ValueError(f"{where} computes its weight, or is quantised or offloaded; fold before that, or {WAY_OUT}")
    for path, module in model.named_modules():
        if module is not linear and any(parameter is own for parameter in module._parameters.values()):
            raise ValueError(f"{where} shares its weight with {path}; {WAY_OUT}")
    if adapter_config(model) is not None and ".modules_to_save." not in f".{name}":
        raise ValueError(
            f"save_pretrained would not save the weight of {where}, which is no part of the adapter; fold after "
            "merge_and_unload(), or train with the head in modules_to_save"
        )


def looks_folded(model: nn.Module, calibrator: nn.Module) -> bool:
    """Whether the model's head can take the calibrator, and looks as if it had."""
    try:
        head, shift = head_and_shift(model, calibrator)
    except ValueError:
        return False
    return biases_show(head, shift)


def biases_show(head: Head, shift: Tensor) -> bool:
    """Whether the biases, regressed on the shift, have a slope near 1 and little else."""
    bias = torch.stack([linear.bias.detach().float().to(shift.device) for linear in head.linears]).mean(0)
    bias, shift = bias - bias.mean(), shift - shift.mean()
    size = shift.square().sum()
    slope = (bias * shift).sum() / size  # NaN, and False below, for a shift that is the same for all classes
    rest = (bias - slope * shift).square().sum() / size
    return bool(((slope - 1).abs() < _SLOPE_TOLERANCE) & (rest < _REST_TOLERANCE))


def rounded_sum(values: Tensor, added: Tensor) -> Tensor:
    """Return values with something added, in float32 or wider, and rounded once to their dtype."""
    return (values.to(wide_dtype(values.dtype)) + added.to(values.device)).to(values.dtype)


def shifted_biases(head: Head, shift: Tensor) -> list[Tensor]:
    """Return the biases of a head with something added, in float32 or wider, and rounded once."""
    sums = [rounded_sum(linear.bias.detach(), shift) for linear in head.linears]
    for total in sums:
        if not bool(total.isfinite().all()):
            dtype = str(total.dtype).removeprefix("torch.")
            raise ValueError(f"the bias of the head {head} is not finite in {dtype} once folded; {WAY_OUT}")
    return sums


def shifted_weight(linear: nn.Linear, added: Tensor) -> Tensor:
    """Return the weight of a layer with something added, in float32 or wider, and rounded once."""
    total = rounded_sum(linear.weight.detach(), added)
    if not bool(total.isfinite().all()):
        dtype = str(total.dtype).removeprefix("torch.")
        raise ValueError(f"the weight of the head is not finite in {dtype} once folded; {WAY_OUT}")
    return total


def set_weight(linear: nn.Linear, weight: Tensor) -> None:
    """Write to the weight of a layer."""
    with torch.no_grad():
        linear.weight.copy_(weight)


def set_biases(head: Head, biases: list[Tensor]) -> None:
    """Write to the biases of a head."""
    with torch.no_grad():
        for linear, bias in zip(head.linears, biases, strict=True):
            linear.bias.copy_(bias)
