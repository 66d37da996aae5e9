"""Mergeable states: what the functions compute from all logits at once, from batches, shards and machines.

A state is complete once constructed. ``update(logits, labels)`` adds a batch, ``merge(other)`` adds another state, and
``compute()`` gives the result as tensors, as often as wanted; ``update`` and ``merge`` change the state in place and
return it. Batches may be of any size, come in any order and be merged in any grouping: counts agree bit for bit, sums
to 1e-12. Nothing of size (N, C) is kept. Sums are taken on the device of the logits and kept on the state's own, which
is that of its `seen_mask` until ``to(device)``.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self, SupportsFloat

import torch
from torch import Tensor

from ._arrays import ArrayLike, as_tensor
from ._checks import (
    as_bool_mask,
    check_bins,
    check_choice,
    check_edges,
    check_labels,
    check_mask_values,
    check_not_empty,
    check_only_seen,
    check_same_kind,
    check_scores,
    check_settings_agree,
    check_state_entries,
    check_state_names,
    check_temperature,
    gamma_as_float,
    warn_if_reindexed,
)
from .binned_curve import BinnedCurve, bin_edges, exact_best
from .curve import AVERAGES
from .gamma import GammaEstimate, check_two_seen, doubts_about_gap, doubts_about_hits, with_warnings
from .gaps import GAPS, gap_sum, mean_gap
from .logits import tile_rows, tiles
from .margin import Margins, checked, scan_batch
from .probability import MASS, WIDTH, ProbabilityReport, report_from_sums
from .probability_sums import (
    equal_width_edges,
    no_class_excess,
    no_samples,
    probability_sums,
    score_samples,
)
from .report import SeenAbsentReport, harmonic_mean

__all__ = [
    "AccuracySums",
    "BestGamma",
    "BinnedCurve",
    "ClassMoments",
    "ClassSums",
    "GapEstimates",
    "GapSums",
    "MarginBins",
    "MarginRows",
    "ProbabilitySums",
]


class _State:
    """Private: what all states share. Settings are given once, sums grow; both are named tensors.

    Sums are replaced, never changed in place, so that a `state_dict` stays as it was taken.
    """

    _growing = False
    """Whether the sums have a row per sample."""
    _sums: dict[str, Tensor]

    def __init__(
        self, seen_mask: Tensor, sums: Mapping[str, Tensor], settings: Mapping[str, Tensor] | None = None
    ) -> None:
        device = seen_mask.device
        self._settings = {"seen_mask": seen_mask} | {k: value.to(device) for k, value in (settings or {}).items()}
        self._nothing = {name: value.to(device, copy=True) for name, value in sums.items()}
        self._replace(self._nothing)

    @property
    def seen_mask(self) -> Tensor:
        """True for the seen classes."""
        return self._settings["seen_mask"]

    @property
    def device(self) -> torch.device:
        """Where the sums are kept."""
        return self.seen_mask.device

    def emptied(self) -> Self:
        """Return another state with the same settings and no samples: for a part of the data, to be merged."""
        other = copy.copy(self)
        other._replace(self._nothing)
        return other

    def merge(self, other: Self) -> Self:
        """Add the samples of `other`, a state with the same settings, which stays as it is."""
        check_same_kind(self, other)
        check_state_names(self, self._collected(), other._collected(), "the other state")
        check_settings_agree(self, self._settings, other._settings)
        self._add(other._collected())
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the settings and the sums as named tensors."""
        return {**self._settings, **self._collected()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Replace the sums by those in the `state_dict` of a state with the same settings."""
        check_state_names(self, self.state_dict(), state_dict, "state_dict")
        given = {name: as_tensor(value, f"state_dict[{name!r}]") for name, value in state_dict.items()}
        check_settings_agree(self, self._settings, given)
        own = self._collected()
        check_state_entries(self, own, given, growing=self._growing)
        self._replace({name: given[name].to(self.device, copy=True) for name in own})
        return self

    def to(self, device: torch.device | str) -> Self:
        """Move the state to `device`."""
        self._settings = {name: value.to(device) for name, value in self._settings.items()}
        self._nothing = {name: value.to(device) for name, value in self._nothing.items()}
        self._replace({name: value.to(device) for name, value in self._collected().items()})
        return self

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        self._sums = {name: value + sums[name].to(value.device) for name, value in self._sums.items()}

    def _collected(self) -> dict[str, Tensor]:
        return self._sums

    def _replace(self, sums: dict[str, Tensor]) -> None:
        self._sums = sums


class _RowState(_State):
    """Private: a state that keeps a row of each sample."""

    _growing = True
    _blocks: list[dict[str, Tensor]]

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        """Append a block, joined with the last one while that is no longer: few are left, and no row moves often."""
        kept, block = self._blocks, {name: sums[name].to(self.device) for name in self._blocks[0]}
        while kept and _length(kept[-1]) <= _length(block):
            block, kept = _joined([kept[-1], block]), kept[:-1]
        self._blocks = [*kept, block]

    def _collected(self) -> dict[str, Tensor]:
        if len(self._blocks) > 1:
            self._replace(_joined(self._blocks))
        return self._blocks[0]

    def _replace(self, sums: dict[str, Tensor]) -> None:
        self._blocks = [sums]


def _length(block: Mapping[str, Tensor]) -> int:
    return len(next(iter(block.values())))


class GapEstimates(NamedTuple):
    """Both estimates from labelled seen samples by logit gaps; made by `GapSums`.

    Attributes
    ----------
    average : GammaEstimate
        As `average_logit_gap` returns it.
    maximum : GammaEstimate
        As `max_logit_gap` returns it.
    """

    average: GammaEstimate
    maximum: GammaEstimate


class GapSums(_State):
    """Gamma by the average and by the maximum logit gap, from batches of labelled seen samples.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes; at least two.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has fewer than two seen or no absent class.

    Notes
    -----
    `O(NC)` time, `O(1)` memory. What gamma costs the seen classes (`expected_acc_seen`) takes the margins of all
    samples, which `MarginRows` keeps: here it is None.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import GapSums
    >>> state = GapSums(np.array([True, True, False, False]))
    >>> state = state.update(np.array([[9.0, 4, 1, 2]]), [0]).update(np.array([[3.0, 8, 0, 1]]), [1])
    >>> estimates = state.compute()
    >>> estimates.average.gamma, estimates.maximum.gamma
    (2.5, 2.0)
    """

    def __init__(self, seen_mask: ArrayLike) -> None:
        mask = _settled_mask(seen_mask)
        check_two_seen(mask, "GapSums")
        count, total = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.float64)
        sums = {"samples": count, "hits": count, "correct": count}
        for method in GAPS:
            sums |= {f"{method}_total": total, f"{method}_usable": count}
        super().__init__(mask, sums)

    def update(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Add a batch of labelled samples of seen classes, checked as `average_logit_gap` checks them."""
        scan = scan_batch(logits, labels, self.seen_mask)
        check_only_seen(scan.labels, scan.mask, "GapSums")
        hit = scan.scalars.hit
        sums = {
            "samples": torch.tensor(hit.shape[0]),
            "hits": hit.sum(),
            "correct": (hit & (scan.margin >= 0)).sum(),
        }
        for method, gaps_of in GAPS.items():
            sums[f"{method}_total"], sums[f"{method}_usable"] = gap_sum(gaps_of(scan))
        self._add(sums)
        return self

    def estimate(self, method: str = "max_logit_gap") -> GammaEstimate:
        """Return one of the two estimates, by the name of its function, with the function's warnings but for the cost.

        ValueError without samples.
        """
        check_choice(method, tuple(GAPS), "method")
        samples = int(self._sums["samples"])
        check_not_empty(samples, "GapSums")
        within, correct = (float(self._sums[name]) / samples for name in ("hits", "correct"))
        total, usable = self._sums[f"{method}_total"], self._sums[f"{method}_usable"]
        gamma, sentences = mean_gap(total, usable, samples, method)
        doubts = [*sentences, *doubts_about_gap(gamma), *doubts_about_hits(within, int(self.seen_mask.sum()))]
        n = int(usable)
        estimate = GammaEstimate(gamma, method, f"{n} labelled seen-class samples", n, acc_seen_before=correct)
        return with_warnings(estimate, doubts)

    def compute(self) -> GapEstimates:
        """Return both estimates, as `estimate` returns them."""
        return GapEstimates(self.estimate("average_logit_gap"), self.estimate("max_logit_gap"))


class AccuracySums(_State):
    """What `evaluate` reports at one gamma, from batches of labelled samples, in constant memory.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        In units of the logits.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or `gamma` is not a finite number.

    Notes
    -----
    `O(NC)` time, `O(C)` memory. The area under the seen-absent curve takes the margins of all samples, which
    `MarginRows` keeps: here `ausuc` is NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import AccuracySums
    >>> state = AccuracySums(np.array([True, True, False]), gamma=0.75)
    >>> state = state.update(np.array([[4.0, 1, 3]]), [0]).update(np.array([[2.0, 5, 4.5]]), [2])
    >>> state.compute().acc_all
    1.0
    """

    def __init__(self, seen_mask: ArrayLike, gamma: SupportsFloat = 0.0) -> None:
        mask = _settled_mask(seen_mask)
        count = torch.zeros_like(mask, dtype=torch.int64)
        shift = torch.tensor(gamma_as_float(gamma), dtype=torch.float64)
        super().__init__(mask, {"samples": count, "hits": count, "correct": count}, {"gamma": shift})

    def update(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Add a batch of labelled samples, checked as `evaluate` checks them."""
        scan = scan_batch(logits, labels, self.seen_mask)
        hit, is_seen = scan.scalars.hit, scan.scalars.is_seen
        goes_absent = scan.margin.double() < float(self._settings["gamma"])
        chosen = {"samples": torch.ones_like(hit), "hits": hit, "correct": hit & (goes_absent != is_seen)}
        classes = scan.mask.shape[0]
        self._add({name: torch.bincount(scan.labels[rows], minlength=classes) for name, rows in chosen.items()})
        return self

    def compute(self, average: str = "micro") -> SeenAbsentReport:
        """Return the accuracies of all samples so far, "micro" or "macro" as in `evaluate`."""
        check_choice(average, AVERAGES, "average")
        samples, seen = self._sums["samples"], self.seen_mask

        def accuracy(count: str, of: Tensor) -> float:
            correct = self._sums[count]
            if average == "micro":
                return float(correct[of].sum().double() / samples[of].sum())
            of = of & (samples > 0)
            return float((correct[of].double() / samples[of]).mean())

        acc_seen, acc_absent = accuracy("correct", seen), accuracy("correct", ~seen)
        return SeenAbsentReport(
            acc_all=accuracy("correct", torch.ones_like(seen)),
            acc_seen=acc_seen,
            acc_absent=acc_absent,
            acc_seen_within=accuracy("hits", seen),
            acc_absent_within=accuracy("hits", ~seen),
            harmonic_mean=harmonic_mean(acc_seen, acc_absent),
            balanced=(acc_seen + acc_absent) / 2,
            ausuc=math.nan,
            gamma=float(self._settings["gamma"]),
            n_seen=int(samples[seen].sum()),
            n_absent=int(samples[~seen].sum()),
            average=average,
        )


class ClassMoments(NamedTuple):
    """Statistics of each class's logit, `(C,)` each; made by `ClassSums`.

    Attributes
    ----------
    loc : (C,) float64
        Mean; NaN without samples.
    scale : (C,) float64
        Standard deviation of the samples themselves (the variance is divided by their number, not by one less); NaN
        without samples.
    counts : (C,) int64
        Samples that they are of.
    """

    loc: Tensor
    scale: Tensor
    counts: Tensor


class ClassSums(_State):
    r"""Mean and standard deviation of each class's logit, over seen samples of other classes.

    .. math:: \mu_c = \langle z_c \rangle_{y \in S,\, y \ne c}, \qquad
              \sigma_c^2 = \langle (z_c - \mu_c)^2 \rangle_{y \in S,\, y \ne c}

    The label's own logit is left out, so that seen and absent classes are measured alike, and so are -inf logits.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class.

    Notes
    -----
    `O(NC)` time, `O(C)` memory. Means and sums of squared deviations are merged, never sums of squares: Chan, Golub and
    LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 1983.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import ClassSums
    >>> state = ClassSums(np.array([True, True, False]))
    >>> moments = state.update(np.array([[9.0, 1, 2], [2, 8, 4]]), [0, 1]).compute()
    >>> moments.loc, moments.scale, moments.counts
    (tensor([2., 1., 3.], dtype=torch.float64), tensor([0., 0., 1.], dtype=torch.float64), tensor([1, 1, 2]))
    """

    def __init__(self, seen_mask: ArrayLike) -> None:
        mask = _settled_mask(seen_mask)
        zero = torch.zeros_like(mask, dtype=torch.float64)
        super().__init__(mask, {"count": zero.long(), "mean": zero, "deviation": zero})

    def update(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Add a batch of labelled samples of seen classes, checked as `average_logit_gap` checks them."""
        x, mask = checked(logits, self.seen_mask)
        y = check_labels(labels, x.shape[0], x.shape[1], x.device)
        check_scores(x, x.amax(1))
        check_only_seen(y, mask, "ClassSums")
        for (rows, scratch), own in zip(
            tiles(x, torch.float64, writable=True), torch.split(y, tile_rows(x)), strict=True
        ):
            self._add(_moments_without_own(rows, own.unsqueeze(1), scratch))
        return self

    def compute(self) -> ClassMoments:
        """Return the moments of all samples so far."""
        count = self._sums["count"]
        loc = self._sums["mean"].masked_fill(count == 0, torch.nan)
        return ClassMoments(loc, (self._sums["deviation"] / count).sqrt(), count.clone())

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        count, mean, deviation = (self._sums[name] for name in ("count", "mean", "deviation"))
        new, new_mean, new_deviation = (sums[name].to(self.device) for name in ("count", "mean", "deviation"))
        total = count + new
        share = new.double() / total.clamp(min=1)
        distance = new_mean - mean
        deviation = deviation + new_deviation + distance.square() * share * count
        # The nearer mean is moved, so that a state merged into an empty one is copied exactly.
        merged = torch.where(share < 0.5, mean + distance * share, new_mean - distance * (1 - share))
        self._sums = {"count": total, "mean": torch.where(new > 0, merged, mean), "deviation": deviation}


def _moments_without_own(rows: Tensor, own: Tensor, scratch: Tensor | None) -> dict[str, Tensor]:
    """Return count, mean and sum of squared deviations of each column of a (writable) tile, the label's entry left out.

    -inf entries, the label's among them, are filled with zeros in the sums, and again after the mean is subtracted.
    """
    ones = rows.new_ones(rows.shape[0])
    rows.scatter_(1, own, 0)
    count = rows.shape[0] - torch.bincount(own.squeeze(1), minlength=rows.shape[1])
    total = ones @ rows
    masked = None
    if not bool(total.isfinite().all()):
        masked = rows == -torch.inf
        count = count - masked.sum(0)
        total = ones @ rows.masked_fill_(masked, 0)
    mean = total / count.clamp(min=1)
    rows.sub_(mean).scatter_(1, own, 0)
    if masked is not None:
        rows.masked_fill_(masked, 0)
    return {"count": count, "mean": mean, "deviation": ones @ torch.mul(rows, rows, out=scratch)}


class ProbabilitySums(_State):
    """What `evaluate_probabilities` reports, from batches of labelled samples.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        In units of the logits.
    n_bins : int, default 15
        Of equal width.
    mass_edges : (B+1,) float, optional
        Edges of the bins of equal mass, ascending from 0 to 1. Quantiles are not known before all samples are, so they
        come from a first pass or a part of the data: ``evaluate_probabilities(...).all.equal_mass_bins.edges``. Without
        them there is one bin.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or another argument is out of its range.

    Notes
    -----
    `O(NC)` time, `O(CB)` memory.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import ProbabilitySums
    >>> mask = np.array([True, True, False])
    >>> first = ProbabilitySums(mask).update(np.log([[0.5, 0.2, 0.3]]), [0])
    >>> second = ProbabilitySums(mask).update(np.log([[0.1, 0.1, 0.8]]), [1])
    >>> round(first.merge(second).compute().all.nll, 4)
    1.4979
    """

    def __init__(
        self,
        seen_mask: ArrayLike,
        gamma: SupportsFloat = 0.0,
        n_bins: int = 15,
        mass_edges: ArrayLike | None = None,
    ) -> None:
        width = equal_width_edges(check_bins(n_bins), torch.device("cpu"))
        mass = width[[0, -1]] if mass_edges is None else check_edges(mass_edges, "mass_edges").cpu()
        mask = _settled_mask(seen_mask)
        sums = probability_sums(no_samples(), no_class_excess(mask.shape[0], width), {WIDTH: width, MASS: mass})
        shift = torch.tensor(gamma_as_float(gamma), dtype=torch.float64)
        super().__init__(mask, sums, {"gamma": shift, f"{WIDTH}_edges": width, f"{MASS}_edges": mass})

    def update(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Add a batch of labelled samples, checked as `evaluate_probabilities` checks them."""
        scan = scan_batch(logits, labels, self.seen_mask)
        edges = {kind: value.to(scan.logits.device) for kind, value in self._edges().items()}
        samples, class_excess = score_samples(scan, float(self._settings["gamma"]), edges[WIDTH])
        self._add(probability_sums(samples, class_excess, edges))
        return self

    def compute(self) -> ProbabilityReport[Tensor]:
        """Return the report on all samples so far; NaN where none defines a score."""
        gamma = float(self._settings["gamma"])
        return report_from_sums(self._sums, self.seen_mask, gamma, self._edges(), torch.clone)

    def _edges(self) -> dict[str, Tensor]:
        return {kind: self._settings[f"{kind}_edges"] for kind in (WIDTH, MASS)}


class MarginRows(_RowState):
    """The margins of all samples, from batches: every question about gamma can still be asked, exactly.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    keep_labels : bool, default False
        Whether to keep the labels, which macro averages need.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class.

    Notes
    -----
    `O(NC)` time; memory 5 bytes per sample, and 4 more for its label (float64 logits: 4 more for the margin).

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import MarginRows
    >>> state = MarginRows(np.array([True, True, False]))
    >>> for row, label in [([4.0, 1, 3], 0), ([2.0, 5, 4.5], 2), ([6.0, 1, 2], 0)]:
    ...     state = state.update(np.array([row]), [label])
    >>> state.compute().curve().best()
    0.75
    """

    def __init__(self, seen_mask: ArrayLike, keep_labels: bool = False) -> None:
        rows = {"margin": torch.empty(0, dtype=torch.float32), "flags": torch.empty(0, dtype=torch.uint8)}
        if keep_labels:
            rows["label"] = torch.empty(0, dtype=torch.int32)
        super().__init__(_settled_mask(seen_mask), rows)

    def update(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Add a batch of labelled samples, checked as `margins` checks them."""
        scan = scan_batch(logits, labels, self.seen_mask)
        flags = scan.scalars.is_seen.to(torch.uint8) << 1 | scan.scalars.hit
        self._add({"margin": scan.margin, "flags": flags, "label": scan.labels.to(torch.int32)})
        return self

    def compute(self) -> Margins[Tensor]:
        """Return the margins of all samples so far, in the order in which they came."""
        rows = self._collected()
        label = rows["label"].long() if "label" in rows else None
        if label is not None:
            warn_if_reindexed(label, self.seen_mask)
        return Margins(rows["margin"].clone(), (rows["flags"] & 2).bool(), (rows["flags"] & 1).bool(), label)


class MarginBins(_State):
    r"""The seen-absent curve in fixed memory, from batches of any number: exact at 65,535 gammas, bounded in between.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    n_bins : int, default 65536
        Bins of margins, half of them below 0.
    scale : float, default 16
        In units of the logits. Half of the bins hold margins from -`scale` to `scale`; at a margin m a bin is about
        :math:`2 (s + |m|)^2 / (s B)` wide: 0.0005 at 0, 0.0013 at 10.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or another argument is out of its range.

    Notes
    -----
    `O(NC + N log B)` time, 16 B bytes of memory: 1 MiB by default, whatever N is. The bound falls with the number of
    bins. For gamma that is best over all reals, pass over the data again with a `BestGamma`.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import MarginBins
    >>> state = MarginBins(np.array([True, True, False]))
    >>> for row, label in [([4.0, 1, 3], 0), ([2.0, 5, 4.5], 2), ([6.0, 1, 2], 0)]:
    ...     state = state.update(np.array([row]), [label])
    >>> state.compute()
    BinnedCurve(65536 bins, 2 seen and 1 absent samples, AUSUC 1.0000 ± 0.0e+00)
    """

    def __init__(self, seen_mask: ArrayLike, n_bins: int = 1 << 16, scale: float = 16.0) -> None:
        edges = bin_edges(check_bins(n_bins, least=2), check_temperature(scale, "scale"))
        count = torch.zeros(len(edges) - 1, dtype=torch.int64)
        group = torch.zeros(2, dtype=torch.int64)
        sums = {"seen_hits": count, "absent_hits": count, "samples": group, "hits": group, "always_correct": group}
        super().__init__(_settled_mask(seen_mask), sums, {"edges": edges})

    def update(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Add a batch of labelled samples, checked as `margins` checks them."""
        scan = scan_batch(logits, labels, self.seen_mask)
        hit, is_seen, finite = scan.scalars.hit, scan.scalars.is_seen, scan.margin.isfinite()
        edges = self._settings["edges"].to(scan.margin.device)
        bins = torch.bucketize(scan.margin.double(), edges[1:-1], right=True)

        def by_group(of: Tensor) -> Tensor:
            return torch.stack([(of & is_seen).sum(), (of & ~is_seen).sum()])

        stays = torch.where(is_seen, scan.margin == math.inf, scan.margin == -math.inf)
        self._add(
            {
                "seen_hits": torch.bincount(bins[hit & finite & is_seen], minlength=len(edges) - 1),
                "absent_hits": torch.bincount(bins[hit & finite & ~is_seen], minlength=len(edges) - 1),
                "samples": by_group(torch.ones_like(hit)),
                "hits": by_group(hit),
                "always_correct": by_group(hit & stays),
            }
        )
        return self

    def compute(self) -> BinnedCurve:
        """Return the curve of all samples so far; without samples of a group its accuracies are NaN."""
        sums = self._sums
        (n_seen, n_absent), within = sums["samples"].tolist(), (sums["hits"].double() / sums["samples"]).tolist()
        always_seen, always_absent = sums["always_correct"]
        zero = sums["seen_hits"].new_zeros(1)
        seen = always_seen + torch.cat([sums["seen_hits"].flip(0).cumsum(0).flip(0), zero])
        absent = always_absent + torch.cat([zero, sums["absent_hits"].cumsum(0)])
        return BinnedCurve(self._settings["edges"].clone(), seen, absent, n_seen, n_absent, *within)


class BestGamma(_RowState):
    """The best gamma over all reals, in a second pass over data that `MarginBins` has counted.

    It keeps the margins in the few bins that may hold the best gamma, by branch and bound.

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

    Notes
    -----
    `O(NC)` time; memory 9 bytes for each margin in the bins left, of which `MarginBins` knows the number.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import BestGamma, MarginBins
    >>> logits, labels = np.array([[4.0, 1, 3], [2.0, 5, 4.5], [6.0, 1, 2]]), [0, 2, 0]
    >>> bins = MarginBins(np.array([True, True, False])).update(logits, labels)
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
        super().__init__(settings.pop("seen_mask"), rows, settings)

    def update(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Add a batch of the samples that `bins` has counted."""
        scan = scan_batch(logits, labels, self.seen_mask)
        edges, windows = (self._settings[name].to(scan.margin.device) for name in ("edges", "windows"))
        margin = scan.margin.double()
        kept = scan.scalars.hit & margin.isfinite() & windows[torch.bucketize(margin, edges[1:-1], right=True)]
        self._add({"margin": margin[kept], "is_seen": scan.scalars.is_seen[kept]})
        return self

    def compute(self) -> float:
        """Return gamma, as `TradeoffCurve.best` chooses it; ValueError if the samples are not those of `bins`."""
        rows, windows = self._collected(), self._settings["windows"]
        expected = [int(self._settings[name][windows].sum()) for name in ("seen_hits", "absent_hits")]
        found = [int(rows["is_seen"].sum()), int((~rows["is_seen"]).sum())]
        if found != expected:
            raise ValueError(
                f"BestGamma has {found[0]} seen and {found[1]} absent samples in the bins that matter, MarginBins has "
                f"{expected[0]} and {expected[1]}: pass all samples of the first pass once more, and no others"
            )
        return exact_best(self._curve, windows, rows["margin"], rows["is_seen"], self._objective)


def _joined(blocks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def _settled_mask(seen_mask: ArrayLike) -> Tensor:
    return check_mask_values(as_bool_mask(seen_mask)).clone()
