"""Logits in the output of a model: found, replaced, and described where there are none."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

_SHOWN = 6
"""Sequences of up to so many items are described item by item."""
_LOSSES = ("loss_box_reg", "bbox_regression")
_LOGITS_FORMS = (
    "return a tensor, a tuple with the logits first, or a mapping with the key 'logits' or 'out'; or say where they "
    "are: output='main', a key or attribute, or output=lambda out: out[1]; or fold the calibrator into the head by "
    "fold_into_head(model, calibrator)"
)
DETECTOR = (
    "a detector keeps them to itself, so fold the calibrator into the layer that scores the classes: "
    "fold_into_head(layer, calibrator), where layer is model.roi_heads.box_predictor.cls_score, for example, or "
    "model.head.classification_head.cls_logits; in a detector of torchvision, fold_into_head(model, calibrator), "
    "without inputs, finds it"
)


Output: TypeAlias = str | Callable[[Any], Any]
"""Where the logits are in the output of a model: a key or attribute, or a function from the output to them."""


def check_output(output: object) -> Output | None:
    """Check that `output`, if given, is a key or attribute, or a function from a model's output to its logits."""
    if output is None or isinstance(output, str) or (callable(output) and not isinstance(output, (type, Tensor))):
        return output
    raise TypeError(
        f"output is {described(output)}; pass the key or attribute of the logits in what the model returns, such as "
        "'main', or a function, such as lambda out: out[1]"
    )


def logits_of(output: object, where: Output | None = None) -> Tensor:
    """Return the logits within the output of a model: in the forms of `CalibratedModel`, or where the user says.

    TypeError if there are no logits, or if one of two tensors of the same shape would have to be chosen.
    """
    if where is None and isinstance(output, Tensor):  # first, since torch 2.4 cannot compile is_dataclass
        return output
    if where is not None and not isinstance(where, str):
        try:
            logits = where(output)
        except (LookupError, TypeError, AttributeError) as error:
            raise TypeError(
                f"the function output= fails on {in_detail(output)}, which the model returned "
                f"({type(error).__name__}: {error})"
            ) from error
    else:
        logits = _at(output, _place(output, where))
    if isinstance(logits, Tensor):
        return logits
    returned = f"the model returned {described(output)}"
    if where is not None:
        said = f"output={where!r}" if isinstance(where, str) else "the function output="
        raise TypeError(f"{returned}, in which {said} finds {described(logits)}, no tensor of logits")
    raise TypeError(f"{returned}, in which finecal finds no logits; {_advice(output)}")


def with_logits(output: Any, logits: Tensor, where: Output | None = None) -> Any:
    """Return a copy of the output, of the same type, with other logits in their place; all else stays as it is."""
    if where is not None and not isinstance(where, str):
        return _with_found(output, logits, where)
    return logits if isinstance(output, Tensor) else _put(output, _place(output, where), logits)


def _with_found(output: Any, logits: Tensor, where: Callable[[Any], Any]) -> Any:
    """Put logits where a function finds them: in the place of a tensor of the output, or of a view of one."""
    found = where(output)
    whole = next((tensor for tensor in _tensors(output) if tensor is found), None)
    if whole is not None:
        return _replaced(output, whole, logits)
    memory = found.untyped_storage().data_ptr()
    whole = next((tensor for tensor in _tensors(output) if tensor.untyped_storage().data_ptr() == memory), None)
    if whole is None:
        raise TypeError(
            f"the function output= computes the logits from {described(output)}, so calibrated ones cannot be put back "
            "in their place; let it return one of the tensors or a part of one, or fold the calibrator into the head: "
            "fold_into_head(model, calibrator, inputs=..., output=...)"
        )
    changed = _replaced(output, whole, whole.clone())
    where(changed).copy_(logits)
    return changed


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    if output is old:
        return new
    for place, item in _items(output):
        changed = _replaced(item, old, new)
        if changed is not item:
            return _put(output, place, changed)
    return output


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    for _, item in _items(output):
        yield from _tensors(item)


def _items(output: Any) -> Iterable[tuple[Any, Any]]:
    """Return the places and parts of an output."""
    if isinstance(output, Mapping):
        return output.items()
    if isinstance(output, (tuple, list)):
        return enumerate(output)
    if dataclasses.is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    return ()


