"""What a gamma may be best for, and the operating point of a curve that is."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ._arrays import as_tensor
from ._checks import check_both_groups, check_choice, check_max_seen_drop
from .curve import TradeoffCurve, point_at


class Accuracies(Protocol):
    """What objectives are formed from: a `TradeoffCurve`, or a `BinnedCurve`."""

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


MACRO_TOLERANCE = 1e-12
"""Sums of class weights carry rounding: macro accuracies closer than this are equal. Micro counts are exact."""


def best_point(curve: TradeoffCurve[Any], objective: str = "overall", max_seen_drop: float | None = None) -> int:
    """Return the index of the operating point that `TradeoffCurve.best` chooses."""
    if objective == "nll":
        raise ValueError(
            "objective 'nll' needs the logits, and a curve knows only margins: use search_gamma(objective='nll')"
        )
    value_of = OBJECTIVES[check_choice(objective, tuple(OBJECTIVES), "objective")]
    check_both_groups(curve.n_seen, curve.n_absent)
    value = value_of(curve)
    tolerance = MACRO_TOLERANCE if curve.average == "macro" else 0
    if max_seen_drop is not None:
        value = value.masked_fill(~allowed_points(curve, max_seen_drop), -1)
    best = value >= value.max() - tolerance
    width = torch.full_like(best, math.inf, dtype=torch.float64)
    width[1:-1] = as_tensor(curve.breakpoints, "breakpoints").diff()
    if bool((best & width.isfinite()).any()):
        best &= width.isfinite()
        best &= width == width[best].max()
    distance = as_tensor(curve.gamma, "gamma").abs().masked_fill(~best, math.inf)
    return int(distance.argmin())


def allowed_points(curve: TradeoffCurve[Any], max_seen_drop: float) -> Tensor:
    """Return which operating points lose at most `max_seen_drop` of `Acc_{S/Y}`: the first ones, as it never rises."""
    acc_seen = as_tensor(curve.acc_seen, "acc_seen")
    return acc_seen >= acc_seen[point_at(curve, 0.0)] - check_max_seen_drop(max_seen_drop) - MACRO_TOLERANCE


# --- objectives: larger is better, and equal accuracies give equal values ---------------------------------------------
# Shares of one count are equal where the counts are. Sums and products of two shares are rounded, so that under "micro"
# they are formed from the counts, which are exact.


def _overall(curve: Accuracies) -> Tensor:
    return as_tensor(curve.acc_all, "acc_all")


def _balanced(curve: Accuracies) -> Tensor:
    seen, absent, n_seen, n_absent = _fractions(curve)
    return seen * n_absent + absent * n_seen


def _harmonic(curve: Accuracies) -> Tensor:
    seen, absent, n_seen, n_absent = _fractions(curve)
    total = seen * n_absent + absent * n_seen
    return torch.where(total > 0, (seen * absent).double() / total.double(), 0)


def _absent(curve: Accuracies) -> Tensor:
    return as_tensor(curve.acc_absent, "acc_absent")


def _fractions(curve: Accuracies) -> tuple[Tensor, Tensor, int, int]:
    """Return the numerators of the seen and the absent accuracy, and their denominators."""
    if curve.average == "macro":
        return as_tensor(curve.acc_seen, "acc_seen"), as_tensor(curve.acc_absent, "acc_absent"), 1, 1
    seen, absent = as_tensor(curve.seen_correct, "seen_correct"), as_tensor(curve.absent_correct, "absent_correct")
    return seen, absent, curve.n_seen, curve.n_absent


OBJECTIVES: dict[str, Callable[[Accuracies], Tensor]] = {
    "overall": _overall,
    "balanced": _balanced,
    "harmonic": _harmonic,
    "absent": _absent,
}
