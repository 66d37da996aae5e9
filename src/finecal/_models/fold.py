"""Fold a calibrator into the bias of a classifier's head, so that inference needs no finecal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from .._calibrators.additive_bias import Calibrator
from .._core.checks import named_classes
from .._core.kernels import wide_dtype
from .._core.results import encoded_fields
from .._core.warning import warn
from .added_bias import bias_added, warn_of_keys
from .feed import Feed, check_is_network, is_of_ultralytics
from .fold_check import (
    WRAP_INSTEAD,
    biases_show,
    check_only_head,
    dim_of,
    head_and_shift,
    is_changeable,
    shift_by,
    shift_of,
    shifted_biases,
    shifted_weight,
    unread_code,
    weight_of,
    write_to,
)
from .fold_trial import Run, check_fold, check_weight_fold, find_by_trying, output_for
from .heads import FOLDED as FOLDED
from .heads import PARAMETER, Head, adapter_config, find_head, vectors
from .output import Output, check_output, described

TOGETHER = ", and all calibrators in one torch.nn.Sequential"


class CalibratedBase(nn.Module):
    """The base of `CalibratedModel` alone, for files that `CalibratedModel` itself imports."""


def description_of(calibrator: nn.Module, shift: Tensor, weight: Tensor | None = None) -> dict[str, Any]:
    """Describe what a calibrator adds to bias and weight, for JSON, in a size that does not depend on the classes."""
    added = b"".join(part.cpu().numpy().tobytes() for part in (shift, weight) if part is not None)
    description = {
        "calibrator": " ".join(repr(calibrator).split()),
        "num_classes": shift.shape[0],
        "sha256": hashlib.sha256(added).hexdigest()[:16],
    }
    estimate = getattr(calibrator, "estimate", None)
    return description if estimate is None else {**description, "estimate": encoded_fields(estimate)}


def write_record(model: nn.Module, head: Head, record: dict[str, Any] | None) -> None:
    """Write the record to the layers and configurations where `recorded` reads it; None deletes it."""
    if is_of_ultralytics(model):
        vars(model)["predictor"] = None  # it holds a copy of the network as it was
    is_listed = isinstance(head.layers[0], nn.ParameterDict)  # and so may others list it
    for holder in (*head.layers, *_config(model, head), *(head.biases if is_listed else ())):
        if record is not None:
            setattr(holder, FOLDED, record)
        elif FOLDED in vars(holder):
            delattr(holder, FOLDED)
    adapter: Any = adapter_config(model)
    if adapter is not None:  # auto_mapping is the only field of PEFT's that may hold any mapping
        rest = {key: value for key, value in (adapter.auto_mapping or {}).items() if key != FOLDED}
        adapter.auto_mapping = (rest if record is None else {**rest, FOLDED: record}) or None


def recorded(model: nn.Module, head: Head) -> dict[str, Any] | None:
    """Return the record, or None; one for another number of classes belongs to a head that was replaced since."""
    holders = (*head.layers, *(() if head.parameter is None else head.biases))
    records = [vars(holder).get(FOLDED) for holder in holders]
    records += [vars(config).get(FOLDED) for config in _config(model, head)]
    adapter: Any = adapter_config(model)
    records += [] if adapter is None else [(adapter.auto_mapping or {}).get(FOLDED)]
    return next((record for record in records if record and _is_about(record, head)), None)


def _is_about(record: dict[str, Any], head: Head) -> bool:
    """Whether a record may be of this head: one that names its parameter is of no head that is found by its type."""
    return head.takes(record["num_classes"]) and not (PARAMETER in record and head.parameter is None)


def is_folded(model: nn.Module) -> bool:
    """Whether a calibrator is recorded as folded into the model's head."""
    try:
        head = find_head(model)
    except ValueError:  # the head was passed to fold_into_head as a layer, and may be anywhere in the model
        return any(FOLDED in vars(module) for module in model.modules())
    return recorded(model, head) is not None


def check_uncalibrated(model: nn.Module, advice: str = "") -> None:
    """Refuse a model that holds a calibrator, or into whose head one is folded."""
    check_holds_no_calibrator(model, advice)
    check_is_network(model)
    if is_folded(model):
        raise ValueError(
            "a calibrator is folded into the model's head already: use the model as it is, or take it out with "
            "unfold_from_head (if another model with the same config object was folded, give this one a config of its "
            "own)"
        )


