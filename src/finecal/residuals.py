"""Gamma from labelled seen samples by residual weights: those that the model doubts behave as absent ones do."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._arrays import ArrayLike
from ._checks import check_temperature
from .gamma import GammaEstimate, resamples, scan_seen
from .logits import group_limits, tile_rows, tiles
from .margin import LabelledScan
from .rivals import largest_two
from .seen_gap import SeenGap, finish_gap
from .softmax_moments import group_moments, make_samples, thinned

_FEW = 10
_COLDEST, _HOTTEST = -4.0, 4.0
"""Of log T."""
_STEPS_OF_TEMPERATURE = 12
_CONVERGED = 1e-9


def residual_gap(
    logits: ArrayLike,
    labels: ArrayLike,
    seen_mask: ArrayLike,
    seen_share: float | None = None,
    *,
    temperature: float | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma by the logit gap of the held-out samples that the model doubts.

    For held-out samples of the seen classes; from training samples take `mixed_pair_gap`, or leave the choice to
    `estimate_gamma`. A sample of an absent class is one that no seen class fits. So seen samples count as far as
    their own class does not fit them, once the absent classes compete on equal terms:

    .. math::
        \gamma_0 = \frac{\sum_i w_i \, g_i}{\sum_i w_i}, \qquad
        w = \sigma\Big( \frac{\max(s_1,\, u_1 + \gamma_0) - z_y}{T} \Big)

    .. math::
        g = s_1 - u_1 + \frac{s_1 - s_2}{|S|} + \frac{u_1 - u_2}{|U|}, \qquad
        \gamma = \gamma_0 + T \log \frac{1 - \pi}{\pi}

    :math:`s_1, s_2` are the two largest seen logits without the sample's own class y, :math:`u_1, u_2` the two largest
    absent ones. An absent sample has one seen rival more and one absent rival less than a seen one: the fractions
    correct for that. :math:`\pi` is the share of seen samples where the model will be used.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax of held-out samples. On samples that the model has memorised gamma is far too low.
    labels : (N,) int
        Class indices, of seen classes only.
    seen_mask : (C,) bool
        True for the seen classes; at least two.
    seen_share : float in (0, 1), optional
        :math:`\pi`; default |S| / C, every class equally frequent. 0.5 aims at balanced accuracy.
    temperature : float, optional
        T; by default it is fitted on these samples over the seen classes.
    n_bootstrap : int, default 0
        Resamplings of the samples for a 95 % interval.
    seed : int, default 0
        Of the bootstrap.

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `average_logit_gap`; ValueError if `seen_share` is not in (0, 1) or `temperature` not positive.

    Warns
    -----
    FinecalWarning
        If gamma for equally frequent classes is <= 0 (no gap), gamma sends every sample to the absent classes, or the
        model doubts so few samples that gamma rests on them.

    Notes
    -----
    Finecal's own. `O(NC)`. The weight depends on gamma, so that absent rivals count as much as seen ones: the weighted
    gap falls as gamma rises, and there is one fixed point. T minimises the NLL of the labels plus (log T)^2 / 2, which
    matters where the model makes no mistakes; of many samples about 2048 are used for it.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 8.0, 1.0, 2.0], [7.0, 8.0, 0.0, 3.0]], (20, 1))
    >>> labels = np.tile([0, 1], 20)
    >>> print(f"{finecal.residual_gap(logits, labels, [True, True, False, False]).gamma:.3f}")
    5.509
    """
    scan = scan_seen(logits, labels, seen_mask, "residual_gap")
    t = None if temperature is None else check_temperature(temperature, "temperature")
    return finish_gap(scan, gap_of_residuals(scan, t, n_bootstrap, seed), seen_share)


def gap_of_residuals(
    scan: LabelledScan, temperature: float | None = None, n_bootstrap: int = 0, seed: int = 0
) -> SeenGap:
    """Find the gap in samples that are scanned already."""
    rivals = _rivals(scan)
    t = _fitted_temperature(scan) if temperature is None else temperature
    gap, n = rivals.fixed_point(t), len(rivals.gap)
    replicates = []
    for index in resamples(n, n_bootstrap, seed, stream=1):
        times = torch.bincount(index, minlength=n).to(rivals.gap.device)
        replicates.append(rivals.fixed_point(t, times, start=gap))
    sentences = []
    effective = rivals.effective_samples(gap, t)
    if effective < _FEW:
        sentences.append(
            f"the model recognises nearly all of the {n} samples: gamma rests on those it doubts, in effect "
            f"{effective:.1f}"
        )
    if n < len(scan.labels):
        sentences.append(
            f"{len(scan.labels) - n} of {len(scan.labels)} samples were left out: -inf logits mask their label, all "
            "their absent classes, or all seen ones but the label"
        )
    return SeenGap(gap, t, replicates, n, {"residual_gap": 1.0}, sentences)


