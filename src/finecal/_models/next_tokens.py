"""Labels of causal language models: the logits of a position are those of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._core.checks import labels_as_tensor
from .heads import wrap


def shifted(logits: Tensor, labels: Any, shift: int | None, dim: int) -> tuple[Tensor, Any]:
    """Pair the logits of each position with the label `shift` positions later; the last positions have none."""
    if not shift:
        return logits, labels
    if logits.ndim < 3:
        raise ValueError(
            f"positions has shift={shift}, which is for sequences, logits (B, L, C); these have shape "
            f"{tuple(logits.shape)}: leave out shift"
        )
    kept = logits.movedim(dim, -1)[:, :-shift].movedim(-1, dim)
    return kept, labels[:, shift:] if getattr(labels, "ndim", 0) > 1 else labels


def check_shift(model: nn.Module, inputs: object, labels: Any, ignore_index: int | None = None) -> None:
    """Refuse labels that are the inputs, and labels of a model of next tokens that are not those, one position on.

    Raises
    ------
    ValueError
        It says that `shift` of `Positions` decides.
    """
    ids = _token_ids(inputs)
    texts = labels is None or isinstance(labels, Mapping)  # those of lines, which have no label per position
    targets = None if texts else labels_as_tensor(labels, "labels")
    if targets is None or targets.ndim != 2 or targets.is_floating_point():
        return
    counted = (targets >= 0) if ignore_index is None else (targets >= 0) & (targets != ignore_index)
    name = type(model).__name__
    if ids is not None and ids.shape == targets.shape and bool(counted.any()):
        ids = ids.to(targets.device)
        if torch.equal(ids[counted], targets[counted]):
            raise ValueError(
                f"labels are the inputs of {name} themselves, so each would be compared with the logits of its own "
                "position, which a causal language model has for the next token: pass "
                f"positions=Positions(-1, shift=1{_ignored(ignore_index)}), which compares them one position later, or "
                "shift=0 if that is what you want"
            )
        if torch.equal(ids[:, 1:][counted[:, :-1]], targets[:, :-1][counted[:, :-1]]):
            return
    if _gives_next_tokens(model):
        raise ValueError(
            f"{name} gives logits for the next token, and it cannot be told from labels of shape "
            f"{tuple(targets.shape)} whether they are shifted: pass positions=Positions(-1, "
            f"shift=1{_ignored(ignore_index)}) for labels of the tokens at their own positions, as Hugging Face's "
            "models take them, or shift=0 for labels of the next tokens"
        )


def _ignored(ignore_index: int | None) -> str:
    return "" if ignore_index is None else f", ignore_index={ignore_index}"


def _token_ids(inputs: object) -> Tensor | None:
    """Return the tokens in the inputs of a model, if they are found."""
    if isinstance(inputs, Mapping):
        inputs = inputs.get("input_ids")
    elif isinstance(inputs, (tuple, list)) and inputs:
        inputs = inputs[0]
    return inputs if isinstance(inputs, Tensor) and not inputs.is_floating_point() else None


def _gives_next_tokens(model: Any) -> bool:
    """Whether a model of Hugging Face, also within wrappers, generates, and has no encoder for its inputs."""
    while (inner := wrap(model)) is not None:
        model = inner
    can_generate = getattr(model, "can_generate", None)
    config = getattr(model, "config", None)
    return callable(can_generate) and bool(can_generate()) and not getattr(config, "is_encoder_decoder", False)
