"""The seen-absent curve: every accuracy at every gamma, exactly, from one sort of the margins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, SupportsFloat, overload

import numpy as np
import torch
from torch import Tensor

from ._arrays import ArrayLike, ArrayT, NumpyArray, as_tensor, matching, to_numpy
from ._checks import check_choice, gamma_as_float
from ._display import as_html, as_markdown
from ._records import data_frame, plain_fields
from .margin import Margins, margins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from .report import SeenAbsentReport

AVERAGES = ("micro", "macro")


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

    gamma: ArrayT
    seen_correct: ArrayT
    absent_correct: ArrayT
    acc_seen: ArrayT
    acc_absent: ArrayT
    acc_all: ArrayT
    breakpoints: ArrayT
    n_seen: int
    n_absent: int
    acc_seen_within: float
    acc_absent_within: float
    average: str
    samples: Margins[ArrayT]

    def __repr__(self) -> str:
        return (
            f"TradeoffCurve({len(self.gamma)} operating points, {self.n_seen} seen and {self.n_absent} absent samples, "
            f"{self.average}, AUSUC {self.ausuc:.4f})"
        )

    @property
    def ausuc(self) -> float:
        """Area under `Acc_{U/Y}` as a function of `Acc_{S/Y}` (Chao et al., ECCV 2016), by the trapezoidal rule."""
        seen, absent = as_tensor(self.acc_seen, "acc_seen"), as_tensor(self.acc_absent, "acc_absent")
        if self.n_seen == 0 or self.n_absent == 0:
            return math.nan
        return float(torch.trapezoid(absent, -seen))

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
        """Return the AUSUC, and the fields but `samples` as Python values, arrays as lists: for JSON."""
        return {"ausuc": self.ausuc, **plain_fields(self, leave_out=["samples"])}

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
    margin = as_tensor(samples.margin, "margin")
    is_seen, hit = as_tensor(samples.is_seen, "is_seen"), as_tensor(samples.hit, "hit")
    n_seen = int(is_seen.sum())
    n_absent = len(samples) - n_seen

    ordered, seen_flags = _sort_with_group(margin, is_seen, hit & margin.isfinite())
    last_of_tie = torch.ones_like(seen_flags)
    last_of_tie[:-1] = ordered[1:] != ordered[:-1]
    breakpoints = ordered[last_of_tie]
    seen_flipped = _prepend_zero(seen_flags.cumsum(0)[last_of_tie])
    flipped = _prepend_zero(last_of_tie.nonzero().squeeze(1) + 1)
    seen_correct = (hit & is_seen & (margin > -math.inf)).sum() - seen_flipped
    absent_correct = (hit & ~is_seen & (margin == -math.inf)).sum() + flipped - seen_flipped

    if average == "micro":
        acc_seen, acc_absent = seen_correct.double() / n_seen, absent_correct.double() / n_absent
        acc_all = (seen_correct + absent_correct).double() / (n_seen + n_absent)
        acc_within = [(hit & group).sum().double() / group.sum() for group in (is_seen, ~is_seen)]
    else:
        if samples.label is None:
            raise ValueError(
                "these margins come without labels, which average='macro' needs: MarginRows(keep_labels=True)"
            )
        weight, seen_share = _class_weights(as_tensor(samples.label, "label"), is_seen)
        seen_sum, absent_sum = weigh_correct(margin[hit], weight[hit], is_seen[hit], breakpoints)
        acc_seen, acc_absent = seen_sum / weight[is_seen].sum(), absent_sum / weight[~is_seen].sum()
        acc_all = seen_share * acc_seen.nan_to_num() + (1 - seen_share) * acc_absent.nan_to_num()
        acc_within = [(weight * hit)[group].sum() / weight[group].sum() for group in (is_seen, ~is_seen)]

    out = matching(samples.margin)
    return TradeoffCurve(
        out(representatives(breakpoints)),
        out(seen_correct),
        out(absent_correct),
        out(acc_seen),
        out(acc_absent),
        out(acc_all),
        out(breakpoints),
        n_seen,
        n_absent,
        float(acc_within[0]),
        float(acc_within[1]),
        average,
        samples,
    )


def _sort_with_group(margin: Tensor, is_seen: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the margins of the samples that flip (to float64) and carry along whether each is of a seen sample.

    On a CPU a float32 margin, widened to float64, has 29 spare mantissa bits: the lowest holds the group, and a sort of
    the values alone, several times faster than a sort with indices, carries it along.
    """
    if margin.device.type != "cpu" or margin.dtype == torch.float64:
        ordered, order = margin[flips].double().sort(stable=True)
        return ordered, is_seen[flips][order]
    packed = margin.double().view(torch.int64).bitwise_or_(is_seen).numpy()[flips.numpy()].view(np.float64)
    packed.sort()
    bits = torch.from_numpy(packed.view(np.int64))
    return (bits & ~1).view(torch.float64), (bits & 1).bool()


