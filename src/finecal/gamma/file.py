"""Gamma as JSON, with the seen classes that it belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inputs.checks import check_gamma
from ..inputs.numbers import check_num_classes
from ..inputs.seen_mask import seen_mask_from_indices
from ..inputs.warning import error_context
from ..results.archives import Unreadable
from ..results.checksums import CHECKSUM, check_checksum
from ..results.files import check_source
from ..results.records import decoded_fields, parse_json, refuse_misnamed
from .estimate import GammaEstimate

_CPU = torch.device("cpu")
GAMMA_HINT = "give a number, or what finecal estimate -o wrote"
_SIGN_AGAIN = f"estimate gamma again, or if you changed it on purpose, delete its entry {CHECKSUM!r}"
_NEEDED = ("gamma", "seen_classes", "num_classes", "class_names", CHECKSUM)
"""Entries without which a file means something else."""


@dataclass(frozen=True, eq=False)
class GammaFile:
    """Gamma, and where they are known the seen classes `(C,)` bool that it belongs to, and how it was estimated."""

    gamma: float
    seen_mask: Tensor | None = None
    estimate: GammaEstimate | None = None
    class_names: tuple[str, ...] | None = None


def gamma_record(
    estimate: GammaEstimate, seen_mask: Tensor, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what `read_gamma` reads: the estimate, without its warnings, and the classes it belongs to."""
    record = estimate.to_dict()
    del record["warnings"]
    record |= {"num_classes": seen_mask.shape[0], "seen_classes": seen_mask.nonzero().squeeze(1).tolist()}
    return record if class_names is None else {**record, "class_names": list(class_names)}


def read_gamma(gamma: str) -> GammaFile:
    """Read gamma from a number in words or from a JSON file, as `gamma_record` makes it.

    Raises
    ------
    OSError, ValueError
        As `finecal.logits.file.read_logits`.
    """
    try:
        number = float(gamma)
    except ValueError:
        return _read_record(Path(gamma))
    return GammaFile(float(check_gamma(number, _CPU)))


def _read_record(path: Path) -> GammaFile:
    check_source(path, or_pipe=True)
    try:
        record = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {GAMMA_HINT}") from error
    if not isinstance(record, dict) or "gamma" not in record:
        raise ValueError(f"{path} has no entry 'gamma'; {GAMMA_HINT}")
    try:
        check_checksum(record)
    except Unreadable as error:
        raise ValueError(f"{path} {error}; {_SIGN_AGAIN}") from error
    with error_context(path, ValueError):
        refuse_misnamed(record, _NEEDED)
        value = float(check_gamma(record["gamma"], _CPU))
        estimate = _estimate({**record, "gamma": value})
        if "seen_classes" not in record:
            return GammaFile(value, estimate=estimate)
        num_classes = check_num_classes(record.get("num_classes"))
        mask = torch.from_numpy(seen_mask_from_indices(record["seen_classes"], num_classes))
        return GammaFile(value, mask, estimate, _class_names(record.get("class_names"), num_classes))


def _class_names(names: Any, num_classes: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names are no list of {num_classes} texts, one for each class; {GAMMA_HINT}")
    return tuple(names)


def _estimate(record: Mapping[str, Any]) -> GammaEstimate | None:
    """Return the estimate as it was written; None if the file tells less, as one written by hand may."""
    entries = {field.name: record[field.name] for field in fields(GammaEstimate) if field.name in record}
    if isinstance(interval := entries.get("interval"), list) and None in interval:
        del entries["interval"]  # It had an infinite end, which JSON has not.
    try:
        return decoded_fields(entries, "the estimate", GammaEstimate)
    except ValueError:
        return None
