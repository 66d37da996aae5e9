"""Whether a fold changes the logits by gamma and nothing else, found by running the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .feed import call_model, in_eval_mode
from .fold_check import WRAP_INSTEAD, shift_of, shifted_biases, shifted_weight, write_to
from .heads import Head, capture_head_inputs
from .output import logits_of

Run: TypeAlias = Callable[[], Tensor]
"""Returns the logits of a model for the same samples each time."""
_ROUNDINGS = 8
"""Tolerance in steps of the dtype: the bias, the sum and the layers after it are each rounded."""
_VISIBLE = 4
"""The spread of the probe over the classes has to exceed so many tolerances."""
_ROUGHLY = 0.1
"""Tolerance, relative to the probe, of what is then checked."""


def output_for(model: nn.Module, inputs: object) -> object:
    """Run the model on its inputs, in eval mode, and leave its modes and torch's random numbers as they were."""
    with in_eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        return call_model(model, inputs)


def logits_for(model: nn.Module, inputs: object) -> Tensor:
    """Return the logits in the output of the model."""
    return logits_of(output_for(model, inputs))


def check_fold(head: Head, shift: Tensor, run: Run, dim: int = -1) -> None:
    """Run the model with and without a probe in the biases of its head, and compare the logits.

    The probe is the shift that is to be folded, or a larger one where the rounding of the logits would hide it. A
    change that is the same for all classes of a row is accepted: a log-softmax makes it.
    """
    shift = shift_of(head.biases[0], shift)
    dtypes = {bias.dtype for bias in head.biases}
    with _output_dtypes(head, dtypes):
        before = run()
    dtypes.add(before.dtype)
    _check_dim(before, dim, head.outputs, f"the head {head} has {head.outputs} outputs")
    rounding = _ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes)
    before = _rows_of(before, dim)
    size = _size_of(before)
    probe = shift.to(before.device).double()
    tolerance = rounding * (size + float(probe.abs().max()))
    if float(probe.max() - probe.min()) <= _VISIBLE * tolerance:
        probe = _large_probe(before)
        tolerance = rounding * (size + float(probe.max()))
    with _added(head, probe.float()):
        after = _rows_of(run(), dim)
    found = _difference(before, after, probe, tolerance, "bias")
    if found:
        raise ValueError(
            f"the bias of the head {head} does not act on the logits as the calibrator does: {found}. The model is as "
            f"it was: if this is the wrong layer, pass the one that gives the logits, else {WRAP_INSTEAD}"
        )


def find_by_trying(candidates: Sequence[Head], shift: Tensor, run: Run, dim: int) -> Head | None:
    """Return the first parameter with an entry per class that is added to the logits; None if none is.

    It is, if a large probe in it moves the logits by about as much, and if it passes `check_fold` with the shift and
    with a large negative one.
    """
    logits = run()
    classes = shift.shape[0]
    _check_dim(logits, dim, classes, f"the calibrator is for {classes} classes")
    before = _rows_of(logits, dim)
    probe = _large_probe(before)
    for head in candidates:
        try:
            with _added(head, probe.float()):
                after = _rows_of(run(), dim)
            if not _difference(before, after, probe, _ROUGHLY * float(probe.max()), "bias"):
                check_fold(head, shift, run, dim)
                check_fold(head, -2 * probe.float(), run, dim)
                return head
        except ValueError:  # the bias overflows, or the model takes no such value
            continue
    return None


def _size_of(rows: Tensor) -> float:
    """Return the largest finite absolute value; 0 if there is none."""
    finite = rows[rows.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def _large_probe(rows: Tensor) -> Tensor:
    """Return a probe that rounding does not hide, for every other class; a number of float32, in which it is added."""
    return (max(_size_of(rows), 1.0) * (torch.arange(rows.shape[1], device=rows.device) % 2).float()).double()


def _check_dim(logits: Tensor, dim: int, classes: int, known: str) -> None:
    """Refuse logits that do not have an entry per class along the dimension of the calibrator."""
    shape = tuple(logits.shape)
    if -logits.ndim <= dim < logits.ndim and shape[dim] == classes:
        return
    returned = f"{known}, but the model returned logits of shape {shape}"
    if classes in shape:
        raise ValueError(
            f"{returned}, so the calibrator must not look for the classes along dim {dim}: make it with "
            f"dim={shape.index(classes)}"
        )
    raise ValueError(f"{returned}, so this is not the layer that gives them: pass that layer, or {WRAP_INSTEAD}")


def _rows_of(logits: Tensor, dim: int) -> Tensor:
    """Return logits as float64 rows, one for each sample or position."""
    moved = logits.movedim(dim, -1)
    return moved.reshape(-1, moved.shape[-1]).double()


def check_weight_fold(linear: nn.Linear, weight: Tensor, run: Run) -> None:
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
    size, largest = _size_of(before), float(added.abs().max())
    if not bool(weight.any()):
        return
    times = max(1.0, size / largest) if largest else 1.0
    tolerance = rounding * (size + times * largest)
    own = linear.weight.detach().clone()
    write_to([linear.weight], [shifted_weight(linear, times * weight.double())])
    try:
        after = run().reshape(before.shape).double()
    finally:
        write_to([linear.weight], [own])
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
    before = [bias.detach().clone() for bias in head.biases]
    write_to(head.biases, shifted_biases(head, probe))
    try:
        yield
    finally:
        write_to(head.biases, before)


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
