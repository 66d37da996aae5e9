"""Checks of logits, labels, masks, gamma, features and heads. Messages name the argument, what came, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import SupportsFloat, TypeAlias

import torch
from torch import Tensor, nn

from .arrays import (
    MOST_CLASSES,
    ArrayLike,
    NumpyArray,
    as_float,
    as_tensor,
    check_dense,
    dtype_name,
    first_text,
    is_boolean,
    shape_of,
    to_float,
)
from .warning import warn

_PROBABILITY_ROWS = 4096
_NAMED_CLASSES = 10
_DROP_OR_MAP = "drop such entries (ignore indices) or map them to class indices"
_FULL_HEAD = (
    "finecal.restore_head brings them back with the pre-trained model; better still, fine-tune its head with the full "
    "list of classes"
)


def as_logits(logits: object, name: str = "logits", *, any_batch: bool = False, dim: int = -1) -> Tensor:
    """Return scores, `(N, C)` or `(..., C)`, as a tensor; `any_batch` skips values and allows classes along `dim`."""
    return _check_scores_of_classes(
        as_tensor(logits, name, abstract=any_batch), name, any_batch, dim, to_float(logits, name)
    )


def check_logits(logits: Tensor, name: str = "logits", *, any_batch: bool = False, dim: int | None = -1) -> Tensor:
    """Floating point, `(N, C)` or `(..., C)`, C >= 2; with `any_batch` the classes are along `dim` (None: any)."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{name} is a {type(logits).__name__}; pass a torch tensor, or wrap a model whose output holds more than "
            "logits in CalibratedModel"
        )
    check_dense(logits, name)
    return _check_scores_of_classes(logits, name, any_batch, dim, to_float(logits, name))


def _check_scores_of_classes(logits: Tensor, name: str, any_batch: bool, dim: int | None, conversion: str) -> Tensor:
    if not logits.is_floating_point() or logits.itemsize == 1:
        raise TypeError(
            f"{name} has dtype {dtype_name(logits)}; finecal takes float64, float32, float16 or bfloat16 scores: "
            f"convert with {conversion}, or check that {name} and labels are not swapped"
        )
    ndim = logits.ndim
    if ndim == 0 or (ndim != 2 and not any_batch):
        expected = "(..., C)" if any_batch else "(N, C)"
        hint = (
            "; evaluate_iou and the states of finecal.streaming take dense logits: dim=1 for (B, C, H, W), dim=-1 for "
            "(B, T, C); so do collect_logits and calibrate_model: positions=Positions(1)"
        )
        if ndim == 3 and logits.shape[1] == 1:
            hint = (
                f"; take the dimension of size 1 out: {name}.squeeze(1), or pass collect_logits and calibrate_model "
                "positions=Positions(-1), and labels (B, 1)"
            )
        raise ValueError(
            f"{name} has shape {shape_of(logits)}; expected {expected}, one row of C class scores per sample"
            f"{hint if ndim > 2 else ''}"
        )
    if dim is None:
        return logits
    if not -ndim <= dim < ndim:
        raise ValueError(
            f"dim is {dim}, but {name} has shape {shape_of(logits)}, of {ndim} dimensions; pass the dimension "
            "of the classes, such as dim=1 for (B, C, H, W)"
        )
    classes = logits.shape[dim]
    if classes < 2:
        raise ValueError(
            f"{name} has shape {shape_of(logits)}: {classes} classes; at least one seen and one absent are needed"
        )
    if classes > MOST_CLASSES:
        raise ValueError(f"{name} has shape {shape_of(logits)}: finecal counts at most {MOST_CLASSES} classes")
    return logits


def check_mask(seen_mask: object, num_classes: int, device: torch.device, dense_shape: Sequence[int] = ()) -> Tensor:
    """Boolean, `(C,)`; moved to the device of the logits. For `dense_shape` see `check_num_columns`."""
    mask = as_bool_mask(seen_mask)
    check_num_columns(num_classes, mask.shape[0], dense_shape=dense_shape)
    mask = mask.to(device)
    if not torch.compiler.is_compiling() and device.type == "cpu":
        check_mask_values(mask)
    return mask


