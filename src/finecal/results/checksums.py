"""SHA-256 of what a file holds: written into it, and compared where it is there."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .archives import Unreadable

CHECKSUM = "sha256"
"""The key under which a file keeps it."""


def checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of JSON values and of tensors, with their names, dtypes and shapes, in whatever order."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Return `record` with the checksum of it and of the tensors."""
    return {**record, CHECKSUM: checksum(record, tensors or {})}


def check_checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Refuse what does not match its checksum; files without one, not written by finecal, are legal."""
    rest = {key: value for key, value in record.items() if key != CHECKSUM}
    if CHECKSUM in record and record[CHECKSUM] != checksum(rest, tensors or {}):
        raise Unreadable("does not match its checksum, so it was damaged or edited")
