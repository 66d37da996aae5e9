"""Gamma from labelled seen samples by residual weights: those that the model doubts behave as absent ones do."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation.scan import LabelledScan
from ..inputs.arrays import Labels, Logits, Mask
from ..inputs.numbers import check_temperature
from ..logits.reductions import largest_two
from ..logits.softmax_moments import group_moments, make_samples
from ..logits.tiles import tile_rows, tiles
from ..logits.torch_kernels import group_limits
from ..logits.workers import by_rows
from .bootstrap import HELD_OUT, Bootstrap
from .estimate import GammaEstimate, scan_seen
from .gamma_of_share import GammaOfShare, finish_gap

_ENOUGH = 10
"""Samples that have to count for as much as the one that counts most."""
_RAISED, _MUCH = 1.25, 2
_ROWS = 8192
"""From which T is fitted: it need not be precise."""
_COLDEST, _HOTTEST = -5.0, 11.0
"""Of log T."""
_STEPS_OF_TEMPERATURE = 14
_PRIOR = 0.01
_CLOSE = 1e-10


def residual_gap(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    seen_share: float | None = None,
    *,
    temperature: float | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma by the logit gap of the held-out samples that the model doubts.

    For held-out samples of the seen classes; from training samples, or where the model makes hardly any mistakes, take
    `mixed_pair_gap`, or leave the choice to `estimate_gamma`. A sample of an absent class is one that no seen class
    fits. So seen samples count as far as their own class does not fit them, once the absent classes compete on equal
    terms:

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
        Scores before softmax of held-out samples. On samples that the model has memorised gamma is far too low, and too
        low where it mistakes fewer than one in twenty.
    labels : (N,) int
        Class indices, of seen classes only.
    seen_mask : (C,) bool
        True for the seen classes; at least two.
    seen_share : float in (0, 1), optional
        :math:`\pi`; default |S| / C, every class equally frequent, but for classes that -inf masks in all samples. 0.5
        aims at balanced accuracy.
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
        If gamma for equally frequent classes is <= 0 (no gap), gamma sends every sample to the absent classes, T had
        to rise by much because the model doubts too few samples, or samples were left out.

    Notes
    -----
    Finecal's own. `O(NC)`. The weight depends on gamma, so that absent rivals count as much as seen ones: the
    weighted gap falls as gamma rises (but for the fractions, which are small), and where it meets gamma is found in a
    bracket. T minimises the mean NLL of the labels plus (log T)^2 / 200, which matters where the model makes no
    mistakes; of many samples 8192 are drawn for it. It then rises until no sample counts for more than a tenth of all
    (or, of fewer than 20, for more than two): otherwise one mistake among samples that are all certain would decide.
    Where it had to rise by much, gamma rests on few samples, and an interval is too narrow.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 8.0, 1.0, 2.0], [7.0, 8.0, 0.0, 3.0]], (20, 1))
    >>> labels = np.tile([0, 1], 20)
    >>> print(f"{finecal.residual_gap(logits, labels, [True, True, False, False]).gamma:.3f}")
    5.503
    """
    scan = scan_seen(logits, labels, seen_mask, "residual_gap")
    t = None if temperature is None else check_temperature(temperature, "temperature")
    return finish_gap(scan, gap_of_residuals(scan, Bootstrap.checked(n_bootstrap, seed), t), seen_share)


def gap_of_residuals(
    scan: LabelledScan,
    bootstrap: Bootstrap,
    temperature: float | None = None,
    *,
    stream: int = HELD_OUT,
) -> GammaOfShare:
    """Find the gap in samples that are scanned already."""
    rivals, usable = _rivals(scan)
    everything = torch.ones_like(rivals.gap)
    start = _fitted_temperature(scan, usable) if temperature is None else temperature
    may_rise = temperature is None
    found = rivals.solve(start, may_rise, everything)
    n, all_samples = len(rivals.gap), len(scan.labels)
    replicates = []
    for index in bootstrap.indices(all_samples, stream=stream):
        times = torch.bincount(index, minlength=all_samples).to(usable.device)[usable].double()
        replicates.append(rivals.solve(start, may_rise, times).gap if bool(times.any()) else math.nan)
    sentences = left_out(n, all_samples)
    if found.widened:
        sentences.append(
            f"the model doubts only a few of the {n} samples; T was raised to {found.temperature:.3g}, so that not "
            "these alone count: gamma is rough, and rather too low; hold out more samples"
        )
    return GammaOfShare(found.gap, found.temperature, replicates, n, "residual_gap", sentences, start)


def left_out(used: int, given: int) -> list[str]:
    """Return a warning if not all samples were used."""
    if used == given:
        return []
    return [
        f"{given - used} of {given} samples were left out: -inf logits mask their label, all their absent classes, or "
        "all seen ones but the label"
    ]


class _Solution(NamedTuple):
    gap: float
    temperature: float
    widened: bool
    """Whether the temperature had to be raised by much."""


