"""The seen-absent curve: every accuracy at every gamma, exactly, from one sort of the margins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, SupportsFloat, overload

import numpy as np
import torch
from torch import Tensor

from ._arrays import ArrayLike, ArrayT, NumpyArray, as_tensor, matching, to_numpy
from ._checks import check_choice, gamma_as_float
from ._display import as_html, as_markdown
from ._records import data_frame, plain_values
from .averages import AVERAGES, accuracies, accuracies_within
from .margin import Margins, margins
from .operating_points import operating_points, twice_the_area

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from .report import SeenAbsentReport

_ARRAYS = ("gamma", "seen_correct", "absent_correct", "acc_seen", "acc_absent", "acc_all", "breakpoints")
_PLAIN = ("ausuc", *_ARRAYS, "n_seen", "n_absent", "acc_seen_within", "acc_absent_within", "average")


@dataclass(frozen=True, eq=False)
class TradeoffCurve(Generic[ArrayT]):
    r"""Accuracies of K+1 operating points, for gamma from minus to plus infinity; made by `tradeoff_curve`.

    The breakpoints are the K distinct finite margins of the hits (a sample that is wrong within its own group is wrong
    at every gamma). Operating point k holds for gamma in ``(breakpoints[k-1], breakpoints[k]]``.

    Attributes
    ----------
    gamma : (K+1,) float64
        A value inside each interval: midpoints, and 1 beyond either end; [0] if K = 0.
    seen_correct, absent_correct : (K+1,) int64
        Correct samples among the seen and the absent ones.
    acc_seen, acc_absent, acc_all : (K+1,) float64
        `Acc_{S/Y}`, `Acc_{U/Y}` and `Acc_{Y/Y}`; NaN where there are no such samples. Under ``average="macro"`` means
        over the classes that occur.
    breakpoints : (K,) float64
        Ascending.
    n_seen, n_absent : int
        Samples with a seen and with an absent label.
    acc_seen_within, acc_absent_within : float
        `Acc_{S/S}` and `Acc_{U/U}`.
    average : str
        "micro" or "macro".
    samples : Margins
        What the curve was made from.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.tradeoff_curve(logits, labels=[0, 2, 0], seen_mask=[True, True, False])
    >>> curve
    TradeoffCurve(4 operating points, 2 seen and 1 absent samples, micro, AUSUC 1.0000)
    >>> curve.best("balanced"), curve.at(0.75).acc_all
    (0.75, 1.0)
    """

    seen_correct: ArrayT
    absent_correct: ArrayT
    breakpoints: ArrayT
    n_seen: int
    n_absent: int
    average: str
    samples: Margins[ArrayT]

    @cached_property
    def gamma(self) -> ArrayT:
        """A value inside each interval of gamma."""
        breakpoints = as_tensor(self.breakpoints, "breakpoints")
        end = breakpoints.new_full((1,), math.inf)
        gamma: ArrayT = matching(self.samples.margin)(
            inside(torch.cat([-end, breakpoints]), torch.cat([breakpoints, end]))
        )
        return gamma

    @property
    def acc_seen(self) -> ArrayT:
        """`Acc_{S/Y}`, NaN without seen samples."""
        return self._accuracies[0]

    @property
    def acc_absent(self) -> ArrayT:
        """`Acc_{U/Y}`, NaN without absent samples."""
        return self._accuracies[1]

    @property
    def acc_all(self) -> ArrayT:
        """`Acc_{Y/Y}`."""
        return self._accuracies[2]

    @property
    def acc_seen_within(self) -> float:
        """`Acc_{S/S}`."""
        return self._acc_within[0]

    @property
    def acc_absent_within(self) -> float:
        """`Acc_{U/U}`."""
        return self._acc_within[1]

    @cached_property
    def _accuracies(self) -> tuple[ArrayT, ArrayT, ArrayT]:
        seen, absent, overall = map(matching(self.samples.margin), accuracies(self))
        return seen, absent, overall

    @cached_property
    def _acc_within(self) -> tuple[float, float]:
        return accuracies_within(self)

    def __repr__(self) -> str:
        return (
            f"TradeoffCurve({len(self.gamma)} operating points, {self.n_seen} seen and {self.n_absent} absent samples, "
            f"{self.average}, AUSUC {self.ausuc:.4f})"
        )

    @property
    def ausuc(self) -> float:
        """Area under `Acc_{U/Y}` as a function of `Acc_{S/Y}` (Chao et al., ECCV 2016), by the trapezoidal rule."""
        if self.n_seen == 0 or self.n_absent == 0:
            return math.nan
        if self.average == "macro":
            seen, absent = as_tensor(self.acc_seen, "acc_seen"), as_tensor(self.acc_absent, "acc_absent")
            return float(torch.trapezoid(absent, -seen))
        seen, absent = as_tensor(self.seen_correct, "seen_correct"), as_tensor(self.absent_correct, "absent_correct")
        return twice_the_area(seen, absent) / (2 * self.n_seen * self.n_absent)

    def best(self, objective: str = "overall", max_seen_drop: float | None = None) -> float:
        """Return a gamma that attains the maximum of `objective` over all real gamma.

        Parameters
        ----------
        objective : {"overall", "balanced", "harmonic", "absent"}
            `Acc_{Y/Y}`; the mean or the harmonic mean of `Acc_{S/Y}` and `Acc_{U/Y}`; or `Acc_{U/Y}`.
        max_seen_drop : float, optional
            Admit only gamma with ``Acc_{S/Y}(gamma) >= Acc_{S/Y}(0) - max_seen_drop``.

        Returns
        -------
        float
            Inside the widest of the equally good bounded intervals, nearest to 0 among equally wide ones; 1 beyond the
            outermost breakpoint only if no bounded interval is as good. Exact in float32 wherever the interval holds a
            float32 number.

        Raises
        ------
        ValueError
            If the samples are of one group only, or an argument is out of its range.

        Examples
        --------
        >>> import numpy as np, finecal
        >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
        >>> curve = finecal.tradeoff_curve(logits, labels=[0, 2], seen_mask=[True, True, False])
        >>> curve.best("absent"), curve.best("absent", max_seen_drop=0.0)
        (3.5, 0.0)
        """
        from .objectives import best_point

        return gamma_inside(self, best_point(self, objective, max_seen_drop))

    def at(self, gamma: SupportsFloat) -> SeenAbsentReport:
        """Return all accuracies at `gamma` (a float, 0-d tensor or GammaEstimate)."""
        from .report import report_at

        return report_at(self, gamma_as_float(gamma))

    def to_dict(self) -> dict[str, Any]:
        """Return the AUSUC, and what else is above but `samples` as Python values, arrays as lists: for JSON."""
        return plain_values(self, _PLAIN)

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per operating point, which holds for gamma in ``(gamma_low, gamma_high]``."""
        breakpoints = to_numpy(self.breakpoints)
        ends = {"gamma_low": np.append(-math.inf, breakpoints), "gamma_high": np.append(breakpoints, math.inf)}
        accuracies = ("seen_correct", "absent_correct", "acc_seen", "acc_absent", "acc_all")
        return data_frame(
            {"gamma": to_numpy(self.gamma), **ends, **{name: to_numpy(getattr(self, name)) for name in accuracies}}
        )

    def to_markdown(self) -> str:
        """Return the accuracies without calibration and at the best gamma of each kind, as GitHub Markdown."""
        from .curve_summary import blocks

        return as_markdown(blocks(self))

    def _repr_html_(self) -> str:
        from .curve_summary import blocks, picture

        return as_html(blocks(self), picture(self))

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw `Acc_{U/Y}` against `Acc_{S/Y}`; see `finecal.plots.plot_tradeoff` (needs the extra ``plots``)."""
        from .plots import plot_tradeoff

        return plot_tradeoff(self, ax=ax, **style)


@overload
def tradeoff_curve(
    logits: Tensor, labels: ArrayLike, seen_mask: ArrayLike, average: str = "micro"
) -> TradeoffCurve[Tensor]: ...
@overload
def tradeoff_curve(
    logits: NumpyArray | Sequence[Any], labels: ArrayLike, seen_mask: ArrayLike, average: str = "micro"
) -> TradeoffCurve[NumpyArray]: ...
def tradeoff_curve(
    logits: ArrayLike, labels: ArrayLike, seen_mask: ArrayLike, average: str = "micro"
) -> TradeoffCurve[Any]:
    r"""Return the exact accuracies on seen and absent classes at every gamma.

    .. math::
        \text{Acc}_{S/Y}(\gamma) &= \langle\, \text{hit} \wedge \text{margin} \ge \gamma \,\rangle_S \\
        \text{Acc}_{U/Y}(\gamma) &= \langle\, \text{hit} \wedge \text{margin} < \gamma \,\rangle_U

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes.
    labels : (N,) int
        Class indices in ``[0, C)``; samples of one group only leave the other's accuracies NaN.
    seen_mask : (C,) bool
        True for the seen classes.
    average : {"micro", "macro"}
        "macro" weighs each sample by 1 / (samples of its class x occurring classes of its group).

    Returns
    -------
    TradeoffCurve
        Of the type and device of `logits`.

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError if `average` is neither of the two.

    Notes
    -----
    `O(NC + N log N)`. Equal margins flip together; samples whose margin is infinite never flip. AUSUC: Chao et al., "An
    Empirical Study and Analysis of Generalized Zero-Shot Learning", ECCV 2016.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> curve = finecal.tradeoff_curve(logits, labels=[0, 2], seen_mask=[True, True, False])
    >>> curve.gamma, curve.acc_seen, curve.acc_absent
    (array([0.  , 1.75, 3.5 ]), array([1., 0., 0.]), array([0., 0., 1.]))
    """
    check_choice(average, AVERAGES, "average")
    return margins(logits, labels, seen_mask).curve(average)


def curve_from_margins(samples: Margins[ArrayT], average: str) -> TradeoffCurve[ArrayT]:
    """Sort the margins of the hits and count what flips at each."""
    check_choice(average, AVERAGES, "average")
    if average == "macro" and samples.label is None:
        raise ValueError("these margins come without labels, which average='macro' needs: MarginRows(keep_labels=True)")
    is_seen = as_tensor(samples.is_seen, "is_seen")
    points = operating_points(as_tensor(samples.margin, "margin"), is_seen, as_tensor(samples.hit, "hit"))
    n_seen = int(is_seen.count_nonzero())
    out = matching(samples.margin)
    breakpoints, seen_correct, absent_correct = map(out, points)
    return TradeoffCurve(seen_correct, absent_correct, breakpoints, n_seen, len(samples) - n_seen, average, samples)


def inside(low: Tensor, high: Tensor) -> Tensor:
    """Return one gamma in each interval ``(low, high]``: its middle, 1 beyond an open end, 0 if both are."""
    middle = low + (high - low) / 2
    beyond = torch.maximum(low + 1, low.nextafter(high))
    gamma = torch.where(middle > low, middle, high)
    gamma = torch.where(high == math.inf, beyond, torch.where(low == -math.inf, high - 1, gamma))
    return gamma.masked_fill_((low == -math.inf) & (high == math.inf), 0)


def point_at(curve: TradeoffCurve[Any], gamma: float) -> int:
    """Return the index of the operating point that holds at `gamma`."""
    breakpoints = as_tensor(curve.breakpoints, "breakpoints")
    return int(torch.searchsorted(breakpoints, torch.tensor(gamma, dtype=torch.float64, device=breakpoints.device)))


def interval_of(curve: TradeoffCurve[Any], point: int) -> tuple[float, float]:
    """Return the interval ``(low, high]`` of gamma in which operating point `point` holds."""
    low, high = _interval_of(curve, point)
    return float(low), float(high)


def _interval_of(curve: TradeoffCurve[Any], point: int) -> tuple[Tensor, Tensor]:
    return intervals_of(curve, as_tensor(curve.breakpoints, "breakpoints").new_tensor([point], dtype=torch.int64))


def intervals_of(curve: TradeoffCurve[Any], points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of the intervals ``(low, high]`` of gamma in which operating points hold."""
    breakpoints = as_tensor(curve.breakpoints, "breakpoints")
    last = len(breakpoints)
    if last == 0:
        ends = breakpoints.new_full(points.shape, math.inf)
        return -ends, ends
    low = breakpoints[(points - 1).clamp(min=0)].masked_fill(points == 0, -math.inf)
    return low, breakpoints[points.clamp(max=last - 1)].masked_fill(points == last, math.inf)


def gamma_inside(curve: TradeoffCurve[Any], point: int) -> float:
    """Return a gamma in the interval of operating point `point`: a float32 number where it holds one."""
    ends = _interval_of(curve, point)
    low, high, middle = float(ends[0]), float(ends[1]), float(inside(*ends))
    with np.errstate(over="ignore"):
        rounded = np.float32(middle)
        # The float32 number nearest to the middle lies inside if any does; only on the open end, the next one does.
        candidates = rounded, np.nextafter(rounded, np.float32(math.inf))
    # Compared as Python floats: NumPy would round the ends of the interval to float32.
    return next((c for c in map(float, candidates) if low < c <= high and math.isfinite(c)), middle)
