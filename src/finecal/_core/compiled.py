"""Rows of logits in one pass each: by numba on a CPU, by torch.compile on CUDA and where numba is not installed."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import kernels as torch_kernels
from .arrays import check_flag
from .kernels import Winners, concat_columns, map_row_chunks, wide_dtype
from .warning import warn

_BLOCK = 2048
"""Rows that torch.compile gets at a time: graphs of a fixed shape are two to three times faster than dynamic ones."""
_MOST_SHAPES = 6
"""For each of which a graph is compiled; torch would go back to slow loops of its own at eight."""

_requested = False
_shapes: set[tuple[int, torch.dtype, torch.device]] = set()


class compile_kernels:
    """Fuse the passes over the logits, from now on or in a ``with`` block.

    On a CPU, numba does it where it is installed (extra ``fast``), in about half of the time of plain torch; it
    compiles for a second at the first call for a dtype. On CUDA, and on a CPU without numba, torch.compile does it: it
    needs Triton or a C++ compiler, takes several seconds for the first call for a number of classes and a dtype, and
    applies to logits of at least 2048 samples, of at most six combinations of a number of classes, a dtype and a device
    in a process. Logits that are not contiguous take the usual way. Margins, hits and classes are the same to the bit,
    means of logits (ALG) to the rounding of float64. It has not yet been timed on a GPU.

    Parameters
    ----------
    enabled : bool, default True
        False switches it off again.

    Warns
    -----
    FinecalWarning
        If numba or torch.compile fails; plain torch takes over.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits, labels = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]]), [0, 2]
    >>> with finecal.logits.compile_kernels():
    ...     curve = finecal.tradeoff_curve(logits, labels, [True, True, False])
    """

    def __init__(self, enabled: bool = True) -> None:
        global _requested
        self._before, _requested = _requested, check_flag(enabled, "enabled")

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _requested
        _requested = self._before


def is_worthwhile(logits: Tensor) -> bool:
    """Whether `compile_kernels` is on, and such logits are worth compiling for: eager, plain, no gradient."""
    if not _requested or torch.compiler.is_compiling():
        return False
    if type(logits) is not Tensor or logits.requires_grad or not logits.is_contiguous():
        return False
    if takes_numba(logits):
        return True
    if logits.device.type not in ("cpu", "cuda") or logits.shape[0] < _BLOCK:
        return False
    return _shape(logits) in _shapes or len(_shapes) < _MOST_SHAPES


def takes_numba(logits: Tensor) -> bool:
    """Whether numba would be used for such logits."""
    return logits.device.type == "cpu" and _has_numba()


@functools.cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


def rivals(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """As `torch_kernels.rivals`."""

    def usual(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return torch_kernels.rivals(rows, own, mask)

    # Columns are compared as numbers of the dtype of the logits, which is faster than as integers, and exact.
    column = torch.arange(mask.shape[0], dtype=wide_dtype(logits.dtype), device=logits.device)
    is_seen = mask.to(column.dtype)

    def by_torch(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        found = _compile(_rivals)(rows, own.to(column.dtype).unsqueeze(1), column, is_seen)
        return *found, torch_kernels.own_logits(rows, own)

    def by_numba(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return _scan(rows, mask, labels=own)

    return _run(by_numba, by_torch, usual, logits, labels)


def group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_kernels.group_maxima`."""
    is_seen = mask.to(wide_dtype(logits.dtype))

    def usual(rows: Tensor) -> tuple[Tensor, ...]:
        return torch_kernels.group_maxima(rows, mask)

    def by_torch(rows: Tensor) -> tuple[Tensor, ...]:
        return _compile(_maxima)(rows, is_seen)

    def by_numba(rows: Tensor) -> tuple[Tensor, ...]:
        return _scan(rows, mask)

    seen_max, absent_max = _run(by_numba, by_torch, usual, logits)
    return seen_max, absent_max


