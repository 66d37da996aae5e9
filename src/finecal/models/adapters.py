"""LoRA adapters of PEFT, recognised by the names of their tensors: the weights before fine-tuning, and the scaling."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .heads import adapter_config

_LORA = re.compile(r"\.lora_(?:embedding_)?([AB])\.")
_WRAPPED = re.compile(r"\.base_layer(?=\.)|\.original_module(?=\.)|\.modules_to_save\.[^.]+")
_KNOWN = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"}
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
    return {
        plain_name(name): weight
        for name, weight in weights.items()
        if _LORA.search(name) is None and ".modules_to_save." not in name
    }


def plain_name(name: str) -> str:
    """Return the name that a tensor has without PEFT."""
    return _WRAPPED.sub("", name.removeprefix("base_model.model."))
