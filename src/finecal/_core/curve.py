"""The seen-absent curve: every accuracy at every gamma, exactly, from one sort of the margins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, SupportsFloat

import torch
from torch import Tensor

from . import results as lazy
from .arrays import ArrayT, Labels, Logits, Mask, as_tensor, as_type_of, check_choice, dtype_name, shape_of
from .checks import gamma_as_float
from .objectives import GammaCurve, best_point, gamma_inside, operating_points, point_at, twice_the_area
from .report import AVERAGES, Margins, SeenAbsentReport, accuracies_within, harmonic_mean, macro_accuracies
from .results import Picture, decimal, draw_picture, plain_values
from .samples import samples_of, takes_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class TradeoffCurve(GammaCurve[ArrayT]):
    """Accuracies of K+1 operating points, for gamma from minus to plus infinity; made by `tradeoff_curve`.

    The breakpoints are the K distinct finite margins of the hits (a sample that is wrong within its own group is wrong
    at every gamma). Operating point k holds for gamma in ``(breakpoints[k-1], breakpoints[k]]``.

    Attributes
    ----------
    gamma : (K+1,) float64
        A value inside each interval: midpoints, and 1 beyond either end; [0] if K = 0.
    seen_correct, absent_correct : (K+1,) int64
        Number of correct samples.
    acc_seen, acc_absent, acc_all : (K+1,) float64
        `Acc_{S/Y}`, `Acc_{U/Y}` and `Acc_{Y/Y}` in [0, 1]; NaN without such samples. Means over the classes that occur
        under ``average="macro"``.
    breakpoints : (K,) float64
        Ascending.
    n_seen, n_absent : int
        Number of samples by the group of their label.
    acc_seen_within, acc_absent_within : float
        `Acc_{S/S}` and `Acc_{U/U}`, in [0, 1].
    average : str
        "micro" or "macro".
    samples : Margins

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.tradeoff_curve(logits, [0, 2, 0], [True, True, False])
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

    _COLUMNS: ClassVar[tuple[str, ...]] = ("seen_correct", "absent_correct", "acc_seen", "acc_absent", "acc_all")
    _UNIT: ClassVar[str] = "accuracy"
    _BEST: ClassVar[Mapping[str, str]] = {
        "overall": "best Acc_Y/Y",
        "balanced": "best balanced",
        "harmonic": "best harmonic mean",
    }

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
        if self.average == "macro":
            found = macro_accuracies(self.samples, self.breakpoints)
        else:
            seen = as_tensor(self.seen_correct, "seen_correct")
            absent = as_tensor(self.absent_correct, "absent_correct")
            overall = (seen + absent).double() / (self.n_seen + self.n_absent)
            found = seen.double() / self.n_seen, absent.double() / self.n_absent, overall
        acc_seen, acc_absent, acc_all = map(as_type_of(self.samples.margin), found)
        return acc_seen, acc_absent, acc_all

    @cached_property
    def _acc_within(self) -> tuple[float, float]:
        return accuracies_within(self.samples, self.average)

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
        >>> curve = finecal.tradeoff_curve(logits, [0, 2], [True, True, False])
        >>> curve.best("absent"), curve.best("absent", max_seen_drop=0.0)
        (3.5, 0.0)
        """
        return gamma_inside(self.breakpoints, best_point(self, objective, max_seen_drop))

    def at(self, gamma: SupportsFloat) -> SeenAbsentReport:
        """Return all accuracies at `gamma` (a float, 0-d tensor or GammaEstimate)."""
        value = gamma_as_float(gamma)
        point = point_at(self.breakpoints, value)
        seen, absent = float(self.acc_seen[point]), float(self.acc_absent[point])
        return SeenAbsentReport(
            acc_all=float(self.acc_all[point]),
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
        """Return the AUSUC and all attributes but `samples` as Python values, arrays as lists: for JSON."""
        names = ["ausuc", "gamma", *self._COLUMNS, "breakpoints", "n_seen", "n_absent"]
        names += ["acc_seen_within", "acc_absent_within", "average"]
        return plain_values(self, names)

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw `Acc_{U/Y}` against `Acc_{S/Y}`; see `finecal.plots.plot_tradeoff` (needs the extra ``plots``)."""
        axes: Axes = lazy.plots().plot_tradeoff(self, ax=ax, **style)
        return axes

    def _values_at(self, gamma: float) -> Mapping[str, float]:
        at = self.at(gamma)
        return {
            "seen": at.acc_seen,
            "absent": at.acc_absent,
            "all": at.acc_all,
            "balanced": at.balanced,
            "harmonic": at.harmonic_mean,
        }

    def _size(self) -> str:
        return (
            f"{self.n_seen} seen and {self.n_absent} absent samples ({self.average}), {len(self.gamma)} operating "
            f"points, AUSUC {decimal(self.ausuc, 4)}"
        )

    def _picture(self) -> Picture | None:
        if not (self.n_seen and self.n_absent):
            return None
        return draw_picture(self.plot, "Acc_U/Y against Acc_S/Y over all gamma; the marks are rows of the table")


