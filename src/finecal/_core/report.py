"""Margins, the few numbers per sample that answer every question about gamma, and the accuracies that they give."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor

from . import results as lazy
from .arrays import ArrayLike, ArrayT, as_tensor
from .results import Block, Result, Table, data_frame, decimal, percent
from .seen_mask import ClassNames

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from .curve import TradeoffCurve


@dataclass(frozen=True, eq=False)
class Margins(Generic[ArrayT]):
    """Margins, groups and hits of N labelled samples, which determine all accuracies; made by `Samples.margins`.

    14 bytes per sample, 18 for float64 logits; `streaming.MarginRows` packs the same into 5, without the labels.

    Attributes
    ----------
    margin : (N,) float32, or float64 for float64 logits
        Largest seen logit minus largest absent logit: the sample is predicted absent iff ``margin < gamma``. +inf or
        -inf where a whole group is masked by -inf logits (+inf where both are).
    is_seen : (N,) bool
        Whether the label is a seen class.
    hit : (N,) bool
        Whether the label is the argmax within its own group, lowest index at a tie.
    label : (N,) int64
        None if the margins come from a `streaming.MarginRows` that does not keep them.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> samples = finecal.Samples(logits, labels=[0, 2]).margins([True, True, False])
    >>> len(samples), samples.curve().best()
    (2, 0.0)
    """

    margin: ArrayT
    is_seen: ArrayT
    hit: ArrayT
    label: ArrayT | None

    def __len__(self) -> int:
        return int(self.margin.shape[0])

    def curve(self, average: str = "micro") -> TradeoffCurve[ArrayT]:
        """Return the seen-absent curve of these samples; see `tradeoff_curve`."""
        from .curve import curve_from_margins

        return curve_from_margins(self, average)

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw histograms of both groups' margins; see `finecal.plots.plot_margins` (needs the extra ``plots``)."""
        axes: Axes = lazy.plots().plot_margins(self, ax, **style)
        return axes


def resample(samples: Margins[Tensor], index: Tensor) -> Margins[Tensor]:
    """Return the samples at `index`, from whichever device, without their labels."""
    drawn = index.to(samples.margin.device)
    return Margins(samples.margin[drawn], samples.is_seen[drawn], samples.hit[drawn], None)


AVERAGES = ("micro", "macro")


def harmonic_mean(seen: float, absent: float) -> float:
    """Return the harmonic mean of two accuracies, NaN if one is."""
    return 2 * seen * absent / (seen + absent) if seen + absent != 0 else 0.0


def accuracies_within(samples: Margins[Any], average: str) -> tuple[float, float]:
    """Return `Acc_{S/S}` and `Acc_{U/U}`."""
    is_seen, hit = as_tensor(samples.is_seen, "is_seen"), as_tensor(samples.hit, "hit")
    weight = _class_weights(samples)[0] if average == "macro" else hit.new_ones(len(hit)).double()
    seen, absent = ((weight * (hit & group)).sum() / (weight * group).sum() for group in (is_seen, ~is_seen))
    return float(seen), float(absent)


