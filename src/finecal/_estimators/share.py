"""The share of seen samples among unlabelled ones, from their margins and those of held-out seen samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .._core.groups import UNLABELLED, Bootstrap, Grouping, design_effect
from .decision import (
    BANDWIDTH,
    GAP_ERROR,
    GAP_STEPS,
    KERNELS,
    POINTS,
    counts_as,
    finite_in_order,
    margin_density,
    pick_evenly,
)
from .evidence import GapEvidence
from .unlabelled import best_bin_share

_LEAST_ERROR = 0.5
"""Least standard deviation of the gap, in units of log-odds: a small gap is not known more precisely."""
_WIDTHS = (0.7, 1.0, 1.5)
"""Spread of the absent margins, relative to that of the seen ones."""
_LOG_ODDS = torch.linspace(-4, 4, 41, dtype=torch.float64, device="cpu")
"""Shares from 1.8 to 98.2 %, all as likely beforehand."""
_DRAWN = 0.25
"""By how much the share is drawn to the expected one: absent samples of a damaged model look like seen ones."""
_MOST_ROUNDS, _STILL = 500, 1e-7


def estimate_share(
    found: GapEvidence,
    seen: Tensor,
    unlabelled: Tensor,
    expected: float,
    bootstrap: Bootstrap,
    seen_groups: Grouping | None = None,
    groups: Grouping | None = None,
) -> tuple[float, list[float]]:
    r"""Return the share of seen samples, and that of each resampling of the unlabelled ones.

    With a gap, the mean log-odds of two estimates, drawn to the expected share by a quarter: `best_bin_share`, which
    looks at the largest margins alone, and the median of the posterior of a mixture, whose absent margins are the
    mirrored seen ones, wider or narrower, at a gap that is known roughly. Without a gap, margins are log-odds for the
    expected share, in units T, and expectation-maximisation finds the share (Saerens et al., "Adjusting the Outputs of
    a Classifier to New a Priori Probabilities", 2002); of it and the posterior the one nearer to the expected share
    counts, and that share itself if they are on either side of it.
    """
    (seen, seen_groups), (margin, groups) = finite_in_order(seen, seen_groups), finite_in_order(unlabelled, groups)
    points = pick_evenly(margin, POINTS)
    if len(seen) == 0 or len(points) == 0:
        return expected, [expected] * bootstrap.n
    effects = design_effect(seen, seen_groups), design_effect(margin, groups)
    tail, prior = _log_odds(best_bin_share(seen, margin, effects)), _log_odds(expected)
    log_likelihood = _log_likelihood(found, pick_evenly(seen, KERNELS), points)
    weight = counts_as(len(seen) / effects[0], len(margin) / effects[1])

    def shares(times: Tensor) -> Tensor:
        """Return the shares `(R,)` where each point is drawn so often, `(R, points)`."""
        part = times / times.sum(1, keepdim=True)
        median = _median(part, log_likelihood, weight)
        with_gap = (1 - _DRAWN) * (tail + median) / 2 + _DRAWN * prior
        if found.gap_weight == 1:
            return with_gap.sigmoid()
        moved = torch.stack([median, _as_log_odds(part, points / found.unit, prior)]) - prior
        nearer = moved.sign().sum(0) / 2 * moved.abs().amin(0)
        return (found.gap_weight * with_gap + (1 - found.gap_weight) * (prior + nearer)).sigmoid()

    share = float(shares(torch.ones_like(points).unsqueeze(0)))
    drawn = [float(of) for times in _times_drawn(len(points), groups, bootstrap) for of in shares(times)]
    return share, drawn


def _log_likelihood(found: GapEvidence, kernels: Tensor, points: Tensor) -> Tensor:
    """Return the log-density of each point in each mixture: `(points, gaps * widths * shares)`."""
    error = max(GAP_ERROR * abs(found.gap), _LEAST_ERROR * found.unit)
    mirrored = 2 * (found.gap + error * GAP_STEPS).unsqueeze(1) - points
    smoothing, center, shares = BANDWIDTH * found.unit, kernels.mean(), _LOG_ODDS.sigmoid()
    of_seen = margin_density(kernels, points, smoothing).view(1, 1, -1, 1)
    wider = [margin_density(center + width * (kernels - center), mirrored, smoothing) for width in _WIDTHS]
    mixed = shares * of_seen + (1 - shares) * torch.stack(wider).unsqueeze(-1)  # (widths, gaps, points, shares)
    return mixed.log().permute(2, 0, 1, 3).flatten(1)


def _median(part: Tensor, log_likelihood: Tensor, weight: float) -> Tensor:
    """Return the posterior median `(R,)` of the log-odds of the share, for parts `(R, points)`."""
    of_gap = (-0.5 * GAP_STEPS.square()).repeat_interleave(len(_LOG_ODDS)).repeat(len(_WIDTHS))
    belief = (weight * (part @ log_likelihood) + of_gap).softmax(1).view(len(part), -1, len(_LOG_ODDS)).sum(1)
    up_to = belief.cumsum(1)
    place = (up_to < 0.5).sum(1, keepdim=True).clamp(max=len(_LOG_ODDS) - 1)
    within = 1 - (up_to.gather(1, place) - 0.5) / belief.gather(1, place)
    step = float(_LOG_ODDS[1] - _LOG_ODDS[0])
    median: Tensor = _LOG_ODDS[place] + step * (within - 0.5)
    return median.squeeze(1)


def _as_log_odds(part: Tensor, log_odds: Tensor, prior: float) -> Tensor:
    """Return the log-odds `(R,)` of the share for which a calibrated model, of this prior, expects itself."""
    moved = torch.zeros(len(part), 1, dtype=torch.float64, device="cpu")
    for _ in range(_MOST_ROUNDS):
        share = (part * torch.sigmoid(log_odds + moved)).sum(1, keepdim=True)
        before, moved = moved, (share.logit() - prior).clamp(-4 - prior, 4 - prior)
        if float((moved - before).abs().max()) < _STILL:
            break
    return (moved + prior).squeeze(1)


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def _times_drawn(points: int, groups: Grouping | None, bootstrap: Bootstrap) -> Iterator[Tensor]:
    """Yield how often each point is drawn; with groups, how many drawn margins it stands for."""
    if groups is None:
        yield from bootstrap.counts(points, substream=UNLABELLED)
        return
    n = len(groups)
    draws = bootstrap.counts(n, substream=UNLABELLED, groups=groups)
    stood_for = draws.tallies(torch.arange(n, device="cpu") * points // n, points)
    for times in draws:
        yield times @ stood_for
