"""Check that the logits gain what is added to the bias of a head: by running the model, or by its other layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .foldable import WRAP_INSTEAD, bias_of, set_biases, set_weight, shift_of, shifted_biases, shifted_weight
from .head_inputs import capture_head_inputs
from .heads import Convolution, Head, HeadLayer, wrap
from .output import logits_of
from .running import call_model, in_eval_mode

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
    change that is the same for all classes of a row is accepted: a log-softmax makes it. Afterwards the biases are bit
    for bit as before. The logits have the classes along `dim`.
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
