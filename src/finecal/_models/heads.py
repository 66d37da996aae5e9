"""The final layer of a model: found by how each family of models is built, without importing any of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from .._calibrators.additive_bias import Calibrator


class HeadInputs:
    """A hook that records the inputs of a layer between `arm` and `pop`, for each thread by itself.

    It keeps copies, since the model may change the inputs in place once the layer has read them.
    """

    def __init__(self) -> None:
        self._recorded: dict[int, list[Tensor]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = self._recorded.get(_thread())
        if rows is not None:
            rows.append((args[0] if args else kwargs["input"]).clone())

    def arm(self) -> None:
        """Start to record the inputs of the layer, in this thread."""
        self._recorded[_thread()] = []

    def clear(self) -> None:
        """Stop, and drop what was recorded."""
        self._recorded.pop(_thread(), None)

    def pop(self) -> Tensor:
        """Stop, and return the inputs of the one call that was recorded."""
        rows = self._recorded.pop(_thread(), [])
        if len(rows) != 1:
            raise ValueError(
                f"the final linear layer ran {len(rows)} times for one batch, so its inputs are not one row per "
                "sample; pass the model itself, before torch.compile or DataParallel"
            )
        return rows[0]


def attach_head_inputs(linear: nn.Linear) -> HeadInputs:
    """Return the hook of a layer, and add it if there is none: hooks that come and go cannot be compiled."""
    for hook in linear._forward_pre_hooks.values():
        if isinstance(hook, HeadInputs):
            return hook
    inputs = HeadInputs()
    linear.register_forward_pre_hook(inputs, with_kwargs=True)
    return inputs


def detach_head_inputs(linear: nn.Linear) -> None:
    """Remove the hook of `attach_head_inputs` from a layer."""
    for key, hook in list(linear._forward_pre_hooks.items()):
        if isinstance(hook, HeadInputs):
            del linear._forward_pre_hooks[key]
            linear._forward_pre_hooks_with_kwargs.pop(key, None)


@contextmanager
def capture_head_inputs(linear: HeadLayer | None) -> Iterator[HeadInputs]:
    """Put a hook on the layer within a ``with`` block; nothing is recorded for None."""
    inputs = HeadInputs()
    handle = None if linear is None else linear.register_forward_pre_hook(inputs, with_kwargs=True)
    try:
        yield inputs
    finally:
        if handle is not None:
            handle.remove()


def single_head(model: nn.Module) -> nn.Linear:
    """Return the one linear layer that gives the logits."""
    head = find_head(model)
    if not isinstance(head.layers[0], nn.Linear):
        raise ValueError(
            f"the head {head} is of type {type(head.layers[0]).__name__}, whose inputs are no one row of features per "
            "sample; use what needs no features"
        )
    if len(head.layers) > 1:
        raise ValueError(
            f"the model averages the logits of {head}, which have inputs of their own: there is no one row of features "
            "per sample"
        )
    return head.layers[0]


def _thread() -> int:
    """Return the number of this thread; 0 in compiled calls, whose records no other call sees."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


FOLDED = "finecal_folded"
"""The attribute of a head, and of a model's config, that records what is folded into the head's bias."""
PARAMETER = "parameter"
"""The key of such a record under which a head has the path of its bias, if its type does not tell that it is one."""

Convolution: TypeAlias = _ConvNd
Usual: TypeAlias = nn.Linear | Convolution
HeadLayer: TypeAlias = nn.Module
"""Usually linear or a convolution; else any module with a parameter that is added to the logits."""

_PASS_LAYER = "pass the layer that gives the logits, or calibrate what comes out: CalibratedModel(model, calibrator)"
_HEAD_NAMES = (
    "classifier",
    "classification_head",
    "score",
    "head",
    "heads",
    "fc",
    "decode_head",
    "segmentation_head",
    "class_labels_classifier",
)
_AVERAGED = (
    ("head", "head_dist"),
    ("head", "dist_head"),
    ("cls_classifier", "distillation_classifier"),
    ("classifier", "classifier_distill"),
)
_ADDED = ("low_classifier", "high_classifier")
"""The two heads of torchvision's LRASPP, whose logits are summed: gamma goes into one of them."""
_CLASS_HEADS = (
    "roi_heads.box_predictor.cls_score",
    "head.classification_head.cls_logits",
    "head.classification_head.module_list",
)
"""Paths in torchvision's detectors: R-CNNs; RetinaNet and FCOS; SSD, with a layer for each level of features."""
YOLO_BRANCHES = ("cv3", "one2one_cv3")
"""Lists in the last module of YOLO since version 8: a sequence for each scale, whose last layer scores the classes."""
_KEEP_LOGITS = (nn.Identity, nn.Dropout, nn.Flatten, nn.Unflatten, nn.LogSoftmax, Calibrator)
_KEEP_CHANNELS = (nn.Upsample, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Dropout2d)
"""Layers that pass on a constant that is added to all positions of a channel."""


