"""Mean intersection over union at every gamma, exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, SupportsFloat

import numpy as np
import torch

from ..inputs.arrays import ArrayT, as_tensor, matching, to_numpy
from ..inputs.checks import gamma_as_float
from ..results.display import Block, Table
from ..results.format import percent
from ..results.records import data_frame, plain_values
from ..results.result import Result
from .iou_counts import ClassCounts, ClassGroups
from .iou_objectives import harmonic_means, iou_values
from .iou_report import IoUReport, report_of_counts
from .iou_scan import Positions
from .objectives import preferred
from .operating_points import gamma_inside, inside

if TYPE_CHECKING:
    from pandas import DataFrame

_ARRAYS = ("gamma", "iou_seen", "iou_absent", "iou_all", "iou_harmonic", "breakpoints")
_BEST = {"overall": "best mean IoU", "balanced": "best balanced", "harmonic": "best harmonic mean"}


class CountedPositions(NamedTuple):
    """What a curve was made from: positions, and which classes are in which group."""

    positions: Positions
    groups: ClassGroups


@dataclass(frozen=True, eq=False)
class IoUCurve(Result, Generic[ArrayT]):
    """Mean intersection over union at K+1 operating points, for gamma from minus to plus infinity; made by `iou_curve`.

    The breakpoints are the K distinct finite margins of positions whose prediction changes from or to a class that
    occurs in the labels: nothing else changes a mean. Operating point k holds for gamma in ``(breakpoints[k-1],
    breakpoints[k]]``.

    Attributes
    ----------
    gamma : (K+1,) float64
        A value inside each interval: midpoints, and 1 beyond either end; [0] if K = 0.
    iou_seen, iou_absent, iou_all : (K+1,) float64
        Means over the seen, the absent and all classes that occur in the labels, as fractions; NaN where none does.
        Background classes count in the last one only.
    iou_harmonic : (K+1,) float64
        Harmonic mean of `iou_seen` and `iou_absent`, hIoU.
    breakpoints : (K,) float64
        Ascending.
    n_seen, n_absent : int
        Positions with a seen and with an absent label.
    tolerance : float
        Means that differ by less may be equal: rounding.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.iou_curve(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False]
    ... )
    >>> curve
    IoUCurve(4 operating points, 2 seen and 1 absent positions)
    >>> curve.best(), curve.at(0.75).iou_all
    (0.75, 1.0)
    """

    iou_seen: ArrayT
    iou_absent: ArrayT
    iou_all: ArrayT
    breakpoints: ArrayT
    n_seen: int
    n_absent: int
    tolerance: float
    _counted: CountedPositions

    @cached_property
    def gamma(self) -> ArrayT:
        """A value inside each interval of gamma."""
        breakpoints = as_tensor(self.breakpoints, "breakpoints")
        end = breakpoints.new_full((1,), math.inf)
        gamma: ArrayT = matching(self.breakpoints)(
            inside(torch.cat([-end, breakpoints]), torch.cat([breakpoints, end]))
        )
        return gamma

    @cached_property
    def iou_harmonic(self) -> ArrayT:
        """Harmonic mean of `iou_seen` and `iou_absent`."""
        means = (as_tensor(getattr(self, name), name) for name in ("iou_seen", "iou_absent"))
        harmonic: ArrayT = matching(self.breakpoints)(harmonic_means(*means))
        return harmonic

    def best(self, objective: str = "overall") -> float:
        """Return a gamma that attains the maximum of `objective` over all real gamma.

        Parameters
        ----------
        objective : {"overall", "balanced", "harmonic", "seen", "absent"}
            `iou_all`; the mean or the harmonic mean of `iou_seen` and `iou_absent`; or one of these.

        Returns
        -------
        float
            Inside the widest of the equally good bounded intervals, nearest to 0 among equally wide ones; 1 beyond the
            outermost breakpoint only if no bounded interval is as good. Exact in float32 wherever the interval holds a
            float32 number.

        Raises
        ------
        ValueError
            If the positions are of one group only, or `objective` is none of the five.

        Examples
        --------
        >>> import numpy as np, finecal
        >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
        >>> curve = finecal.iou_curve(logits, labels=[0, 2], seen_mask=[True, True, False])
        >>> curve.best("seen"), curve.best("absent")
        (0.0, 3.5)
        """
        value = iou_values(self, objective)
        points = (value >= value.max() - self.tolerance).nonzero().squeeze(1)
        return gamma_inside(self.breakpoints, preferred(points, self.breakpoints))

    def at(self, gamma: SupportsFloat) -> IoUReport[ArrayT]:
        """Return what `evaluate_iou` does at `gamma` (a float, 0-d tensor or GammaEstimate)."""
        value = gamma_as_float(gamma)
        positions, groups = self._counted
        counts = ClassCounts.of(positions.label, positions.predicted(value), len(groups.seen))
        return report_of_counts(counts, groups, value, self.breakpoints)

    def to_dict(self) -> dict[str, Any]:
        """Return what is above as Python values, arrays as lists: for JSON."""
        return plain_values(self, (*_ARRAYS, "n_seen", "n_absent", "tolerance"))

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per operating point, which holds for gamma in ``(gamma_low, gamma_high]``."""
        breakpoints = to_numpy(self.breakpoints)
        ends = {"gamma_low": np.append(-math.inf, breakpoints), "gamma_high": np.append(breakpoints, math.inf)}
        means = {name: to_numpy(getattr(self, name)) for name in _ARRAYS[1:-1]}
        return data_frame({"gamma": to_numpy(self.gamma), **ends, **means})

    def to_markdown(self) -> str:
        """Return mean IoU without calibration and at the best gamma of each kind, as GitHub Markdown."""
        return super().to_markdown()

    def __repr__(self) -> str:
        return f"IoUCurve({self._size()})"

    __str__ = __repr__

    def _size(self) -> str:
        points = len(self.breakpoints) + 1
        return f"{points} operating points, {self.n_seen} seen and {self.n_absent} absent positions"

    def _blocks(self) -> list[Block]:
        return [[self._size()], [_table(self)]]


def _table(curve: IoUCurve[Any]) -> Table:
    """Without gamma, and at the best gamma of each kind: the operating points that matter."""
    gammas = {"no calibration": 0.0}
    if curve.n_seen and curve.n_absent:
        gammas |= {f"{name} (oracle)": curve.best(objective) for objective, name in _BEST.items()}
    rows = []
    for name, gamma in gammas.items():
        at = curve.at(gamma)
        rows.append([name, f"{gamma:.4g}", *map(percent, (at.iou_seen, at.iou_absent, at.iou_all, at.iou_harmonic))])
    return Table(["mean IoU, %", "gamma", "seen", "absent", "all", "harmonic"], rows)