def check_num_columns(num_classes: int, entries: int, name: str = "seen_mask", dense_shape: Sequence[int] = ()) -> None:
    """One entry per class; `dense_shape` is that of logits whose classes may be along another dimension, by `dim`."""
    if num_classes != entries:
        what = "boolean" if name.endswith("seen_mask") else "number"
        fits = next((dim for dim, size in enumerate(dense_shape) if size == entries), None)
        hint = ""
        if fits is not None:
            shape = tuple(dense_shape)
            hint = f"; dimension {fits} of their shape, {shape}, fits: if it is that of the classes, use dim={fits}"
        elif num_classes < entries:
            hint = (
                f" (if the head has lost classes in fine-tuning, {_FULL_HEAD}; if the logits are without background "
                f"classes, leave these out of {name}, too)"
            )
        raise ValueError(
            f"{name} has {entries} entries for logits of {num_classes} classes; "
            f"it needs one {what} per column of the logits{hint}"
        )


def as_bool_mask(seen_mask: object, name: str = "seen_mask", *, abstract: bool = False) -> Tensor:
    """Return `seen_mask` as a 1-D boolean tensor, or say what came instead; `abstract` as in `as_tensor`."""
    mask = as_tensor(seen_mask, name, abstract=abstract)
    if mask.numel() == 0:
        raise ValueError(
            f"{name} is empty, of shape {shape_of(mask)}; pass one boolean per class, True for each seen one"
        )
    if mask.dtype != torch.bool:
        zero_one = mask.numel() > 2 and not mask.is_meta and bool(((mask == 0) | (mask == 1)).all())
        hint = "convert a mask of 0 and 1 to bool" if zero_one else "for class indices use seen_mask_from_indices"
        raise TypeError(f"{name} has dtype {dtype_name(mask)}; it must be boolean, True for each seen class: {hint}")
    if mask.ndim != 1:
        raise ValueError(f"{name} has shape {shape_of(mask)}; expected (C,), one boolean per class")
    return mask


def check_mask_values(mask: Tensor) -> Tensor:
    """At least one seen and one absent class; a mask on the meta device has no values yet."""
    if mask.is_meta:
        return mask
    seen, total = int(mask.sum()), mask.shape[0]
    if seen == 0:
        raise ValueError(f"seen_mask has no seen class among {total}; mark the classes of the fine-tuning data as True")
    if seen == total:
        raise ValueError(
            f"seen_mask has no absent class: all {total} are seen, so there is nothing to calibrate (if the head was "
            f"made for the fine-tuned classes alone, the rows of the others are gone: {_FULL_HEAD})"
        )
    return mask


def check_gamma(
    gamma: object, device: torch.device, dtype: torch.dtype = torch.float64, *, abstract: bool = False
) -> float | Tensor:
    """A finite number that `dtype` can hold: a number, a 0-d tensor, or an object with `__float__`.

    A tensor stays one, on `device` unless it is on the CPU. `abstract` lets one without a value pass.
    """
    if torch.compiler.is_compiling() and isinstance(gamma, (float, int)) and not isinstance(gamma, bool):
        return gamma
    if isinstance(gamma, Tensor):
        check_dense(gamma, "gamma")
        if gamma.ndim != 0:
            raise ValueError(f"gamma is a tensor of shape {shape_of(gamma)}; pass one number (a 0-d tensor)")
        if gamma.dtype == torch.bool or gamma.is_complex():
            raise TypeError(f"gamma is a tensor of dtype {dtype_name(gamma)}; pass a real number")
        if gamma.device.type == "meta":
            if abstract:
                return gamma
            raise ValueError(
                "gamma is on the meta device and has no value; pass a number, or load the calibrator's state"
            )
        if torch.compiler.is_compiling() or gamma.device.type != "cpu":
            return gamma if gamma.device.type == "cpu" else gamma.to(device)
        _check_gamma_value(float(gamma.detach()), dtype)
        return gamma
    if is_boolean(gamma) or not isinstance(gamma, SupportsFloat) or getattr(gamma, "ndim", 0) != 0:
        raise TypeError(f"gamma is a {type(gamma).__name__}; pass a float, a 0-d tensor or a GammaEstimate")
    return _check_gamma_value(as_float(gamma, "gamma"), dtype)


