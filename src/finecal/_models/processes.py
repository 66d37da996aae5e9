"""Collectives of torch.distributed: what many processes hold is compared and gathered."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def world(group: ProcessGroup | None) -> tuple[int, int]:
    """Return (world_size, rank)."""
    if not dist.is_available():
        return 1, 0
    # new_group gives an integer to the processes outside of the group, whose rank is negative.
    given: Any = group
    is_known = given is None or given is dist.GroupMember.NON_GROUP_MEMBER
    if not is_known and not isinstance(given, dist.ProcessGroup):
        raise TypeError(f"group is a {type(group).__name__}; pass what torch.distributed.new_group returns, or None")
    if not dist.is_initialized():
        return 1, 0
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group does not contain this process; call this in the processes of the group only")
    return dist.get_world_size(group), rank


def collective_device(group: ProcessGroup | None) -> torch.device:
    """Return where collectives run: by the group alone, as states may be on another device in each process."""
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])


def all_gather_ints(
    described: Mapping[str, str], numbers: Sequence[int], group: ProcessGroup | None, what: str
) -> list[list[int]]:
    """Return the numbers of every process, or fail in all of them if the hashes of their descriptions differ."""
    text = json.dumps(described).encode()
    digest = struct.unpack("<4q", hashlib.sha256(text).digest())
    header = torch.tensor([*digest, len(text), *numbers], device=collective_device(group))
    received = [torch.empty_like(header) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, header, group=group)
    headers: list[list[int]] = torch.stack(received).tolist()
    if any(other[:4] != headers[0][:4] for other in headers):
        texts = all_gather_bytes(torch.tensor(list(text), dtype=torch.uint8), [other[4] for other in headers], group)
        check_processes_agree([json.loads(bytes(other.tolist())) for other in texts], what)
    return [other[5:] for other in headers]


def all_gather_bytes(own: Tensor, lengths: Sequence[int], group: ProcessGroup | None) -> list[Tensor]:
    """Return the vectors of all processes, of these lengths, on the device of one's own."""
    padded = torch.zeros(max(lengths), dtype=own.dtype, device=collective_device(group))
    padded[: own.shape[0]] = own
    received = [torch.empty_like(padded) for _ in lengths]
    if padded.shape[0]:
        dist.all_gather(received, padded, group=group)
    return [other[:length].to(own.device) for other, length in zip(received, lengths, strict=True)]


def as_bytes(values: Iterable[Tensor]) -> Tensor:
    """Return the bytes of tensors, one after another."""
    return torch.cat([value.reshape(-1).view(torch.uint8) for value in values])


def unpack(message: Tensor, own: Mapping[str, Tensor], rows: int | None) -> dict[str, Tensor]:
    """Undo `as_bytes`: return the entries, with the dtypes and shapes of `own`, and `rows` rows."""
    shapes = {name: value.shape if rows is None else (rows, *value.shape[1:]) for name, value in own.items()}
    sizes = [torch.Size(shape).numel() * own[name].itemsize for name, shape in shapes.items()]
    pieces = torch.split(message, sizes)
    # A view of another dtype has to start at a multiple of its size, as a copy does.
    return {
        name: piece.clone().view(own[name].dtype).reshape(shape)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


_LONGEST_SHOWN = 40
"""Characters of a value that a message shows; hashes are longer."""


def check_processes_agree(described: Sequence[Mapping[str, str]], what: str) -> None:
    """Check that all descriptions equal that of process 0; every process has all of them and raises the same error."""
    first = described[0]
    for rank, other in enumerate(described):
        for key in (*first, *other):
            values = first.get(key, "none"), other.get(key, "none")
            if values[0] != values[1]:
                shown = f" ({values[0]}; {values[1]})" if max(map(len, values)) <= _LONGEST_SHOWN else ""
                raise ValueError(
                    f"{what}: {key} differs between processes 0 and {rank}{shown}; give all processes the same {key}"
                )
