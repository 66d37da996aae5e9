"""Every check of user input and every message, once. Messages name the argument, what came, and what to do."""

import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ._arrays import as_tensor

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PROBABILITY_ROWS = 4096
_NAMED_CLASSES = 10
_MAX_CLASSES = 1 << 24
"""Class indices are counted in float32, beside the logits."""


class FinecalWarning(UserWarning):
    """What finecal warns with: an input that looks wrong, or an estimate whose assumption is visibly broken.

    Examples
    --------
    To turn finecal's warnings, and no others, into errors:

    >>> import warnings, finecal
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", finecal.FinecalWarning)
    """


def warn(message: str) -> None:
    """Issue a `FinecalWarning` that points at the caller's line, outside finecal."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FinecalWarning, stacklevel=level)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep finecal's warnings from being issued, where they are shown in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FinecalWarning)
        yield


@contextmanager
def naming_argument(name: str) -> Iterator[None]:
    """Say which argument an error is about, where several hold logits or labels."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


# --- shapes and dtypes: cheap, never synchronise, safe under torch.compile --------------------------------------------


def check_logits(logits: Tensor, name: str = "logits", *, any_batch: bool = False) -> Tensor:
    """Floating point, `(N, C)` (or `(..., C)`), C >= 2."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{name} is a {type(logits).__name__}; pass a torch tensor, or wrap a model whose output holds more than "
            "logits in CalibratedModel"
        )
    if not logits.is_floating_point() or logits.itemsize == 1:
        raise TypeError(
            f"{name} has dtype {dtype_name(logits)}; finecal takes float64, float32, float16 or bfloat16 scores: "
            f"convert with {name}.float(), or check that {name} and labels are not swapped"
        )
    if logits.ndim == 0 or (logits.ndim != 2 and not any_batch):
        expected = "(..., C)" if any_batch else "(N, C)"
        raise ValueError(
            f"{name} has shape {shape_of(logits)}; expected {expected}, one row of C class scores per sample"
        )
    if logits.shape[-1] < 2:
        raise ValueError(
            f"{name} has shape {shape_of(logits)}: {logits.shape[-1]} classes; at least one seen and one absent are "
            "needed"
        )
    if logits.shape[-1] > _MAX_CLASSES:
        raise ValueError(f"{name} has shape {shape_of(logits)}: finecal counts at most {_MAX_CLASSES} classes")
    return logits


def check_mask(seen_mask: object, num_classes: int, device: torch.device) -> Tensor:
    """Boolean, `(C,)`; moved to the device of the logits."""
    mask = as_bool_mask(seen_mask)
    check_num_columns(num_classes, mask.shape[0])
    mask = mask.to(device)
    if not torch.compiler.is_compiling() and device.type == "cpu":
        check_mask_values(mask)
    return mask


def check_num_columns(num_classes: int, entries: int, name: str = "seen_mask") -> None:
    if num_classes != entries:
        what = "boolean" if name.endswith("seen_mask") else "number"
        raise ValueError(
            f"{name} has {entries} entries for logits of {num_classes} classes; "
            f"it needs one {what} per column of the logits"
        )


def as_bool_mask(seen_mask: object, name: str = "seen_mask") -> Tensor:
    """Return `seen_mask` as a 1-D boolean tensor, or say what came instead."""
    mask = as_tensor(seen_mask, name)
    if mask.dtype != torch.bool:
        zero_one = mask.numel() > 2 and bool(((mask == 0) | (mask == 1)).all())
        hint = "convert a mask of 0 and 1 to bool" if zero_one else "for class indices use seen_mask_from_indices"
        raise TypeError(f"{name} has dtype {dtype_name(mask)}; it must be boolean, True for each seen class: {hint}")
    if mask.ndim != 1:
        raise ValueError(f"{name} has shape {shape_of(mask)}; expected (C,), one boolean per class")
    return mask


def check_mask_values(mask: Tensor) -> Tensor:
    """At least one seen and one absent class."""
    seen, total = int(mask.sum()), mask.shape[0]
    if seen == 0:
        raise ValueError(f"seen_mask has no seen class among {total}; mark the classes of the fine-tuning data as True")
    if seen == total:
        raise ValueError(f"seen_mask has no absent class: all {total} are seen, so there is nothing to calibrate")
    return mask


def check_pseudo_seen_mask(pseudo_seen_mask: object, seen: Tensor) -> Tensor:
    """A proper, non-empty part of the seen classes; moved to the device of their mask."""
    mask = as_bool_mask(pseudo_seen_mask, "pseudo_seen_mask")
    check_num_columns(seen.shape[0], mask.shape[0], "pseudo_seen_mask")
    mask = mask.to(seen.device)
    if bool((mask & ~seen).any()):
        raise ValueError(
            f"pseudo_seen_mask is True for {named_classes(mask & ~seen)}, outside seen_mask; pass a row of "
            "pseudo_cv_splits(seen_mask)"
        )
    count, total = int(mask.sum()), int(seen.sum())
    if count in (0, total):
        raise ValueError(
            f"pseudo_seen_mask has {count} of the {total} seen classes; it needs some, but not all of them: pass a row "
            "of pseudo_cv_splits(seen_mask)"
        )
    return mask


def check_pseudo_groups(is_pseudo_seen: Tensor) -> None:
    """Samples of both groups."""
    count, total = int(is_pseudo_seen.sum()), is_pseudo_seen.shape[0]
    if count in (0, total):
        group = "pseudo-seen" if count else "pseudo-absent"
        raise ValueError(
            f"labels are of {group} classes only ({total} samples); pass held-out samples of all seen classes"
        )


def check_gamma(gamma: object, device: torch.device, dtype: torch.dtype = torch.float64) -> float | Tensor:
    """A finite real number that `dtype` can hold: a number, a 0-d tensor, or what has `__float__`: a `GammaEstimate`.

    A tensor stays one, on `device` unless it is on the CPU, where arithmetic with any device can read it.
    """
    if torch.compiler.is_compiling() and isinstance(gamma, (float, int)) and not isinstance(gamma, bool):
        return gamma
    if isinstance(gamma, Tensor):
        if gamma.ndim != 0:
            raise ValueError(f"gamma is a tensor of shape {shape_of(gamma)}; pass one number (a 0-d tensor)")
        if gamma.dtype == torch.bool or gamma.is_complex():
            raise TypeError(f"gamma is a tensor of dtype {dtype_name(gamma)}; pass a real number")
        if torch.compiler.is_compiling() or gamma.device.type != "cpu":
            return gamma if gamma.device.type == "cpu" else gamma.to(device)
        _check_gamma_value(float(gamma.detach()), dtype)
        return gamma
    if isinstance(gamma, bool) or not isinstance(gamma, SupportsFloat) or getattr(gamma, "ndim", 0) != 0:
        raise TypeError(f"gamma is a {type(gamma).__name__}; pass a float, a 0-d tensor or a GammaEstimate")
    return _check_gamma_value(_as_float(gamma), dtype)


def gamma_as_float(gamma: object, dtype: torch.dtype = torch.float64) -> float:
    """Check gamma, and return it as a float."""
    checked = check_gamma(gamma, torch.device("cpu"), dtype)
    return float(checked.detach() if isinstance(checked, Tensor) else checked)


def _check_gamma_value(value: float, dtype: torch.dtype) -> float:
    if not math.isfinite(value):
        raise ValueError(f"gamma is {value}; it must be finite")
    if abs(value) > torch.finfo(dtype).max:
        raise ValueError(f"gamma is {value}, which {str(dtype).removeprefix('torch.')} cannot hold; check the estimate")
    return value


def _as_float(value: SupportsFloat) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_module_device(module: torch.device, logits: torch.device) -> None:
    if module != logits:
        raise ValueError(f"the calibrator is on {module}, logits on {logits}; move it: calibrator.to({str(logits)!r})")


def check_same_device(tensor: Tensor, device: torch.device, name: str = "labels") -> None:
    if tensor.device != device:
        raise ValueError(f"{name} are on {tensor.device}, logits on {device}; move them: {name}.to({str(device)!r})")


# --- values -----------------------------------------------------------------------------------------------------------


def check_labels(
    labels: object,
    num_samples: int,
    num_classes: int,
    device: torch.device,
    name: str = "labels",
    rows_of: str = "logits",
) -> Tensor:
    """Integer class indices `(N,)` in `[0, C)`, on the device of the logits; returned as int64."""
    tensor = as_tensor(labels, name)
    if tensor.numel() > 0:
        check_index_dtype(tensor, name)
    if tensor.shape != (num_samples,):
        hint = f"; for one-hot labels use {name}.argmax(1)" if tensor.shape == (num_samples, num_classes) else ""
        raise ValueError(
            f"{name} have shape {shape_of(tensor)} for {num_samples} rows of {rows_of}; expected ({num_samples},), one "
            f"class index per row{hint}"
        )
    check_same_device(tensor, device, name)
    return check_index_range(tensor, num_classes, name, "number of columns of the logits")


def check_index_dtype(indices: Tensor, name: str) -> Tensor:
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise TypeError(
            f"{name} have dtype {dtype_name(indices)}; expected integer class indices, not a mask or scores (convert "
            "whole numbers that are stored as floats)"
        )
    return indices


def check_index_range(indices: Tensor, num_classes: int, name: str, bound: str) -> Tensor:
    indices = indices.to(torch.int64)
    if indices.numel():
        low, high = (int(v) for v in torch.aminmax(indices))
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise ValueError(
                f"{name} contain {wrong}, outside [0, {num_classes}) ({num_classes} is the {bound}); "
                f"drop such entries (ignore indices) or map them to class indices"
            )
    return indices


def check_distinct(indices: Tensor, name: str) -> None:
    """No index twice: a list of labels, or a mask of 0 and 1, must not pass for the indices of the seen classes."""
    values, counts = torch.unique(indices, return_counts=True)
    if values.numel() < indices.numel():
        raise ValueError(
            f"{name} contain {int(values[counts > 1][0])} more than once; name each seen class once: for labels use "
            f"seen_mask_from_labels, and convert a mask of 0 and 1 to bool"
        )


def check_num_classes(num_classes: object) -> int:
    if isinstance(num_classes, bool) or not hasattr(num_classes, "__index__") or getattr(num_classes, "ndim", 0) != 0:
        raise TypeError(f"num_classes is a {type(num_classes).__name__}; pass the number of columns of the logits")
    count = int(num_classes.__index__())
    if count < 2:
        raise ValueError(f"num_classes is {count}; at least one seen and one absent class are needed")
    return count


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


def check_scores(logits: Tensor, top: Tensor, name: str = "logits") -> None:
    """No NaN or +inf, and no probabilities; `top` is each row's maximum, which carries both."""
    if top.numel() == 0:
        return
    finite, unit = (bool(flag) for flag in torch.stack([(top < math.inf).all(), ((top >= 0) & (top <= 1)).all()]).cpu())
    if not finite:
        bad = (~(top < math.inf)).nonzero()
        row = int(bad[0])
        what = "NaN" if bool(logits[row].isnan().any()) else "+inf"
        raise ValueError(
            f"{name} contain {what} (first in row {row}, {bad.shape[0]} of {top.shape[0]} rows); "
            f"drop these samples or repair the model: only finite values and -inf (a masked class) are legal"
        )
    if unit and _rows_are_probabilities(logits[:_PROBABILITY_ROWS]):
        raise ValueError(
            f"{name} look like probabilities: every row lies in [0, 1] and sums to 1; gamma is added to logits: "
            f"pass the scores before softmax, or {name}.log()"
        )