def gamma_as_float(gamma: object, dtype: torch.dtype = torch.float64) -> float:
    """Check gamma, and return it as a float."""
    checked = check_gamma(gamma, torch.device("cpu"), dtype)
    return float(checked.detach() if isinstance(checked, Tensor) else checked)


def _check_gamma_value(value: float, dtype: torch.dtype) -> float:
    if not math.isfinite(value):
        raise ValueError(f"gamma is {value}; it must be finite")
    if abs(value) > torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"gamma is {value}, which {name} cannot hold; check the estimate, or convert to a wider dtype")
    return value


def check_module_device(module: torch.device, logits: torch.device, name: str = "logits") -> None:
    if module != logits:
        raise ValueError(f"the calibrator is on {module}, {name} on {logits}; move it: calibrator.to({str(logits)!r})")


def check_same_device(tensor: Tensor, device: torch.device, name: str = "labels") -> None:
    if tensor.device != device:
        raise ValueError(f"{name} are on {tensor.device}, logits on {device}; move them: {name}.to({str(device)!r})")


def check_labels(
    labels: object,
    num_samples: int,
    num_classes: int,
    device: torch.device,
    name: str = "labels",
    rows_of: str = "logits",
) -> Tensor:
    """Integer class indices `(N,)` in `[0, C)`, on the device of the logits; returned as int64."""
    tensor = labels_as_tensor(labels, name)
    if tensor.shape != (num_samples,):
        raise ValueError(
            f"{name} have shape {shape_of(tensor)} for {num_samples} rows of {rows_of}; expected ({num_samples},), one "
            f"class index per row{shape_hint(tensor, name, num_classes)}"
        )
    if tensor.numel() > 0:
        check_index_dtype(tensor, name)
    check_same_device(tensor, device, name)
    return check_index_range(tensor, num_classes, name, "number of columns of the logits")


def shape_hint(labels: Tensor, name: str, num_classes: int) -> str:
    """Return advice for labels that are a column or one-hot, "" for all others."""
    if labels.ndim != 2:
        return ""
    if labels.shape[1] == 1:
        return f"; take the dimension of size 1 out: {name}.squeeze(1)"
    return f"; for one-hot labels use {name}.argmax(1)" if labels.shape[1] == num_classes else ""


def labels_as_tensor(labels: object, name: str) -> Tensor:
    """Return labels as a tensor; names of classes are refused with what to do."""
    if (text := first_text(labels)) is not None:
        raise TypeError(
            f"{name} hold class names, such as {text!r:.60}; pass the index of each, its column in the logits: "
            f"[class_names.index(name) for name in {name}] (and seen_mask_from_names makes the mask from names)"
        )
    return as_tensor(labels, name)


def check_index_dtype(indices: Tensor, name: str) -> Tensor:
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise TypeError(
            f"{name} have dtype {dtype_name(indices)}; expected integer class indices, not a mask or scores (convert "
            "whole numbers that are stored as floats)"
        )
    return indices


def check_index_range(indices: Tensor, num_classes: int, name: str, bound: str, way_out: str = _DROP_OR_MAP) -> Tensor:
    indices = indices.to(torch.int64)
    if indices.numel():
        low, high = (int(v) for v in torch.aminmax(indices))
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise ValueError(
                f"{name} contain {wrong}, outside [0, {num_classes}) ({num_classes} is the {bound}); {way_out}"
            )
    return indices


