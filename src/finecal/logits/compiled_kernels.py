"""`compile_kernels`, and the kernels for labelled logits and for margins on a CPU, compiled by torch.compile."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor

from ..inputs.numbers import check_flag
from ..inputs.warning import warn
from . import torch_kernels
from .tiles import wide_dtype
from .torch_kernels import LabelScalars
from .workers import joined

_BLOCK = 2048
"""Rows that are handed over at a time: graphs of a fixed shape are two to three times faster than dynamic ones."""
_MOST_SHAPES = 6
"""For each of which a graph is compiled; torch would go back to slow loops of its own at eight."""

_requested = False
_shapes: set[tuple[int, torch.dtype]] = set()


class compile_kernels:
    """Fuse the passes over the logits: from now on, or in a ``with`` block.

    By default every pass runs in plain torch, on CUDA as on a CPU. This function is for evaluations, searches and
    estimates from large logits. On a CPU it compiles the passes by torch.compile, which about halves the time from
    logits to margins. The first call for a number of classes and a dtype compiles for several seconds, and needs a C++
    compiler; without one, finecal warns and goes on in plain torch. On CUDA it uses kernels in Triton, if Triton is
    installed. Results are the same to the bit.

    Parameters
    ----------
    enabled : bool, default True
        False switches it off again.

    Warns
    -----
    FinecalWarning
        If torch.compile fails, or Triton does not work on the GPU; plain torch takes over.

    Notes
    -----
    On a CPU this applies to contiguous logits of at least 2048 samples, and to at most six pairs of a number of classes
    and a dtype in a process; all others run in plain torch. The Triton kernels have been checked only in Triton's
    interpreter and by compiling them for GPUs.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits, labels = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]]), [0, 2]
    >>> with finecal.compile_kernels():
    ...     curve = finecal.tradeoff_curve(logits, labels, [True, True, False])
    >>> finecal.compile_kernels()  # doctest: +SKIP
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


def asked_for(logits: Tensor) -> bool:
    """Whether fused kernels were asked for, and may read such logits: eager ones, plain, without a gradient."""
    if not _requested or torch.compiler.is_compiling():
        return False
    return type(logits) is Tensor and not logits.requires_grad


def suit(logits: Tensor) -> bool:
    """Whether the kernels below were asked for, and are worth it for such logits."""
    if not asked_for(logits) or logits.device.type != "cpu" or logits.shape[0] < _BLOCK or not logits.is_contiguous():
        return False
    shape = (logits.shape[1], logits.dtype)
    return shape in _shapes or len(_shapes) < _MOST_SHAPES


def label_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars | None:
    """Return what `torch_kernels.label_scalars` does, or None if it cannot be compiled."""
    # Columns are compared as numbers of the dtype of the logits, which is faster than as integers, and exact.
    column = torch.arange(mask.shape[0], dtype=wide_dtype(logits.dtype))
    is_seen = mask.to(column.dtype)

    def run(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return _compiled(_rivals)(rows, own.to(column.dtype).unsqueeze(1), column, is_seen)

    def usual(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return torch_kernels.rivals(rows, own, mask)

    found = _in_blocks(run, usual, logits, labels)
    return None if found is None else torch_kernels.with_rivals(found, logits, labels, mask)


def group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what `torch_kernels.group_maxima` does, or None if it cannot be compiled."""
    is_seen = mask.to(wide_dtype(logits.dtype))

    def run(rows: Tensor) -> tuple[Tensor, ...]:
        return _compiled(_maxima)(rows, is_seen)

    def usual(rows: Tensor) -> tuple[Tensor, ...]:
        return torch_kernels.group_maxima(rows, mask)

    found = _in_blocks(run, usual, logits)
    return None if found is None else (found[0], found[1])


@functools.cache
def _compiled(kernel: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(kernel, dynamic=False)
    return compiled


def _in_blocks(
    compiled: Callable[..., tuple[Tensor, ...]], usual: Callable[..., tuple[Tensor, ...]], *whole: Tensor
) -> tuple[Tensor, ...] | None:
    """Run the compiled kernel on blocks of `whole`, logits first, and the usual one on the rows left over."""
    global _requested
    logits = whole[0]
    done = len(logits) // _BLOCK * _BLOCK
    blocks = zip(*(torch.split(values[:done], _BLOCK) for values in whole), strict=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of itself while it compiles.
            parts = [tuple(compiled(*block)) for block in blocks]
    except Exception as error:  # Whatever a compiler raises: the usual kernels show if it was the input.
        _requested = False
        warn(
            f"compile_kernels: torch.compile failed, and is off now ({type(error).__name__}: {str(error)[:200]}); it "
            "needs a C++ compiler"
        )
        return None
    _shapes.add((logits.shape[1], logits.dtype))
    if done < len(logits):
        parts.append(tuple(usual(*(values[done:] for values in whole))))
    return joined(parts)


def _rivals(rows: Tensor, own: Tensor, column: Tensor, is_seen: Tensor) -> tuple[Tensor, Tensor]:
    return _maxima(torch.where(column == own, -torch.inf, rows.to(column.dtype)), is_seen)


def _maxima(rows: Tensor, is_seen: Tensor) -> tuple[Tensor, Tensor]:
    # `minimum` would take longer, as it looks for NaN, and so would flags in place of numbers.
    wide, seen = rows.to(is_seen.dtype), is_seen > 0
    return torch.where(seen, wide, -torch.inf).amax(1), torch.where(seen, -torch.inf, wide).amax(1)