def _rows_are_probabilities(rows: Tensor) -> bool:
    tolerance = 1e-3 if rows.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((rows >= 0).all()) and bool(((rows.double().sum(1) - 1).abs() < tolerance).all())


def check_share(value: Any, name: str) -> float:
    """A fraction strictly between 0 and 1."""
    number = check_number(value, name)
    if not 0 < number < 1:
        percent = f" ({number} % is {number / 100})" if 1 < number < 100 else ""
        raise ValueError(f"{name} is {number}; it must lie strictly between 0 and 1{percent}")
    return number


def check_max_seen_drop(value: Any) -> float:
    number = check_number(value, "max_seen_drop")
    if not 0 <= number <= 1:
        raise ValueError(f"max_seen_drop is {number}; it is a fraction in [0, 1]: 0.02 allows a loss of two points")
    return number


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


def check_number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, SupportsFloat) or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} is a {type(value).__name__}; pass a number")
    number = _as_float(value)
    if math.isnan(number):
        raise ValueError(f"{name} is NaN; pass a number")
    return number


def check_finite(value: Any, name: str) -> float:
    number = check_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; it must be finite")
    return number


def check_class_values(values: object, name: str, *, positive: bool = False) -> Tensor:
    """One finite (and positive) real number per class, `(C,)`; returned as a float32 tensor of its own."""
    tensor = as_tensor(values, name)
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"{name} has dtype {dtype_name(tensor)}; pass one real number per class")
    if tensor.ndim != 1 or tensor.shape[0] < 2:
        raise ValueError(
            f"{name} has shape {shape_of(tensor)}; expected (C,), one number for each of at least 2 classes"
        )
    single = tensor.detach().to(torch.float32, copy=True)
    wrong = ~(single.isfinite() & ((single > 0) | (not positive)))
    if bool(wrong.any()):
        must = "finite and positive" if positive else "finite"
        raise ValueError(
            f"{name} is {float(tensor[wrong][0]):.4g} for class {int(wrong.nonzero()[0])} ({int(wrong.sum())} of "
            f"{wrong.shape[0]} classes); it must be {must} in float32"
        )
    return single


