"""What a gamma may be best for, and the operating point of a curve that is."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..inputs.arrays import ArrayLike, as_tensor
from ..inputs.checks import check_both_groups
from ..inputs.numbers import check_choice, check_drop
from .operating_points import inside, intervals_of, point_at


class Accuracies(Protocol):
    """What objectives are formed from: a `TradeoffCurve` of tensors, or a `BinnedCurve`."""

    @property
    def seen_correct(self) -> Tensor: ...
    @property
    def absent_correct(self) -> Tensor: ...
    @property
    def acc_absent(self) -> Tensor: ...
    @property
    def acc_seen(self) -> Tensor: ...
    @property
    def acc_all(self) -> Tensor: ...
    @property
    def n_seen(self) -> int: ...
    @property
    def n_absent(self) -> int: ...
    @property
    def average(self) -> str: ...


class Curve(Accuracies, Protocol):
    """Accuracies between breakpoints, at each of which some sample flips: a `TradeoffCurve`."""

    @property
    def breakpoints(self) -> Tensor: ...


MACRO_TOLERANCE = 1e-12
"""Sums of class weights carry rounding: macro accuracies closer than this are equal. Micro counts are exact."""


def best_point(curve: Curve, objective: str = "overall", max_seen_drop: float | None = None) -> int:
    """Return the index of the operating point that `TradeoffCurve.best` chooses."""
    if isinstance(objective, str) and objective == "nll":
        raise ValueError(
            "objective 'nll' needs the logits, and a curve knows only margins: use search_gamma(objective='nll')"
        )
    value_of = OBJECTIVES[check_choice(objective, tuple(OBJECTIVES), "objective")]
    check_both_groups(curve.n_seen, curve.n_absent)
    value = value_of(curve)
    tolerance = MACRO_TOLERANCE if curve.average == "macro" else 0
    if max_seen_drop is not None:
        value = value.masked_fill(~allowed_points(curve, max_seen_drop), -1)
    return preferred((value >= value.max() - tolerance).nonzero().squeeze(1), curve.breakpoints)


def preferred(points: Tensor, breakpoints: ArrayLike) -> int:
    """Of equally good operating points return that of the widest bounded interval, then that nearest to 0."""
    low, high = intervals_of(as_tensor(breakpoints, "breakpoints"), points)
    width = high - low
    if bool(width.isfinite().any()):
        width = width.masked_fill(width.isinf(), -1)
        widest = width == width.max()
        points, low, high = points[widest], low[widest], high[widest]
    return int(points[inside(low, high).abs().argmin()])


def allowed_points(curve: Curve, max_seen_drop: float) -> Tensor:
    """Return which operating points lose at most `max_seen_drop` of `Acc_{S/Y}`: the first ones, as it never rises."""
    acc_seen = curve.acc_seen
    return acc_seen >= acc_seen[point_at(curve.breakpoints, 0.0)] - check_drop(max_seen_drop) - MACRO_TOLERANCE


# --- objectives: larger is better, and equal accuracies give equal values ---------------------------------------------
# Accuracies are rounded, and so are their sums and products: under "micro" objectives are formed from the counts, which
# are exact, in whatever unit that gives.


def _overall(curve: Accuracies) -> Tensor:
    if curve.average == "macro":
        return curve.acc_all
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
        return curve.acc_seen, curve.acc_absent, 1, 1
    return curve.seen_correct, curve.absent_correct, curve.n_seen, curve.n_absent


def accuracy_per_unit(objective: str, n_seen: int, n_absent: int, average: str = "micro") -> float:
    """Return what a difference of 1 in the value of an objective is as a difference of accuracies."""
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
