"""Calibration folded into a classifier's own bias: nothing to compute at inference, and nothing to ship."""

import hashlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._checks import warn
from .calibrated_model import CalibratedModel
from .calibrators import AdditiveBias, Calibrator
from .class_bias import ClassBias
from .heads import FOLDED, Head, find_head
from .logits import wide_dtype

ModelT = TypeVar("ModelT", bound=nn.Module)
_WAY_OUT = "calibrate what comes out instead: CalibratedModel(model, calibrator)"
_SLOPE_TOLERANCE = 0.2
_REST_TOLERANCE = 0.25
"""Of the variance of the shift: a trained head's biases differ by far less than gamma."""


def fold_into_head(model: ModelT, calibrator: nn.Module) -> ModelT:
    r"""Add what a calibrator adds to the logits to the bias of the model's final linear layer, in place.

    .. math:: \tilde b_c = b_c + \gamma \, [c \in U]

    Parameters
    ----------
    model : nn.Module
        A classifier whose last operation is an ``nn.Linear`` with a bias, or the ``nn.Linear`` itself. In models of
        torchvision, timm, Hugging Face and PEFT, in an ``nn.Sequential``, and in others built like these, the layer is
        found. Where a distilled model averages two heads, both biases are changed.
    calibrator : AdditiveBias, ClassBias, or an nn.Sequential of these
        The biases of several add up.

    Returns
    -------
    nn.Module
        `model`, changed.

    Raises
    ------
    TypeError
        If `model` or `calibrator` is no ``nn.Module``.
    ValueError
        If the calibrator does more than add to the logits; if the head is not found, has no bias, has another number of
        outputs, computes its bias, shares it with another layer, or would not be saved by `save_pretrained` (PEFT);
        if the model is calibrated already; or if a bias overflows its dtype.

    Warns
    -----
    FinecalWarning
        If nothing is recorded as folded, but the biases look as if it had been.

    See Also
    --------
    CalibratedModel : takes every calibrator and every model. One around `model` refuses to run once it is folded.
    unfold_from_head : takes the bias out again.

    Notes
    -----
    Formed in float32 or wider and rounded once to the dtype of the bias: float16 and bfloat16 models are calibrated up
    to that rounding. What follows the head in `forward` is not looked at: log-softmax does no harm, but logits that are
    scaled afterwards are not calibrated by a bias.

    A second folding is detected. The record is kept on the layer (in copies and pickles too) and, for Hugging Face
    models, in ``model.config.finecal_folded``, which `save_pretrained` writes; for PEFT adapters with a `task_type`, in
    the adapter's configuration: pass the model rather than its head. Where weights travel as a bare `state_dict`, the
    bias does too, but the record does not, since a key for it would break loading in strict mode; what is left is the
    look of the biases, and a warning. Where the weights were replaced since, delete the record: the attribute
    `finecal_folded` of the layer and of ``model.config``.

    Examples
    --------
    >>> import torch, finecal
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3))
    >>> calibrator = finecal.AdditiveBias([True, True, False], gamma=1.5)
    >>> x = torch.ones(1, 8)
    >>> expected = calibrator(model(x))
    >>> torch.allclose(finecal.fold_into_head(model, calibrator)(x), expected)
    True
    """
    head, shift = _head_and_shift(model, calibrator)
    folded = _recorded(model, head)
    if folded is not None:
        raise ValueError(
            f"{folded['calibrator']} is folded into the head {head} already: use the model as it is, or take it out "
            "with unfold_from_head. If the weights were replaced since, delete the record: the attribute "
            f"{FOLDED} of the layer and of model.config"
        )
    description = _description(calibrator, shift)
    if _looks_folded(head, shift):
        warn(
            f"the bias of the head {head} looks as if the calibrator had been folded before (weights that travel as a "
            "state_dict lose the record of that); if so, take it out once: unfold_from_head(model, calibrator)"
        )
    _add_to_biases(head, shift)
    _record(model, head, description)
    return model


