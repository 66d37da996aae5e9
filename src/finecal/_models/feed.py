"""Batches into a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .._core.arrays import check_device, under_autocast
from .heads import adapter_config
from .output import DETECTOR, Output, check_output, described, in_detail, is_of_boxes, logits_of

_LORA = re.compile(r"\.lora_(?:embedding_)?([AB])\.")
_WRAPPED = re.compile(r"\.base_layer(?=\.)|\.original_module(?=\.)|\.modules_to_save\.[^.]+")
_KNOWN = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"}
_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
"""The values of `init_lora_weights` with which PEFT leaves the base weights as they are; `pissa` and others do not."""
_MERGE = "merge it: model.merge_and_unload(), with the model before fine-tuning as pretrained"


def has_adapters(weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights include tensors of LoRA."""
    return any(map(_LORA.search, weights))


def check_adapters(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse adapters other than plain LoRA, and those that are merged into the base weights."""
    for path, module in model.named_modules():
        for kind in getattr(module, "adapter_layer_names", ()):
            if kind not in _KNOWN and any(name.startswith(f"{path}.{kind}.") for name in weights):
                raise ValueError(f"finetuned has an adapter of another kind than plain LoRA, {path}.{kind}; {_MERGE}")
        if getattr(module, "merged", False) is True:
            raise ValueError("the adapter of finetuned is merged into its weights for the time being; unmerge it first")


def weights_before(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model with LoRA before fine-tuning, by their names in that model.

    The merged weight is W + s B A, so that an update that starts at B = 0 grows in proportion to B. `base` has the
    weights before fine-tuning under the names that they have without PEFT.
    """
    before = {}
    for name, weight in weights.items():
        lora = _LORA.search(name)
        if lora is not None:
            before[name] = torch.zeros_like(weight) if lora[1] == "B" else weight
        elif ".original_module." in name:  # frozen, and not used
            before[name] = weight
        elif plain_name(name) in base:
            before[name] = base[plain_name(name)]
    return before


def own_base(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the frozen weights that a model with LoRA holds, those before fine-tuning, by their names without PEFT."""
    bias = getattr(adapter_config(model), "bias", "none")
    if bias != "none":
        raise ValueError(
            f"the adapter of finetuned has trained biases too (bias={bias!r}), and does not hold those from before "
            "fine-tuning; pass the model before fine-tuning as pretrained"
        )
    for config in _adapter_configs(model):
        start = getattr(config, "init_lora_weights", True)
        if str(start).lower() not in _STARTS:
            raise ValueError(
                f"the adapter of finetuned was made with init_lora_weights={start!r}, which changes the weights below "
                "it; pass the model before fine-tuning as pretrained"
            )
    return {
        plain_name(name): weight
        for name, weight in weights.items()
        if _LORA.search(name) is None and ".modules_to_save." not in name
    }


def _adapter_configs(model: nn.Module) -> Iterator[Any]:
    """Yield the configurations of all adapters of PEFT."""
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, dict):
            yield from configs.values()


def plain_name(name: str) -> str:
    """Return the name that a tensor has without PEFT."""
    return _WRAPPED.sub("", name.removeprefix("base_model.model."))


def is_of_ultralytics(module: nn.Module) -> bool:
    """Whether a module is a YOLO around a network: its `train` starts a training, its call takes files."""
    return any(kind.__module__ == "ultralytics.engine.model" for kind in type(module).__mro__)


def check_is_network(model: nn.Module) -> None:
    """Refuse what holds a model of ultralytics."""
    for module in model.modules():
        if is_of_ultralytics(module):
            raise TypeError(
                f"model is a {type(module).__name__} of ultralytics, which reads files and gives results; pass its "
                "attribute `model`, the network, or use finecal.integrations.ultralytics.calibrate_yolo"
            )


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Run in eval mode, and restore the training flag of each module; `train` undoes what a custom `eval` does."""
    check_is_network(model)
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(flags[0][1])
        for module, flag in flags:
            module.training = flag


def call_model(model: nn.Module, inputs: object, batch: object = None) -> object:
    """Call the model with its inputs by name, by position or as one; an error describes them and the batch.

    An error of the model's own stays of its type, as that of a full memory has to, and gets a note.
    """
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        positional = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")
        return model(*inputs) if positional else model(inputs)  # type: ignore[misc]
    except (TypeError, AttributeError) as error:
        name = type(model).__name__
        if _holds_array(inputs):
            found = "a NumPy array" if isinstance(inputs, np.ndarray) else f"{described(inputs)} with NumPy arrays"
            raise TypeError(
                f"the inputs of a batch are {found} in place of tensors, which {name} does not take "
                f"({error}); convert them by torch.from_numpy, or let a DataLoader do so"
            ) from error
        if isinstance(inputs, Mapping) and isinstance(error, TypeError):
            labels = "" if batch is None else f"; {BY_NAME}: {suggest_batch_function(batch)}"
            raise TypeError(
                f"the inputs of a batch are {described(inputs)}, which are passed to {name} by name, and it "
                f"failed ({error}){labels}"
            ) from error
        _note(error, model, inputs, batch)
        raise
    except Exception as error:
        _note(error, model, inputs, batch)
        raise


def _note(error: Exception, model: nn.Module, inputs: object, batch: object) -> None:
    """Add to an error of the model what finecal took for its inputs, and how to say which they are."""
    if batch is None:
        return
    advice = suggest_batch_function(batch)
    if isinstance(batch, (tuple, list)) and any(map(is_of_boxes, batch)):
        advice = f"a batch is {in_detail(batch)}, with boxes, but finecal calibrates logits: {DETECTOR}"
    elif "batch=" not in advice:
        advice += "; if it holds inputs and labels, say which are which: batch=lambda b: (inputs, labels)"
    error.add_note(f"finecal called {type(model).__name__} with {in_detail(inputs)}, the inputs of a batch: {advice}")


def _holds_array(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return any(map(_holds_array, value))
    return isinstance(value, np.ndarray)


SplitBatch: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""From a batch, as the loader gives it, to ``(inputs, labels)``."""

_LABEL_KEYS = ("labels", "label", "targets", "target")
BY_NAME = (
    f"labels are taken from under {', '.join(map(repr, _LABEL_KEYS[:-1]))} or {_LABEL_KEYS[-1]!r}, and everything else "
    "is passed to the model by name"
)
_HALF = (torch.float16, torch.bfloat16)


def check_split(batch: object) -> SplitBatch | None:
    """Check that `batch`, if given, is a function from a batch to inputs and labels."""
    if batch is not None and (isinstance(batch, type) or not callable(batch)):
        raise TypeError(
            f"batch is {described(batch)}; pass a function from a batch to (inputs, labels), such as "
            "lambda b: (b[0], b[1])"
        )
    return batch


def suggest_batch_function(batch: object) -> str:
    """Describe a batch and, if it holds several items, suggest a function for the argument `batch`."""
    found = f"a batch is {in_detail(batch)}"
    if not isinstance(batch, (Mapping, tuple, list)) or len(batch) < 2:
        return found
    items = dict(batch) if isinstance(batch, Mapping) else dict(enumerate(batch))
    keys = list(items)
    likely = [key for key in keys if isinstance(items[key], Tensor) and items[key].ndim > 1 and key not in _LABEL_KEYS]
    place = keys.index(likely[0]) if likely else 0
    inputs = keys.pop(place)
    labels = next((key for key in keys if key in _LABEL_KEYS), keys[min(place, len(keys) - 1)])  # else what follows
    example = "b[1][0], b[1][1]" if _is_numbered(batch) else f"b[{inputs!r}], b[{labels!r}]"
    return f"{found}; say which are the inputs and the labels, as in batch=lambda b: ({example})"


class Feed:
    """Splits batches, moves them to the device and half precision of a model, and finds the logits in its output.

    The arguments are those of `collect_logits`.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None = None,
        split: SplitBatch | None = None,
        output: Output | None = None,
    ) -> None:
        self._device = device_of(model) if device is None else check_device(device)
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        self._dtype = next(iter(dtypes)) if len(dtypes) == 1 and dtypes.issubset(_HALF) else None
        self._split = check_split(split)
        self._output = check_output(output)

    def split_batch(self, batch: Any) -> tuple[Any, Any]:
        """Return the inputs, on the device and in the dtype of the model, and the labels as they come."""
        inputs, labels = _inputs_and_labels(batch) if self._split is None else _checked_pair(self._split(batch))
        return self.to_model_device(inputs), labels

    def to_model_device(self, inputs: Any) -> Any:
        """Return inputs on the device of the model, and in its dtype if that is half precision."""
        return move_to(inputs, self._device, self._dtype)

    def logits_of(self, output: object) -> Tensor:
        """Return the logits in what the model returned."""
        return logits_of(output, self._output)


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device for the inputs; None if the model has no parameters or buffers, or all are offloaded."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), None)


def move_to(value: Any, device: torch.device | None, dtype: torch.dtype | None = None) -> Any:
    """Move a nested value to a device, and cast its floating-point tensors to `dtype` except under autocast."""
    if isinstance(value, Mapping):
        return {key: move_to(item, device, dtype) for key, item in value.items()}
    if isinstance(value, Tensor):
        target = value.device if device is None else device
        cast = dtype is not None and value.is_floating_point() and not under_autocast(target)
        return value.to(device=target, dtype=dtype if cast else value.dtype)
    if hasattr(value, "to") and device is not None:
        return value.to(device)
    if isinstance(value, (tuple, list)):
        items = [move_to(item, device, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        labels = [inputs.pop(key) for key in _LABEL_KEYS if key in inputs]
        if len(labels) > 1:
            found = [key for key in _LABEL_KEYS if key in batch]
            raise ValueError(
                f"a batch has labels under {' and '.join(map(repr, found))}; keep one of them, or say which they are: "
                f"batch=lambda b: (inputs, b[{found[0]!r}])"
            )
        return inputs, labels[0] if labels else None
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) not in (1, 2) or _is_numbered(batch):
        raise TypeError(f"expected batches of the form (inputs, labels), but {suggest_batch_function(batch)}")
    return batch[0], batch[1] if len(batch) == 2 else None


def _is_numbered(batch: Any) -> bool:
    """Whether a batch is ``(indices, (inputs, labels))`` or the like: labels would be one array, not several."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], (tuple, list)):
        return False
    return any(isinstance(part, (Tensor, np.ndarray)) and part.ndim > 0 for part in batch[1])


def _checked_pair(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"batch returned {in_detail(pair)}; it must return (inputs, labels), with None for labels that there are "
            "none of"
        )
    return pair[0], pair[1]