def check_holds_no_calibrator(model: nn.Module, advice: str = "") -> None:
    """Refuse a model that holds a calibrator; `advice` is added to the error by callers that take a calibrator too."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass the torch.nn.Module that gives the logits")
    if isinstance(model, Calibrator):
        raise TypeError(f"model is the calibrator {model!r}; pass the model first, which gives the logits")
    for module in model.modules():
        if isinstance(module, (CalibratedBase, Calibrator)):
            raise ValueError(
                f"model is calibrated already: it holds {module!r}; pass the uncalibrated model, which a "
                f"CalibratedModel has as its attribute `model`{advice}"
            )


def _config(model: nn.Module, head: Head) -> Iterator[Any]:
    """Yield the Hugging Face configuration that is saved with the head, if there is one."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "save_pretrained") and set(head.layers) <= set(module.modules()):
            yield config
            return


ModelT = TypeVar("ModelT", bound=nn.Module)


def fold_into_head(
    model: ModelT, calibrator: nn.Module, *, inputs: object = None, output: Output | None = None
) -> ModelT:
    r"""Add to the bias of the model's final layer, in place, what a calibrator adds to the logits.

    .. math:: \tilde b_c = b_c + \gamma \, [c \in U]

    `Prototypes`, which are linear in the features, also change the weight: :math:`\tilde W = W + A` and
    :math:`\tilde b = b + \gamma u - A \bar f`.

    Parameters
    ----------
    model : nn.Module
        A classifier whose last operation is an ``nn.Linear`` with a bias, a segmentation model that ends in a
        convolution with a bias, a detector of torchvision, YOLO since version 8 of ultralytics, or the layer itself,
        which may be any with a `bias`. The layer is found in models built like those of torchvision, timm, Hugging Face
        and PEFT; with `inputs`, in any other, and a plain ``nn.Linear`` without a bias is given one, unless the class
        of the model is loaded by `from_pretrained` or `load_from_checkpoint`, which would drop it. Where a distilled
        model averages two heads, both biases are changed; in a detector, those of all layers that score the classes.
    calibrator : AdditiveBias, ClassBias, an nn.Sequential of these, or Prototypes
        The biases of several add up.
    inputs : tensor, tuple of positional arguments, or mapping of keyword arguments, optional
        What the model is called with, for a few samples: the fold is then checked. With and without it, the logits
        have to differ by what the calibrator adds, along its `dim`, to the rounding of their dtype. Where they do not,
        or no head is found, each parameter of C entries is tried, the last one first.
    output : str or callable, optional
        Where the logits are in what the model returns, as in `collect_logits`.

    Returns
    -------
    nn.Module
        `model`, changed.

    Raises
    ------
    TypeError
        If `model` or `calibrator` is no ``nn.Module``, or `model` is a calibrator; with `inputs`, if the output of the
        model holds no logits, as that of a detector.
    ValueError
        If the check fails: the layer found does not run, its bias is not read, or something follows it, and no other
        parameter is added to the logits; the model is then bit for bit as it was. Without `inputs`, if other modules
        have a row of weights for each class too. If the calibrator does more than add to the logits; if the head is not
        found, or its bias is missing, of another size, computed, shared, without values (lazy layers, the meta device),
        or not saved by `save_pretrained` (PEFT); if the model is calibrated already; or if a bias overflows its dtype.

    Warns
    -----
    FinecalWarning
        If nothing is recorded as folded, but the biases look as if it had been; if what is added to a bias is lost in
        its dtype; if the head was given a bias, so that the `state_dict` has one key more. Without `inputs`, if a class
        around the head is of none of the libraries above: the fold is then not checked.

    See Also
    --------
    CalibratedModel : takes every calibrator and every model. One around `model` refuses to run once it is folded.
    unfold_from_head : takes the bias out again.

    Notes
    -----
    Sums are formed in float32 or wider and rounded once to the dtype of the bias.

    Without `inputs` nothing is run: a model that scales or negates the logits afterwards, or reads the weight of the
    layer but not its bias, as a cosine head does, is changed, but not calibrated. A log-softmax does no harm. With
    `inputs` the model runs twice, and once for each parameter that is tried, in eval mode and without gradients, on the
    device of its parameters; its modes and torch's random numbers stay as they are. Where rounding would hide gamma, a
    larger number is tried, and taken out again. A model with a second head for its training, as GoogLeNet, needs
    `inputs`; the auxiliary heads of segmentation models stay as they are.

    **Segmentation.** The bias of a convolution is added at every position. Interpolation and average pooling after it
    leave it as it is, since their weights sum to one. Of the two convolutions of LRASPP, whose sum is the logits, one
    gains gamma.

    **Detection.** A convolution that scores A boxes at each position must have its A times C outputs in the order of
    torchvision: the C classes of the first box, those of the second, and so on. Do not pass a layer in which classes
    stand between the coordinates of boxes, as in older versions of YOLO. For a background class `seen_mask` is True.
    The fold of a whole detector, which returns boxes, cannot be checked by `inputs`; that of its layer can.

    A folded model is calibrated: an `AdditiveBias` behind it adds gamma a second time, without a warning. A second
    folding is refused by the record on the layer, the attribute `finecal_folded`, a dict with the fields of the
    `GammaEstimate` under "estimate". It is saved with ``model.config`` in Hugging Face models, and with the
    configuration of PEFT adapters that have a `task_type`; a bare `state_dict` loses it. Where the weights were
    replaced since, delete it.

    Examples
    --------
    >>> import torch, finecal
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3))
    >>> calibrator = finecal.AdditiveBias([True, True, False], gamma=1.5)
    >>> x = torch.ones(1, 8)
    >>> expected = calibrator(model(x))
    >>> torch.allclose(finecal.fold_into_head(model, calibrator, inputs=x)(x), expected)
    True
    """
    check_output(output)
    if inputs is None:
        return check_and_fold(model, calibrator, None)

    feed = Feed(model, output=output)

    def run() -> Tensor:
        try:
            returned = output_for(model, feed.to_model_device(inputs))
        except Exception as error:  # the user's model may raise any
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"inputs is {described(inputs)}, with which the model fails ({type(error).__name__}: {error}); pass "
                "what the model is called with: a tensor, a tuple of arguments or a dict of named ones"
            ) from error
        return feed.logits_of(returned)

    with bias_added(model) as kept:
        check_and_fold(model, calibrator, run)
    warn_of_keys(kept)
    return model