class _Rivals(NamedTuple):
    """What each usable sample says: its gap, and the logits that its weight depends on; `(N,)` float64 each."""

    gap: Tensor
    own: Tensor
    seen: Tensor
    absent: Tensor

    def log_weight(self, gamma: float, temperature: float) -> Tensor:
        lead = self.own - torch.maximum(self.seen, self.absent + gamma)
        return torch.nn.functional.logsigmoid(-lead / temperature)

    def weighted_gap(self, gamma: float, temperature: float, times: Tensor | None) -> float:
        weight = self._weight(gamma, temperature, times)
        return float((weight @ self.gap) / weight.sum())

    def effective_samples(self, gamma: float, temperature: float) -> float:
        weight = self._weight(gamma, temperature, None)
        return float(weight.sum().square() / weight.square().sum())

    def _weight(self, gamma: float, temperature: float, times: Tensor | None) -> Tensor:
        log_weight = self.log_weight(gamma, temperature)
        weight = (log_weight - log_weight.max()).exp()
        return weight if times is None else weight * times

    def fixed_point(self, temperature: float, times: Tensor | None = None, start: float | None = None) -> float:
        """Return the gamma at which the weighted gap equals it, by the Illinois method: false position in a bracket."""
        drawn = self.gap if times is None else self.gap[times > 0]
        low, high = float(drawn.min()) - 1, float(drawn.max()) + 1
        above = self.weighted_gap(low, temperature, times) - low
        below = self.weighted_gap(high, temperature, times) - high
        gamma, side = start if start is not None and low < start < high else (low + high) / 2, 0
        while True:
            excess = self.weighted_gap(gamma, temperature, times) - gamma
            if abs(excess) <= _CONVERGED or high - low <= _CONVERGED:
                return gamma
            if excess > 0:
                low, above, below, side = gamma, excess, below / 2 if side > 0 else below, 1
            else:
                high, below, above, side = gamma, excess, above / 2 if side < 0 else above, -1
            gamma = low + (high - low) * above / (above - below)


def _rivals(scan: LabelledScan) -> _Rivals:
    """Take the two largest logits of either group from each row, the label left out, and correct for their numbers."""
    limits = group_limits(scan.mask, scan.logits.dtype)
    labels = torch.split(scan.labels.unsqueeze(1), tile_rows(scan.logits))
    parts = []
    for (rows, scratch), label in zip(tiles(scan.logits, writable=True), labels, strict=True):
        rest = rows.scatter_(1, label, -math.inf)
        seen, absent = (largest_two(torch.minimum(rest, limit, out=scratch)) for limit in limits)
        gap = seen.largest - absent.largest + seen.spacing / (seen.number + 1) + absent.spacing / absent.number
        parts.append(torch.stack([gap, seen.largest, absent.largest]))
    gap, seen_rival, absent_rival = torch.cat(parts, dim=1)
    own = scan.scalars.own.double()
    usable = gap.isfinite() & own.isfinite()
    if not bool(usable.any()):
        raise ValueError(
            "logits are -inf on the label, on all absent classes, or on all seen ones but the label, in each of the "
            f"{len(usable)} samples; residual_gap has nothing to estimate from: pass logits in which both groups are "
            "scored"
        )
    return _Rivals(*(column[usable] for column in (gap, own, seen_rival, absent_rival)))


def _fitted_temperature(scan: LabelledScan) -> float:
    """Return the T that minimises the NLL of the labels over the seen classes, plus (log T)^2 / 2."""
    kept = scan.scalars.own > -math.inf
    logits, labels, top = scan.logits[kept], scan.labels[kept], scan.scalars.seen_max[kept]
    samples = thinned(make_samples(logits, labels, scan.mask.unsqueeze(0), top.unsqueeze(1), "residual_gap"))
    shortfall_of_labels = (samples.top.squeeze(1) - samples.own).sum()
    low, high = _COLDEST, _HOTTEST
    for _ in range(_STEPS_OF_TEMPERATURE):
        middle = (low + high) / 2
        _, mean, _ = group_moments(samples, samples.top.new_tensor([math.exp(-middle)]))
        slope = float(-mean.sum() - shortfall_of_labels) * math.exp(-middle) + middle
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp((low + high) / 2)