def check_class_names(class_names: object, num_classes: int, *, at_least: bool = False) -> tuple[str, ...] | None:
    """One text per class, or for `at_least` perhaps more; None stays."""
    if class_names is None:
        return None
    if isinstance(class_names, str) or not isinstance(class_names, Iterable):
        raise TypeError(f"class_names is a {type(class_names).__name__}; pass a list of str, one per class")
    names = list(class_names)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("class_names are not all texts; pass a list of str, one per class")
    if len(names) < num_classes or (len(names) > num_classes and not at_least):
        least = "at least " if at_least else ""
        raise ValueError(
            f"there are {len(names)} class names for {least}{num_classes} classes; give one per class, in order"
        )
    return tuple(map(str, names))


def named_classes(chosen: Tensor, counts: Tensor | None = None) -> str:
    """Return "class 3, 5 and 7 more" for the True entries of `chosen` `(C,)`, each with its count in brackets."""
    indices = chosen.nonzero().flatten().tolist()
    names = [f"{c}" if counts is None else f"{c} ({int(counts[c])})" for c in indices[:_NAMED_CLASSES]]
    more = f" and {len(indices) - _NAMED_CLASSES} more" if len(indices) > _NAMED_CLASSES else ""
    return f"class {', '.join(names)}{more}"


