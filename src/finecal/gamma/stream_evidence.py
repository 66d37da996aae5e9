"""What the margins of unlabelled samples say of the gap and of the share of seen samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs.groups import Grouping, groups_of
from .bootstrap import UNLABELLED, Bootstrap
from .design_effect import design_effect
from .expected_accuracy import BANDWIDTH, GAP_ERROR, pick_evenly

_KERNELS, _POINTS = 150, 200
_NODES, _WIDEST = 9, 2.4
"""Of the gap, in its standard deviations."""
_SHARES, _FARTHEST = 29, 3.5
"""Of the log-odds of the share, from those of equally frequent classes."""
_EXPECTED, _NARROW, _WIDE = 0.7, 0.25, 1.5
"""How likely the share is about the expected one, and how far it is from that if so, and if not, in log-odds."""
_WORTH, _HALF = 60, 200
"""The likelihood weighs as much as that of so many samples, with so many held-out ones of half as many: absent margins
are no exact mirror image of seen ones."""
_KEPT = 1 / 3
"""Of the belief, which stays with what the labelled samples say: the likelihood may mislead."""
_FLOOR = 1e-6


class UnlabelledEvidence(NamedTuple):
    """The posterior of the gap and the share."""

    gap: float
    error: float
    """Standard deviation of the gap."""
    share: float
    shares: list[float]
    """The share of each resampling."""
    outlier_share: float = 0.0
    """Part of the unlabelled margins that are like neither seen ones nor their mirror image."""


def fit_unlabelled(
    seen: Tensor,
    unlabelled: Tensor,
    gap: float,
    unit: float,
    expected_share: float,
    known_share: float | None,
    bootstrap: Bootstrap,
    seen_groups: Grouping | None = None,
    groups: Grouping | None = None,
) -> UnlabelledEvidence:
    r"""Update gap and share by the likelihood of the unlabelled margins, a mixture of seen ones and their mirror image.

    .. math:: p(m) = \pi \, s(m) + (1 - \pi) \, s(2 \gamma_0 - m)

    s is a kernel estimate from held-out seen margins. On a grid of both; a known share is left as it is. A third of the
    belief stays with the gap and the share as they were. With groups, the samples count for as many as are independent.
    """
    (seen, seen_groups), (margin, groups) = _in_order(seen, seen_groups), _in_order(unlabelled, groups)
    steps = torch.linspace(-_WIDEST, _WIDEST, _NODES, dtype=torch.float64, device="cpu")
    gaps = gap + GAP_ERROR * abs(gap) * steps
    if known_share is None:
        offsets = torch.linspace(-_FARTHEST, _FARTHEST, _SHARES, dtype=torch.float64, device="cpu")
        near, far = ((-0.5 * (offsets / width).square()).exp() / width for width in (_NARROW, _WIDE))
        prior_of_share = (_EXPECTED * near + (1 - _EXPECTED) * far).log()
    else:
        offsets, prior_of_share = (torch.zeros(1, dtype=torch.float64, device="cpu") for _ in range(2))
    start = expected_share if known_share is None else known_share
    shares = torch.sigmoid(offsets + math.log(start / (1 - start)))
    # Half the variance that the gap has without the stream, lest the likelihood lead far away.
    prior = prior_of_share - steps.square().unsqueeze(1)

    kernels, points = pick_evenly(seen, _KERNELS), pick_evenly(margin, _POINTS)
    if len(kernels) == 0 or len(points) == 0:
        return UnlabelledEvidence(gap, GAP_ERROR * abs(gap), start, [start] * bootstrap.n)
    width = BANDWIDTH * unit
    of_seen = _density(kernels, points, width)
    of_absent = _density(kernels, 2 * gaps.unsqueeze(1) - points, width)
    mixed = shares * of_seen.unsqueeze(-1) + (1 - shares) * of_absent.unsqueeze(-1)  # (gaps, points, shares)
    likelihood = mixed.log()
    held_out, new = len(seen) / design_effect(seen, seen_groups), len(margin) / design_effect(margin, groups)
    weight = min(_WORTH * held_out / (held_out + _HALF), new)

    def posteriors(times: Tensor) -> Tensor:
        """Return the belief `(R, gaps, shares)` where each point is drawn so often, `(R, points)`."""
        part = times / times.sum(1, keepdim=True)
        log = prior.flatten() + weight * (part @ likelihood.transpose(0, 1).flatten(1))
        return log.softmax(1).view(-1, *prior.shape)

    def shares_of(found: Tensor) -> Tensor:
        return (1 - _KEPT) * (found.sum(1) @ shares) + _KEPT * start

    found = posteriors(torch.ones_like(points).unsqueeze(0))
    of_gap = found[0].sum(1)
    moved = (1 - _KEPT) * float(of_gap @ steps)
    variance = (1 - _KEPT) * float(of_gap @ (steps - moved).square()) + _KEPT * (1 + moved**2)
    drawn = [float(share) for times in _times(len(points), groups, bootstrap) for share in shares_of(posteriors(times))]
    error = GAP_ERROR * abs(gap)
    likely = torch.maximum(of_seen, of_absent.amax(0))
    outlier_share = float((likely < 10 * _FLOOR / width).double().mean())
    share = float(shares_of(found))
    return UnlabelledEvidence(gap + error * moved, error * math.sqrt(variance), share, drawn, outlier_share)


def _in_order(margin: Tensor, groups: Grouping | None) -> tuple[Tensor, Grouping | None]:
    """Return the finite margins in their order, and their groups."""
    finite = margin.isfinite()
    ordered, order = margin[finite].double().cpu().sort()
    groups = groups_of(groups, finite)
    return ordered, groups_of(groups, order)


def _times(points: int, groups: Grouping | None, bootstrap: Bootstrap) -> Iterator[Tensor]:
    """Yield how often each point is drawn, or how many of the margins that it stands for come with drawn groups."""
    if groups is None:
        yield from bootstrap.counts(points, substream=UNLABELLED)
        return
    n = len(groups)
    draws = bootstrap.counts(n, substream=UNLABELLED, groups=groups)
    stood_for = draws.tallies(torch.arange(n, device="cpu") * points // n, points)
    for times in draws:
        yield times @ stood_for


def _density(kernels: Tensor, points: Tensor, width: float) -> Tensor:
    """Return a logistic kernel estimate, never quite 0."""
    tail = (-((points.unsqueeze(-1) - kernels) / width).abs()).exp()
    return (tail / (1 + tail).square()).mean(-1) / width + _FLOOR / width
