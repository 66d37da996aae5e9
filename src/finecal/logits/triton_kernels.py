"""The passes of `torch_kernels` on CUDA, in Triton: one launch reads each logit once and writes scalars per row.

A program takes a few rows and walks over them in blocks of columns. Each lane keeps maxima of its own; they are reduced
across lanes once, at the end. Ties are resolved on the way, so nothing is read again and nothing waits for the GPU. Any
strides will do. Results equal those of the torch kernels: NaN in a row makes all its maxima NaN.

Triton is no dependency. Only `reductions` imports this module, and only where `compile_kernels` asked for it; where the
import fails, plain torch takes over.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..inputs.warning import warn

_TILE_BYTES = 8192
"""Of a program's step, once widened. 64 bytes of float32 a thread, at few enough registers for 500 threads to share a
multiprocessor: 32 KB on their way from memory, about twice what hides the latency of an H100's."""
_FEW_ROWS = 256
"""With fewer programs than that, multiprocessors stay idle: each gets more warps instead."""


def work_on(device: torch.device) -> bool:
    """Say whether Triton can build and launch kernels for this device, which takes a C compiler; warn if not."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False  # too old for bfloat16 and for maxima that carry NaN
    try:
        group_maxima(torch.zeros(1, 2, device=device), torch.zeros(2, dtype=torch.bool, device=device))
    except Exception as error:  # whatever the reason, there is another way
        warn(
            f"Triton is installed, but fails on {device} ({type(error).__name__}: {error}); it needs a C compiler and "
            "the headers of Python. finecal goes on with torch's operations, which are slower"
        )
        return False
    return True


def label_scalars(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return seen rival, absent rival, own logit, is_seen and hit: the fields of `LabelScalars`."""
    wide = _wide_dtype(logits)
    seen_rival, absent_rival, own = (_per_row(logits, wide) for _ in range(3))
    is_seen, hit = (_per_row(logits, torch.bool) for _ in range(2))
    outputs = seen_rival, absent_rival, own, _bytes(is_seen), _bytes(hit)
    _launch(_label_scalars, logits, labels.contiguous(), _bytes(mask), *outputs)
    return seen_rival, absent_rival, own, is_seen, hit


