"""Checkpoints of timm in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from torch import Tensor, nn

from ..models.fold_record import FOLDED
from ..results.files import check_source, explain_errors
from ..results.tensors import read_tensors
from ._saved_model import biases_in, copy_weights, loading, opened_images, write_card

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


class SavedTimm:
    """A model of timm with weights from a file.

    Parameters
    ----------
    path : Path
        The checkpoint: a ``.safetensors`` with the model's `state_dict`.
    name : str
        Of the model in timm.
    class_names : tuple of str, or None
        In the order of its outputs.
    device : torch.device
        Where the model runs.

    Raises
    ------
    ValueError, OSError
        If timm has no such model, or the checkpoint is not of it, in another format or folded already.
    """

    takes_images = True

    def __init__(self, path: Path, name: str, *, device: torch.device) -> None:
        self.path, self._name, self._device = path, name, device
        self.class_names: tuple[str, ...] | None = None
        if not timm.is_model(name):
            raise ValueError(
                f"--timm {name}: timm {timm.__version__} has no model of this name; see timm.list_models()"
            )
        _check_format(path)
        with explain_errors(path, ".safetensors", "save the model again"):
            tensors, metadata = read_tensors(path)
        if FOLDED in metadata:
            raise ValueError(
                f"{path} has gamma in its head already, as its metadata record; use it as it is, or start from the "
                "file that it was made from"
            )
        with loading(path, f"the weights of {name}"):
            model = timm.create_model(name, pretrained=False, num_classes=_num_classes(name, tensors))
            model.load_state_dict(tensors)
        self.model: nn.Module = model.to(device).eval()
        data = timm.data.resolve_model_data_config(model)
        self._transform: Any = timm.data.create_transform(**data, is_training=False)

    def inputs(self, items: Sequence[Any]) -> Tensor:
        """Return what the model is called with for files of images."""
        return torch.stack(opened_images(items, lambda image: self._transform(image.convert("RGB"))))

    def write(self, target: Path, added: Tensor, record: Mapping[str, Any], card: str) -> Sequence[str]:
        """Write a checkpoint with `added` in the bias of the head; a directory has configuration and card as well."""
        (names,) = biases_in(self.model, [self.path]).values()
        metadata = {FOLDED: json.dumps(record)}
        if not target.is_dir():
            copy_weights(self.path, target, names, added, metadata)
            return []
        names_of_classes = {} if self.class_names is None else {"label_names": list(self.class_names)}
        timm.models.save_for_hf(self.model, str(target), names_of_classes, safe_serialization=True)
        _without_repetition(target / _CONFIG)
        copy_weights(self.path, target / _WEIGHTS, names, added, metadata)  # with the record
        write_card(target, None, self._name, card)
        return []

    def model_again(self, target: Path) -> nn.Module:
        """Load what `write` has written."""
        tensors, _ = read_tensors(target / _WEIGHTS if target.is_dir() else target)
        model: nn.Module = timm.create_model(self._name, pretrained=False, num_classes=self.model.num_classes)
        model.load_state_dict(tensors)
        return model.to(self._device).eval()

    def usage(self, target: Path) -> str:
        """Return a line of Python that loads it."""
        if target.is_dir():
            return f'timm.create_model("local-dir:{target}", pretrained=True)'
        classes = self.model.num_classes
        return f'timm.create_model("{self._name}", num_classes={classes}, checkpoint_path="{target}")'


def _without_repetition(path: Path) -> None:
    """Say the number of classes once: transformers, which loads such directories too, takes it twice otherwise."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _num_classes(name: str, tensors: Mapping[str, Tensor | None]) -> int:
    """Return how many rows the head of a checkpoint has."""
    classifier = timm.get_pretrained_cfg(name).classifier
    heads = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    for head in heads:
        weight = tensors.get(f"{head}.weight")
        if weight is not None:
            return weight.shape[0]
    raise ValueError(f"it has no {heads[0]}.weight, the head of {name}")


def _check_format(path: Path) -> None:
    """Refuse a pickle, which may run anything when it is read, and show how to convert it."""
    check_source(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors, and finecal never reads a pickle; where you trust the file, convert it: "
            "python -c \"import torch, safetensors.torch as s; c = torch.load('"
            f"{path}', map_location='cpu', weights_only=True); s.save_file({{k: v.clone() for k, v in "
            f"c.get('state_dict', c).items()}}, '{path.name.partition('.')[0]}.safetensors')\""
        )
