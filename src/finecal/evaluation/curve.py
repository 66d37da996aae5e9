"""The seen-absent curve: every accuracy at every gamma, exactly, from one sort of the margins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from ..inputs.arrays import ArrayT, as_tensor, dtype_name, matching, shape_of, to_numpy
from ..inputs.checks import gamma_as_float
from ..inputs.numbers import check_choice
from ..results import exits
from ..results.display import Block, Picture, Table, drawn
from ..results.format import decimal, percent
from ..results.records import data_frame, plain_values
from ..results.result import Result
from .accuracies import AVERAGES, accuracies_within, harmonic_mean, macro_accuracies
from .margins import Margins
from .objectives import best_point
from .operating_points import gamma_inside, inside, operating_points, point_at, twice_the_area
from .report import SeenAbsentReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


_ARRAYS = ("gamma", "seen_correct", "absent_correct", "acc_seen", "acc_absent", "acc_all", "breakpoints")
_BEST = {"overall": "best Acc_Y/Y", "balanced": "best balanced", "harmonic": "best harmonic mean"}
_PLAIN = ("ausuc", *_ARRAYS, "n_seen", "n_absent", "acc_seen_within", "acc_absent_within", "average")


@dataclass(frozen=True, eq=False)
class TradeoffCurve(Result, Generic[ArrayT]):
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
        `Acc_{S/Y}`, `Acc_{U/Y}` and `Acc_{Y/Y}`, as fractions; NaN where there are no such samples. Under
        ``average="macro"`` means over the classes that occur.
    breakpoints : (K,) float64
        Ascending.
    n_seen, n_absent : int
        Samples with a seen and with an absent label.
    acc_seen_within, acc_absent_within : float
        `Acc_{S/S}` and `Acc_{U/U}`, as fractions.
    average : str
        "micro" or "macro".
    samples : Margins
        What the curve was made from.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.tradeoff_curve(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False]
    ... )
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

    @property
    def _tensors(self) -> TradeoffCurve[Tensor]:
        """The same curve in torch, in which all is computed."""
        return self if isinstance(self.samples.margin, Tensor) else self._from_numpy

    @cached_property
    def _from_numpy(self) -> TradeoffCurve[Tensor]:
        arrays = self.seen_correct, self.absent_correct, self.breakpoints
        seen_correct, absent_correct, breakpoints = (as_tensor(array, "array") for array in arrays)
        return TradeoffCurve(
            seen_correct,
            absent_correct,
            breakpoints,
            self.n_seen,
            self.n_absent,
            self.average,
            _margins_as_tensors(self.samples),
        )

    @cached_property
    def gamma(self) -> ArrayT:
        """A value inside each interval of gamma."""
        breakpoints = self._tensors.breakpoints
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
        curve = self._tensors
        if curve is not self:
            found = curve._accuracies
        elif self.average == "macro":
            found = macro_accuracies(curve.samples, curve.breakpoints)
        else:
            seen, absent = curve.seen_correct, curve.absent_correct
            overall = (seen + absent).double() / (self.n_seen + self.n_absent)
            found = seen.double() / self.n_seen, absent.double() / self.n_absent, overall
        acc_seen, acc_absent, acc_all = map(matching(self.samples.margin), found)
        return acc_seen, acc_absent, acc_all

    @cached_property
    def _acc_within(self) -> tuple[float, float]:
        return accuracies_within(self._tensors.samples, self.average)

    def __repr__(self) -> str:
        return (
            f"TradeoffCurve({len(self.gamma)} operating points, {self.n_seen} seen and {self.n_absent} absent samples, "
            f"{self.average}, AUSUC {self.ausuc:.4f})"
        )

    __str__ = __repr__

    @property
    def ausuc(self) -> float:
        """Area under `Acc_{U/Y}` as a function of `Acc_{S/Y}` (Chao et al., ECCV 2016), by the trapezoidal rule."""
        if self.n_seen == 0 or self.n_absent == 0:
            return math.nan
        curve = self._tensors
        if self.average == "macro":
            return float(torch.trapezoid(curve.acc_absent, -curve.acc_seen))
        return twice_the_area(curve.seen_correct, curve.absent_correct) / (2 * self.n_seen * self.n_absent)

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
        >>> curve = finecal.tradeoff_curve(
        ...     logits, labels=[0, 2], seen_mask=[True, True, False]
        ... )
        >>> curve.best("absent"), curve.best("absent", max_seen_drop=0.0)
        (3.5, 0.0)
        """
        curve = self._tensors
        return gamma_inside(curve.breakpoints, best_point(curve, objective, max_seen_drop))

    def at(self, gamma: SupportsFloat) -> SeenAbsentReport:
        """Return all accuracies at `gamma` (a float, 0-d tensor or GammaEstimate)."""
        value, curve = gamma_as_float(gamma), self._tensors
        point = point_at(curve.breakpoints, value)
        seen, absent = float(curve.acc_seen[point]), float(curve.acc_absent[point])
        return SeenAbsentReport(
            acc_all=float(curve.acc_all[point]),
            acc_seen=seen,
            acc_absent=absent,
            acc_seen_within=self.acc_seen_within,
            acc_absent_within=self.acc_absent_within,
            harmonic_mean=harmonic_mean(seen, absent),
            balanced=(seen + absent) / 2,
            ausuc=self.ausuc,
            gamma=value,
            n_seen=self.n_seen,
            n_absent=self.n_absent,
            average=self.average,
            _samples=self.samples,
        )

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
        return super().to_markdown()

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw `Acc_{U/Y}` against `Acc_{S/Y}`; see `finecal.plots.plot_tradeoff` (needs the extra ``plots``)."""
        axes: Axes = exits.plots().plot_tradeoff(self, ax=ax, **style)
        return axes

    def _blocks(self) -> list[Block]:
        sentence = (
            f"{self.n_seen} seen and {self.n_absent} absent samples ({self.average}), {len(self.gamma)} operating "
            f"points, AUSUC {decimal(self.ausuc, 4)}"
        )
        return [[sentence], [_table(self)]]

    def _picture(self) -> Picture | None:
        if not (self.n_seen and self.n_absent):
            return None
        return drawn(self.plot, "Acc_U/Y against Acc_S/Y over all gamma; the marks are rows of the table")


def curve_from_margins(samples: Margins[ArrayT], average: str) -> TradeoffCurve[ArrayT]:
    """Sort the margins of the hits and count what flips at each."""
    check_choice(average, AVERAGES, "average")
    if average == "macro" and samples.label is None:
        raise ValueError("these margins come without labels, which average='macro' needs: MarginRows(keep_labels=True)")
    return curve_with(curve_of(_checked(samples), average), samples)


def curve_of(samples: Margins[Tensor], average: str) -> TradeoffCurve[Tensor]:
    """Return the curve of checked samples, in torch."""
    breakpoints, seen_correct, absent_correct = operating_points(samples.margin, samples.is_seen, samples.hit)
    n_seen = int(samples.is_seen.count_nonzero())
    return TradeoffCurve(seen_correct, absent_correct, breakpoints, n_seen, len(samples) - n_seen, average, samples)


def curve_with(curve: TradeoffCurve[Tensor], samples: Margins[ArrayT]) -> TradeoffCurve[ArrayT]:
    """Return a curve in the type of its samples, which are those of `curve`."""
    to_type = matching(samples.margin)
    return TradeoffCurve(
        to_type(curve.seen_correct),
        to_type(curve.absent_correct),
        to_type(curve.breakpoints),
        curve.n_seen,
        curve.n_absent,
        curve.average,
        samples,
    )


def _margins_as_tensors(samples: Margins[Any]) -> Margins[Tensor]:
    label = None if samples.label is None else as_tensor(samples.label, "label")
    margin, is_seen = as_tensor(samples.margin, "margin"), as_tensor(samples.is_seen, "is_seen")
    return Margins(margin, is_seen, as_tensor(samples.hit, "hit"), label)


def _checked(samples: Margins[Any]) -> Margins[Tensor]:
    """Return the samples in torch, once they are what they should be; a user may have put them together."""
    tensors = _margins_as_tensors(samples)
    margin = tensors.margin
    if margin.ndim != 1 or not margin.is_floating_point() or margin.itemsize == 1:
        raise TypeError(
            f"margin has shape {shape_of(margin)} and dtype {dtype_name(margin)}; expected one floating-point number "
            "per sample"
        )
    if bool(margin.isnan().any()):
        raise ValueError("margin contains NaN; drop these samples or repair the model")
    for name in ("is_seen", "hit", "label"):
        tensor = getattr(tensors, name)
        if tensor is None:
            continue
        is_index = name == "label"
        wrong = tensor.dtype == torch.bool or tensor.is_floating_point() if is_index else tensor.dtype != torch.bool
        if tensor.shape != margin.shape or wrong or tensor.is_complex():
            raise TypeError(
                f"{name} has shape {shape_of(tensor)} and dtype {dtype_name(tensor)} for {margin.shape[0]} margins; "
                f"expected one {'class index' if is_index else 'boolean'} per margin"
            )
    return tensors


def _table(curve: TradeoffCurve[Any]) -> Table:
    """Without gamma, and at the best gamma of each kind: the operating points that matter."""
    gammas = {"no calibration": 0.0}
    if curve.n_seen and curve.n_absent:
        gammas |= {f"{name} (oracle)": curve.best(objective) for objective, name in _BEST.items()}
    rows = []
    for name, gamma in gammas.items():
        at = curve.at(gamma)
        shown = (at.acc_seen, at.acc_absent, at.acc_all, at.balanced, at.harmonic_mean)
        rows.append([name, f"{gamma:.4g}", *map(percent, shown)])
    return Table(["accuracy, %", "gamma", "seen", "absent", "all", "balanced", "harmonic"], rows)