def warn_if_reindexed(labels: Tensor, mask: Tensor) -> None:
    """Warn where the labels are exactly 0..|S|-1 although the seen classes are others: they were re-indexed."""
    seen = int(mask.sum())
    if seen < 2 or labels.numel() == 0 or bool(mask[:seen].all()):
        return
    counts = torch.bincount(labels, minlength=mask.shape[0])
    if bool((counts[:seen] > 0).all()) and not bool((counts[seen:] > 0).any()):
        warn(
            f"labels are exactly 0..{seen - 1}, as many as there are seen classes, but these are not the seen classes: "
            f"they look re-indexed; map them back: labels = numpy.flatnonzero(seen_mask)[labels]"
        )


def check_only_seen(labels: Tensor, mask: Tensor, caller: str) -> None:
    """No absent class among the labels."""
    absent = ~mask[labels]
    wrong = int(absent.sum())
    if wrong == labels.numel() > 0:
        raise ValueError(
            f"labels are of absent classes in all {wrong} samples; {caller} needs seen-class samples: seen_mask must "
            "be True for the seen classes (is it inverted?)"
        )
    if wrong:
        example = int(labels[absent][0])
        raise ValueError(
            f"labels contain absent class {example} ({wrong} of {labels.numel()} samples); {caller} needs seen-class "
            f"samples only: drop them, or use search_gamma"
        )


def check_not_empty(num_samples: int, caller: str, name: str = "logits") -> None:
    if num_samples == 0:
        raise ValueError(
            f"{name} are empty (0 samples); {caller} has nothing to estimate from: pass at least one sample"
        )


def check_scores(logits: Tensor, top: Tensor, name: str = "logits", first_row: int = 0) -> None:
    """No NaN, +inf or probabilities; `top` has each row's maximum, `first_row` the number of the first row."""
    if top.numel() == 0:
        return
    finite, unit = (bool(flag) for flag in torch.stack([(top < math.inf).all(), ((top >= 0) & (top <= 1)).all()]).cpu())
    if not finite:
        bad = (~(top < math.inf)).nonzero()
        row = int(bad[0])
        what = "NaN" if bool(logits[row].isnan().any()) else "+inf"
        raise ValueError(
            f"{name} contain {what} (first in row {first_row + row}, {bad.shape[0]} of {top.shape[0]} rows); "
            f"drop these samples or repair the model: only finite values and -inf (a masked class) are legal"
        )
    if unit and are_probabilities(logits[:_PROBABILITY_ROWS]):
        raise ValueError(f"{name} {LIKE_PROBABILITIES}")


LIKE_PROBABILITIES = (
    "look like probabilities: every row lies in [0, 1] and sums to 1; gamma is added to logits: pass the scores before "
    "softmax, or the logarithms of these probabilities"
)


def are_probabilities(rows: Tensor) -> bool:
    """Whether all rows are of positive numbers that sum to 1."""
    tolerance = 1e-3 if rows.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((rows >= 0).all()) and bool(((rows.double().sum(1) - 1).abs() < tolerance).all())


def check_both_groups(
    n_seen: int,
    n_absent: int,
    purpose: str = "the best gamma",
    way_out: str = "from seen-class samples alone use mixed_pair_gap or max_logit_gap",
) -> None:
    """Labels of seen and of absent classes."""
    if n_seen + n_absent == 0:
        raise ValueError(f"labels are empty: {purpose} needs labelled samples of seen and of absent classes")
    if n_seen == 0 or n_absent == 0:
        group = "seen" if n_absent == 0 else "absent"
        raise ValueError(
            f"labels are of {group} classes only ({n_seen + n_absent} samples): {purpose} needs "
            f"samples of both groups; {way_out}"
        )