def unfold_from_head(model: ModelT, calibrator: nn.Module) -> ModelT:
    r"""Take out of the final layer what `fold_into_head` has added, in place.

    .. math:: b_c = \tilde b_c - \gamma \, [c \in U]

    Parameters
    ----------
    model : nn.Module
        As `fold_into_head` returned it, or loaded again.
    calibrator : AdditiveBias, ClassBias, an nn.Sequential of these, or Prototypes
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
    >>> torch.allclose(
    ...     finecal.unfold_from_head(linear, calibrator).bias, before, atol=1e-6
    ... )
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
    weight = weight_of(calibrator)
    given = description_of(calibrator, shift, weight)
    if any(folded[key] != given[key] for key in ("num_classes", "sha256")):
        raise ValueError(
            f"{folded['calibrator']} is folded into the head {head}; pass that calibrator, not {calibrator} (to the "
            "last digit: keep it with finecal.save)"
        )
    biases = shifted_biases(head, -shift)
    if weight is not None:
        _add_to_weight(head, -weight)
    write_to(head.biases, biases)
    write_record(model, head, None)
    return model


def check_and_fold(model: ModelT, calibrator: nn.Module, run: Run | None) -> ModelT:
    """Fold as `fold_into_head`; `run` returns logits to check the fold by, of any model that holds `model`."""
    check_holds_no_calibrator(model, TOGETHER)
    head, shift = _head_to_fold(model, calibrator, run)
    weight = weight_of(calibrator)
    description = description_of(calibrator, shift, weight)
    if head.parameter is not None:
        description[PARAMETER] = f"{head.names[0]}.{head.parameter}".removeprefix(".")
    if weight is not None and run is not None:
        check_weight_fold(_linear_of(head), weight, run)
    if biases_show(head, shift):
        warn(
            f"the bias of the head {head} looks as if the calibrator had been folded before (weights that travel as a "
            "state_dict lose the record of that); if so, take it out once: unfold_from_head(model, calibrator)"
        )
    sums = shifted_biases(head, shift)
    for bias, total in zip(head.biases, sums, strict=True):
        _warn_if_lost(head, bias, total, shift)
    if weight is not None:  # first: it may be refused
        _add_to_weight(head, weight)
    write_to(head.biases, sums)
    write_record(model, head, description)
    return model


def _head_to_fold(model: nn.Module, calibrator: nn.Module, run: Run | None) -> tuple[Head, Tensor]:
    """Return the head and the shift of its biases: by convention or, where that fails and the model runs, by trying."""
    try:
        head, shift = head_and_shift(model, calibrator)
        _check_not_folded(model, head)
        if run is not None:
            check_fold(head, shift, run, dim_of(calibrator))
    except _AlreadyFolded:
        raise
    except ValueError as error:
        shift = shift_by(calibrator)
        candidates = [each for each in vectors(model, shift.shape[0]) if is_changeable(model, each)]
        if not candidates or weight_of(calibrator) is not None:
            raise
        if run is None:
            raise ValueError(
                f"{error}. With inputs=, what the model is called with, every parameter of {shift.shape[0]} entries is "
                "tried"
            ) from error
        tried = find_by_trying(candidates, shift, run, dim_of(calibrator))
        if tried is None:
            raise ValueError(
                f"{error}. No parameter of {shift.shape[0]} entries that can be changed is added to the logits as it is"
            ) from error
        _check_not_folded(model, tried)
        return tried, shift
    if run is None and not head.is_certain:
        check_only_head(model, head)
        code = unread_code(model, head)
        if code is not None:
            warn(
                f"fold_into_head: not checked: {code} may do more with the outputs of the head {head}, as 30 * z or a "
                "norm, and gamma would then be wrong; pass inputs=, what the model is called with"
            )
    return head, shift


class _AlreadyFolded(ValueError):
    """A calibrator is recorded as folded."""


def _check_not_folded(model: nn.Module, head: Head) -> None:
    folded = recorded(model, head)
    if folded is not None:
        raise _AlreadyFolded(
            f"{folded['calibrator']} is folded into the head {head} already: use the model as it is, or take it out "
            "with unfold_from_head. If the weights were replaced since, delete the record: the attribute "
            f"{FOLDED} of the layer and of model.config"
        )


def _linear_of(head: Head) -> nn.Linear:
    """Return the head that prototypes are folded into."""
    (layer,) = head.layers
    assert isinstance(layer, nn.Linear)
    return layer


def _add_to_weight(head: Head, added: Tensor) -> None:
    linear = _linear_of(head)
    write_to([linear.weight], [shifted_weight(linear, added)])


def record_folded(model: nn.Module, calibrator: nn.Module | None) -> None:
    """Record that a calibrator is folded into weights that were loaded, or that none is (None)."""
    if calibrator is not None:
        head, shift = head_and_shift(model, calibrator)
        write_record(model, head, description_of(calibrator, shift, weight_of(calibrator)))
    elif is_folded(model):
        write_record(model, find_head(model), None)


def _warn_if_lost(head: Head, bias: Tensor, total: Tensor, shift: Tensor) -> None:
    """Warn where a bias does not change by what is added to it, in its dtype."""
    wanted = shift_of(bias, shift).to(bias.device, wide_dtype(bias.dtype))
    found = total.to(wanted.dtype) - bias.detach().to(wanted.dtype)
    lost = (found - wanted).abs() > wanted.abs().max() / 2
    if bool(lost.any()):
        classes = named_classes(lost.reshape(-1, shift.shape[0]).any(0))
        dtype = str(bias.dtype).removeprefix("torch.")
        warn(
            f"the bias of the head {head} is too large for what is folded into it: in {dtype} that of "
            f"{classes} changes by {float(found[lost][0]):.4g} in place of {float(wanted[lost][0]):.4g}; "
            f"unfold_from_head takes it out; {WRAP_INSTEAD}"
        )
