"""Operating points of a seen-absent curve: correct samples at each gamma, from one sort of the margins of the hits.

On a CPU they are counted in blocks that stay in the cache: writing temporaries of the size of the result would take
longer than counting.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..inputs.arrays import ArrayLike, NumpyArray, as_tensor

_BLOCK = 1 << 17


def operating_points(margin: Tensor, is_seen: Tensor, hit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return K breakpoints in float64, and the numbers of correct seen and absent samples at K+1 operating points.

    Breakpoints are the distinct finite margins of hits. A sample whose margin is infinite never flips.
    """
    seen_first = (hit & is_seen & (margin > -math.inf)).count_nonzero()
    absent_first = (hit & ~is_seen & (margin == -math.inf)).count_nonzero()
    if margin.device.type == "cpu":
        return _points_by_blocks(*_sorted_hits(margin, is_seen, hit), int(seen_first), int(absent_first))
    return _points_at_once(*_sort_with_group(margin, is_seen, hit & margin.isfinite()), seen_first, absent_first)


def twice_the_area(seen_correct: Tensor, absent_correct: Tensor) -> int:
    """Return two times the area under the absent counts as a function of the seen ones, by the trapezoidal rule."""
    total = seen_correct.new_zeros(())
    for block in _blocks(len(seen_correct) - 1, seen_correct.device.type):
        ends = slice(block.start, block.stop + 1)
        seen, absent = seen_correct[ends], absent_correct[ends]
        total += ((absent[1:] + absent[:-1]) * (seen[:-1] - seen[1:])).sum()
    return int(total)


