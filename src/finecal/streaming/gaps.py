"""Logit gaps of seen samples, from batches."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..evaluation.guessing import GroupHits, hit_warning
from ..evaluation.logit_gaps import GAPS
from ..evaluation.samples import Samples, scan_batch
from ..gamma.estimate import GammaEstimate, check_two_seen, missing_gap_warnings, with_warnings
from ..gamma.gaps import gap_sum, mean_gap
from ..inputs.arrays import Mask
from ..inputs.checks import check_not_empty, check_only_seen
from ..inputs.numbers import check_choice
from ..logits.dense import Layout
from .state import LabelledState, copy_checked_mask


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


class GapSums(LabelledState):
    """Gamma by the average and by the maximum logit gap, from batches of labelled seen samples.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes; at least two.
    dim, ignore_index
        As in `AccuracySums`.

    Raises
    ------
    TypeError, ValueError
        As `AccuracySums`; also if there are fewer than two seen classes.

    Notes
    -----
    `O(NC)` time, `O(1)` memory. What gamma costs the seen classes (`expected_acc_seen`) takes the margins of all
    samples, which `MarginRows` keeps: here it is None.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import GapSums
    >>> state = GapSums(np.array([True, True, False, False]))
    >>> state = state.update(np.array([[9.0, 4, 1, 2]]), [0]).update(
    ...     np.array([[3.0, 8, 0, 1]]), [1]
    ... )
    >>> estimates = state.compute()
    >>> estimates.average.gamma, estimates.maximum.gamma
    (2.5, 2.0)
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
        """Return one of the two estimates, by the name of its function, with the function's warnings but for the cost.

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
        estimate = GammaEstimate(gamma, method, f"{n} labelled samples (seen classes)", n, acc_seen_before=correct)
        return with_warnings(estimate, doubts)

    def compute(self) -> GapEstimates:
        """Return both estimates, as `estimate` returns them."""
        return GapEstimates(self.estimate("average_logit_gap"), self.estimate("max_logit_gap"))