def check_class_values(values: object, name: str, *, positive: bool = False) -> Tensor:
    """One finite (and positive) number per class, `(C,)`, as a new float32 tensor; unchecked on the meta device."""
    tensor = as_tensor(values, name, abstract=True)
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"{name} has dtype {dtype_name(tensor)}; pass one real number per class")
    if tensor.ndim != 1 or tensor.shape[0] < 2:
        raise ValueError(
            f"{name} has shape {shape_of(tensor)}; expected (C,), one number for each of at least 2 classes"
        )
    single = tensor.detach().to(torch.float32, copy=True)
    if single.is_meta:
        return single
    wrong = ~(single.isfinite() & ((single > 0) | (not positive)))
    if bool(wrong.any()):
        must = "finite and positive" if positive else "finite"
        raise ValueError(
            f"{name} is {float(tensor[wrong][0]):.4g} for class {int(wrong.nonzero()[0])} ({int(wrong.sum())} of "
            f"{wrong.shape[0]} classes); it must be {must} in float32"
        )
    return single


def named_classes(chosen: Tensor, counts: Tensor | None = None) -> str:
    """Return "class 3, 5 and 7 more" for the True entries of `chosen` `(C,)`, each with its count in brackets."""
    indices = chosen.nonzero().flatten().tolist()
    names = [f"{c}" if counts is None else f"{c} ({int(counts[c])})" for c in indices[:_NAMED_CLASSES]]
    more = f" and {len(indices) - _NAMED_CLASSES} more" if len(indices) > _NAMED_CLASSES else ""
    return f"class {', '.join(names)}{more}"


LinearHead: TypeAlias = nn.Linear | tuple[ArrayLike, ArrayLike | None]
"""The layer that gives the logits, or its weight `(C, D)` and bias `(C,)`."""
_CHECKED_SCORES = 1 << 22
_HEAD_TOLERANCE = 2.0**-6
"""Features, weight and product may each be rounded to bfloat16 (mixed precision), by up to 2^-8 of their sizes."""