def winners(logits: Tensor, mask: Tensor, gamma: float | Tensor | None = None) -> Winners:
    """As `torch_kernels.winners`, which torch.compile does not fuse."""

    def usual(rows: Tensor) -> tuple[Tensor, ...]:
        return torch_kernels.winners(rows, mask, gamma)

    def by_numba(rows: Tensor) -> tuple[Tensor, ...]:
        seen_max, absent_max, *columns = _scan(rows, mask, with_columns=True)
        return *columns, seen_max, absent_max

    return Winners(*_run(by_numba, None, usual, logits))


def weighted_sums(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """As `torch_kernels.weighted_sums`, by numba alone."""

    def usual(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return (torch_kernels.weighted_sums(rows, own, weight),)

    def by_numba(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        sums = torch.empty(len(rows), dtype=torch.float64)
        _jit(_weigh_rows)(rows.numpy(), own.numpy(), weight.numpy(force=True).copy(), sums.numpy())
        return (sums,)

    if logits.dtype.itemsize < 4:  # NumPy does not know bfloat16.
        return torch_kernels.weighted_sums(logits, labels, weight)
    return _run(by_numba, None, usual, logits, labels)[0]


_Kernel = Callable[..., tuple[Tensor, ...]]


def _run(by_numba: _Kernel, by_torch: _Kernel | None, usual: _Kernel, *whole: Tensor) -> tuple[Tensor, ...]:
    """Run compiled code on columns, logits first; or the usual one, now and from now on, if compiling fails."""
    global _requested
    logits = whole[0]
    if by_torch is None and not takes_numba(logits):
        return usual(*whole)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of itself while it compiles.
            if by_torch is None or takes_numba(logits):
                return map_row_chunks(by_numba, *whole)
            return _run_in_blocks(by_torch, usual, *whole)
    except Exception as error:  # Whatever a compiler raises: the usual kernels show if it was the input.
        _requested = False
        needed = "Triton" if logits.is_cuda else "numba (pip install 'finecal[fast]') or a C++ compiler"
        warn(
            f"compile_kernels: compiling failed, and is off now ({type(error).__name__}: {str(error)[:200]}); it "
            f"needs {needed}"
        )
        return usual(*whole)


# --- numba ------------------------------------------------------------------------------------------------------------

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of a number."""


def _scan(rows: Tensor, mask: Tensor, labels: Tensor | None = None, with_columns: bool = False) -> tuple[Tensor, ...]:
    """Return the maxima of both groups: with labels, of rivals, and the label's own; perhaps where each comes first."""
    dtype, integer = rows.dtype, _BITS[rows.dtype.itemsize]
    most = torch.iinfo(integer).max
    groups = -torch.stack([mask, ~mask]).to(torch.int8)
    codes = torch.empty((2 if labels is None else 3, len(rows)), dtype=integer)
    columns = torch.empty((2, len(rows) if with_columns else 0), dtype=torch.int64)
    own = torch.empty(0, dtype=torch.int64) if labels is None else labels
    arrays = [values.numpy() for values in (rows.detach().view(integer), own, groups, codes, columns)]
    infinity = int(torch.tensor(math.inf, dtype=dtype).view(integer))
    scalars = [arrays[0].dtype.type(value) for value in (most, infinity, torch.iinfo(integer).bits - 1)]
    _jit(_scan_rows)(*arrays, *scalars)
    maxima = torch.where(codes < 0, -codes | ~most, codes).view(dtype).to(wide_dtype(dtype))
    return (*maxima, *columns) if with_columns else tuple(maxima)


@functools.cache
def _jit(function: Callable[..., None]) -> Callable[..., None]:
    import numba

    # Sums may be added up in any order, many at once; fused with the products.
    compiled: Callable[..., None] = numba.njit(nogil=True, fastmath={"reassoc", "contract"})(function)
    return compiled


def _scan_rows(
    bits: NDArray[Any],
    labels: NDArray[np.int64],
    groups: NDArray[np.int8],
    codes: NDArray[Any],
    columns: NDArray[np.int64],
    most: Any,
    infinity: Any,
    shift: Any,
) -> None:
    """Write the largest code of each group in each row, and its first column if `columns` are not empty.

    Where there are labels, their codes are left out, and written behind the two. `groups` are -1, all bits of which are
    set, in the columns of a group, and 0 elsewhere: bytes, for which the fastest cache has room.

    Codes are the bits of floats as integers of the same order, with one zero. Maxima of integers become instructions
    for many columns at once, while those of floats do not, since NaN has no place in their order. Here it lies beyond
    infinity at either end, and gives the row the largest code, which is NaN.
    """
    is_seen, is_absent = groups[0], groups[1]  # unpacked, they would not be known to be contiguous
    lowest, classes = ~most, bits.shape[1]
    for row in range(bits.shape[0]):
        if labels.shape[0]:
            label = labels[row]
            number = bits[row, label]
            sign = number >> shift
            codes[2, row] = ((number & most) ^ sign) - sign
            seen_kept, absent_kept = is_seen[label], is_absent[label]
            is_seen[label] = is_absent[label] = 0
        seen, absent, least = lowest, lowest, most
        for column in range(classes):
            number = bits[row, column]
            sign = number >> shift
            code = ((number & most) ^ sign) - sign
            seen = max(seen, min(code, is_seen[column] ^ lowest))
            absent = max(absent, min(code, is_absent[column] ^ lowest))
            least = min(least, code)
        if columns.shape[1]:
            first_seen = first_absent = classes
            for column in range(classes):
                number = bits[row, column]
                sign = number >> shift
                code = ((number & most) ^ sign) - sign
                first_seen = min(first_seen, column if min(code, is_seen[column] ^ lowest) == seen else classes)
                first_absent = min(first_absent, column if min(code, is_absent[column] ^ lowest) == absent else classes)
            columns[0, row], columns[1, row] = first_seen, first_absent
        if labels.shape[0]:
            is_seen[label], is_absent[label] = seen_kept, absent_kept
        codes[0, row] = max(seen, -infinity) if least >= -infinity else most
        codes[1, row] = max(absent, -infinity)


def _weigh_rows(
    rows: NDArray[Any], labels: NDArray[np.int64], weight: NDArray[np.float64], sums: NDArray[np.float64]
) -> None:
    for row in range(rows.shape[0]):
        label = labels[row]
        kept = weight[label]
        weight[label] = 0.0
        total = 0.0
        for column in range(rows.shape[1]):
            total += rows[row, column] * weight[column]
        weight[label] = kept
        sums[row] = total


# --- torch.compile ----------------------------------------------------------------------------------------------------


def _shape(logits: Tensor) -> tuple[int, torch.dtype, torch.device]:
    return logits.shape[1], logits.dtype, logits.device


@functools.cache
def _compile(kernel: _Kernel) -> _Kernel:
    compiled: _Kernel = torch.compile(kernel, dynamic=False)
    return compiled


def _run_in_blocks(compiled: _Kernel, usual: _Kernel, *whole: Tensor) -> tuple[Tensor, ...]:
    """Run the compiled kernel on blocks, logits first, and the usual one on the rest."""
    logits = whole[0]
    done = len(logits) // _BLOCK * _BLOCK
    blocks = zip(*(torch.split(values[:done], _BLOCK) for values in whole), strict=True)
    parts = [tuple(compiled(*block)) for block in blocks]
    _shapes.add(_shape(logits))
    if done < len(logits):
        parts.append(tuple(usual(*(values[done:] for values in whole))))
    return concat_columns(parts)


def _rivals(rows: Tensor, own: Tensor, column: Tensor, is_seen: Tensor) -> tuple[Tensor, Tensor]:
    return _maxima(torch.where(column == own, -torch.inf, rows.to(column.dtype)), is_seen)


def _maxima(rows: Tensor, is_seen: Tensor) -> tuple[Tensor, Tensor]:
    # `minimum` would take longer, as it looks for NaN, and so would flags in place of numbers.
    wide, seen = rows.to(is_seen.dtype), is_seen > 0
    return torch.where(seen, wide, -torch.inf).amax(1), torch.where(seen, -torch.inf, wide).amax(1)