def _blocks(length: int, device: str = "cpu") -> Iterator[slice]:
    step = _BLOCK if device == "cpu" else max(1, length)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _sort_with_group(margin: Tensor, is_seen: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margins of the samples that flip, sorted, in float64, and the seen flag of each."""
    ordered, order = margin[flips].double().sort(stable=True)
    return ordered, is_seen[flips][order]


def _sorted_hits(margin: Tensor, is_seen: Tensor, hit: Tensor) -> tuple[NumpyArray, NumpyArray]:
    """Return the result of `_sort_with_group` for the hits with a finite margin, faster for float32.

    The bits of a float32 margin, as an integer of 64 bits, leave room for the group in the lowest one, and a sort of
    these numbers alone, several times faster than a sort with indices, carries it along. As floats with such bits they
    would depend on the mode of the processor: where it flushes denormal numbers, a margin of 0 loses its group.
    """
    if margin.dtype == torch.float64:
        in_order = _sort_with_group(margin, is_seen, hit & margin.isfinite())
        return in_order[0].numpy(), in_order[1].numpy()
    values, seen, hits = margin.numpy(), is_seen.numpy(), hit.numpy()
    keys, end = np.empty(np.count_nonzero(hits), dtype=np.int64), 0
    for block in _blocks(len(values)):
        flips = hits[block] & np.isfinite(values[block])
        of_block = _in_order(values[block].view(np.int32)).astype(np.int64)
        of_block <<= 1
        of_block |= seen[block]
        of_block = of_block[flips]
        keys[end : end + len(of_block)] = of_block
        end += len(of_block)
    keys = keys[:end]
    keys.sort()
    ordered, group = keys.view(np.float64), np.empty(end, dtype=bool)
    for block in _blocks(end):
        group[block] = keys[block] & 1
        ordered[block] = _in_order((keys[block] >> 1).astype(np.int32)).view(np.float32)
    return ordered, group


def _in_order(bits: NumpyArray) -> NumpyArray:
    """Turn the bits of float32 numbers into int32 numbers in the same order, and these back: it is its own inverse."""
    flipped = bits >> 31  # All ones for negative numbers, whose bits grow as the number falls.
    flipped &= 0x7FFFFFFF
    flipped ^= bits
    return flipped


def _points_by_blocks(
    ordered: NumpyArray, is_seen: NumpyArray, seen_first: int, absent_first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Count the flips up to the last margin of each tie; the breakpoints overwrite the front of `ordered`."""
    flips = len(ordered)
    seen_correct, absent_correct = np.empty((2, flips + 1), dtype=np.int64)
    seen_correct[0], absent_correct[0] = seen_first, absent_first
    points = seen_flips = 0
    for block in _blocks(flips):
        values = ordered[block.start : block.stop + 1]
        differs = values[1:] != values[:-1]
        last_of_tie = np.flatnonzero(np.append(differs, True) if block.stop == flips else differs)
        seen = is_seen[block].cumsum(dtype=np.int64)
        seen += seen_flips
        seen_flips, seen = int(seen[-1]), seen[last_of_tie]
        new = slice(points + 1, points + 1 + len(seen))
        np.subtract(seen_first, seen, out=seen_correct[new])
        last_of_tie += block.start + 1
        np.subtract(last_of_tie, seen, out=absent_correct[new])
        absent_correct[new] += absent_first
        ordered[points : points + len(seen)] = ordered[last_of_tie - 1]
        points += len(seen)
    found = ordered[:points], seen_correct[: points + 1], absent_correct[: points + 1]
    if points < flips // 2:  # many ties: free the unused memory behind
        found = found[0].copy(), found[1].copy(), found[2].copy()
    return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(found[2])


def _points_at_once(
    ordered: Tensor, is_seen: Tensor, seen_first: Tensor, absent_first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as `_points_by_blocks`, on any device, without blocks."""
    last_of_tie = torch.ones_like(is_seen)
    last_of_tie[:-1] = ordered[1:] != ordered[:-1]
    flips = torch.stack([is_seen, ~is_seen]).cumsum(1)[:, last_of_tie]
    seen_flips, absent_flips = torch.cat([flips.new_zeros(2, 1), flips], dim=1)
    return ordered[last_of_tie], seen_first - seen_flips, absent_first + absent_flips


def inside(low: Tensor, high: Tensor) -> Tensor:
    """Return one gamma in each interval ``(low, high]``: its middle, 1 beyond an open end, 0 if both are."""
    middle = low + (high - low) / 2
    beyond = torch.maximum(low + 1, low.nextafter(high))
    gamma = torch.where(middle > low, middle, high)
    gamma = torch.where(high == math.inf, beyond, torch.where(low == -math.inf, high - 1, gamma))
    return gamma.masked_fill_((low == -math.inf) & (high == math.inf), 0)


def point_at(breakpoints: ArrayLike, gamma: float) -> int:
    """Return the index of the operating point that holds at `gamma`."""
    ends = as_tensor(breakpoints, "breakpoints")
    return int(torch.searchsorted(ends, torch.tensor(gamma, dtype=torch.float64, device=ends.device)))


def interval_of(breakpoints: ArrayLike, point: int) -> tuple[float, float]:
    """Return the interval ``(low, high]`` of gamma in which operating point `point` holds."""
    low, high = _interval_of(breakpoints, point)
    return float(low), float(high)


def _interval_of(breakpoints: ArrayLike, point: int) -> tuple[Tensor, Tensor]:
    ends = as_tensor(breakpoints, "breakpoints")
    return intervals_of(ends, ends.new_tensor([point], dtype=torch.int64))


def intervals_of(breakpoints: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of the intervals ``(low, high]`` of gamma in which operating points hold."""
    last = len(breakpoints)
    if last == 0:
        ends = breakpoints.new_full(points.shape, math.inf)
        return -ends, ends
    low = breakpoints[(points - 1).clamp(min=0)].masked_fill(points == 0, -math.inf)
    return low, breakpoints[points.clamp(max=last - 1)].masked_fill(points == last, math.inf)


def gamma_inside(breakpoints: ArrayLike, point: int) -> float:
    """Return a gamma in the interval of operating point `point`: a float32 number where it holds one."""
    ends = _interval_of(breakpoints, point)
    low, high, middle = float(ends[0]), float(ends[1]), float(inside(*ends))
    with np.errstate(over="ignore"):
        rounded = np.float32(middle)
        # The float32 number nearest to the middle lies inside if any does; only on the open end, the next one does.
        candidates = rounded, np.nextafter(rounded, np.float32(math.inf))
    # Compared as Python floats: NumPy would round the ends of the interval to float32.
    return next((c for c in map(float, candidates) if low < c <= high and math.isfinite(c)), middle)
