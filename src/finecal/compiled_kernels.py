"""The kernels for labelled logits and for margins on a CPU, compiled by torch.compile, for those who ask for it."""

import functools
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ._checks import warn
from ._workers import joined
from .logits import LabelScalars, group_limits, group_maxima, label_scalars, settle_ties, wide_dtype

_BLOCK = 2048
"""Rows that are handed over at a time: graphs of a fixed shape are two to three times faster than dynamic ones."""
_MOST_SHAPES = 6
"""For each of which a graph is compiled; torch would go back to slow loops of its own at eight."""

_requested = False
_shapes: set[tuple[int, torch.dtype]] = set()


class compile_kernels:
    """Compile the passes over the logits on the CPU by torch.compile: from now on, or in a ``with`` block.

    For evaluations, searches and estimates from large logits: what reduces them to margins takes about half the time
    then. The first time for a number of classes and a dtype costs several seconds of compilation, and needs a C++
    compiler: without one a warning says so, and all goes on as before. Results are the same to the bit.

    Parameters
    ----------
    enabled : bool, default True
        False switches it off again.

    Warns
    -----
    FinecalWarning
        If torch.compile fails; it is off then.

    Notes
    -----
    For contiguous logits of at least 2048 samples, and for up to six numbers of classes and dtypes in a process; all
    others take the usual way. On a GPU kernels are fused without this, if Triton is installed.

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
        self._before, _requested = _requested, bool(enabled)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _requested
        _requested = self._before


def suit(logits: Tensor) -> bool:
    """Whether these kernels were asked for, and take such logits."""
    if not _requested or torch.compiler.is_compiling() or type(logits) is not Tensor or logits.requires_grad:
        return False
    if logits.device.type != "cpu" or logits.shape[0] < _BLOCK or not logits.is_contiguous():
        return False
    shape = (logits.shape[1], logits.dtype)
    return shape in _shapes or len(_shapes) < _MOST_SHAPES


def scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> LabelScalars | None:
    """Return what `label_scalars` does, or None if it cannot be compiled."""
    limits = group_limits(mask, logits.dtype)
    column = torch.arange(mask.shape[0], dtype=wide_dtype(logits.dtype))
    blocks = _whole_blocks(logits), _whole_blocks(labels)

    def run(rows: Tensor, own: Tensor) -> LabelScalars:
        *found, tied = _compiled(_label_scalars)(rows, own, column, *limits, mask)
        result = LabelScalars(*found)
        settle_ties(result, tied, rows, own, mask)
        return result

    pairs = list(zip(*blocks, strict=True))
    found: LabelScalars | None = _in_blocks(pairs, run, label_scalars, logits, (labels,), mask, LabelScalars)
    return found


def maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what `group_maxima` does, or None if it cannot be compiled."""
    limits = group_limits(mask, logits.dtype)
    blocks = [(rows,) for rows in _whole_blocks(logits)]

    def run(rows: Tensor) -> tuple[Tensor, ...]:
        return _compiled(_maxima)(rows, *limits)

    found: tuple[Tensor, Tensor] | None = _in_blocks(blocks, run, group_maxima, logits, (), mask, lambda *pair: pair)
    return found


@functools.cache
def _compiled(kernel: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(kernel, dynamic=False)
    return compiled


def _whole_blocks(rows: Tensor) -> list[Tensor]:
    return list(torch.split(rows[: len(rows) // _BLOCK * _BLOCK], _BLOCK))


def _in_blocks(
    blocks: Sequence[tuple[Tensor, ...]],
    compiled: Callable[..., tuple[Tensor, ...]],
    usual: Callable[..., tuple[Tensor, ...]],
    logits: Tensor,
    rest: tuple[Tensor, ...],
    mask: Tensor,
    result: Callable[..., Any],
) -> Any:
    """Run the compiled kernel on the blocks, and the usual one on what is left over."""
    global _requested
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
    done = len(blocks) * _BLOCK
    if done < len(logits):
        parts.append(tuple(usual(logits[done:], *(values[done:] for values in rest), mask)))
    return result(*joined(parts))


def _label_scalars(
    rows: Tensor, labels: Tensor, column: Tensor, seen_limit: Tensor, absent_limit: Tensor, mask: Tensor
) -> tuple[Tensor, ...]:
    wide = rows.to(column.dtype)
    own = wide.gather(1, labels.unsqueeze(1)).squeeze(1)
    # Columns are compared as numbers of the dtype of the logits, which is faster than as integers, and exact.
    others = torch.where(column == labels.to(column.dtype).unsqueeze(1), -torch.inf, wide)
    seen_rival, absent_rival = torch.minimum(others, seen_limit).amax(1), torch.minimum(others, absent_limit).amax(1)
    is_seen = mask[labels]
    rival = torch.where(is_seen, seen_rival, absent_rival)
    return seen_rival, absent_rival, own, is_seen, own > rival, own == rival


def _maxima(rows: Tensor, seen_limit: Tensor, absent_limit: Tensor) -> tuple[Tensor, Tensor]:
    wide = rows.to(seen_limit.dtype)
    return torch.minimum(wide, seen_limit).amax(1), torch.minimum(wide, absent_limit).amax(1)