class _Rivals(NamedTuple):
    """What each usable sample says: its gap, and the logits that its weight depends on; `(N,)` float64 each."""

    gap: Tensor
    own: Tensor
    seen: Tensor
    absent: Tensor

    def solve(self, temperature: float, may_rise: bool, times: Tensor) -> _Solution:
        """Solve for the gap of a resample, at a temperature that may rise until enough samples count."""
        found = _Solution(self._fixed_point(temperature, times), temperature, False)
        enough = min(_ENOUGH, float(times.sum()) / 2) if may_rise else 0.0
        while self.effective_samples(found, times) < enough:
            t = _RAISED * found.temperature
            found = _Solution(self._fixed_point(t, times), t, t > _MUCH * temperature)
        return found

    def effective_samples(self, found: _Solution, times: Tensor) -> float:
        """Return how many samples there would be if each counted as much as the one that counts most."""
        weight = self._weight(found.gap, found.temperature, (times > 0).double())
        return float((weight @ times) / weight.max())

    def _weight(self, gamma: float, temperature: float, times: Tensor) -> Tensor:
        """Return the weights, the largest of a drawn sample being 1."""
        lead = self.own - torch.maximum(self.seen, self.absent + gamma)
        log_weight = torch.nn.functional.logsigmoid(-lead / temperature).masked_fill(times == 0, -math.inf)
        return (log_weight - log_weight.max()).exp() * times

    def _excess(self, gamma: float, temperature: float, times: Tensor) -> float:
        weight = self._weight(gamma, temperature, times)
        return float((weight @ self.gap) / weight.sum()) - gamma

    def _fixed_point(self, temperature: float, times: Tensor) -> float:
        """Return a gamma at which the weighted gap equals it: false position in a bracket, every third step halves it.

        No weighted mean lies outside the gaps, so that there always is one.
        """
        drawn = self.gap[times > 0]
        low, high = float(drawn.min()), float(drawn.max())
        close = _CLOSE * (high - low) + 4 * torch.finfo(torch.float64).eps * max(abs(low), abs(high))
        above, below = (self._excess(end, temperature, times) for end in (low, high))
        step = 0
        while high - low > close:
            step += 1
            middle = low + (high - low) / 2
            falsely = low + (high - low) * (above / (above - below)) if above > below else middle
            gamma = falsely if step % 3 and low < falsely < high else middle
            excess = self._excess(gamma, temperature, times)
            if excess == 0 or gamma in (low, high):
                return gamma
            if excess > 0:
                low, above = gamma, excess
            else:
                high, below = gamma, excess
        return low + (high - low) / 2


def _rivals(scan: LabelledScan) -> tuple[_Rivals, Tensor]:
    """Take the two largest logits of either group from each row, the label left out, and correct for their numbers.

    Also returns which rows are usable: those in which both groups and the label are scored.
    """
    limits = group_limits(scan.mask, scan.logits.dtype)

    def kernel(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        parts = []
        owns = torch.split(labels.unsqueeze(1), tile_rows(logits))
        for (rows, scratch), label in zip(tiles(logits, writable=True), owns, strict=True):
            rest = rows.scatter_(1, label, -math.inf)
            seen, absent = (largest_two(torch.minimum(rest, limit, out=scratch)) for limit in limits)
            gap = seen.largest - absent.largest + seen.spacing / (seen.number + 1) + absent.spacing / absent.number
            parts.append(torch.stack([gap, seen.largest, absent.largest]))
        return torch.cat(parts, dim=1).unbind()

    gap, seen_rival, absent_rival = by_rows(kernel, scan.logits, scan.labels)
    own = scan.scalars.own.double()
    usable = gap.isfinite() & own.isfinite()
    if not bool(usable.any()):
        raise ValueError(
            "logits are -inf on the label, on all absent classes, or on all seen ones but the label, in each of the "
            f"{len(usable)} samples; residual_gap has nothing to estimate from: pass logits in which both groups are "
            "scored"
        )
    return _Rivals(*(column[usable] for column in (gap, own, seen_rival, absent_rival))), usable


def _fitted_temperature(scan: LabelledScan, usable: Tensor) -> float:
    """Return the T that minimises the mean NLL of the labels over the seen classes, plus (log T)^2 / 200."""
    rows = usable.nonzero().squeeze(1)
    if len(rows) > _ROWS:
        generator = torch.Generator("cpu").manual_seed(0)
        chosen = torch.randperm(len(rows), generator=generator, device="cpu")[:_ROWS]
        rows = rows[chosen.to(rows.device)]
    top = scan.scalars.seen_max[rows].unsqueeze(1)
    samples = make_samples(scan.logits[rows], scan.labels[rows], scan.mask.unsqueeze(0), top, "residual_gap")
    shortfall = samples.top.squeeze(1) - samples.own
    low, high = _COLDEST, max(_HOTTEST, math.log(float(shortfall.max()) + 1) + 1)
    for _ in range(_STEPS_OF_TEMPERATURE):
        middle = (low + high) / 2
        _, mean, _ = group_moments(samples, samples.top.new_tensor([math.exp(-middle)]))
        slope = -float(mean.mean() + shortfall.mean()) * math.exp(-middle) + _PRIOR * middle
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp((low + high) / 2)
