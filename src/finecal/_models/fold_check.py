"""Which layers gamma can be folded into, and the check that a fold changes the logits by gamma and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._calibrators.additive_bias import AdditiveBias
from .._calibrators.class_bias import ClassBias
from .._calibrators.prototypes import Prototypes
from .._core.kernels import wide_dtype
from .feed import call_model, in_eval_mode, logits_of
from .heads import Convolution, Head, HeadLayer, adapter_config, capture_head_inputs, find_head, outputs_of, wrap
from .sharded import check_whole

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
    check_whole(model, layer, layer.bias, head)
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


Run: TypeAlias = Callable[[], Tensor]
"""Returns the logits of a model for the same samples each time."""
_ROUNDINGS = 8
"""Tolerance in steps of the dtype: the bias, the sum and the layers after it are each rounded."""
_VISIBLE = 4
"""The spread of the probe over the classes has to exceed so many tolerances."""
_NAMED = 3
"""Layers that an error names."""
_AUXILIARY = frozenset({"aux_classifier", "auxiliary_head"})
"""Auxiliary heads of segmentation models in torchvision and Hugging Face, which are for training only."""


def output_for(model: nn.Module, inputs: object) -> object:
    """Run the model on its inputs, in eval mode, and leave its modes and torch's random numbers as they were."""
    with in_eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        return call_model(model, inputs)


def logits_for(model: nn.Module, inputs: object) -> Tensor:
    """Return the logits in the output of the model."""
    return logits_of(output_for(model, inputs))


def check_only_head(model: nn.Module, head: Head) -> None:
    """Refuse a model in which another module could give the logits, since without a run that cannot be decided."""
    layer = head.layers[0]
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


def check_fold(head: Head, shift: Tensor, run: Run, dim: int = -1) -> None:
    """Run the model with and without a probe in the biases of its head, and compare the logits.

    The probe is the shift that is to be folded, or a larger one where the rounding of the logits would hide it. A
    change that is the same for all classes of a row is accepted: a log-softmax makes it.
    """
    shift = shift_of(head.layers[0], shift)
    dtypes = {bias_of(layer).dtype for layer in head.layers}
    with _output_dtypes(head, dtypes):
        before = run()
    dtypes.add(before.dtype)
    _check_dim(head, before, dim)
    rounding = _ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes)
    before = _rows_of(before, dim)
    size = float(before[before.isfinite()].abs().max()) if bool(before.isfinite().any()) else 0.0
    probe = shift.to(before.device).double()
    tolerance = rounding * (size + float(probe.abs().max()))
    if float(probe.max() - probe.min()) <= _VISIBLE * tolerance:
        probe = max(size, 1.0) * (torch.arange(shift.shape[0], device=before.device) % 2).float()
        probe = probe.double()  # as it is added in float32, whatever the precision of the logits
        tolerance = rounding * (size + float(probe.max()))
    with _added(head, probe.float()):
        after = _rows_of(run(), dim)
    found = _difference(before, after, probe, tolerance, "bias")
    if found:
        raise ValueError(
            f"the bias of the head {head} does not act on the logits as the calibrator does: {found}. The model is as "
            f"it was: if this is the wrong layer, pass the one that gives the logits, else {WRAP_INSTEAD}"
        )


def _check_dim(head: Head, logits: Tensor, dim: int) -> None:
    """Refuse logits that do not have one entry per output of the head along the dimension of the calibrator."""
    shape = tuple(logits.shape)
    if -logits.ndim <= dim < logits.ndim and shape[dim] == head.outputs:
        return
    returned = f"the head {head} has {head.outputs} outputs, but the model returned logits of shape {shape}"
    if head.outputs in shape:
        raise ValueError(
            f"{returned}, so the calibrator must not look for the classes along dim {dim}: make it with "
            f"dim={shape.index(head.outputs)}"
        )
    raise ValueError(f"{returned}, so this is not the layer that gives them: pass that layer, or {WRAP_INSTEAD}")


