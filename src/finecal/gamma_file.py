"""Gamma as JSON, with the seen classes that it belongs to."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._checks import check_gamma, check_num_classes
from .gamma import GammaEstimate
from .io import check_source, naming
from .masks import seen_mask_from_indices

_CPU = torch.device("cpu")
_HINT = "give a number, or what finecal estimate -o wrote"


@dataclass(frozen=True, eq=False)
class GammaFile:
    """Gamma, and the seen classes `(C,)` bool that it belongs to where they are known."""

    gamma: float
    seen_mask: Tensor | None = None


def gamma_record(estimate: GammaEstimate, seen_mask: Tensor) -> dict[str, Any]:
    """Return what `read_gamma` reads: the estimate, and the classes it belongs to."""
    return {
        "gamma": estimate.gamma,
        "method": estimate.method,
        "data": estimate.data,
        "n": estimate.n,
        "expected_acc_seen": estimate.expected_acc_seen,
        "acc_seen_before": estimate.acc_seen_before,
        "interval": estimate.interval,
        "num_classes": seen_mask.shape[0],
        "seen_classes": seen_mask.nonzero().squeeze(1).tolist(),
    }


def to_json(record: Mapping[str, Any]) -> str:
    """Return strict JSON in ASCII, which every console prints: NaN and infinity, which JSON does not have, are null."""
    return json.dumps(_finite(record), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_gamma(gamma: str) -> GammaFile:
    """Read gamma from a number in words or from a JSON file, as `gamma_record` makes it.

    Raises
    ------
    OSError, ValueError
        As `finecal.io.read_logits`.
    """
    try:
        number = float(gamma)
    except ValueError:
        return _read_record(Path(gamma))
    return GammaFile(float(check_gamma(number, _CPU)))


def _read_record(path: Path) -> GammaFile:
    check_source(path)
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {_HINT}") from error
    if not isinstance(record, dict) or "gamma" not in record:
        raise ValueError(f"{path} has no entry 'gamma'; {_HINT}")
    with naming(path):
        value = float(check_gamma(record["gamma"], _CPU))
        if "seen_classes" not in record:
            return GammaFile(value)
        num_classes = check_num_classes(record.get("num_classes"))
        return GammaFile(value, torch.from_numpy(seen_mask_from_indices(record["seen_classes"], num_classes)))
