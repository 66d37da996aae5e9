"""Find the logits in the output of a model: a tensor, a tuple, a mapping such as `ModelOutput`, or a dataclass."""

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_LOSSES = ("loss_box_reg", "bbox_regression")
_LOGITS_FORMS = "return a tensor, a tuple with the logits first, or a mapping with the key 'logits' or 'out'"
_DETECTOR = (
    "a detector keeps them to itself, so fold the calibrator into the layer that scores the classes: "
    "fold_into_head(layer, calibrator), where layer is model.roi_heads.box_predictor.cls_score, for example, or "
    "model.head.classification_head.cls_logits; in a detector of torchvision, fold_into_head(model, calibrator), "
    "without inputs, finds it"
)


def logits_of(output: object) -> Tensor:
    """Return the logits within the output of a model.

    A tensor is the logits itself. Mappings (`ModelOutput` of Hugging Face among them), named tuples and dataclasses
    name them `logits`; a mapping without such a tensor, as those of torchvision's segmentation models, `out`. In any
    other tuple or list they are the first floating-point tensor of at least two dimensions, since Hugging Face's tuples
    may start with a loss.

    Raises
    ------
    TypeError
        If there is no such tensor.
    """
    logits: object = None
    if isinstance(output, Tensor):
        logits = output
    elif isinstance(output, Mapping):
        logits = output.get(_key(output))
    elif isinstance(output, (tuple, list)):
        position = _position(output)
        logits = None if position is None else output[position]
    elif dataclasses.is_dataclass(output):
        logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        advice = _DETECTOR if _is_of_boxes(output) else _LOGITS_FORMS
        raise TypeError(f"the model returned {described(output)}, in which finecal finds no logits; {advice}")
    return logits


def with_logits(output: Any, logits: Tensor) -> Any:
    """Return a copy of the output, of the same type, with other logits in their place; all else stays as it is."""
    if isinstance(output, Tensor):
        return logits
    if type(output) is dict:
        return {**output, _key(output): logits}
    if type(output) is OrderedDict:  # which torch.compile cannot copy
        return OrderedDict({**output, _key(output): logits})
    if isinstance(output, (tuple, list)):
        position = _position(output)
        values = [logits if index == position else value for index, value in enumerate(output)]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    if dataclasses.is_dataclass(output):  # last, since torch 2.4 cannot compile is_dataclass
        return dataclasses.replace(output, logits=logits)  # type: ignore[type-var]
    changed: Any = copy.copy(output)
    changed[_key(output)] = logits
    return changed


def _key(output: Mapping[Any, Any]) -> str:
    """Return the key of the logits in a mapping."""
    has_logits = isinstance(output.get("logits"), Tensor) or not isinstance(output.get("out"), Tensor)
    return "logits" if has_logits else "out"


def _is_of_boxes(output: object) -> bool:
    """Whether the output is that of a detector: boxes or, in train mode, losses."""
    if isinstance(output, Mapping):
        return any(key in output for key in _LOSSES)
    return isinstance(output, (tuple, list)) and any(isinstance(item, Mapping) and "boxes" in item for item in output)


def _position(output: tuple[Any, ...] | list[Any]) -> int | None:
    """Return the position of the logits in a tuple."""
    fields = getattr(type(output), "_fields", ())
    if "logits" in fields:
        return int(fields.index("logits"))
    for index, value in enumerate(output):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
            return index
    return None


def described(output: object) -> str:
    """Describe the output or the inputs of a model by their type, keys and items."""
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} with the keys {sorted(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {kind} of {[type(value).__name__ for value in output]}"
    return f"a {kind}"
