"""Merge the states of several processes: no pickles, and as few collectives as possible."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..streaming.state import State

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

StateT = TypeVar("StateT", bound=State)


def merge_across_processes(state: StateT, group: ProcessGroup | None = None) -> StateT:
    """Return a new state with the samples of all processes; all of them have to call this.

    The given state stays as it is: it can be updated further and merged again, and no sample counts twice.

    Parameters
    ----------
    state : a state of `finecal.streaming`
        The state of this process, with or without samples; of the same kind and settings in all processes.
    group : torch.distributed.ProcessGroup, optional
        The processes to merge; default: all.

    Returns
    -------
    a state of the same kind
        On the device of `state`. The same in every process; rows of `MarginRows` in the order of the processes. Counts
        are exact, sums agree to 1e-12 with those of one process that has all samples. Without an initialised process
        group, or with one process, a copy.

    Raises
    ------
    TypeError
        If `state` is of another type.
    ValueError
        In every process, if the states differ in kind, entries or settings; or if this process is not in `group`.
    RuntimeError
        By torch.distributed, if another process has died, or does not call this within the timeout of the group. (With
        NCCL, torch may end the process instead.)

    Notes
    -----
    Three collectives at most, whatever the number of processes: a small one, by which the settings are compared, and
    then one all-reduce for all sums of a dtype, in `O(C)` memory; or one all-gather where merging is more than adding:
    for `ClassSums`, in `O(RC)` memory for `R` processes, and for `MarginRows`, in that of `R` times the rows of the
    process that has most. Collectives run on the CPU where the group has a backend for it (gloo), else on the current
    device of the kind that it has one for (NCCL: set it first, by ``torch.cuda.set_device``).

    Examples
    --------
    In each process of a training script, and here in a single one:

    >>> import numpy as np
    >>> from finecal.distributed import merge_across_processes
    >>> from finecal.streaming import MarginRows
    >>> state = MarginRows(np.array([True, True, False])).update(
    ...     np.array([[4.0, 1, 3], [2, 5, 4.5]]), [0, 2]
    ... )
    >>> merge_across_processes(state).compute().curve().best()
    0.75
    """
    check_state(state, State, "state")
    processes, _ = world(group)
    if processes == 1:
        return copy.deepcopy(state)
    own = state._current_sums()
    floats = [value.itemsize for value in own.values() if value.is_floating_point()]
    rows = len(next(iter(own.values()))) if state._growing else 0
    headers = all_gather_ints(_describe(state), [rows, max(floats, default=0)], group, type(state).__name__)
    # Any other way to merge than the plain sum is one that the class defines itself.
    if type(state)._add is State._add:
        return _with_sums(state, all_reduce_sum(own, group))
    own = _widen(own, max(width for _, width in headers))
    if state._growing:
        row_bytes = sum(value.shape[1:].numel() * value.itemsize for value in own.values())
        lengths = [rows * row_bytes for rows, _ in headers]
    else:
        lengths = [sum(value.nbytes for value in own.values())] * processes
    received = all_gather_bytes(_as_bytes(own.values()), lengths, group)
    first, *others = (
        _unpack(message, own, rows if state._growing else None)
        for message, (rows, _) in zip(received, headers, strict=True)
    )
    result = _with_sums(state, first)
    for sums in others:
        result._add(sums)
    return result


def _describe(state: State) -> dict[str, str]:
    """Describe what must be the same in all processes; tensors by their hashes."""
    own = state._current_sums()
    described = {"class": type(state).__name__, "entries": ", ".join(own)}
    for name, value in state._settings.items():
        # -0.0 is no other gamma than 0.0.
        positive = value + 0.0 if value.is_floating_point() else value
        described[name] = _hash(f"{value.dtype}{tuple(value.shape)}".encode() + positive.cpu().numpy().tobytes())
    if not state._growing:
        layout = "".join(f"{value.dtype}{tuple(value.shape)}" for value in own.values())
        described["shapes"] = _hash(layout.encode())
    return described


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _with_sums(state: StateT, sums: dict[str, Tensor]) -> StateT:
    """Return a state with the settings of this one; sums are replaced, never changed in place, so none are shared."""
    result = copy.copy(state)
    result._replace(sums)
    return result


def _widen(own: Mapping[str, Tensor], itemsize: int) -> dict[str, Tensor]:
    """Return the entries, floating-point ones as wide as in the process that has the widest: as merging makes them."""
    dtype = torch.float64 if itemsize > 4 else torch.float32
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in own.items()}


def _as_bytes(values: Iterable[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1).view(torch.uint8) for value in values])


def _unpack(message: Tensor, own: Mapping[str, Tensor], rows: int | None) -> dict[str, Tensor]:
    """Undo `_as_bytes`: entries have the dtypes and shapes of `own`, with `rows` rows."""
    shapes = {name: value.shape if rows is None else (rows, *value.shape[1:]) for name, value in own.items()}
    sizes = [torch.Size(shape).numel() * own[name].itemsize for name, shape in shapes.items()]
    pieces = torch.split(message, sizes)
    # A view of another dtype has to start at a multiple of its size, as a copy does.
    return {
        name: piece.clone().view(own[name].dtype).reshape(shape)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def world(group: ProcessGroup | None) -> tuple[int, int]:
    """Return (world_size, rank)."""
    check_group(group)
    if not (dist.is_available() and dist.is_initialized()):
        return 1, 0
    rank = dist.get_rank(group)
    check_member(rank)
    return dist.get_world_size(group), rank


def collective_device(group: ProcessGroup | None) -> torch.device:
    """Return where collectives run: by the group alone, as states may be on another device in each process."""
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])


def all_gather_ints(
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


def all_reduce_sum(own: Mapping[str, Tensor], group: ProcessGroup | None) -> dict[str, Tensor]:
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


_LONGEST_SHOWN = 40
"""Characters of a value that a message shows; hashes are longer."""


def check_state(state: object, kind: type, name: str) -> None:
    if not isinstance(state, kind):
        raise TypeError(
            f"{name} is a {type(state).__name__}; pass a state of finecal.streaming, such as MarginRows(seen_mask)"
        )


def check_group(group: object) -> None:
    if group is None or not dist.is_available():
        return
    # new_group gives an integer to the processes outside of the group: `world` raises for them.
    if not isinstance(group, dist.ProcessGroup) and group is not dist.GroupMember.NON_GROUP_MEMBER:
        raise TypeError(f"group is a {type(group).__name__}; pass what torch.distributed.new_group returns, or None")


def check_member(rank: int) -> None:
    if rank < 0:
        raise ValueError("group does not contain this process; call this in the processes of the group only")


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
