"""`compile_kernels`, and the kernels for labelled logits and for margins, compiled by torch.compile."""

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
from .workers import concat_columns

_BLOCK = 2048
"""Rows that are handed over at a time: graphs of a fixed shape are two to three times faster than dynamic ones."""
_MOST_SHAPES = 6
"""For each of which a graph is compiled; torch would go back to slow loops of its own at eight."""

_requested = False
_shapes: set[tuple[int, torch.dtype, torch.device]] = set()


class compile_kernels:
    """Fuse the passes over the logits: from now on, or in a ``with`` block.

    By default every pass runs in plain torch, on CUDA as on a CPU. This function is for evaluations, searches and
    estimates from large logits: it compiles the passes by torch.compile, which on a CPU about halves the time from
    logits to margins. The first call for a number of classes and a dtype compiles for several seconds. torch.compile
    needs a C++ compiler on a CPU, and Triton on CUDA; without it, finecal warns and goes on in plain torch. Results are
    the same to the bit.

    Parameters
    ----------
    enabled : bool, default True
        False switches it off again.

    Warns
    -----
    FinecalWarning
        If torch.compile fails; plain torch takes over.

    Notes
    -----
    This applies to contiguous logits of at least 2048 samples, and to at most six combinations of a number of classes,
    a dtype and a device in a process; all others run in plain torch. It has not yet been timed on a GPU.

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


def is_enabled(logits: Tensor) -> bool:
    """Whether `compile_kernels` is on, and compiled kernels may read such logits: eager, plain, without a gradient."""
    if not _requested or torch.compiler.is_compiling():
        return False
    return type(logits) is Tensor and not logits.requires_grad


def is_worthwhile(logits: Tensor) -> bool:
    """Whether the kernels below are enabled, and such logits are worth compiling for."""
    if not is_enabled(logits) or logits.device.type not in ("cpu", "cuda"):
        return False
    if logits.shape[0] < _BLOCK or not logits.is_contiguous():
        return False
    return _shape(logits) in _shapes or len(_shapes) < _MOST_SHAPES


def compiled_label_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars:
    """As `torch_kernels.label_scalars`."""
    # Columns are compared as numbers of the dtype of the logits, which is faster than as integers, and exact.
    column = torch.arange(mask.shape[0], dtype=wide_dtype(logits.dtype), device=logits.device)
    is_seen = mask.to(column.dtype)

    def run(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return _compile(_rivals)(rows, own.to(column.dtype).unsqueeze(1), column, is_seen)

    def usual(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return torch_kernels.rivals(rows, own, mask)

    return torch_kernels.with_rivals(_run_in_blocks(run, usual, logits, labels), logits, labels, mask)


def compiled_group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_kernels.group_maxima`."""
    is_seen = mask.to(wide_dtype(logits.dtype))

    def run(rows: Tensor) -> tuple[Tensor, ...]:
        return _compile(_maxima)(rows, is_seen)

    def usual(rows: Tensor) -> tuple[Tensor, ...]:
        return torch_kernels.group_maxima(rows, mask)

    seen_max, absent_max = _run_in_blocks(run, usual, logits)
    return seen_max, absent_max


def _shape(logits: Tensor) -> tuple[int, torch.dtype, torch.device]:
    return logits.shape[1], logits.dtype, logits.device


@functools.cache
def _compile(kernel: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(kernel, dynamic=False)
    return compiled


def _run_in_blocks(
    compiled: Callable[..., tuple[Tensor, ...]], usual: Callable[..., tuple[Tensor, ...]], *whole: Tensor
) -> tuple[Tensor, ...]:
    """Run the compiled kernel on blocks of `whole`, logits first, and the usual one on what is left over.

    If it cannot be compiled, compiling is off from now on, and the usual one runs on all rows.
    """
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
        needed = "Triton" if logits.is_cuda else "a C++ compiler"
        warn(
            f"compile_kernels: torch.compile failed, and is off now ({type(error).__name__}: {str(error)[:200]}); it "
            f"needs {needed}"
        )
        return usual(*whole)
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