def check_temperature(value: Any, name: str) -> float:
    """Positive and finite in float32; returned as float32 rounds it."""
    number = check_number(value.detach() if isinstance(value, Tensor) else value, name)
    single = float(torch.tensor(number, dtype=torch.float32, device="cpu"))
    if not torch.finfo(torch.float32).tiny <= single < math.inf:
        raise ValueError(f"{name} is {number}; it must be positive and finite in float32")
    return single


def check_bounds(bounds: Any) -> tuple[float, float]:
    """Two temperatures, the smaller one first."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise TypeError(f"bounds are {bounds!r}; pass the smallest and the largest temperature")
    low, high = (check_temperature(bound, "a bound") for bound in bounds)
    if low >= high:
        raise ValueError(f"bounds are ({low:.6g}, {high:.6g}); the first must be below the second")
    return low, high


def check_choice(value: object, choices: tuple[str, ...], name: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")
    return value


def check_shrinkage(value: Any) -> float:
    number = check_number(value, "shrinkage")
    if number <= 0:
        raise ValueError(f'shrinkage is {number}; it must be positive, infinite for gamma alone, or "cv"')
    return number


def check_seed(seed: object) -> int:
    value = check_count(seed, "seed")
    if value >= 1 << 63:
        raise ValueError(f"seed is {value}; it must be below 2**63")
    return value


def check_count(value: object, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} is a {type(value).__name__}; pass an integer")
    count = int(value.__index__())
    if count < 0:
        raise ValueError(f"{name} is {count}; it cannot be negative")
    return count


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_complete_sample(
    labels: Tensor, name: str = "labels", instead: str = "name the seen classes explicitly"
) -> None:
    """Refuse to take the classes that occur for all seen ones where classes with a single sample suggest more."""
    counts = torch.bincount(labels)
    once, classes = int((counts == 1).sum()), int((counts > 0).sum())
    if once:
        raise ValueError(
            f"{name} have a single sample of {once} of the {classes} classes that occur, so about "
            f"{100 * once / labels.numel():.2g} % of the data (Good-Turing estimate) are of seen classes missing from "
            f"this sample, which would be taken for absent: {instead}"
        )


def check_collecting(model: object, loader: object, into: object, features: bool) -> None:
    """A module, batches, and somewhere to put what comes out."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    dataset = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if dataset or isinstance(loader, (Tensor, Mapping)) or not isinstance(loader, Iterable):
        raise TypeError(
            f"loader is a {type(loader).__name__}; pass something that gives batches: a DataLoader, or a list of them"
        )
    if into is None:
        return
    if not callable(getattr(into, "update", None)) or isinstance(into, (type, Mapping)):
        raise TypeError(
            f"into is a {type(into).__name__}; pass a state of finecal.streaming, such as MarginRows(seen_mask)"
        )
    if features:
        raise ValueError("features=True keeps a row per sample, which into= is there to avoid; leave one of them out")


