"""Curves over gamma, the objectives that a gamma may maximise, and the operating point that does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol

import numpy as np
import torch
from torch import Tensor

from ..inputs.arrays import ArrayLike, ArrayT, as_tensor, as_type_of, to_numpy
from ..inputs.checks import check_both_groups
from ..inputs.numbers import check_choice, check_drop
from ..results.display import Block, Table
from ..results.format import percent
from ..results.records import data_frame
from ..results.result import Result
from .operating_points import inside, intervals_of, point_at

if TYPE_CHECKING:
    from pandas import DataFrame


class GammaCurve(Result, ABC, Generic[ArrayT]):
    """Values at K+1 operating points, for gamma from minus to plus infinity, between K ascending breakpoints.

    Operating point k holds for gamma in ``(breakpoints[k-1], breakpoints[k]]``.
    """

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
