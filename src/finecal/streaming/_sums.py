"""Likelihood, Brier score and calibration errors, from batches."""

from __future__ import annotations

import math
from typing import NamedTuple, SupportsFloat

import torch
from torch import Tensor

from .._core.arrays import ArrayLike, Mask, as_tensor, check_bins, check_choice, shape_of
from .._core.calibrate import Layout
from .._core.checks import check_not_empty, check_only_seen, gamma_as_float
from .._core.plausibility import GroupHits, group_sizes, hit_warning, warn_of_hits
from .._core.report import AVERAGES, SeenAbsentReport, harmonic_mean
from .._core.samples import Samples, batch_margins, scan_batch
from .._estimators.estimate import GammaEstimate, check_two_seen, missing_gap_warnings, with_warnings
from .._estimators.gaps import GAPS, gap_sum, mean_gap
from ..probabilities import (
    MASS,
    WIDTH,
    ProbabilityReport,
    equal_width_edges,
    no_class_excess,
    no_samples,
    probability_sums,
    report_from_sums,
    score_samples,
)
from ._state import LabelledState, copy_checked_mask


class AccuracySums(LabelledState):
    """The report of `evaluate` at one gamma, from batches of labelled samples, in constant memory.

    `O(NC)` time, `O(C)` memory. `ausuc` is NaN: it needs the margins of all samples, which `MarginRows` keeps.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        In units of the logits.
    dim : int, default -1
        Dimension of the classes in dense logits: 1 for `(B, C, H, W)`.
    ignore_index : int, optional
        The label of positions that do not count, such as 255.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or another argument is out of its range.

    Examples
    --------
    >>> from finecal.streaming import AccuracySums
    >>> state = AccuracySums([True, True, False], gamma=0.75).update([[4.0, 1, 3]], [0])
    >>> state.update([[2.0, 5, 4.5]], [2]).compute().acc_all
    1.0
    """

    def __init__(
        self,
        seen_mask: Mask,
        gamma: SupportsFloat = 0.0,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        mask = copy_checked_mask(seen_mask)
        count = torch.zeros_like(mask, dtype=torch.int64)
        shift = torch.tensor(gamma_as_float(gamma), dtype=torch.float64)
        sums = {"samples": count, "hits": count, "correct": count}
        super().__init__(mask, sums, {"gamma": shift}, layout=Layout.from_arguments(dim, ignore_index))

    def _add_samples(self, samples: Samples) -> None:
        label, batch = samples.labels_tensor, batch_margins(samples, self.seen_mask)
        goes_absent, hit = batch.margin.double() < float(self._settings["gamma"]), batch.hit
        chosen = {"samples": torch.ones_like(hit), "hits": hit, "correct": hit & (goes_absent != batch.is_seen)}
        classes = self.seen_mask.shape[0]
        self._add({name: torch.bincount(label[rows], minlength=classes) for name, rows in chosen.items()})

    def compute(self, average: str = "micro") -> SeenAbsentReport:
        """Return the accuracies so far, averaged as in `evaluate`. Warns if those within groups are near guessing."""
        check_choice(average, AVERAGES, "average")
        samples, seen = self._sums["samples"], self.seen_mask

        def accuracy(count: str, of: Tensor) -> float:
            correct = self._sums[count]
            if average == "micro":
                return float(correct[of].sum().double() / samples[of].sum())
            of = of & (samples > 0)
            return float((correct[of].double() / samples[of]).mean())

        of_groups = ([int(self._sums[name][group].sum()) for group in (seen, ~seen)] for name in ("samples", "hits"))
        warn_of_hits(map(GroupHits, *of_groups, group_sizes(seen)))
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


class GapEstimates(NamedTuple):
    """Both estimates from labelled seen samples by logit gaps; made by `GapSums`.

    Attributes
    ----------
    average, maximum : GammaEstimate
        As `average_logit_gap` and as `max_logit_gap` return it.
    """

    average: GammaEstimate
    maximum: GammaEstimate


class GapSums(LabelledState):
    """Gamma by the average and by the maximum logit gap, from batches of labelled seen samples.

    `O(NC)` time, `O(1)` memory. `acc_seen_at_gamma` is None: it needs all margins, which `MarginRows` keeps.

    Parameters
    ----------
    seen_mask, dim, ignore_index
        As in `AccuracySums`, with its errors; ValueError also with fewer than two seen classes.

    Examples
    --------
    >>> from finecal.streaming import GapSums
    >>> state = GapSums([True, True, False, False])
    >>> state.update([[9.0, 4, 1, 2], [3, 8, 0, 1]], [0, 1]).compute().maximum.gamma
    2.0
    """

    def __init__(self, seen_mask: Mask, *, dim: int = -1, ignore_index: int | None = None) -> None:
        mask = copy_checked_mask(seen_mask)
        check_two_seen(mask, "GapSums")
        count, total = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.float64)
        sums = {"samples": count, "hits": count, "correct": count}
        for method in GAPS:
            sums |= {f"{method}_total": total, f"{method}_usable": count}
        super().__init__(mask, sums, layout=Layout.from_arguments(dim, ignore_index))

    def _add_samples(self, samples: Samples) -> None:
        scan = scan_batch(samples, self.seen_mask)
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

    def estimate(self, method: str = "max_logit_gap") -> GammaEstimate:
        """Return the estimate of the function called `method`, with its warnings but for the cost.

        ValueError without samples.
        """
        check_choice(method, tuple(GAPS), "method")
        samples = int(self._sums["samples"])
        check_not_empty(samples, "GapSums")
        hits, correct = int(self._sums["hits"]), float(self._sums["correct"]) / samples
        total, usable = self._sums[f"{method}_total"], self._sums[f"{method}_usable"]
        gamma, sentences = mean_gap(total, usable, samples, method)
        about_hits = hit_warning([GroupHits(samples, hits, int(self.seen_mask.sum()))])
        doubts = [*sentences, *missing_gap_warnings(gamma), *([about_hits] if about_hits else [])]
        n = int(usable)
        estimate = GammaEstimate(gamma, method, f"{n} labelled samples (seen classes)", n, acc_seen_at_zero=correct)
        return with_warnings(estimate, doubts)

    def compute(self) -> GapEstimates:
        """Return both estimates, as `estimate` returns them."""
        return GapEstimates(self.estimate("average_logit_gap"), self.estimate("max_logit_gap"))


