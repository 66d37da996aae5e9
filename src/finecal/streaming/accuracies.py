"""Accuracies at one gamma, from batches."""

from __future__ import annotations

import math
from typing import SupportsFloat

import torch
from torch import Tensor

from ..evaluation.accuracies import AVERAGES, harmonic_mean
from ..evaluation.guessing import GroupHits, group_sizes, warn_of_hits
from ..evaluation.report import SeenAbsentReport
from ..evaluation.samples import Samples, batch_margins
from ..inputs.arrays import Mask
from ..inputs.checks import gamma_as_float
from ..inputs.numbers import check_choice
from ..logits.dense import Layout
from .state import LabelledState, copy_checked_mask


class AccuracySums(LabelledState):
    """The report of `evaluate` at one gamma, from batches of labelled samples, in constant memory.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        In units of the logits.
    dim : int, default -1
        Where the classes are in dense logits: 1 for `(B, C, H, W)`.
    ignore_index : int, optional
        The label of positions that do not count, such as 255.

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
    >>> state = state.update(np.array([[4.0, 1, 3]]), [0]).update(
    ...     np.array([[2.0, 5, 4.5]]), [2]
    ... )
    >>> state.compute().acc_all
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
        """Return the accuracies of all samples so far, "micro" or "macro" as in `evaluate`.

        Warns if samples are told apart within their own group hardly better than by guessing.
        """
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