@dataclass(frozen=True)
class Head:
    """The final layers: one; two in a distilled model, whose logits are averaged; or one per level of a detector.

    `names` are their paths in the model, "" for the model itself. `is_certain` says that they give the logits for
    certain, as a layer that was passed by itself or the class head of a detector. A convolution may then score several
    boxes at each position, unless `has_one_box`: all classes of the first box, then all classes of the second.
    `parameter` is the name of what is added to the logits in a layer of another type; it is None for the bias of linear
    layers and convolutions.
    """

    layers: tuple[HeadLayer, ...]
    names: tuple[str, ...]
    is_certain: bool = False
    parameter: str | None = None
    has_one_box: bool = False

    def __str__(self) -> str:
        if self.parameter not in (None, "bias"):
            return f"{self.names[0]}.{self.parameter}".removeprefix(".")
        return " and ".join(name or "the model itself" for name in self.names)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """What is added to the logits, once for each layer; of layers that are known to have a bias."""
        return tuple(getattr(layer, self.parameter or "bias") for layer in self.layers)

    @property
    def outputs(self) -> int:
        """The number of outputs: of classes, or of classes times boxes."""
        return outputs_of(self.layers[0]) if self.parameter is None else self.biases[0].shape[0]

    def takes(self, classes: int) -> bool:
        """Whether the layers have one output for each class, or for each class of each box."""
        if self.parameter is not None:
            return self.outputs == classes
        has_boxes = self.is_certain and not self.has_one_box
        return all(
            outputs_of(layer) == classes
            or (has_boxes and isinstance(layer, Convolution) and outputs_of(layer) % classes == 0)
            for layer in self.layers
        )


def outputs_of(layer: nn.Module) -> int:
    """Return the number of outputs of a linear layer or a convolution."""
    assert isinstance(layer, Usual)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def find_head(model: nn.Module) -> Head:
    """Find the layer that gives the logits of a classifier: ``nn.Linear``, or a convolution of a dense model.

    A layer of another kind is found if a calibrator is recorded as folded into it, or if it is `model` itself and has
    a parameter `bias`.

    Raises
    ------
    TypeError
        If `model` is no ``nn.Module``.
    ValueError
        If there is none, or several could be it; the message says what to pass instead.

    Notes
    -----
    Nothing is run, so this goes by convention: timm's `get_classifier()`; the class heads of torchvision's detectors;
    else the last child that is a linear layer or has a head's usual name; else the same of convolutions; else the only
    child that holds linear layers or convolutions, or the last one if it is an ``nn.Sequential``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    if (head := _recorded(model)) is not None:
        return head
    try:
        layers = tuple(_layers(model))
    except ValueError:
        if (head := _own_bias(model)) is not None:
            return head
        raise
    paths = {module: name for name, module in model.named_modules()}
    names = tuple(paths[layer] for layer in layers)
    is_yolo = any(branch in name.split(".") for branch in YOLO_BRANCHES for name in names)
    is_detector = is_yolo or any(f".{path}" in f".{name}" for path in _CLASS_HEADS for name in names)
    return Head(layers, names, is_detector or model in layers, has_one_box=is_yolo)


def possible_heads(model: nn.Module, classes: int | None = None) -> tuple[HeadLayer, ...]:
    """Return the layers into which a calibrator of so many classes may be folded, also those found by trying only."""
    try:
        head = find_head(model)
    except Exception:  # methods of the user's model may raise any
        usual = [module for module in model.modules() if isinstance(module, Usual)]
        return tuple(dict.fromkeys([*usual, *(layer for other in vectors(model) for layer in other.layers)]))
    found = (head, *vectors(model, classes or head.outputs))
    return tuple(dict.fromkeys(layer for each in found for layer in each.layers))


def vectors(model: nn.Module, size: int | None = None) -> Iterator[Head]:
    """Yield each parameter of one dimension, and of `size` entries, as if it were added to logits; the last first."""
    known: set[int] = set()
    for path, module in reversed(list(model.named_modules())):
        for name, parameter in reversed(own_parameters(module).items()):
            if id(parameter) in known or is_lazy(parameter) or parameter.ndim != 1:
                continue
            known.add(id(parameter))
            if size in (None, parameter.shape[0]):
                yield Head((module,), (path,), True, name)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a module has itself, in TorchScript too, by name."""
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _own_bias(layer: nn.Module) -> Head | None:
    """Return the parameter that a layer has as its attribute `bias`; in Keras that is a variable with a value."""
    bias = getattr(layer, "bias", None)
    bias = getattr(bias, "value", bias)
    return next((head for head in vectors(layer) if head.biases[0] is bias), None)


