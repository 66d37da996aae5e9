"""Operating points of a seen-absent curve: correct samples at each gamma, from one sort of the margins of the hits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol

import numpy as np
import torch
from torch import Tensor

from .arrays import ArrayLike, ArrayT, NumpyArray, as_tensor, as_type_of, check_choice, check_drop, to_numpy
from .checks import check_both_groups
from .results import Block, Result, Table, data_frame, percent

if TYPE_CHECKING:
    from pandas import DataFrame


class GammaCurve(Result, ABC, Generic[ArrayT]):
    """Values at K+1 operating points; point k holds for gamma in ``(breakpoints[k-1], breakpoints[k]]``."""

    breakpoints: ArrayT
    n_seen: int
    n_absent: int

    _COLUMNS: ClassVar[tuple[str, ...]]
    """The values at each operating point, by attribute."""
    _UNIT: ClassVar[str]
    """Title of the table."""
    _BEST: ClassVar[Mapping[str, str]]
    """Objectives of the rows of the table, and their names there."""

    @abstractmethod
    def best(self, objective: str = "overall") -> float:
        """Return a gamma that attains the maximum of `objective` over all real gamma."""

    @abstractmethod
    def _values_at(self, gamma: float) -> Mapping[str, float]:
        """Return the fractions at gamma, by column of the table."""

    @abstractmethod
    def _size(self) -> str:
        """Return a sentence on the size of the curve."""

    @cached_property
    def gamma(self) -> ArrayT:
        """A value inside each interval of gamma."""
        breakpoints = as_tensor(self.breakpoints, "breakpoints")
        end = breakpoints.new_full((1,), math.inf)
        gamma: ArrayT = as_type_of(self.breakpoints)(
            inside(torch.cat([-end, breakpoints]), torch.cat([breakpoints, end]))
        )
        return gamma

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per operating point, which holds for gamma in ``(gamma_low, gamma_high]``."""
        breakpoints = to_numpy(self.breakpoints)
        ends = {"gamma_low": np.append(-math.inf, breakpoints), "gamma_high": np.append(breakpoints, math.inf)}
        values = {name: to_numpy(getattr(self, name)) for name in self._COLUMNS}
        return data_frame({"gamma": to_numpy(self.gamma), **ends, **values})

    def to_markdown(self) -> str:
        """Return the values without calibration and at the best gamma of each kind, as GitHub Markdown."""
        return super().to_markdown()

    def _blocks(self) -> list[Block]:
        gammas = {"no calibration": 0.0}
        if self.n_seen and self.n_absent:
            gammas |= {f"{name} (oracle)": self.best(objective) for objective, name in self._BEST.items()}
        head = [f"{self._UNIT}, %", "gamma", *self._values_at(0.0)]
        rows = []
        for name, gamma in gammas.items():
            rows.append([name, f"{gamma:.4g}"])
            rows[-1] += map(percent, self._values_at(gamma).values())
        return [[self._size()], [Table(head, rows)]]


class Accuracies(Protocol):
    """The numbers that objectives are formed from, of a `TradeoffCurve` or a `BinnedCurve`."""

    @property
    def seen_correct(self) -> Any: ...
    @property
    def absent_correct(self) -> Any: ...
    @property
    def acc_absent(self) -> Any: ...
    @property
    def acc_seen(self) -> Any: ...
    @property
    def acc_all(self) -> Any: ...
    @property
    def n_seen(self) -> int: ...
    @property
    def n_absent(self) -> int: ...
    @property
    def average(self) -> str: ...


class Curve(Accuracies, Protocol):
    """Accuracies between breakpoints, at each of which some sample flips: a `TradeoffCurve`."""

    @property
    def breakpoints(self) -> Any: ...


MACRO_TOLERANCE = 1e-12
"""Sums of class weights carry rounding: macro accuracies closer than this are equal. Micro counts are exact."""