def check_model_data(held_out: object, has_unlabelled: bool, has_share: bool) -> None:
    """What `calibrate_model` cannot make use of, before the model runs over it."""
    if not isinstance(held_out, bool):
        raise TypeError(
            f"held_out is a {type(held_out).__name__}; pass True if the model was not trained on the samples of "
            "seen_loader, False if it was"
        )
    if has_unlabelled and not held_out and not has_share:
        raise ValueError(
            "unlabelled_loader needs samples that the model was not trained on, seen_loader with held_out=True, or "
            "seen_share=, the share of seen-class samples in it; give one of these, or leave it out"
        )


def check_same_kind(state: object, other: object) -> None:
    if type(other) is not type(state):
        name = type(state).__name__
        raise TypeError(f"merge got a {type(other).__name__}; a {name} can be merged with a {name} only")


def check_settings_agree(state: object, own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """The same seen classes, bins and so on."""
    for key, value in own.items():
        if not torch.equal(value, others[key].to(value.device)):
            raise ValueError(
                f"{key} differs between the two states; construct both {type(state).__name__} with the same {key}"
            )


def check_state_entries(
    state: object, own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, growing: bool
) -> None:
    """The entries of a `state_dict` have the dtypes and shapes of the state's own.

    Those of growing states have one row per sample instead, and margins are float32 or float64.
    """
    name = type(state).__name__
    for key, value in own.items():
        loaded = given[key]
        shape = (given[next(iter(own))].numel(),) if growing else value.shape
        margins = growing and value.is_floating_point() and loaded.dtype in (torch.float32, torch.float64)
        if (loaded.dtype != value.dtype and not margins) or loaded.shape != shape:
            raise ValueError(
                f"state_dict has {key} of shape {shape_of(loaded)} and dtype {dtype_name(loaded)}; this {name} needs "
                f"shape {tuple(shape)} and dtype {dtype_name(value)}"
            )


def check_state_names(state: object, own: Iterable[str], given: Iterable[str], what: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is a {type(given).__name__}; pass what state_dict() returned")
    if set(given) != set(own):
        raise ValueError(
            f"{what} has the entries {sorted(map(str, given))}; this {type(state).__name__} has {sorted(own)}"
        )


def check_bins(n_bins: object, least: int = 1) -> int:
    count = check_count(n_bins, "n_bins")
    if count < least:
        raise ValueError(f"n_bins is {count}; pass at least {least}")
    return count


def check_edges(edges: object, name: str) -> Tensor:
    """Ascending numbers from 0 to 1; returned as a float64 tensor of its own."""
    tensor = as_tensor(edges, name)
    if tensor.ndim != 1 or tensor.shape[0] < 2:
        raise ValueError(f"{name} has shape {shape_of(tensor)}; expected (B + 1,), the edges of B bins")
    tensor = tensor.detach().to(torch.float64, copy=True)
    if not (tensor[0] == 0 and tensor[-1] == 1 and bool((tensor.diff() >= 0).all())):
        raise ValueError(f"{name} must ascend from 0 to 1; they run from {tensor[0]:.4g} to {tensor[-1]:.4g}")
    return tensor
