"""Gamma from labelled seen samples by residual weights: those it is unsure about behave like absent ones."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, check_temperature
from .._core.groups import HELD_OUT, Bootstrap, Grouping, Resamples
from .._core.kernels import group_limits, map_row_chunks, tile_rows, wide_dtype
from .._core.reductions import Samples, group_moments, largest_two, make_samples, rising_root, thin
from .._core.samples import Scan, samples_of, takes_samples
from .estimate import GammaEstimate, scan_seen
from .mixed_pairs import GapEstimate, finish_gap

_ENOUGH = 10
"""Least sum of the weights, in units of the largest weight."""
_RAISED, _MUCH = 1.25, 2
_FITTED, _ROWS, _LEAST_ROWS = 1 << 22, 8192, 1024
"""Most logits from which T is fitted, and most and fewest rows."""
_FEW_ROWS = 512
"""Rows on which the first steps are made."""
_CORRECTED, _LEAST_CORRECTED = 1 << 21, 256
"""Most logits from which the fractions are taken, and fewest rows."""
_COLDEST, _HOTTEST = -5.0, 11.0
"""Bounds of log T."""
_LARGE = 1e12
"""Magnitude above which float32 cannot resolve the relevant differences."""
_NODES, _FARTHEST = 13, 6.0
"""Gammas between which the bootstrap interpolates, and their distance from the gap in standard errors."""
_PRIOR = 0.01
_CLOSE = 1e-7
"""Tolerance of the gap, against a thousandth of the range of gaps."""
_MOST_STEPS = 1000
"""More bisections than a bracket of any width needs."""


@takes_samples
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
    r"""Estimate gamma by the logit gap of the held-out samples that the model is least sure about.

    .. math::
        \gamma_0 = \frac{\sum_i w_i \, g_i}{\sum_i w_i}, \qquad
        w = \sigma\Big( \frac{\max(s_1,\, u_1 + \gamma_0) - z_y}{T} \Big)

    .. math::
        g = s_1 - u_1 + \frac{s_1 - s_2}{|S|} + \frac{u_1 - u_2}{|U|}, \qquad
        \gamma = \gamma_0 + T \log \frac{1 - \pi}{\pi}

    :math:`s_1, s_2` are the two largest seen logits without the sample's own class y, :math:`u_1, u_2` the two largest
    absent ones. The fractions correct for the one seen rival more and the one absent rival less that an absent sample
    has. :math:`\pi` is the share of seen samples where the model will be used.

    Parameters
    ----------
    logits, labels, seen_mask
        As in `average_logit_gap`, of held-out samples. On memorised samples gamma is far too low; it is too low if the
        model mistakes fewer than one in twenty.
    seen_share : float in (0, 1), optional
        :math:`\pi`; as in `mixed_pair_gap`.
    temperature : float, optional
        T; by default it is fitted on these samples over the seen classes.
    n_bootstrap, seed : int, default 0
        Resamplings of the samples for a 95 % interval, at the T of all samples, and their seed.

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `average_logit_gap`; ValueError also if `seen_share` is not in (0, 1) or `temperature` not positive.

    Warns
    -----
    FinecalWarning
        As `average_logit_gap`, gamma at equally frequent classes; also if T had to more than double because the model
        is unsure about too few samples, or samples were left out.

    Notes
    -----
    Finecal's own; :doc:`/theory/estimators` derives it. `O(NC)`. T minimises the mean NLL of the labels plus
    (log T)^2 / 200, on at most 8192 samples, and then rises until no sample has more than a tenth of the total weight.
    If N C is above 2 million, the fractions are those of the samples with the largest weights, and their mean for all
    others.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 8.0, 1.0, 2.0], [7.0, 8.0, 0.0, 3.0]], (20, 1))
    >>> labels, mask = np.tile([0, 1], 20), [True, True, False, False]
    >>> print(f"{finecal.estimators.residual_gap(logits, labels, mask).gamma:.3f}")
    5.503
    """
    scan = scan_seen(samples_of(logits, labels), seen_mask, "residual_gap")
    t = None if temperature is None else check_temperature(temperature, "temperature")
    return finish_gap(scan, estimate_residual_gap(scan, Bootstrap.from_arguments(n_bootstrap, seed), t), seen_share)


def estimate_residual_gap(
    scan: Scan,
    bootstrap: Bootstrap,
    temperature: float | None = None,
    *,
    substream: int = HELD_OUT,
) -> GapEstimate:
    """Return the gap of checked samples."""
    rivals, usable = _rivals(scan)
    start = _fit_temperature(scan, usable) if temperature is None else temperature
    found = rivals.solve(start, may_rise=temperature is None)
    n, all_samples = len(rivals.gap), len(scan.labels)
    draws = bootstrap.counts(all_samples, substream=substream, groups=scan.groups)
    replicates = rivals.replicates(found, draws, usable, scan.groups) if bootstrap.n else []
    sentences = left_out_warnings(n, all_samples)
    if found.widened:
        sentences.append(
            f"the model is unsure about only a few of the {n} samples; T was raised to {found.temperature:.3g}, so "
            "that others count as well: gamma is rough, and probably too low; hold out more samples"
        )
    return GapEstimate(found.gap, found.temperature, replicates, n, "residual_gap", sentences, start)


def left_out_warnings(used: int, given: int) -> list[str]:
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
    """Whether the temperature had to more than double."""


class _Rivals(NamedTuple):
    """Gaps of the usable samples, and the logits that their weights depend on; `(N,)` float64 each."""

    gap: Tensor
    own: Tensor
    seen: Tensor
    absent: Tensor

    def solve(self, temperature: float, may_rise: bool) -> _Solution:
        """Return the gap, at a temperature that may rise until no sample has more than a tenth of the weight."""
        found = _Solution(self._fixed_point(temperature), temperature, False)
        enough = min(_ENOUGH, len(self.gap) / 2) if may_rise else 0.0
        while float(self._weight(found.gap, found.temperature).sum()) < enough:  # in units of the largest weight
            t = _RAISED * found.temperature
            found = _Solution(self._fixed_point(t), t, t > _MUCH * temperature)
        return found

    def replicates(self, found: _Solution, draws: Resamples, usable: Tensor, groups: Grouping | None) -> list[float]:
        """Return the gap of each resampling at the fitted temperature, NaN without usable samples."""
        away, weight = self.gap - found.gap, self._weight(found.gap, found.temperature)
        farthest = float(away.abs().max())
        if farthest == 0:
            return [found.gap] * draws.number
        moved = weight * away / farthest  # squares of gaps may overflow
        if groups is not None:
            moved = groups.only(usable).sums(moved.unsqueeze(1)).to(moved.device)
        error = farthest * float(moved.norm() / weight.sum())
        nodes = found.gap + error * torch.linspace(-_FARTHEST, _FARTHEST, _NODES, dtype=torch.float64, device="cpu")
        weights = torch.stack([self._weight(float(node), found.temperature) for node in nodes], dim=1)
        everything = weights.new_zeros((len(usable), 2 * _NODES))
        everything[usable] = torch.cat([weights * self.gap.unsqueeze(1), weights], dim=1)
        sums = draws.sums(everything)
        return [float(gap) for times in draws for gap in _roots(nodes, times @ sums)]

    def _weight(self, gamma: float, temperature: float) -> Tensor:
        """Return the weights, the largest being 1."""
        lead = self.own - torch.maximum(self.seen, self.absent + gamma)
        log_weight = torch.nn.functional.logsigmoid(-lead / temperature)
        return (log_weight - log_weight.max()).exp()

    def _excess(self, gamma: float, temperature: float) -> float:
        weight = self._weight(gamma, temperature)
        return float((weight @ self.gap) / weight.sum()) - gamma

    def _fixed_point(self, temperature: float) -> float:
        """Return a gamma at which the weighted gap equals it; no weighted mean lies outside the gaps."""
        from scipy.optimize import brentq

        low, high = float(self.gap.min()), float(self.gap.max())
        reach = 1e-3 * (high - low) + 1e-9 * max(abs(low), abs(high)) + sys.float_info.min  # beyond rounding
        low, high, close = low - reach, high + reach, _CLOSE * reach
        return float(brentq(self._excess, low, high, (temperature,), xtol=close, maxiter=_MOST_STEPS))


def _roots(nodes: Tensor, sums: Tensor) -> Tensor:
    """Return for each row of weighted gaps and weights, `(R, 2 K)`, the gamma that the weighted mean equals."""
    gap, weight = sums.chunk(2, dim=1)
    excess = gap / weight - nodes
    after = (excess <= 0).to(torch.uint8).argmax(1).clamp(min=1)  # beyond the last node the last two lead there
    after = torch.where(excess[:, -1] > 0, len(nodes) - 1, after).unsqueeze(1)
    above, below = excess.gather(1, after - 1), excess.gather(1, after)
    left, right = nodes[after - 1], nodes[after]
    part = torch.where(above == below, 0, above / (above - below))
    return (left + (right - left) * part).squeeze(1)


def _rivals(scan: Scan) -> tuple[_Rivals, Tensor]:
    """Return the samples whose label and both groups have finite logits, and their mask."""
    seen, absent, own = (column.double() for column in scan.scalars[:3])
    gap = seen - absent
    usable = gap.isfinite() & own.isfinite()
    if not bool(usable.any()):
        raise ValueError(
            "logits are -inf on the label, on all absent classes, or on all seen ones but the label, in each of the "
            f"{len(usable)} samples; residual_gap has nothing to estimate from: pass logits in which both groups are "
            "scored"
        )
    gap, own, seen, absent = (column[usable] for column in (gap, own, seen, absent))
    return _Rivals(gap + _corrections(scan, usable, own - seen), own, seen, absent), usable


def _corrections(scan: Scan, usable: Tensor, lead: Tensor) -> Tensor:
    """Return the fractions in g; beyond `_CORRECTED` logits those of the largest weights, else their mean."""
    limits = group_limits(scan.mask, scan.logits.dtype)
    rows = usable.nonzero().squeeze(1)
    most = max(_LEAST_CORRECTED, _CORRECTED // scan.logits.shape[1])
    chosen = lead.topk(most, largest=False).indices if len(rows) > most else torch.arange(len(rows), device=rows.device)

    def kernel(index: Tensor) -> tuple[Tensor, ...]:
        parts = []
        for part in torch.split(index, tile_rows(scan.logits)):
            rest = (
                scan.logits.index_select(0, part).to(limits[0]).scatter_(1, scan.labels[part].unsqueeze(1), -math.inf)
            )
            seen, absent = (largest_two(torch.minimum(rest, limit)) for limit in limits)
            parts.append(seen.spacing / (seen.number + 1) + absent.spacing / absent.number)
        return (torch.cat(parts),)

    (found,) = map_row_chunks(kernel, rows[chosen], elements=len(chosen) * scan.logits.shape[1])
    return found.mean().repeat(len(rows)).index_copy_(0, chosen, found)


def _fit_temperature(scan: Scan, usable: Tensor) -> float:
    """Return the T that minimises the mean NLL of the labels over the seen classes, plus (log T)^2 / 200."""
    samples = _seen_samples(scan, _draw_rows(usable, scan.logits.shape[1]))
    shortfall = samples.top.squeeze(1) - samples.own
    low, high = _COLDEST, max(_HOTTEST, math.log(float(shortfall.max()) + 1) + 1)
    few = thin(samples, _FEW_ROWS)
    start = 0.0 if few is samples else rising_root(lambda log_t: _slope_of_nll(few, log_t), 0.0, low, high)[0]
    return math.exp(rising_root(lambda log_t: _slope_of_nll(samples, log_t), start, low, high)[0])


def _slope_of_nll(samples: Samples, log_t: float) -> tuple[float, float]:
    """Return the first and the second derivative of the penalised NLL in log T."""
    shortfall, inverse = float((samples.top.squeeze(1) - samples.own).double().mean()), math.exp(-log_t)
    _, mean, variance = group_moments(samples, samples.top.new_tensor([inverse]))
    falling = (float(mean.double().mean()) + shortfall) * inverse
    return _PRIOR * log_t - falling, _PRIOR + falling + float(variance.double().mean()) * inverse**2


def _draw_rows(usable: Tensor, num_classes: int) -> Tensor:
    """Return the usable rows, or a random subset if there are many: T need not be precise."""
    rows = usable.nonzero().squeeze(1)
    most = min(_ROWS, max(_LEAST_ROWS, _FITTED // num_classes))
    if len(rows) <= most:
        return rows
    generator = torch.Generator("cpu").manual_seed(0)
    chosen = torch.randperm(len(rows), generator=generator, device="cpu")[:most]
    return rows[chosen.to(rows.device)]


def _seen_samples(scan: Scan, rows: Tensor) -> Samples:
    """Return the seen logits of these rows, in float32 if they came so and are below `_LARGE`."""
    seen = scan.mask.nonzero().squeeze(1)
    place = scan.mask.cumsum(0) - 1
    parts = torch.split(rows, tile_rows(scan.logits))
    logits = torch.cat([scan.logits.index_select(0, part).index_select(1, seen) for part in parts])
    top = scan.scalars.seen_max[rows].unsqueeze(1)
    dtype = wide_dtype(scan.logits.dtype) if float(top.abs().max()) < _LARGE else torch.float64
    return make_samples(logits, place[scan.labels[rows]], torch.ones_like(logits[:1]), top, "residual_gap", dtype)
