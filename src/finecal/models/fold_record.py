"""The record of what is folded into a head, and whether a model is calibrated already.

The record is on the layers of the head, and in the configurations that are saved with them.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..calibrators.base import Calibrator
from ..results.records import encoded_fields
from .heads import Head, adapter_config, find_head

FOLDED = "finecal_folded"
"""The attribute of a head, and of a model's config, that records what is folded into the head's bias."""
TOGETHER = ", and all calibrators in one torch.nn.Sequential"


class CalibratedBase(nn.Module):
    """The base of `CalibratedModel` alone, for files that `CalibratedModel` itself imports."""


def description_of(calibrator: nn.Module, shift: Tensor, weight: Tensor | None = None) -> dict[str, Any]:
    """Describe what a calibrator adds to bias and weight, for JSON, in a size that does not depend on the classes."""
    added = b"".join(part.cpu().numpy().tobytes() for part in (shift, weight) if part is not None)
    description = {
        "calibrator": " ".join(repr(calibrator).split()),
        "num_classes": shift.shape[0],
        "sha256": hashlib.sha256(added).hexdigest()[:16],
    }
    estimate = getattr(calibrator, "estimate", None)
    return description if estimate is None else {**description, "estimate": encoded_fields(estimate)}


def write_record(model: nn.Module, head: Head, record: dict[str, Any] | None) -> None:
    """Write the record to the layers and configurations where `recorded` reads it; None deletes it."""
    for holder in (*head.layers, *_config(model, head)):
        if record is not None:
            setattr(holder, FOLDED, record)
        elif FOLDED in vars(holder):
            delattr(holder, FOLDED)
    adapter: Any = adapter_config(model)
    if adapter is not None:  # auto_mapping is the only field of PEFT's that may hold any mapping
        rest = {key: value for key, value in (adapter.auto_mapping or {}).items() if key != FOLDED}
        adapter.auto_mapping = (rest if record is None else {**rest, FOLDED: record}) or None


def recorded(model: nn.Module, head: Head) -> dict[str, Any] | None:
    """Return the record, or None; one for another number of classes belongs to a head that was replaced since."""
    records = [vars(layer).get(FOLDED) for layer in head.layers]
    records += [vars(config).get(FOLDED) for config in _config(model, head)]
    adapter: Any = adapter_config(model)
    records += [] if adapter is None else [(adapter.auto_mapping or {}).get(FOLDED)]
    return next((record for record in records if record and head.takes(record["num_classes"])), None)


def is_folded(model: nn.Module) -> bool:
    """Whether a calibrator is recorded as folded into the model's head."""
    try:
        head = find_head(model)
    except ValueError:  # the head was passed to fold_into_head as a layer, and may be anywhere in the model
        return any(FOLDED in vars(module) for module in model.modules())
    return recorded(model, head) is not None


def check_uncalibrated(model: nn.Module, advice: str = "") -> None:
    """Refuse a model that holds a calibrator, or into whose head one is folded."""
    check_holds_no_calibrator(model, advice)
    if is_folded(model):
        raise ValueError(
            "a calibrator is folded into the model's head already: use the model as it is, or take it out with "
            "unfold_from_head (if another model with the same config object was folded, give this one a config of its "
            "own)"
        )


def check_holds_no_calibrator(model: nn.Module, advice: str = "") -> None:
    """Refuse a model that holds a calibrator; `advice` is added to the error by callers that take a calibrator too."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass the torch.nn.Module that gives the logits")
    if isinstance(model, Calibrator):
        raise TypeError(f"model is the calibrator {model!r}; pass the model first, which gives the logits")
    for module in model.modules():
        if isinstance(module, (CalibratedBase, Calibrator)):
            raise ValueError(
                f"model is calibrated already: it holds {module!r}; pass the uncalibrated model, which a "
                f"CalibratedModel has as its attribute `model`{advice}"
            )


def _config(model: nn.Module, head: Head) -> Iterator[Any]:
    """Yield the Hugging Face configuration that is saved with the head, if there is one."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "save_pretrained") and set(head.layers) <= set(module.modules()):
            yield config
            return
