"""The seen-absent curve from counts in bins: exact at the edges, and with certified bounds in between."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluation.curve import TradeoffCurve
from ..evaluation.margins import Margins
from ..evaluation.objectives import OBJECTIVES, accuracy_per_unit, best_point
from ..evaluation.operating_points import gamma_inside, twice_the_area
from ..inputs.checks import check_both_groups
from ..inputs.numbers import check_choice


def bin_edges(n_bins: int, scale: float) -> Tensor:
    r"""Return the edges of bins that hold every margin, narrow near 0 and wide far from it: `(n_bins + 1,)` float64.

    .. math:: e_k = s \, \frac{u_k}{1 - |u_k|}, \qquad u_k = \frac{2k}{B} - 1

    from -inf to +inf, rounded to float32 so that gamma may be one of them.
    """
    u = torch.linspace(-1, 1, n_bins + 1, dtype=torch.float64)
    return (scale * u / (1 - u.abs())).float().double()


@dataclass(frozen=True, eq=False)
class BinnedCurve:
    r"""Accuracies at the edges of B bins of margins, for gamma from minus to plus infinity; made by `MarginBins`.

    At an edge all counts are exact. Between two edges the curve falls from one point to the next in steps that the bins
    do not tell apart, so what is said of the whole curve comes with a bound that certainly holds.

    Attributes
    ----------
    gamma : (B+1,) float64
        The edges, float32 numbers, from -inf to +inf.
    seen_correct, absent_correct : (B+1,) int64
        Correct samples among the seen and the absent ones.
    n_seen, n_absent : int
        Samples with a seen and with an absent label.
    acc_seen_within, acc_absent_within : float
        `Acc_{S/S}` and `Acc_{U/U}`, as fractions.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import MarginBins
    >>> state = MarginBins(np.array([True, True, False]))
    >>> curve = state.update(
    ...     np.array([[4.0, 1, 3], [2, 5, 4.5], [6, 1, 2]]), [0, 2, 0]
    ... ).compute()
    >>> curve
    BinnedCurve(65536 bins, 2 seen and 1 absent samples, AUSUC 1.0000 ± 0.0e+00)
    >>> 0.5 < curve.best() <= 1.0, curve.shortfall()
    (True, 0.0)
    """

    gamma: Tensor
    seen_correct: Tensor
    absent_correct: Tensor
    n_seen: int
    n_absent: int
    acc_seen_within: float
    acc_absent_within: float
    average = "micro"

    @property
    def acc_seen(self) -> Tensor:
        """`Acc_{S/Y}` at each edge; NaN without seen samples."""
        return self.seen_correct.double() / self.n_seen

    @property
    def acc_absent(self) -> Tensor:
        """`Acc_{U/Y}` at each edge; NaN without absent samples."""
        return self.absent_correct.double() / self.n_absent

    @property
    def acc_all(self) -> Tensor:
        """`Acc_{Y/Y}` at each edge."""
        return (self.seen_correct + self.absent_correct).double() / (self.n_seen + self.n_absent)

    @property
    def ausuc(self) -> float:
        """Area under the seen-absent curve, by the trapezoidal rule over the edges; see `ausuc_error`."""
        if self.n_seen == 0 or self.n_absent == 0:
            return math.nan
        return twice_the_area(self.seen_correct, self.absent_correct) / (2 * self.n_seen * self.n_absent)

    @property
    def ausuc_error(self) -> float:
        r"""How far `ausuc` is from that of all margins, at most: :math:`\sum_k h^S_k h^U_k / (2 n_S n_U)`.

        With :math:`h^S_k` and :math:`h^U_k` the seen and absent hits in bin k: within it the curve may be any staircase
        in a rectangle of these sides.
        """
        if self.n_seen == 0 or self.n_absent == 0:
            return math.nan
        return float((-self.acc_seen.diff() * self.acc_absent.diff()).sum() / 2)

    def best(self, objective: str = "overall") -> float:
        """Return the edge at which `objective` is largest, of equals that nearest to 0; see `shortfall`.

        Objectives are those of `TradeoffCurve.best`. ValueError if the samples are of one group only.
        """
        value = self._value(objective)[1:-1]
        distance = self.gamma[1:-1].abs().masked_fill(value < value.max(), math.inf)
        return float(self.gamma[1:-1][distance.argmin()])

    def shortfall(self, objective: str = "overall") -> float:
        """Return how much better than `best` any gamma could be, at most, in the objective's own unit (an accuracy)."""
        value = self._value(objective)
        difference = max(0.0, float(self._upper_bounds(objective).max() - value[1:-1].max()))
        return difference * accuracy_per_unit(objective, self.n_seen, self.n_absent)

    def windows(self, objective: str = "overall") -> Tensor:
        """Return which bins may hold a best gamma, `(B,)` bool: `BestGamma` looks at the margins in these again."""
        return self._upper_bounds(objective) >= self._value(objective).max()

    def _value(self, objective: str) -> Tensor:
        check_both_groups(self.n_seen, self.n_absent)
        return OBJECTIVES[check_choice(objective, tuple(OBJECTIVES), "objective")](self)

    def _upper_bounds(self, objective: str) -> Tensor:
        """Return the objective with the seen accuracy of a bin's left edge and the absent accuracy of its right one."""
        return replace(self, seen_correct=self.seen_correct[:-1], absent_correct=self.absent_correct[1:])._value(
            objective
        )

    def __repr__(self) -> str:
        return (
            f"BinnedCurve({len(self.gamma) - 1} bins, {self.n_seen} seen and {self.n_absent} absent samples, "
            f"AUSUC {self.ausuc:.4f} ± {self.ausuc_error:.1e})"
        )


def exact_best(curve: BinnedCurve, windows: Tensor, margin: Tensor, is_seen: Tensor, objective: str) -> float:
    """Return what `TradeoffCurve.best` would, given the margins of all hits in `windows`, in any order."""
    starts = windows & ~torch.cat([windows.new_zeros(1), windows[:-1]])
    first_edges = starts.nonzero().squeeze(1)
    run_of_bin = starts.long().cumsum(0) - 1
    ordered, order = margin.double().sort(stable=True)
    inner_starts = curve.gamma[:-1][first_edges]
    breakpoints = torch.unique(torch.cat([ordered, inner_starts[inner_starts.isfinite()]]))
    seen_flags = is_seen[order].long()
    seen_below = torch.cat([seen_flags.new_zeros(1), seen_flags.cumsum(0)])

    def below(gamma: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.searchsorted(ordered, gamma)
        return seen_below[count], count - seen_below[count]

    # A breakpoint is the right end of its interval: counts there are those of the start of its run, and what flipped.
    ends = torch.cat([breakpoints, breakpoints.new_full((1,), math.inf)])
    bins = (torch.searchsorted(curve.gamma, ends, right=True) - 1).clamp(max=len(windows) - 1)
    run = run_of_bin[bins].clamp(min=0)
    start = first_edges[run]
    flipped, before = below(ends), below(curve.gamma[start])
    seen_correct = curve.seen_correct[start] - (flipped[0] - before[0])
    absent_correct = curve.absent_correct[start] + (flipped[1] - before[1])
    samples = Margins(margin, is_seen, torch.ones_like(is_seen), None)
    whole = TradeoffCurve(
        seen_correct, absent_correct, breakpoints, curve.n_seen, curve.n_absent, curve.average, samples
    )
    return gamma_inside(breakpoints, best_point(whole, objective))
