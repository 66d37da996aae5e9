"""Blocks of rows that stay in the cache, so that nothing of size (N, C) is ever allocated."""

from collections.abc import Iterator

import torch
from torch import Tensor

_TILE_ELEMENTS = {"cpu": 1 << 19}
_TILE_ELEMENTS_ELSEWHERE = 1 << 25


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic on logits of `dtype`: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tiles(
    rows: Tensor, dtype: torch.dtype | None = None, *, writable: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield blocks of rows that stay in the cache, in `dtype` (default: float32 or wider), each with a scratch block.

    A fresh temporary per block would cost more than the arithmetic, so there is one scratch block for all. `writable`
    blocks are copies. While a graph is captured, all rows come at once, and scratch is None (as ``out=None``).
    """
    dtype = dtype or wide_dtype(rows.dtype)
    if torch.compiler.is_compiling():
        yield rows.to(dtype, copy=writable), None
        return
    height = tile_rows(rows)
    scratch = torch.empty((min(height, rows.shape[0]), rows.shape[1]), dtype=dtype, device=rows.device)
    copy = torch.empty_like(scratch) if writable or rows.dtype != dtype else None
    for block in torch.split(rows, height):
        count = block.shape[0]
        yield block if copy is None else copy[:count].copy_(block), scratch[:count]


def tile_rows(rows: Tensor) -> int:
    """Return how many rows of `(N, C)` logits make a tile."""
    if torch.compiler.is_compiling():
        return max(1, rows.shape[0])
    return max(1, _TILE_ELEMENTS.get(rows.device.type, _TILE_ELEMENTS_ELSEWHERE) // rows.shape[1])
