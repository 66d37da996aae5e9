"""What processes tell each other, by `torch.distributed`: no pickles, and as few collectives as possible."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ._process_checks import check_member, check_processes_agree

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def place(group: ProcessGroup | None) -> tuple[int, int]:
    """Return the number of processes, and which of them this is."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1, 0
    rank = dist.get_rank(group)
    check_member(rank)
    return dist.get_world_size(group), rank


def collective_device(group: ProcessGroup | None) -> torch.device:
    """Return where collectives run: by the group alone, as states may be on another device in each process."""
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])


def exchanged(
    described: Mapping[str, str], numbers: Sequence[int], group: ProcessGroup | None, what: str
) -> list[list[int]]:
    """Return the numbers of every process, after a check that all have the same description: by a hash of it.

    All processes see all hashes, so that all of them, or none, go on to exchange what they have hashed.
    """
    text = json.dumps(described).encode()
    digest = struct.unpack("<4q", hashlib.sha256(text).digest())
    header = torch.tensor([*digest, len(text), *numbers], device=collective_device(group))
    received = [torch.empty_like(header) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, header, group=group)
    headers: list[list[int]] = torch.stack(received).tolist()
    if any(other[:4] != headers[0][:4] for other in headers):
        texts = gathered(torch.tensor(list(text), dtype=torch.uint8), [other[4] for other in headers], group)
        check_processes_agree([json.loads(bytes(other.tolist())) for other in texts], what)
    return [other[5:] for other in headers]


def gathered(own: Tensor, lengths: Sequence[int], group: ProcessGroup | None) -> list[Tensor]:
    """Return the vectors of all processes, of these lengths, on the device of one's own."""
    padded = torch.zeros(max(lengths), dtype=own.dtype, device=collective_device(group))
    padded[: own.shape[0]] = own
    received = [torch.empty_like(padded) for _ in lengths]
    if padded.shape[0]:
        dist.all_gather(received, padded, group=group)
    return [other[:length].to(own.device) for other, length in zip(received, lengths, strict=True)]


def added(own: Mapping[str, Tensor], group: ProcessGroup | None) -> dict[str, Tensor]:
    """Return the sums of all processes, by one all-reduce per dtype."""
    sums = {}
    for dtype in dict.fromkeys(value.dtype for value in own.values()):
        parts = {name: value for name, value in own.items() if value.dtype == dtype}
        buffer = torch.cat([value.reshape(-1) for value in parts.values()]).to(collective_device(group))
        dist.all_reduce(buffer, group=group)
        pieces = torch.split(buffer, [value.numel() for value in parts.values()])
        for (name, value), piece in zip(parts.items(), pieces, strict=True):
            sums[name] = piece.reshape(value.shape).to(value.device, copy=True)
    return {name: sums[name] for name in own}