def unfold_from_head(model: ModelT, calibrator: nn.Module) -> ModelT:
    r"""Take out of the bias of the final linear layer what `fold_into_head` has added, in place.

    .. math:: b_c = \tilde b_c - \gamma \, [c \in U]

    Parameters
    ----------
    model : nn.Module
        As `fold_into_head` returned it, or loaded again.
    calibrator : AdditiveBias, ClassBias, or an nn.Sequential of these
        The one that was folded.

    Returns
    -------
    nn.Module
        `model`, changed: exact to a rounding of the folded bias in its dtype.

    Raises
    ------
    TypeError, ValueError
        As `fold_into_head`; ValueError if no calibrator is recorded as folded, or one that adds something else.

    Examples
    --------
    >>> import torch, finecal
    >>> linear = torch.nn.Linear(8, 3)
    >>> before = linear.bias.detach().clone()
    >>> calibrator = finecal.AdditiveBias([True, True, False], gamma=1.5)
    >>> _ = finecal.fold_into_head(linear, calibrator)
    >>> torch.allclose(finecal.unfold_from_head(linear, calibrator).bias, before)
    True
    """
    head, shift = _head_and_shift(model, calibrator)
    folded = _recorded(model, head)
    if folded is None:
        raise ValueError(
            f"nothing is recorded as folded into the head {head}. A state_dict does not carry the record: if you know "
            "that the calibrator is folded, fold its negative"
        )
    given = _description(calibrator, shift)
    if any(folded[key] != given[key] for key in ("num_classes", "sha256")):
        raise ValueError(
            f"{folded['calibrator']} is folded into the head {head}; pass that calibrator, not {calibrator} (to the "
            "last digit: keep it with finecal.save)"
        )
    _add_to_biases(head, -shift)
    _record(model, head, None)
    return model


def is_folded(model: nn.Module) -> bool:
    """Whether a calibrator is recorded as folded into the model's head."""
    try:
        head = find_head(model)
    except ValueError:  # a layer that was passed by itself may be anywhere in the model
        return any(FOLDED in vars(module) for module in model.modules())
    return _recorded(model, head) is not None


def looks_folded(model: nn.Module, calibrator: nn.Module) -> bool:
    """Whether the model's head can take the calibrator, and looks as if it had."""
    try:
        head, shift = _head_and_shift(model, calibrator)
    except ValueError:
        return False
    return _looks_folded(head, shift)


def _head_and_shift(model: nn.Module, calibrator: nn.Module) -> tuple[Head, Tensor]:
    """Return the head, and what its biases gain, in float32."""
    head = find_head(model)
    for module in model.modules():
        if isinstance(module, (CalibratedModel, Calibrator)):
            raise ValueError(f"model is calibrated already: it holds {module!r}; pass the uncalibrated model")
    _check_additive(calibrator)
    sizes = {buffer.shape[0] for buffer in calibrator.buffers() if buffer.ndim}
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
    return head, calibrator(torch.zeros(head.linears[0].out_features, device=device))


def _check_additive(calibrator: nn.Module) -> None:
    if not isinstance(calibrator, nn.Module):
        raise TypeError(f"calibrator is a {type(calibrator).__name__}; pass an AdditiveBias or a ClassBias")
    parts = calibrator if isinstance(calibrator, nn.Sequential) else (calibrator,)
    for part in parts:
        if isinstance(part, nn.Sequential):
            _check_additive(part)
        elif not isinstance(part, (AdditiveBias, ClassBias)):
            raise ValueError(
                f"calibrator holds {part!r}; only AdditiveBias and ClassBias can be folded into a bias, {_WAY_OUT}"
            )