def _rows_of(logits: Tensor, dim: int) -> Tensor:
    """Return logits as float64 rows, one for each sample or position."""
    moved = logits.movedim(dim, -1)
    return moved.reshape(-1, moved.shape[-1]).double()


def check_weight_fold(linear: HeadLayer, weight: Tensor, run: Run) -> None:
    """Run the model with and without a probe in the weight of its head, which stays bit for bit as it is.

    As `check_fold`: the probe is the weight that is to be folded, or a multiple that rounding does not hide.
    """
    head = Head((linear,), ("",))
    dtypes = {linear.weight.dtype}
    with _output_dtypes(head, dtypes), capture_head_inputs(linear) as inputs:
        inputs.arm()
        before = run()
    features = inputs.pop()
    dtypes.add(before.dtype)
    if features.shape[:-1] != before.shape[:-1]:
        raise ValueError(
            f"the final linear layer takes {tuple(features.shape)} for logits of shape {tuple(before.shape)}, so there "
            f"is no one row of features per sample; {WRAP_INSTEAD}"
        )
    rounding = _ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes)
    before = before.reshape(-1, weight.shape[0]).double()
    added = features.reshape(-1, weight.shape[1]).double() @ weight.to(features.device).double().T
    size, largest = float(before[before.isfinite()].abs().max()), float(added.abs().max())
    if not bool(weight.any()):
        return
    times = max(1.0, size / largest) if largest else 1.0
    tolerance = rounding * (size + times * largest)
    own = linear.weight.detach().clone()
    set_weight(linear, shifted_weight(linear, times * weight.double()))
    try:
        after = run().reshape(before.shape).double()
    finally:
        set_weight(linear, own)
    found = _difference(before, after, times * added, tolerance, "weight")
    if found:
        raise ValueError(
            f"the weight of the head does not act on the logits as the calibrator does: {found}. The model is as it "
            f"was: {WRAP_INSTEAD}"
        )


def _difference(before: Tensor, after: Tensor, probe: Tensor, tolerance: float, parameter: str) -> str:
    """Describe how the change of the logits differs from `probe`; "" if it does so by a constant per row only."""
    finite = before.isfinite() & after.isfinite()
    added, change = _centred(probe.expand_as(before), finite), _centred(after - before, finite)
    if not bool((added.abs() > tolerance).any()):
        return "the inputs give no row with finite logits of both seen and absent classes, so they show nothing"
    if not torch.equal(before.isfinite(), after.isfinite()):
        return "other logits are NaN or infinite with it"
    if float((change - added).abs().max()) <= tolerance:
        return ""
    if float((after - before)[finite].abs().max()) <= tolerance:
        return f"the logits stay as they are, so the layer does not run, or its {parameter} is not read"
    times = float((change * added).sum() / added.square().sum())
    if float((change - times * added).abs().max()) <= (1 + abs(times)) * tolerance:
        return f"the logits gain {times:.4g} times what is added to the {parameter}, so something follows the layer"
    error = float((change - added).abs().max() / (probe.max() - probe.min()))
    return f"the logits miss what is added to the {parameter} by up to {100 * error:.3g} % of it"


def _centred(values: Tensor, chosen: Tensor) -> Tensor:
    """Subtract from each row the mean of its chosen values; 0 elsewhere."""
    values = torch.where(chosen, values, 0.0)
    means = values.sum(1, keepdim=True) / chosen.sum(1, keepdim=True).clamp(min=1)
    return torch.where(chosen, values - means, 0.0)


@contextmanager
def _added(head: Head, probe: Tensor) -> Iterator[None]:
    before = [bias_of(layer).detach().clone() for layer in head.layers]
    set_biases(head, shifted_biases(head, probe))
    try:
        yield
    finally:
        set_biases(head, before)


@contextmanager
def _output_dtypes(head: Head, dtypes: set[torch.dtype]) -> Iterator[None]:
    """Add the dtypes that the layers return: under autocast logits are rounded, and may be cast back afterwards."""

    def record(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            dtypes.add(output.dtype)

    handles = [layer.register_forward_hook(record) for layer in head.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def _features_of(layer: HeadLayer) -> int:
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