def _at(output: Any, place: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get(place)
    if isinstance(output, (tuple, list)):
        return None if place is None else output[place]
    return None if place is None else getattr(output, place, None)


def _put(output: Any, place: Any, value: Any) -> Any:
    """Return a copy of an output with another value in a place."""
    if type(output) is dict:
        return {**output, place: value}
    if type(output) is OrderedDict:  # which torch.compile cannot copy
        return OrderedDict({**output, place: value})
    if isinstance(output, (tuple, list)):
        values = [value if index == place else item for index, item in enumerate(output)]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    if dataclasses.is_dataclass(output):  # last, since torch 2.4 cannot compile is_dataclass
        return dataclasses.replace(output, **{place: value})  # type: ignore[type-var]
    changed: Any = copy.copy(output)
    if isinstance(output, Mapping):
        changed[place] = value
    else:
        setattr(changed, place, value)
    return changed


def _place(output: object, where: str | None) -> Any:
    """Return the key, index or attribute of the logits in an output; None if there is none."""
    if isinstance(output, (tuple, list)):
        return _position(output, where)
    if where is not None:
        return where
    if isinstance(output, Mapping):
        has_logits = isinstance(output.get("logits"), Tensor) or not isinstance(output.get("out"), Tensor)
        return "logits" if has_logits else "out"
    return "logits" if dataclasses.is_dataclass(output) else None


def _position(output: tuple[Any, ...] | list[Any], where: str | None) -> int | None:
    """Return the position of the logits in a tuple."""
    fields = getattr(type(output), "_fields", ())
    if (where or "logits") in fields:
        return int(fields.index(where or "logits"))
    if where is not None:
        return None
    likely = [index for index, value in enumerate(output) if _are_scores(value)]
    if len({output[index].shape for index in likely}) < len(likely):
        raise TypeError(
            f"the model returned {in_detail(output)}: tensors of the same shape, of which any may be the logits; say "
            f"which: output=lambda out: out[{likely[-1]}], for example"
        )
    return likely[0] if likely else None


def _are_scores(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2


def _advice(output: object) -> str:
    """Say what to do about an output without logits."""
    if is_of_boxes(output):
        return DETECTOR
    keys = [place for place, item in _items(output) if isinstance(place, str) and _are_scores(item)]
    return f"say which entry they are: output={keys[0]!r}, for example" if keys else _LOGITS_FORMS


def is_of_boxes(output: object) -> bool:
    """Whether the output is that of a detector: boxes or, in train mode, losses."""
    if isinstance(output, Mapping):
        return any(key in output for key in _LOSSES)
    return isinstance(output, (tuple, list)) and any(isinstance(item, Mapping) and "boxes" in item for item in output)


def check_no_boxes(output: Any, logits: Tensor) -> None:
    """Raise ValueError if rows of logits belong to boxes, as in detectors of transformers; only some are samples."""
    has_boxes = "pred_boxes" in output if isinstance(output, Mapping) else hasattr(output, "pred_boxes")
    if has_boxes and logits.ndim == 3:
        raise ValueError(
            f"the model returned pred_boxes, and logits of shape {tuple(logits.shape)}, one row for each box; only "
            "boxes of an object are samples: take these by finecal.integrations.detection.match_boxes, as the guide to "
            "object detection does, then estimate_gamma; CalibratedModel adds gamma to all boxes"
        )


def described(output: object) -> str:
    """Describe the output or the inputs of a model by their type, keys and items."""
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} with the keys {sorted(map(str, output))}"
    if isinstance(output, (tuple, list)):
        more = f" and {len(output) - _SHOWN} more" if len(output) > _SHOWN else ""
        return f"a {kind} of {[type(value).__name__ for value in output[:_SHOWN]]}{more}"
    return f"a {kind}"


def in_detail(value: Any) -> str:
    """Describe the contents of a batch, with shapes and dtypes."""
    if isinstance(value, (Tensor, np.ndarray)):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} {'tensor' if isinstance(value, Tensor) else 'array'} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {in_detail(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)) and len(value) <= _SHOWN:
        inner = ", ".join(map(in_detail, value))
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    return described(value)