def group_maxima(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_kernels.group_maxima`."""
    seen, absent = (_per_row(logits, _wide_dtype(logits)) for _ in range(2))
    _launch(_group_maxima, logits, _bytes(mask), seen, absent)
    return seen, absent


def group_log_sum_exps(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_kernels.group_log_sum_exps`, with a running scale for each group: no row has to be done again.

    Exponentials and sums are float64, whatever the logits: results are, and float32 would leave seven digits of them.
    A GPU for computing should take about as long for them as for reading float32 from memory; others take longer, but
    not longer than the torch kernel, which has to compute as many.
    """
    seen, absent = (_per_row(logits, torch.float64) for _ in range(2))
    _launch(_group_log_sum_exps, logits, _bytes(mask), seen, absent)
    return seen, absent


def winning_classes(logits: Tensor, mask: Tensor, gamma: float | Tensor) -> Tensor:
    """As `reductions.winning_classes`."""
    winner = _per_row(logits, torch.int64)
    value = gamma.detach() if isinstance(gamma, Tensor) else gamma
    if not isinstance(value, Tensor) or not value.is_cuda:
        # filled in by a kernel: a copy from the host would wait, and Triton rounds floats to float32
        value = torch.full((), float(value), dtype=torch.float64, device=logits.device)
    _launch(_winning_classes, logits, _bytes(mask), value.double(), winner)
    return winner


def group_winners(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `reductions.group_winners`."""
    seen, absent = (_per_row(logits, torch.int64) for _ in range(2))
    _launch(_group_winners, logits, _bytes(mask), seen, absent)
    return seen, absent


def _wide_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _per_row(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(logits.shape[0], dtype=dtype, device=logits.device)


def _bytes(flags: Tensor) -> Tensor:
    return flags.contiguous().view(torch.uint8)


def _launch(kernel: Any, logits: Tensor, *arguments: Tensor) -> None:
    num_rows, num_classes = logits.shape
    if num_rows == 0:
        return
    rows, columns, warps = tile_shape(logits)
    # without a word about fusing multiplications and additions, of which there are hardly any, Triton 3.9 warns
    options = {"ROWS": rows, "COLUMNS": columns, "num_warps": warps, "enable_fp_fusion": False}
    with torch.cuda.device(logits.get_device()):  # Triton launches on the current device
        kernel[(triton.cdiv(num_rows, rows),)](logits, *logits.stride(), num_rows, num_classes, *arguments, **options)


def tile_shape(logits: Tensor) -> tuple[int, int, int]:
    """Return rows and columns of a program's tile, and its warps.

    Short rows share a program, so that its lanes have work. Of transposed logits a tile is as tall as a warp, because
    neighbours in memory are neighbours in a column.
    """
    num_rows, num_classes = logits.shape
    elements = _TILE_BYTES // _wide_dtype(logits).itemsize
    if logits.stride(0) < logits.stride(1):
        return 32, elements // 32, 4
    if num_classes > elements and num_rows < _FEW_ROWS:
        return 1, 4 * elements, 16
    columns = min(triton.next_power_of_2(num_classes), elements)
    return elements // columns, columns, 4


# --- kernels: `mask` and flags are bytes, `columns` (1, COLUMNS), values (ROWS, COLUMNS), results (num_rows,) ---------


@triton.jit
def _label_scalars(
    logits,
    row_stride,
    column_stride,
    num_rows,
    num_classes,
    labels,
    mask,
    seen_rival,
    absent_rival,
    own,
    is_seen,
    hit,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    wide: tl.constexpr = seen_rival.dtype.element_ty
    rows, exists = _rows_of_program(num_rows, ROWS)
    label = tl.load(labels + rows, exists, other=0)
    legal = exists & (label >= 0) & (label < num_classes)  # labels are checked; this keeps wrong ones from memory
    label_seen = tl.load(mask + label, legal, other=0) != 0
    z = tl.load(logits + rows * row_stride + label * column_stride, legal, other=float("nan")).to(wide)
    seen, absent = _no_maxima(ROWS, COLUMNS, wide)
    beaten = tl.zeros([ROWS, COLUMNS], tl.int32) != 0
    for first in range(0, num_classes, COLUMNS):
        columns, seen_columns, _ = _columns(mask, first, num_classes, COLUMNS)
        values = _values(logits, row_stride, column_stride, rows, exists, columns, num_classes).to(wide)
        values_of_others = tl.where(columns == label[:, None], -float("inf"), values)
        seen, absent = _larger(seen, absent, values_of_others, seen_columns)
        # beyond the last column, too, columns are not before the label
        beaten |= (columns < label[:, None]) & (seen_columns == label_seen[:, None]) & (values >= z[:, None])
    seen_max, absent_max = _reduced(seen, absent)
    rival = tl.where(label_seen, seen_max, absent_max)
    tl.store(seen_rival + rows, seen_max, exists)
    tl.store(absent_rival + rows, absent_max, exists)
    tl.store(own + rows, z, exists)
    tl.store(is_seen + rows, label_seen.to(tl.uint8), exists)
    # at a tie the first column is the argmax: the label, unless one before it is as large; NaN compares false
    tl.store(hit + rows, ((z >= rival) & (_any(beaten) == 0)).to(tl.uint8), exists)


@triton.jit
def _group_maxima(
    logits,
    row_stride,
    column_stride,
    num_rows,
    num_classes,
    mask,
    seen_max,
    absent_max,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    wide: tl.constexpr = seen_max.dtype.element_ty
    rows, exists = _rows_of_program(num_rows, ROWS)
    seen, absent = _no_maxima(ROWS, COLUMNS, wide)
    for first in range(0, num_classes, COLUMNS):
        columns, seen_columns, _ = _columns(mask, first, num_classes, COLUMNS)
        values = _values(logits, row_stride, column_stride, rows, exists, columns, num_classes).to(wide)
        seen, absent = _larger(seen, absent, values, seen_columns)
    seen_row, absent_row = _reduced(seen, absent)
    tl.store(seen_max + rows, seen_row, exists)
    tl.store(absent_max + rows, absent_row, exists)


@triton.jit
def _group_log_sum_exps(
    logits,
    row_stride,
    column_stride,
    num_rows,
    num_classes,
    mask,
    seen_result,
    absent_result,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows, exists = _rows_of_program(num_rows, ROWS)
    seen_top = tl.full([ROWS], -float("inf"), tl.float64)
    absent_top = tl.full([ROWS], -float("inf"), tl.float64)
    seen_sum = tl.zeros([ROWS], tl.float64)
    absent_sum = tl.zeros([ROWS], tl.float64)
    for first in range(0, num_classes, COLUMNS):
        columns, seen_columns, _ = _columns(mask, first, num_classes, COLUMNS)
        values = _values(logits, row_stride, column_stride, rows, exists, columns, num_classes).to(tl.float64)
        new_seen_top = tl.maximum(seen_top, tl.max(tl.where(seen_columns, values, -float("inf")), 1))
        new_absent_top = tl.maximum(absent_top, tl.max(tl.where(seen_columns, -float("inf"), values), 1))
        # one exponential per element; exp(-inf - 0) is 0 where all so far is masked
        seen_scale, absent_scale = _finite(new_seen_top), _finite(new_absent_top)
        powers = tl.exp(values - tl.where(seen_columns, seen_scale[:, None], absent_scale[:, None]))
        seen_sum = seen_sum * tl.exp(seen_top - seen_scale) + tl.sum(tl.where(seen_columns, powers, 0.0), 1)
        absent_sum = absent_sum * tl.exp(absent_top - absent_scale) + tl.sum(tl.where(seen_columns, 0.0, powers), 1)
        seen_top, absent_top = new_seen_top, new_absent_top
    spoilt = (seen_sum != seen_sum) | (absent_sum != absent_sum)
    seen_row = tl.where(spoilt, float("nan"), tl.log(seen_sum) + _finite(seen_top))
    absent_row = tl.where(spoilt, float("nan"), tl.log(absent_sum) + _finite(absent_top))
    tl.store(seen_result + rows, seen_row, exists)
    tl.store(absent_result + rows, absent_row, exists)


@triton.jit
def _winning_classes(
    logits,
    row_stride,
    column_stride,
    num_rows,
    num_classes,
    mask,
    gamma,
    winner,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows, exists = _rows_of_program(num_rows, ROWS)
    seen_max, seen_first, absent_max, absent_first = _first_maxima(
        logits, row_stride, column_stride, rows, exists, num_classes, mask, ROWS, COLUMNS
    )
    # where all is masked the difference is NaN, compares false, and a seen class wins
    absent_wins = (seen_max - absent_max).to(tl.float64) < tl.load(gamma)
    tl.store(winner + rows, tl.where(absent_wins, absent_first, seen_first).to(tl.int64), exists)


@triton.jit
def _group_winners(
    logits,
    row_stride,
    column_stride,
    num_rows,
    num_classes,
    mask,
    seen_winner,
    absent_winner,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows, exists = _rows_of_program(num_rows, ROWS)
    _, seen_first, _, absent_first = _first_maxima(
        logits, row_stride, column_stride, rows, exists, num_classes, mask, ROWS, COLUMNS
    )
    tl.store(seen_winner + rows, seen_first.to(tl.int64), exists)
    tl.store(absent_winner + rows, absent_first.to(tl.int64), exists)


@triton.jit
def _first_maxima(
    logits,
    row_stride,
    column_stride,
    rows,
    exists,
    num_classes,
    mask,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return maximum and first index of it, of the seen and of the absent columns; the last index if there is NaN."""
    wide: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    seen, absent = _no_maxima(ROWS, COLUMNS, wide)
    seen_at = tl.full([ROWS, COLUMNS], num_classes, tl.int32)  # which stands for nowhere
    absent_at = tl.full([ROWS, COLUMNS], num_classes, tl.int32)
    for first in range(0, num_classes, COLUMNS):
        columns, seen_columns, absent_columns = _columns(mask, first, num_classes, COLUMNS)
        values = _values(logits, row_stride, column_stride, rows, exists, columns, num_classes).to(wide)
        # in a group that is masked by -inf nothing is larger than at the start, and its first column is taken
        seen_at = tl.where(seen_columns & ((values > seen) | (seen_at == num_classes)), columns, seen_at)
        absent_at = tl.where(absent_columns & ((values > absent) | (absent_at == num_classes)), columns, absent_at)
        seen, absent = _larger(seen, absent, values, seen_columns)
    seen_max, absent_max = _reduced(seen, absent)
    seen_first = tl.min(tl.where(seen == seen_max[:, None], seen_at, num_classes), 1)
    absent_first = tl.min(tl.where(absent == absent_max[:, None], absent_at, num_classes), 1)
    return seen_max, tl.minimum(seen_first, num_classes - 1), absent_max, tl.minimum(absent_first, num_classes - 1)


@triton.jit
def _rows_of_program(num_rows, ROWS: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return rows, rows < num_rows


@triton.jit
def _columns(mask, first, num_classes, COLUMNS: tl.constexpr):
    """Return indices `(1, COLUMNS)`, and which of them are seen and absent columns; beyond the last one, neither."""
    columns = first + tl.arange(0, COLUMNS)[None, :]
    inside = columns < num_classes
    flags = tl.load(mask + columns, inside, other=0)
    return columns, flags != 0, inside & (flags == 0)


@triton.jit
def _values(logits, row_stride, column_stride, rows, exists, columns, num_classes):
    """Return logits `(ROWS, COLUMNS)`, -inf beyond the last row and column."""
    offsets = (rows * row_stride)[:, None] + columns.to(tl.int64) * column_stride
    return tl.load(logits + offsets, exists[:, None] & (columns < num_classes), other=-float("inf"))


@triton.jit
def _no_maxima(ROWS: tl.constexpr, COLUMNS: tl.constexpr, wide: tl.constexpr):
    return tl.full([ROWS, COLUMNS], -float("inf"), wide), tl.full([ROWS, COLUMNS], -float("inf"), wide)


@triton.jit
def _larger(seen, absent, values, seen_columns):
    """Take values into each lane's maxima of seen and of other columns; NaN stays."""
    seen_values = tl.where(seen_columns, values, -float("inf"))
    absent_values = tl.where(seen_columns, -float("inf"), values)
    return (
        tl.maximum(seen, seen_values, propagate_nan=tl.PropagateNan.ALL),
        tl.maximum(absent, absent_values, propagate_nan=tl.PropagateNan.ALL),
    )


@triton.jit
def _reduced(seen, absent):
    """Reduce lanes to rows; a row with NaN in either group has NaN for both."""
    spoilt = _any((seen != seen) | (absent != absent)) != 0
    return (
        tl.where(spoilt, float("nan"), tl.max(seen, 1)),
        tl.where(spoilt, float("nan"), tl.max(absent, 1)),
    )


@triton.jit
def _any(flags):
    """Return 1 for rows with a flag set, 0 for others."""
    return tl.max(flags.to(tl.int32), 1)


@triton.jit
def _finite(top):
    return tl.where(top == -float("inf"), 0.0, top)
