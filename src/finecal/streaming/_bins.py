"""The seen-absent curve from counts in bins: exact at the edges, and with certified bounds in between."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._core.arrays import Mask, check_bins, check_choice, check_flag, check_temperature
from .._core.calibrate import Layout
from .._core.checks import check_both_groups, warn_if_reindexed
from .._core.curve import TradeoffCurve
from .._core.objectives import OBJECTIVES, accuracy_per_unit, best_point, gamma_inside, twice_the_area
from .._core.plausibility import GroupHits, group_hits, group_sizes, warn_of_hits
from .._core.report import Margins
from .._core.samples import Samples, batch_margins
from ._state import LabelledState, RowState, copy_checked_mask


class MarginRows(RowState):
    """The margins of all samples, from batches: accuracies at every gamma, exactly.

    `O(NC)` time; memory 5 bytes per sample, and 4 more for its label (float64 logits: 4 more for the margin).

    Parameters
    ----------
    keep_labels : bool, default False
        Whether to keep the labels, which macro averages need.
    seen_mask, dim, ignore_index
        As in `AccuracySums`, with its errors.

    Examples
    --------
    >>> from finecal.streaming import MarginRows
    >>> state = MarginRows([True, True, False]).update([[4.0, 1, 3]], [0])
    >>> state.update([[2.0, 5, 4.5], [6.0, 1, 2]], [2, 0]).compute().curve().best()
    0.75
    """

    def __init__(
        self,
        seen_mask: Mask,
        keep_labels: bool = False,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        rows = {"margin": torch.empty(0, dtype=torch.float32), "flags": torch.empty(0, dtype=torch.uint8)}
        if check_flag(keep_labels, "keep_labels"):
            rows["label"] = torch.empty(0, dtype=torch.int32)
        super().__init__(copy_checked_mask(seen_mask), rows, layout=Layout.from_arguments(dim, ignore_index))

    def _add_samples(self, samples: Samples) -> None:
        label, batch = samples.labels_tensor, batch_margins(samples, self.seen_mask)
        flags = batch.is_seen.to(torch.uint8) << 1 | batch.hit
        self._add({"margin": batch.margin, "flags": flags, "label": label.to(torch.int32)})

    def compute(self) -> Margins[Tensor]:
        """Return the margins of all samples so far, in the order they came. Warns as `AccuracySums.compute`."""
        rows = self._current_sums()
        label = rows["label"].long() if "label" in rows else None
        if label is not None:
            warn_if_reindexed(label, self.seen_mask)
        is_seen, hit = (rows["flags"] & 2).bool(), (rows["flags"] & 1).bool()
        warn_of_hits(group_hits(is_seen, hit, self.seen_mask))
        return Margins(rows["margin"].clone(), is_seen, hit, label)


class MarginBins(LabelledState):
    """The seen-absent curve in fixed memory, from batches of any number: exact at 65,535 gammas, bounded in between.

    `O(NC + N log B)` time, 16 B bytes of memory: 1 MiB by default, whatever N is. The bound falls with the number of
    bins. For the gamma that is best over all reals, pass over the data again with a `BestGamma`.

    Parameters
    ----------
    n_bins : int, default 65536
        Bins of margins, half of them below 0.
    scale : float, default 16
        In units of the logits. Half of the bins hold margins from -`scale` to `scale`; at a margin m a bin is about
        :math:`2 (s + |m|)^2 / (s B)` wide: 0.0005 at 0, 0.0013 at 10.
    seen_mask, dim, ignore_index
        As in `AccuracySums`, with its errors; ValueError also if another argument is out of its range.

    Examples
    --------
    >>> from finecal.streaming import MarginBins
    >>> logits, labels = [[4.0, 1, 3], [2, 5, 4.5], [6, 1, 2]], [0, 2, 0]
    >>> MarginBins([True, True, False]).update(logits, labels).compute()
    BinnedCurve(65536 bins, 2 seen and 1 absent samples, AUSUC 1.0000 ± 0.0e+00)
    """

    def __init__(
        self,
        seen_mask: Mask,
        n_bins: int = 1 << 16,
        scale: float = 16.0,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        edges = bin_edges(check_bins(n_bins, least=2), check_temperature(scale, "scale"))
        count = torch.zeros(len(edges) - 1, dtype=torch.int64)
        group = torch.zeros(2, dtype=torch.int64)
        sums = {"seen_hits": count, "absent_hits": count, "samples": group, "hits": group, "always_correct": group}
        layout = Layout.from_arguments(dim, ignore_index)
        super().__init__(copy_checked_mask(seen_mask), sums, {"edges": edges}, layout=layout)

    def _add_samples(self, samples: Samples) -> None:
        batch = batch_margins(samples, self.seen_mask)
        margin, is_seen, hit = batch.margin, batch.is_seen, batch.hit
        finite, edges = margin.isfinite(), self._settings["edges"].to(margin.device)
        bins = torch.bucketize(margin.double(), edges[1:-1], right=True)

        def by_group(of: Tensor) -> Tensor:
            return torch.stack([(of & is_seen).sum(), (of & ~is_seen).sum()])

        stays = torch.where(is_seen, margin == math.inf, margin == -math.inf)
        self._add(
            {
                "seen_hits": torch.bincount(bins[hit & finite & is_seen], minlength=len(edges) - 1),
                "absent_hits": torch.bincount(bins[hit & finite & ~is_seen], minlength=len(edges) - 1),
                "samples": by_group(torch.ones_like(hit)),
                "hits": by_group(hit),
                "always_correct": by_group(hit & stays),
            }
        )

    def compute(self) -> BinnedCurve:
        """Return the curve of all samples so far; NaN for a group without samples. Warns as `AccuracySums.compute`."""
        sums = self._sums
        (n_seen, n_absent), within = sums["samples"].tolist(), (sums["hits"].double() / sums["samples"]).tolist()
        warn_of_hits(map(GroupHits, sums["samples"].tolist(), sums["hits"].tolist(), group_sizes(self.seen_mask)))
        always_seen, always_absent = sums["always_correct"]
        zero = sums["seen_hits"].new_zeros(1)
        seen = always_seen + torch.cat([sums["seen_hits"].flip(0).cumsum(0).flip(0), zero])
        absent = always_absent + torch.cat([zero, sums["absent_hits"].cumsum(0)])
        return BinnedCurve(self._settings["edges"].clone(), seen, absent, n_seen, n_absent, *within)


class BestGamma(RowState):
    """The best gamma over all reals, in a second pass over data that `MarginBins` has counted.

    Branch and bound leaves few bins that may hold it. `O(NC)` time; memory 9 bytes for each margin in these bins.

    Parameters
    ----------
    bins : MarginBins
        After all samples; it stays as it is.
    objective : {"overall", "balanced", "harmonic", "absent"}
        As in `TradeoffCurve.best`.

    Raises
    ------
    TypeError, ValueError
        If `bins` is not a `MarginBins`, its samples are of one group only, or `objective` is none of the four.

    Examples
    --------
    >>> from finecal.streaming import BestGamma, MarginBins
    >>> logits, labels = [[4.0, 1, 3], [2, 5, 4.5], [6, 1, 2]], [0, 2, 0]
    >>> bins = MarginBins([True, True, False]).update(logits, labels)
    >>> BestGamma(bins).update(logits, labels).compute()
    0.75
    """

    def __init__(self, bins: MarginBins, objective: str = "overall") -> None:
        if not isinstance(bins, MarginBins):
            raise TypeError(
                f"bins is a {type(bins).__name__}; pass the MarginBins of a first pass over the same samples"
            )
        self._curve, self._objective = bins.compute(), objective
        windows = self._curve.windows(objective)
        rows = {"margin": torch.empty(0, dtype=torch.float64), "is_seen": torch.empty(0, dtype=torch.bool)}
        settings = {"windows": windows, **bins.state_dict()}
        super().__init__(settings.pop("seen_mask"), rows, settings, layout=bins._layout)

    def _add_samples(self, samples: Samples) -> None:
        batch = batch_margins(samples, self.seen_mask)
        edges, windows = (self._settings[name].to(batch.margin.device) for name in ("edges", "windows"))
        margin = batch.margin.double()
        kept = batch.hit & margin.isfinite() & windows[torch.bucketize(margin, edges[1:-1], right=True)]
        self._add({"margin": margin[kept], "is_seen": batch.is_seen[kept]})

    def compute(self) -> float:
        """Return gamma, as `TradeoffCurve.best` chooses it; ValueError if the samples are not those of `bins`."""
        rows, windows = self._current_sums(), self._settings["windows"]
        expected = [int(self._settings[name][windows].sum()) for name in ("seen_hits", "absent_hits")]
        found = [int(rows["is_seen"].sum()), int((~rows["is_seen"]).sum())]
        if found != expected:
            raise ValueError(
                f"BestGamma has {found[0]} seen and {found[1]} absent samples in the bins that matter, MarginBins has "
                f"{expected[0]} and {expected[1]}: pass all samples of the first pass once more, and no others"
            )
        return exact_best(self._curve, windows, rows["margin"], rows["is_seen"], self._objective)


def bin_edges(n_bins: int, scale: float) -> Tensor:
    r"""Return the `(n_bins + 1,)` float64 edges of bins, narrow near 0, from -inf to +inf, rounded to float32.

    .. math:: e_k = s \, \frac{u_k}{1 - |u_k|}, \qquad u_k = \frac{2k}{B} - 1
    """
    u = torch.linspace(-1, 1, n_bins + 1, dtype=torch.float64)
    return (scale * u / (1 - u.abs())).float().double()


@dataclass(frozen=True, eq=False)
class BinnedCurve:
    """Accuracies at the edges of B bins of margins, for gamma from minus to plus infinity; made by `MarginBins`.

    At an edge all counts are exact. Numbers of the whole curve come with a bound that certainly holds.

    Attributes
    ----------
    gamma : (B+1,) float64
        The edges, float32 numbers, from -inf to +inf.
    seen_correct, absent_correct, n_seen, n_absent, acc_seen_within, acc_absent_within
        As in `TradeoffCurve`, with B+1 operating points.

    Examples
    --------
    >>> from finecal.streaming import MarginBins
    >>> logits, labels = [[4.0, 1, 3], [2, 5, 4.5], [6, 1, 2]], [0, 2, 0]
    >>> curve = MarginBins([True, True, False]).update(logits, labels).compute()
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
        r"""Largest error of `ausuc`: :math:`\sum_k h^S_k h^U_k / (2 n_S n_U)`, with the seen and absent hits of bin k.

        The curve may be any staircase in a rectangle of these sides.
        """
        if self.n_seen == 0 or self.n_absent == 0:
            return math.nan
        return float((-self.acc_seen.diff() * self.acc_absent.diff()).sum() / 2)

    def best(self, objective: str = "overall") -> float:
        """Return the edge with the largest `objective`, among equals that nearest to 0; see `shortfall`.

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
