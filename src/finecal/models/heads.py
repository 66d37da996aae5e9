"""The final linear layer of a model: found by how each family of models is built, without importing any of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..calibrators.base import Calibrator

_WAY_OUT = "pass the nn.Linear that gives the logits, or calibrate what comes out: CalibratedModel(model, calibrator)"
_HEAD_NAMES = ("classifier", "classification_head", "score", "head", "heads", "fc")
_AVERAGED = (
    ("head", "head_dist"),
    ("head", "dist_head"),
    ("cls_classifier", "distillation_classifier"),
    ("classifier", "classifier_distill"),
)
_KEEP_LOGITS = (nn.Identity, nn.Dropout, nn.Flatten, nn.Unflatten, nn.LogSoftmax, Calibrator)


@dataclass(frozen=True)
class Head:
    """The final linear layers: one, or the two of a distilled model, whose logits are averaged.

    Attributes
    ----------
    linears : tuple of nn.Linear
    names : tuple of str
        Their paths in the model, as `named_modules` has them; "" for the model itself.
    """

    linears: tuple[nn.Linear, ...]
    names: tuple[str, ...]

    def __str__(self) -> str:
        return " and ".join(name or "the model itself" for name in self.names)


def find_head(model: nn.Module) -> Head:
    """Find the linear layer that gives the logits of a classifier.

    Raises
    ------
    TypeError
        If `model` is no ``nn.Module``.
    ValueError
        If there is none, or no telling which; with the way out.

    Notes
    -----
    Nothing is run, so this goes by convention: timm's `get_classifier()`; else, of the children that are linear layers
    or have a head's usual name, the last one, unless another has as many outputs, or other layers follow a layer of
    unusual name; else the only child that holds linear layers, or the last one if it is an ``nn.Sequential``. Callers
    compare the number of outputs with that of the classes.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    linears = tuple(_linears(model))
    paths = {module: name for name, module in model.named_modules()}
    return Head(linears, tuple(paths[linear] for linear in linears))


def possible_heads(model: nn.Module) -> tuple[nn.Linear, ...]:
    """Return the layers into which a calibrator may be folded: all, if only the user can tell which is the head."""
    try:
        return find_head(model).linears
    except Exception:  # of any kind: methods of the user's model were called
        return tuple(module for module in model.modules() if isinstance(module, nn.Linear))


def adapter_config(model: nn.Module) -> Any:
    """Return the configuration of the active PEFT adapter, or None."""
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, dict) and configs:
            names: Any = list(configs) if len(configs) == 1 else module.active_adapters
            return configs[(names() if callable(names) else names)[0]]
    return None


def _linears(module: Any) -> Iterator[nn.Linear]:
    """Descend to the final linear layers."""
    if isinstance(module, nn.Linear):
        yield module
    elif (inner := wrapped(module)) is not None:
        yield from _linears(inner)
    elif isinstance(module, nn.Sequential):
        yield from _linears(_last_of(module))
    else:
        for part in _parts_with_head(module):
            yield from _linears(part)


def wrapped(module: Any) -> nn.Module | None:
    """Return what a wrapper runs: of torch.compile, (Distributed)DataParallel, PEFT."""
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
    elif hasattr(module, "get_base_layer"):  # PEFT: an adapter around a linear layer
        inner = module.get_base_layer()
    return inner


def _last_of(sequence: nn.Sequential) -> nn.Module:
    for layer in reversed(sequence):
        if _holds_linear(layer):
            return layer
        if not isinstance(layer, _KEEP_LOGITS):
            raise ValueError(f"the model ends in {layer!r}, not in a linear layer; {_WAY_OUT}")
    raise ValueError(f"the model has no linear layer; {_WAY_OUT}")


def _parts_with_head(module: Any) -> tuple[nn.Module, ...]:
    """Return the parts of a module in which its final linear layers are."""
    name = type(module).__name__
    if isinstance(getattr(module, "logit_scale", None), nn.Parameter):
        raise ValueError(
            f"{name} compares images with texts and has no linear head: its class weights are the embeddings of "
            "the class names; calibrate the logits: calibrate_logits(logits, seen_mask, gamma)"
        )
    if getattr(module, "get_output_embeddings", lambda: None)() is not None:
        raise ValueError(f"the logits of {name} are over tokens, not over classes; {_WAY_OUT}")
    if hasattr(module, "get_classifier"):
        found = module.get_classifier()
        heads = found if isinstance(found, tuple) else (found,)
        for head in heads:
            if isinstance(head, nn.ModuleList) or not _holds_linear(head):
                raise ValueError(f"the head of {name} is of type {type(head).__name__}, no linear layer; {_WAY_OUT}")
        return heads
    children = {key: child for key, child in module.named_children() if _holds_linear(child)}
    for pair in _AVERAGED:
        if children.keys() >= set(pair):
            return tuple(children[key] for key in pair)
    if not children:
        raise ValueError(f"{name} has no linear layer; {_WAY_OUT}")
    if isinstance(module, nn.ModuleList):
        raise ValueError(f"the model ends in a list of {len(children)} parts with linear layers; {_WAY_OUT}")
    last = list(children.values())[-1]
    likely = [child for key, child in children.items() if key in _HEAD_NAMES or _is_linear(child)]
    if len(children) == 1 or (not likely and isinstance(last, nn.Sequential)):
        return (last,)
    named = [child for key, child in children.items() if key in _HEAD_NAMES]
    if likely and likely[-1] in (last, *named) and all(_outputs(o) != _outputs(likely[-1]) for o in likely[:-1]):
        return (likely[-1],)
    raise ValueError(f"finecal cannot tell which layer of {name} gives the logits; {_WAY_OUT}")


def _holds_linear(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.Linear) for inner in module.modules())


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or wrapped(module) is not None


def _outputs(module: nn.Module) -> int:
    """Return how many outputs the last linear layer has: those of an adapter's layers are the same."""
    return [inner.out_features for inner in module.modules() if isinstance(inner, nn.Linear)][-1]