def _recorded(model: nn.Module) -> Head | None:
    """Return the head whose record names its parameter: on the layer, the parameter or a config."""
    for path, module in reversed(list(model.named_modules())):
        for name, parameter in own_parameters(module).items():
            if any(_names(vars(holder).get(FOLDED), name, parameter) for holder in (module, parameter)):
                return Head((module,), (path,), True, name)
        config = getattr(module, "config", None)
        record = vars(config).get(FOLDED, {}) if hasattr(config, "save_pretrained") else {}
        inner, _, name = record.get(PARAMETER, "").rpartition(".")
        layer = dict(module.named_modules()).get(inner) if name else None
        if layer is not None and _names(record, name, own_parameters(layer).get(name)):
            return Head((layer,), (f"{path}.{inner}".strip("."),), True, name)
    return None


def _names(record: dict[str, Any] | None, name: str, parameter: Tensor | None) -> bool:
    """Whether a record names a parameter, which has not been replaced by another of another size since."""
    found = (record or {}).get(PARAMETER, "").rpartition(".")[2]
    return parameter is not None and found == name and parameter.shape == ((record or {})["num_classes"],)


def adapter_config(model: nn.Module) -> Any:
    """Return the configuration of the active PEFT adapter, or None."""
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, dict) and configs:
            names: Any = list(configs) if len(configs) == 1 else module.active_adapters
            return configs[(names() if callable(names) else names)[0]]
    return None


def _layers(module: Any) -> Iterator[HeadLayer]:
    """Descend to the final layers."""
    if isinstance(module, Usual):
        yield module
    elif (inner := wrap(module)) is not None:
        yield from _layers(inner)
    elif isinstance(module, nn.Sequential):
        yield from _layers(_last_of(module))
    else:
        for part in _parts_with_head(module):
            yield from _layers(part)


def wrap(module: Any) -> nn.Module | None:
    """Return the module inside a wrapper of torch.compile, (Distributed)DataParallel or PEFT; None if it is none."""
    inner: nn.Module | None = None
    if hasattr(module, "_orig_mod"):
        inner = module._orig_mod
    elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = module.module
    elif hasattr(module, "get_base_model"):
        inner = module.get_base_model()
    elif hasattr(module, "modules_to_save"):  # PEFT: a trained copy in place of the frozen original
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        inner = module.modules_to_save[active[0]] if active else module.original_module
    elif hasattr(module, "get_base_layer"):  # PEFT: an adapter around a layer
        inner = module.get_base_layer()
    return inner


def _last_of(sequence: nn.Sequential) -> nn.Module:
    """Return the last part that holds layers, if the parts after it pass on a constant added to its outputs."""
    parts = list(sequence)
    after: list[nn.Module] = []
    while parts and not _layers_in(parts[-1]):
        after.append(parts.pop())
    others = [part for part in after if not _keeps_logits(part)]
    is_kept = not others
    if parts and others and all(isinstance(part, _KEEP_CHANNELS) for part in others):
        is_kept = all(isinstance(layer, Convolution) for layer in _layers(parts[-1]))
    if parts and is_kept:
        return parts[-1]
    if others:
        raise ValueError(f"the model ends in {others[0]!r}, not in a linear layer or convolution; {_PASS_LAYER}")
    raise ValueError(f"the model has no linear layer or convolution; {_PASS_LAYER}")


def _keeps_logits(part: nn.Module) -> bool:
    """Whether a part is of a kind that keeps logits, or holds nothing else: `Activation(Identity())`."""
    held = list(part.children())
    return isinstance(part, _KEEP_LOGITS) or (bool(held) and not part._parameters and all(map(_keeps_logits, held)))


def _parts_with_head(module: Any) -> tuple[nn.Module, ...]:
    """Return the children of a module that contain its final layers."""
    name = type(module).__name__
    if isinstance(getattr(module, "logit_scale", None), nn.Parameter):
        raise ValueError(
            f"{name} compares images with texts and has no linear head: its class weights are the embeddings of "
            "the class names; calibrate the logits: calibrate_logits(logits, seen_mask, gamma)"
        )
    if getattr(module, "get_output_embeddings", lambda: None)() is not None:
        raise ValueError(
            f"the logits of {name} are over tokens, not over classes; {_PASS_LAYER}; "
            "or let the server add gamma to tokens: finecal.sequences.logit_bias(calibrator, token_ids)"
        )
    if hasattr(module, "get_classifier"):
        found = module.get_classifier()
        heads = found if isinstance(found, tuple) else (found,)
        for head in heads:
            if isinstance(head, nn.ModuleList) or not _layers_in(head):
                raise ValueError(
                    f"the head of {name} is of type {type(head).__name__}, no linear layer or convolution; "
                    f"{_PASS_LAYER}"
                )
        return heads
    if class_heads := _class_heads(module):
        return class_heads
    children = {key: child for key, child in module.named_children() if _layers_in(child)}
    linear = {key: child for key, child in children.items() if _layers_in(child, nn.Linear)}
    for pair in _AVERAGED:
        if linear.keys() >= set(pair):
            return tuple(children[key] for key in pair)
    if children.keys() >= set(_ADDED):
        return (children[_ADDED[-1]],)
    if not children:
        raise ValueError(f"{name} has no linear layer or convolution; {_PASS_LAYER}")
    if isinstance(module, nn.ModuleList):
        raise ValueError(f"the model ends in a list of {len(children)} parts with such layers; {_PASS_LAYER}")
    choices = (_likely_linear(linear), _likely_convolution(children), _only_one(linear or children))
    part = next((choice for choice in choices if choice is not None), None)
    if part is None:
        raise ValueError(f"finecal cannot tell which layer of {name} gives the logits; {_PASS_LAYER}")
    return (part,)