class ProbabilitySums(LabelledState):
    """The report of `evaluate_probabilities`, from batches of labelled samples; `O(NC)` time, `O(CB)` memory.

    Parameters
    ----------
    n_bins : int, default 15
        Number of bins of equal width.
    mass_edges : (B+1,) float, optional
        Edges of the bins of equal mass, ascending from 0 to 1, from a first pass or a part of the data:
        ``evaluate_probabilities(...).all.equal_mass_bins.edges``. Without them there is one bin.
    seen_mask, gamma, dim, ignore_index
        As in `AccuracySums`, with its errors; ValueError also if another argument is out of its range.

    Examples
    --------
    >>> from finecal.streaming import ProbabilitySums
    >>> state = ProbabilitySums([True, True, False]).update([[2.0, 1.0, 1.5]], [0])
    >>> round(state.update([[0.0, 0.0, 2.0]], [1]).compute().all.nll, 4)
    1.4599
    """

    def __init__(
        self,
        seen_mask: Mask,
        gamma: SupportsFloat = 0.0,
        n_bins: int = 15,
        mass_edges: ArrayLike | None = None,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        width = equal_width_edges(check_bins(n_bins), torch.device("cpu"))
        mass = width[[0, -1]] if mass_edges is None else check_edges(mass_edges, "mass_edges").cpu()
        mask = copy_checked_mask(seen_mask)
        sums = probability_sums(no_samples(), no_class_excess(mask.shape[0], width), {WIDTH: width, MASS: mass})
        shift = torch.tensor(gamma_as_float(gamma), dtype=torch.float64)
        settings = {"gamma": shift, f"{WIDTH}_edges": width, f"{MASS}_edges": mass}
        super().__init__(mask, sums, settings, layout=Layout.from_arguments(dim, ignore_index))

    def _add_samples(self, samples: Samples) -> None:
        scan = scan_batch(samples, self.seen_mask)
        edges = {kind: value.to(scan.logits.device) for kind, value in self._edges().items()}
        scores, class_excess = score_samples(scan, float(self._settings["gamma"]), edges[WIDTH])
        self._add(probability_sums(scores, class_excess, edges))

    def compute(self) -> ProbabilityReport[Tensor]:
        """Return the report on all samples so far; NaN where none defines a score."""
        gamma = float(self._settings["gamma"])
        return report_from_sums(self._sums, self.seen_mask, gamma, self._edges(), torch.clone)

    def _edges(self) -> dict[str, Tensor]:
        return {kind: self._settings[f"{kind}_edges"] for kind in (WIDTH, MASS)}


def check_edges(edges: object, name: str) -> Tensor:
    """Ascending numbers from 0 to 1; returned as a float64 tensor of its own."""
    tensor = as_tensor(edges, name)
    if tensor.ndim != 1 or tensor.shape[0] < 2:
        raise ValueError(f"{name} has shape {shape_of(tensor)}; expected (B + 1,), the edges of B bins")
    tensor = tensor.detach().to(torch.float64, copy=True)
    if not (tensor[0] == 0 and tensor[-1] == 1 and bool((tensor.diff() >= 0).all())):
        raise ValueError(f"{name} must ascend from 0 to 1; they run from {tensor[0]:.4g} to {tensor[-1]:.4g}")
    return tensor