def curve_from_margins(samples: Margins[ArrayT], average: str) -> TradeoffCurve[ArrayT]:
    """Sort the margins of the hits and count the predictions that change at each."""
    check_choice(average, AVERAGES, "average")
    if average == "macro" and samples.label is None:
        raise ValueError("these margins come without labels, which average='macro' needs: MarginRows(keep_labels=True)")
    margin, is_seen, hit = _check_margins(samples)
    points = operating_points(margin, is_seen, hit)
    n_seen = int(is_seen.count_nonzero())
    out = as_type_of(samples.margin)
    breakpoints, seen_correct, absent_correct = map(out, points)
    return TradeoffCurve(seen_correct, absent_correct, breakpoints, n_seen, len(samples) - n_seen, average, samples)


def _check_margins(samples: Margins[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return margins, seen flags and hits, checked, since users may make `Margins` themselves."""
    margin = as_tensor(samples.margin, "margin")
    if margin.ndim != 1 or not margin.is_floating_point() or margin.itemsize == 1:
        raise TypeError(
            f"margin has shape {shape_of(margin)} and dtype {dtype_name(margin)}; expected one floating-point number "
            "per sample"
        )
    if bool(margin.isnan().any()):
        raise ValueError("margin contains NaN; drop these samples or repair the model")
    fields = {"is_seen": torch.bool, "hit": torch.bool} | ({} if samples.label is None else {"label": None})
    for name, dtype in fields.items():
        tensor = as_tensor(getattr(samples, name), name)
        wrong = tensor.dtype != dtype if dtype else tensor.dtype == torch.bool or tensor.is_floating_point()
        if tensor.shape != margin.shape or wrong or tensor.is_complex():
            raise TypeError(
                f"{name} has shape {shape_of(tensor)} and dtype {dtype_name(tensor)} for {margin.shape[0]} margins; "
                f"expected one {'class index' if dtype is None else 'boolean'} per margin"
            )
    return margin, as_tensor(samples.is_seen, "is_seen"), as_tensor(samples.hit, "hit")


@takes_samples
def tradeoff_curve(logits: Logits, labels: Labels, seen_mask: Mask, average: str = "micro") -> TradeoffCurve[Any]:
    r"""Return the exact accuracies on seen and absent classes at every gamma.

    .. math::
        \text{Acc}_{S/Y}(\gamma) &= \langle\, \text{hit} \wedge \text{margin} \ge \gamma \,\rangle_S \\
        \text{Acc}_{U/Y}(\gamma) &= \langle\, \text{hit} \wedge \text{margin} < \gamma \,\rangle_U

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
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
        As `Samples.margins`, whose warnings it gives, too; ValueError if `average` is neither of the two.

    Notes
    -----
    `O(NC + N log N)`. Equal margins flip together; samples whose margin is infinite never flip. AUSUC: Chao et al., "An
    Empirical Study and Analysis of Generalized Zero-Shot Learning", ECCV 2016. See :doc:`/theory/curve`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> curve = finecal.tradeoff_curve(logits, labels=[0, 2], seen_mask=[True, True, False])
    >>> curve.gamma, curve.acc_seen, curve.acc_absent
    (array([0.  , 1.75, 3.5 ]), array([1., 0., 0.]), array([0., 0., 1.]))
    """
    check_choice(average, AVERAGES, "average")
    return samples_of(logits, labels).margins(seen_mask).curve(average)


@takes_samples
def evaluate(
    logits: Logits, labels: Labels, seen_mask: Mask, gamma: SupportsFloat | None = 0.0, average: str = "micro"
) -> SeenAbsentReport:
    r"""Return the accuracies on seen, absent and all classes at `gamma`.

    .. math:: \text{Acc}_{S/Y} = \langle\, \hat y(\gamma) = y \,\rangle_{y \in S}, \qquad
              \text{Acc}_{S/S} = \left\langle\, \arg\max_{c \in S} z_c = y \,\right\rangle_{y \in S}

    and likewise on U; :math:`\hat y` is `predict`.

    Parameters
    ----------
    logits, labels, seen_mask
        As in `tradeoff_curve`, with its errors and warnings; the logits are *not* yet calibrated.
    gamma : float, 0-d tensor, GammaEstimate or None, default 0
        A sample is predicted absent iff its margin is below it. None is 0. ValueError if it is not finite.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.

    Returns
    -------
    SeenAbsentReport

    Notes
    -----
    `O(NC + N log N)`. Mai et al., NeurIPS 2024, section 3, for the five accuracies; Chao et al., ECCV 2016, for AUSUC.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> print(finecal.evaluate(logits, [0, 2], [True, True, False], gamma=0.5))
    gamma = 0.5
    | accuracy, %         |  seen | absent |  all |
    | ------------------- | ----: | -----: | ---: |
    | every class allowed | 100.0 |    0.0 | 50.0 |
    | own group allowed   | 100.0 |  100.0 |      |
    | samples             |     1 |      1 |    2 |
    harmonic mean 0.0 %, balanced 50.0 %, AUSUC 0.0000
    """
    check_choice(average, AVERAGES, "average")
    margins = samples_of(logits, labels).margin_tensors(seen_mask)
    return margins.curve(average).at(0.0 if gamma is None else gamma)