def _class_heads(module: nn.Module) -> tuple[nn.Module, ...]:
    """Return the class heads of a detector of torchvision or ultralytics; () for other modules."""
    for path in _CLASS_HEADS:
        try:
            found = attrgetter(path)(module)  # as `get_submodule`, which modules in TorchScript do not have
        except AttributeError:
            continue
        return tuple(found) if isinstance(found, nn.ModuleList) else (found,)
    return _yolo_heads(module) if hasattr(module, "nc") and hasattr(module, "cv3") else ()


def _yolo_heads(module: Any) -> tuple[nn.Module, ...]:
    """Return the layers that score the classes at each scale; fusing for inference leaves None of a second branch."""
    branches = [getattr(module, name, None) for name in YOLO_BRANCHES]
    heads = tuple(layers[-1] for branch in branches if branch is not None for layers in branch)
    if not all(isinstance(layer, Convolution) and outputs_of(layer) == module.nc for layer in heads):
        raise ValueError(
            f"{type(module).__name__} compares positions with texts and has no bias for each class; calibrate what "
            "the comparison returns: see 'YOLO' in the guide to detection"
        )
    return heads


def _likely_linear(children: Mapping[str, nn.Module]) -> nn.Module | None:
    """Choose among the children that hold linear layers, by name and type."""
    likely = {key: child for key, child in children.items() if key in _HEAD_NAMES or _is_linear(child)}
    return _last_likely(likely, list(children.values())[-1:])


def _likely_convolution(children: Mapping[str, nn.Module]) -> nn.Module | None:
    """Choose among the children without linear layers, by name and last layer; auxiliary heads do not count."""
    main = {key: child for key, child in children.items() if not key.startswith("aux")}
    likely = {
        key: child
        for key, child in main.items()
        if not _layers_in(child, nn.Linear) and (key in _HEAD_NAMES or _ends_in_convolution(child))
    }
    if likely and list(likely)[-1] in _HEAD_NAMES:  # a head by name need not end in its final layer
        likely = {key: child for key, child in likely.items() if key in _HEAD_NAMES}
    return _last_likely(likely, list(main.values())[-1:])


def _last_likely(likely: Mapping[str, nn.Module], last: list[nn.Module]) -> nn.Module | None:
    """Return the last one, unless another has as many outputs, or other layers follow one of unusual name."""
    if not likely:
        return None
    *others, (key, found) = likely.items()
    if (found in last or key in _HEAD_NAMES) and all(_outputs(other) != _outputs(found) for _, other in others):
        return found
    return None


def _only_one(children: Mapping[str, nn.Module]) -> nn.Module | None:
    """Return the only child, or the last one if it is an ``nn.Sequential`` with linear layers, and none is likely."""
    last = list(children.values())[-1]
    if len(children) > 1 and not (isinstance(last, nn.Sequential) and _layers_in(last, nn.Linear)):
        return None
    is_likely = any(key in _HEAD_NAMES or _is_linear(child) for key, child in children.items())
    return None if len(children) > 1 and is_likely else last


def _layers_in(module: nn.Module, kind: Any = Usual) -> list[HeadLayer]:
    return [inner for inner in module.modules() if isinstance(inner, kind)]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or wrap(module) is not None


def _ends_in_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution, wraps a single one, or is a sequence that ends in one."""
    if isinstance(module, nn.Sequential):
        rest = [part for part in module if not _keeps_logits(part) and not isinstance(part, _KEEP_CHANNELS)]
        return bool(rest) and _ends_in_convolution(rest[-1])
    if wrap(module) is not None:
        return True
    with_parameters = [inner for inner in module.modules() if inner._parameters]
    return len(with_parameters) == 1 and isinstance(with_parameters[0], Convolution)


def _outputs(module: nn.Module) -> int:
    """Return the number of outputs of the last layer, which an adapter does not change."""
    return outputs_of((_layers_in(module, nn.Linear) or _layers_in(module))[-1])