def _check_bias(model: nn.Module, linear: nn.Linear, name: str) -> None:
    """The bias is a parameter of its own, at hand, and saved with the model."""
    head = f"the head {name}" if name else "the head"
    if linear.bias is None:
        raise ValueError(
            f"{head} has no bias, and one that is added now would be dropped without a word when the model is loaded "
            f"again; build the model with bias=True in its head before training, or {_WAY_OUT}"
        )
    if linear._parameters.get("bias") is None:
        raise ValueError(f"{head} computes its bias (a parametrization); remove it first, or {_WAY_OUT}")
    if linear.bias.is_meta or not linear.bias.is_floating_point():
        raise ValueError(
            f"the bias of {head} has dtype {str(linear.bias.dtype).removeprefix('torch.')} on {linear.bias.device}; "
            "fold before the model is quantised or offloaded"
        )
    for path, module in model.named_modules():
        if module is not linear and any(parameter is linear.bias for parameter in module._parameters.values()):
            raise ValueError(f"{head} shares its bias with {path}; {_WAY_OUT}")
    adapter = _adapter_config(model)
    if adapter is not None and ".modules_to_save." not in f".{name}":
        saved = getattr(adapter, "bias", None)
        if saved != "all" and not (saved == "lora_only" and name.endswith(".base_layer")):
            raise ValueError(
                f"save_pretrained would not save the bias of {head}, which is no part of the adapter; fold after "
                "merge_and_unload(), or train with the head in modules_to_save"
            )


def _looks_folded(head: Head, shift: Tensor) -> bool:
    """Whether the biases, regressed on the shift, have a slope near 1 and little else."""
    bias = torch.stack([linear.bias.detach().float().to(shift.device) for linear in head.linears]).mean(0)
    bias, shift = bias - bias.mean(), shift - shift.mean()
    size = shift.square().sum()
    slope = (bias * shift).sum() / size  # NaN, and False below, for a shift that is the same for all classes
    rest = (bias - slope * shift).square().sum() / size
    return bool(((slope - 1).abs() < _SLOPE_TOLERANCE) & (rest < _REST_TOLERANCE))


def _add_to_biases(head: Head, shift: Tensor) -> None:
    biases = [linear.bias.detach() for linear in head.linears]
    sums = [(bias.to(wide_dtype(bias.dtype)) + shift.to(bias.device)).to(bias.dtype) for bias in biases]
    for bias, total in zip(biases, sums, strict=True):
        if not bool(total.isfinite().all()):
            dtype = str(bias.dtype).removeprefix("torch.")
            raise ValueError(f"the bias of the head {head} is not finite in {dtype} once folded; {_WAY_OUT}")
    with torch.no_grad():
        for linear, total in zip(head.linears, sums, strict=True):
            linear.bias.copy_(total)


def _description(calibrator: nn.Module, shift: Tensor) -> dict[str, Any]:
    """Return what is recorded: JSON-able, and of the same size for any number of classes."""
    return {
        "calibrator": " ".join(repr(calibrator).split()),
        "num_classes": shift.shape[0],
        "sha256": hashlib.sha256(shift.cpu().numpy().tobytes()).hexdigest()[:16],
    }


def _recorded(model: nn.Module, head: Head) -> dict[str, Any] | None:
    """Return the record of what is folded; one about another number of classes is about a head since replaced."""
    records = [vars(linear).get(FOLDED) for linear in head.linears]
    records += [vars(config).get(FOLDED) for config in _config(model, head)]
    adapter: Any = _adapter_config(model)
    records += [] if adapter is None else [(adapter.auto_mapping or {}).get(FOLDED)]
    classes = head.linears[0].out_features
    return next((record for record in records if record and record["num_classes"] == classes), None)


def _record(model: nn.Module, head: Head, record: dict[str, Any] | None) -> None:
    for holder in (*head.linears, *_config(model, head)):
        if record is not None:
            setattr(holder, FOLDED, record)
        elif FOLDED in vars(holder):
            delattr(holder, FOLDED)
    adapter: Any = _adapter_config(model)
    if adapter is not None:  # of PEFT's fields, the one that may hold any mapping
        rest = {key: value for key, value in (adapter.auto_mapping or {}).items() if key != FOLDED}
        adapter.auto_mapping = (rest if record is None else {**rest, FOLDED: record}) or None


def _config(model: nn.Module, head: Head) -> Iterator[Any]:
    """Yield the Hugging Face configuration that is saved with the head, if there is one."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "save_pretrained") and set(head.linears) <= set(module.modules()):
            yield config
            return


def _adapter_config(model: nn.Module) -> Any:
    """Return the configuration of the active PEFT adapter, or None."""
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, dict) and configs:
            names: Any = list(configs) if len(configs) == 1 else module.active_adapters
            return configs[(names() if callable(names) else names)[0]]
    return None