def macro_accuracies(samples: Margins[Any], breakpoints: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    """Return `Acc_{S/Y}`, `Acc_{U/Y}` and `Acc_{Y/Y}` at each operating point, as means over classes."""
    margin, is_seen = as_tensor(samples.margin, "margin"), as_tensor(samples.is_seen, "is_seen")
    hit, ends = as_tensor(samples.hit, "hit"), as_tensor(breakpoints, "breakpoints")
    weight, seen_share = _class_weights(samples)
    seen_sum, absent_sum = weigh_correct(margin[hit], weight[hit], is_seen[hit], ends)
    seen, absent = seen_sum / weight[is_seen].sum(), absent_sum / weight[~is_seen].sum()
    return seen, absent, seen_share * seen.nan_to_num() + (1 - seen_share) * absent.nan_to_num()


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


def _class_weights(samples: Margins[Any]) -> tuple[Tensor, float]:
    """Return 1 / (samples of its class) for each sample, and the seen share of the classes that occur."""
    label, is_seen = as_tensor(samples.label, "label"), as_tensor(samples.is_seen, "is_seen")
    classes, index, counts = torch.unique(label, return_inverse=True, return_counts=True)
    class_is_seen = torch.zeros_like(classes, dtype=torch.bool).scatter(0, index, is_seen)
    return 1 / counts[index].double(), float(class_is_seen.double().mean())


@dataclass(frozen=True)
class SeenAbsentReport(Result):
    """Accuracies of a classifier at one gamma; made by `evaluate`. Prints as a table.

    Accuracies are fractions in [0, 1], NaN where no sample defines them; they are printed in %.

    Attributes
    ----------
    acc_all, acc_seen, acc_absent : float
        `Acc_{Y/Y}`, `Acc_{S/Y}`, `Acc_{U/Y}`: every class allowed.
    acc_seen_within, acc_absent_within : float
        `Acc_{S/S}`, `Acc_{U/U}`: only the classes of the sample's own group allowed; gamma does not change them.
    harmonic_mean, balanced : float
        Harmonic and arithmetic mean of `Acc_{S/Y}` and `Acc_{U/Y}`. (Not scikit-learn's balanced accuracy.)
    ausuc : float
        Area under the seen-absent curve; gamma does not change it.
    gamma : float
    n_seen, n_absent : int
        Number of samples by the group of their label.
    average : str
        "micro" or "macro", as given to `evaluate`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> report = finecal.evaluate(logits, [0, 2], [True, True, False], gamma=0.5)
    >>> report.acc_seen, report.acc_absent, report.acc_absent_within
    (1.0, 0.0, 1.0)
    """

    acc_all: float
    acc_seen: float
    acc_absent: float
    acc_seen_within: float
    acc_absent_within: float
    harmonic_mean: float
    balanced: float
    ausuc: float
    gamma: float
    n_seen: int
    n_absent: int
    average: str = "micro"
    _samples: InitVar[Margins[Any] | None] = None

    def __post_init__(self, _samples: Margins[Any] | None) -> None:
        object.__setattr__(self, "_samples", _samples)

    @property
    def samples(self) -> Margins[Any] | None:
        """What the accuracies were counted from, 14 bytes per sample. Neither ``==`` nor `to_dict` look at it."""
        samples: Margins[Any] | None = self.__dict__["_samples"]
        return samples

    def to_pandas(self) -> DataFrame:
        """Return a table of one row and a column per field; ``pandas.concat`` puts those of several gammas together."""
        return data_frame([self.to_dict()])

    def to_html(self, *, class_names: ClassNames | None = None, title: str | None = None) -> str:
        """Return a self-contained HTML page on `gamma`, with a slider that moves it; write it to a file in UTF-8.

        Confused pairs of classes and predictions need the logits: `html_report` shows them.

        Parameters
        ----------
        class_names : sequence of str or dict, optional
            By index, for each class that occurs, as in `seen_mask_from_names`; default: the indices.
        title : str, optional
            Heading of the page.

        Raises
        ------
        ImportError
            If jinja2 is not installed.
        ValueError
            If this report has no samples, because neither `evaluate` nor a curve made it, or not one.
        """
        page: str = lazy.page().html_of_report(self, class_names, title)
        return page

    def _blocks(self) -> list[Block]:
        table = Table(
            ["accuracy, %", "seen", "absent", "all"],
            [
                ["every class allowed", percent(self.acc_seen), percent(self.acc_absent), percent(self.acc_all)],
                ["own group allowed", percent(self.acc_seen_within), percent(self.acc_absent_within), ""],
                ["samples", str(self.n_seen), str(self.n_absent), str(self.n_seen + self.n_absent)],
            ],
        )
        means = (
            f"harmonic mean {percent(self.harmonic_mean)} %, balanced {percent(self.balanced)} %, AUSUC "
            f"{decimal(self.ausuc, 4)}"
        )
        average = "" if self.average == "micro" else f" ({self.average})"
        return [[f"gamma = {self.gamma:.6g}{average}", table, means]]
