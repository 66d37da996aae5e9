"""Likelihood, Brier score and calibration errors, from batches."""

from __future__ import annotations

from typing import SupportsFloat

import torch
from torch import Tensor

from ..evaluation.probabilities import MASS, WIDTH, ProbabilityReport, report_from_sums
from ..evaluation.probability_sums import (
    equal_width_edges,
    no_class_excess,
    no_samples,
    probability_sums,
    score_samples,
)
from ..evaluation.samples import Samples, scan_batch
from ..inputs.arrays import ArrayLike, Mask, as_tensor, shape_of
from ..inputs.checks import gamma_as_float
from ..inputs.numbers import check_bins
from ..logits.dense import Layout
from .state import LabelledState, copy_checked_mask


class ProbabilitySums(LabelledState):
    """The report of `evaluate_probabilities`, from batches of labelled samples.

    Parameters
    ----------
    n_bins : int, default 15
        Number of bins of equal width.
    mass_edges : (B+1,) float, optional
        Edges of the bins of equal mass, ascending from 0 to 1. Quantiles are not known before all samples are, so they
        come from a first pass or a part of the data: ``evaluate_probabilities(...).all.equal_mass_bins.edges``. Without
        them there is one bin.
    seen_mask, gamma, dim, ignore_index
        As in `AccuracySums`.

    Raises
    ------
    TypeError, ValueError
        As `AccuracySums`; also if another argument is out of its range.

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
