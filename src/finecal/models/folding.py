"""Calibration folded into a classifier's own bias: nothing to compute at inference, and nothing to ship."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from ..inputs.warning import warn
from ..logits.tiles import wide_dtype
from .calibrated_model import TOGETHER, check_holds_no_calibrator
from .fold_record import FOLDED, description_of, recorded, write_record
from .foldable import WAY_OUT, biases_show, head_and_shift
from .heads import Head

ModelT = TypeVar("ModelT", bound=nn.Module)


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
        If `model` or `calibrator` is no ``nn.Module``, or `model` is a calibrator.
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
    check_holds_no_calibrator(model, TOGETHER)
    head, shift = head_and_shift(model, calibrator)
    folded = recorded(model, head)
    if folded is not None:
        raise ValueError(
            f"{folded['calibrator']} is folded into the head {head} already: use the model as it is, or take it out "
            "with unfold_from_head. If the weights were replaced since, delete the record: the attribute "
            f"{FOLDED} of the layer and of model.config"
        )
    description = description_of(calibrator, shift)
    if biases_show(head, shift):
        warn(
            f"the bias of the head {head} looks as if the calibrator had been folded before (weights that travel as a "
            "state_dict lose the record of that); if so, take it out once: unfold_from_head(model, calibrator)"
        )
    _add_to_biases(head, shift)
    write_record(model, head, description)
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
    check_holds_no_calibrator(model)
    head, shift = head_and_shift(model, calibrator)
    folded = recorded(model, head)
    if folded is None:
        raise ValueError(
            f"nothing is recorded as folded into the head {head}. A state_dict does not carry the record: if you know "
            "that the calibrator is folded, fold its negative"
        )
    given = description_of(calibrator, shift)
    if any(folded[key] != given[key] for key in ("num_classes", "sha256")):
        raise ValueError(
            f"{folded['calibrator']} is folded into the head {head}; pass that calibrator, not {calibrator} (to the "
            "last digit: keep it with finecal.save)"
        )
    _add_to_biases(head, -shift)
    write_record(model, head, None)
    return model


def _add_to_biases(head: Head, shift: Tensor) -> None:
    biases = [linear.bias.detach() for linear in head.linears]
    sums = [(bias.to(wide_dtype(bias.dtype)) + shift.to(bias.device)).to(bias.dtype) for bias in biases]
    for bias, total in zip(biases, sums, strict=True):
        if not bool(total.isfinite().all()):
            dtype = str(bias.dtype).removeprefix("torch.")
            raise ValueError(f"the bias of the head {head} is not finite in {dtype} once folded; {WAY_OUT}")
    with torch.no_grad():
        for linear, total in zip(head.linears, sums, strict=True):
            linear.bias.copy_(total)