def best_point(curve: Curve, objective: str = "overall", max_seen_drop: float | None = None) -> int:
    """Return the index of the operating point that `TradeoffCurve.best` chooses."""
    if isinstance(objective, str) and objective == "nll":
        raise ValueError(
            "objective 'nll' needs the logits, and a curve has only margins: use search_gamma(objective='nll')"
        )
    value_of = OBJECTIVES[check_choice(objective, tuple(OBJECTIVES), "objective")]
    check_both_groups(curve.n_seen, curve.n_absent)
    value = value_of(curve)
    tolerance = MACRO_TOLERANCE if curve.average == "macro" else 0
    if max_seen_drop is not None:
        value = value.masked_fill(~allowed_points(curve, max_seen_drop), -1)
    return preferred_index((value >= value.max() - tolerance).nonzero().squeeze(1), curve.breakpoints)


def preferred_index(points: Tensor, breakpoints: ArrayLike) -> int:
    """Return the index of the point with the widest bounded interval, of equally wide ones that nearest to 0."""
    low, high = intervals_of(as_tensor(breakpoints, "breakpoints"), points)
    width = high - low
    if bool(width.isfinite().any()):
        width = width.masked_fill(width.isinf(), -1)
        widest = width == width.max()
        points, low, high = points[widest], low[widest], high[widest]
    return int(points[inside(low, high).abs().argmin()])


def allowed_points(curve: Curve, max_seen_drop: float) -> Tensor:
    """Return a mask of the operating points that lose at most `max_seen_drop` of `Acc_{S/Y}`, which never rises."""
    acc_seen = as_tensor(curve.acc_seen, "acc_seen")
    return acc_seen >= acc_seen[point_at(curve.breakpoints, 0.0)] - check_drop(max_seen_drop) - MACRO_TOLERANCE


# --- objectives: larger is better, and equal accuracies give equal values ---------------------------------------------
# Accuracies are rounded, and so are their sums and products: under "micro" objectives are formed from the counts, which
# are exact, in whatever unit that gives.


def _overall(curve: Accuracies) -> Tensor:
    if curve.average == "macro":
        return as_tensor(curve.acc_all, "acc_all")
    seen, absent, _, _ = _fractions(curve)
    return seen + absent


def _balanced(curve: Accuracies) -> Tensor:
    seen, absent, n_seen, n_absent = _fractions(curve)
    return seen * n_absent + absent * n_seen


def _harmonic(curve: Accuracies) -> Tensor:
    seen, absent, n_seen, n_absent = _fractions(curve)
    total = seen * n_absent + absent * n_seen
    return torch.where(total > 0, (seen * absent).double() / total.double(), 0)


def _absent(curve: Accuracies) -> Tensor:
    return _fractions(curve)[1]


def _fractions(curve: Accuracies) -> tuple[Tensor, Tensor, int, int]:
    """Return the numerators of the seen and the absent accuracy, and their denominators."""
    if curve.average == "macro":
        return as_tensor(curve.acc_seen, "acc_seen"), as_tensor(curve.acc_absent, "acc_absent"), 1, 1
    seen, absent = as_tensor(curve.seen_correct, "seen_correct"), as_tensor(curve.absent_correct, "absent_correct")
    return seen, absent, curve.n_seen, curve.n_absent


def accuracy_per_unit(objective: str, n_seen: int, n_absent: int, average: str = "micro") -> float:
    """Return the accuracy difference that corresponds to a difference of 1 in the objective."""
    if average == "macro":  # Formed from accuracies, not from counts.
        return {"overall": 1.0, "balanced": 0.5, "harmonic": 2.0, "absent": 1.0}[objective]
    return {
        "overall": 1 / (n_seen + n_absent),
        "balanced": 0.5 / (n_seen * n_absent),
        "harmonic": 2.0,
        "absent": 1 / n_absent,
    }[objective]


OBJECTIVES: dict[str, Callable[[Accuracies], Tensor]] = {
    "overall": _overall,
    "balanced": _balanced,
    "harmonic": _harmonic,
    "absent": _absent,
}


_BLOCK = 1 << 17


def operating_points(margin: Tensor, is_seen: Tensor, hit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the K distinct finite margins of hits, float64, and the correct seen and absent samples at K+1 points."""
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
    """Return `_sort_with_group` for hits with a finite margin, faster for float32: as integers with the group in a bit.

    Integers, not floats with such bits: a processor that flushes denormal numbers would lose the group of margin 0.
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