def _prepend_zero(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts])


def representatives(breakpoints: Tensor) -> Tensor:
    """Return one gamma inside each interval: midpoints, and 1 beyond either end."""
    if breakpoints.numel() == 0:
        return breakpoints.new_zeros(1)
    low, high = breakpoints[:-1], breakpoints[1:]
    middle = low + (high - low) / 2
    first, last = breakpoints[:1], breakpoints[-1:]
    above = torch.maximum(last + 1, last.nextafter(last.new_full((1,), math.inf)))
    return torch.cat([first - 1, torch.where(middle > low, middle, high), above])


def _class_weights(label: Tensor, is_seen: Tensor) -> tuple[Tensor, float]:
    """Return 1 / (samples of its class) for each sample, and the seen share of the classes that occur."""
    classes, index, counts = torch.unique(label, return_inverse=True, return_counts=True)
    class_is_seen = torch.zeros_like(classes, dtype=torch.bool).scatter(0, index, is_seen)
    return 1 / counts[index].double(), float(class_is_seen.double().mean())


def weigh_correct(margin: Tensor, weight: Tensor, is_seen: Tensor, breakpoints: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the weights of the seen and of the absent hits that are correct at each operating point."""
    points = breakpoints.numel() + 1
    position = torch.searchsorted(breakpoints, margin.double())
    stays = is_seen & (margin > -math.inf)
    seen = torch.bincount(position[stays], weight[stays], points).flip(0).cumsum(0).flip(0)
    position = torch.where(margin == -math.inf, 0, position + 1)
    joins = ~is_seen & (margin < math.inf)
    absent = torch.bincount(position[joins], weight[joins], points).cumsum(0)
    return seen, absent


def point_at(curve: TradeoffCurve[Any], gamma: float) -> int:
    """Return the index of the operating point that holds at `gamma`."""
    breakpoints = as_tensor(curve.breakpoints, "breakpoints")
    return int(torch.searchsorted(breakpoints, torch.tensor(gamma, dtype=torch.float64, device=breakpoints.device)))


def interval_of(curve: TradeoffCurve[Any], point: int) -> tuple[float, float]:
    """Return the interval ``(low, high]`` of gamma in which operating point `point` holds."""
    low = float(curve.breakpoints[point - 1]) if point > 0 else -math.inf
    high = float(curve.breakpoints[point]) if point < len(curve.breakpoints) else math.inf
    return low, high


def gamma_inside(curve: TradeoffCurve[Any], point: int) -> float:
    """Return a gamma in the interval of operating point `point`: a float32 number where it holds one."""
    low, high = interval_of(curve, point)
    middle = float(curve.gamma[point])
    with np.errstate(over="ignore"):
        rounded = np.float32(middle)
        # The float32 number nearest to the middle lies inside if any does; only on the open end, the next one does.
        candidates = rounded, np.nextafter(rounded, np.float32(math.inf))
    # Compared as Python floats: NumPy would round the ends of the interval to float32.
    return next((c for c in map(float, candidates) if low < c <= high and math.isfinite(c)), middle)