def check_linear(linear: object, name: str = "linear") -> nn.Linear:
    """A linear layer whose weight and bias are its own parameters, in floating point: neither computed nor packed."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name} is a {type(linear).__name__}; pass the nn.Linear that gives the logits")
    own = all(key in linear._parameters for key in ("weight", "bias"))
    if not own or not linear.weight.is_floating_point():
        raise TypeError(
            f"{name} computes its weight or bias (weight_norm, another parametrization) or is quantised; "
            f"pass a layer with plain parameters: torch.nn.utils.parametrize.remove_parametrizations({name}, 'weight')"
        )
    return linear


def check_features(features: object, num_samples: int | None, device: torch.device, name: str = "features") -> Tensor:
    """Floating point, finite, `(N, D)`, on the device of the logits; any number of rows if `num_samples` is None."""
    tensor = as_tensor(features, name).detach()
    if not tensor.is_floating_point() or tensor.itemsize == 1:
        raise TypeError(
            f"{name} have dtype {dtype_name(tensor)}; pass floating-point features: {to_float(features, name)}"
        )
    if tensor.ndim != 2 or tensor.shape[1] == 0 or (num_samples is not None and tensor.shape[0] != num_samples):
        rows = "R" if num_samples is None else str(num_samples)
        raise ValueError(f"{name} have shape {shape_of(tensor)}; expected ({rows}, D), one row of features per sample")
    check_same_device(tensor, device, name)
    low, high = torch.aminmax(tensor, dim=1)
    wrong = ~((low > -math.inf) & (high < math.inf))
    if bool(wrong.any()):
        raise ValueError(
            f"{name} contain NaN or infinity (first in row {int(wrong.nonzero()[0])}, {int(wrong.sum())} of "
            f"{tensor.shape[0]} rows); drop these samples or repair the model"
        )
    return tensor


def check_head(head: object, num_classes: int, device: torch.device, name: str = "head") -> tuple[Tensor, Tensor]:
    """A linear head, `nn.Linear` or (weight, bias): weight `(C, D)` and bias `(C,)`, zeros for None, on `device`."""
    if isinstance(head, nn.Linear):
        pair: tuple[object, object] = head.weight, head.bias
    elif isinstance(head, (tuple, list)) and len(head) == 2:
        pair = head[0], head[1]
    else:
        raise TypeError(
            f"{name} is a {type(head).__name__}; pass the nn.Linear that gives the logits, or (weight, bias)"
        )
    weight = as_tensor(pair[0], f"the weight of {name}").detach()
    bias = weight.new_zeros(weight.shape[:1]) if pair[1] is None else as_tensor(pair[1], f"the bias of {name}").detach()
    if weight.ndim != 2 or weight.shape[0] != num_classes or bias.shape != (num_classes,):
        raise ValueError(
            f"{name} has a weight of shape {shape_of(weight)} and a bias of shape {shape_of(bias)} for logits of "
            f"{num_classes} classes; expected ({num_classes}, D) and ({num_classes},), one row per column of the logits"
        )
    for what, tensor in (("weight", weight), ("bias", bias)):
        if not tensor.is_floating_point() or tensor.itemsize == 1:
            raise TypeError(f"the {what} of {name} has dtype {dtype_name(tensor)}; pass it in floating point")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the {what} of {name} contains NaN or infinity; repair the model")
    return weight.to(device), bias.to(device)


def head_warnings(logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, prefix: str = "") -> list[str]:
    """Return a warning if the head, up to a constant per row, does not give the logits of the first samples."""
    if features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{prefix}features have {features.shape[1]} columns, {prefix}head takes {weight.shape[1]}; pass the inputs "
            "of this head"
        )
    count = max(1, _CHECKED_SCORES // logits.shape[1])
    rows, scores = features[:count].float(), logits[:count].float()
    weight, bias = weight.float(), bias.float()
    difference = torch.addmm(bias, rows, weight.T) - scores
    difference = (difference - difference.masked_fill(~scores.isfinite(), math.nan).nanmean(1, keepdim=True)).abs()
    size = rows.norm(dim=1, keepdim=True) * weight.norm(dim=1) + bias.abs()
    excess = difference.masked_fill(~scores.isfinite(), 0) > _HEAD_TOLERANCE * size
    wrong = int(excess.any(1).sum())
    if not wrong:
        return []
    return [
        f"{prefix}head applied to {prefix}features does not give {prefix}logits: they differ by up to "
        f"{float(difference[excess].max()):.3g} in {wrong} of {rows.shape[0]} samples checked; pass the head of one "
        "model, its inputs and its outputs in eval mode, for the same samples in the same order"
    ]


Background: TypeAlias = int | Sequence[int] | NumpyArray | Tensor
"""The index of a background class, or several."""


def background_indices(background: Background, name: str = "background") -> Tensor:
    """Return the indices of background classes, `(n,)`, of which it is not yet known whether there are such classes."""
    several = sorted(background) if isinstance(background, Set) else background
    single = hasattr(several, "__index__") and getattr(several, "ndim", 0) == 0
    indices = labels_as_tensor([several] if single else several, name)
    if indices.ndim != 1 or indices.numel() == 0:
        raise ValueError(f"{name} has shape {shape_of(indices)}; pass a class index, or a list of at least one")
    return check_index_dtype(indices, name)


def check_background(background: Background | None, seen_mask: Tensor, name: str = "background") -> Tensor:
    """Return a `(C,)` bool mask of the background classes (None: none), which must be seen, on the device of `mask`."""
    chosen = torch.zeros_like(seen_mask)
    if background is None:
        return chosen
    indices = check_index_range(background_indices(background, name), len(seen_mask), name, "number of classes")
    chosen[indices.to(seen_mask.device)] = True
    if bool((wrong := chosen & ~seen_mask).any()):
        raise ValueError(
            f"{name} contains {named_classes(wrong)}, which seen_mask says is absent: gamma would be added to it; set "
            "seen_mask to True there"
        )
    return chosen
