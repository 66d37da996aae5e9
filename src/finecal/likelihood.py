"""The gamma that makes labels likeliest, from one number per sample: the log-odds of the seen group."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .curve import interval_of
from .gamma import percentile_interval, resamples
from .logits import group_log_sum_exps
from .margin import LabelledScan, Margins, resample
from .objectives import allowed_points

_CONVERGED = 1e-12
_TAIL = 1e-280


class Likelihood(NamedTuple):
    """What the NLL of each sample says about gamma, `(N,)` each.

    With d the log-odds of the seen group at gamma = 0, it is, but for a constant, softplus(gamma - d) for a seen label
    and softplus(d - gamma) for an absent one.
    """

    log_odds: Tensor
    is_seen: Tensor
    usable: Tensor
    """Whether the NLL is finite and depends on gamma."""

    def best(self, samples: Margins[Tensor], max_seen_drop: float | None, start: float = 0.0) -> float:
        """Return where the NLL is smallest or, as it is convex, the end of what is allowed if that lies before."""
        gamma = likeliest_gamma(self.log_odds[self.usable], self.is_seen[self.usable], start=start)
        if max_seen_drop is None or not math.isfinite(gamma):
            return gamma
        curve = samples.curve()
        low, high = interval_of(curve, int(allowed_points(curve, max_seen_drop).sum()) - 1)
        if gamma <= high:
            return gamma
        with np.errstate(over="ignore"):
            single = np.float32(high)
        below = float(single) if float(single) <= high else float(np.nextafter(single, np.float32(-math.inf)))
        return below if below > low else high

    def interval(
        self, samples: Margins[Tensor], gamma: float, max_seen_drop: float | None, n_bootstrap: int, seed: int
    ) -> tuple[float, float] | None:
        """Return the ordinary percentile interval: the minimum of a smooth function is asymptotically normal."""
        replicates = []
        for drawn in resamples(len(samples), n_bootstrap, seed):
            index = drawn.to(samples.margin.device)
            likelihood = Likelihood(*(column[index] for column in self))
            replicates.append(likelihood.best(resample(samples, index), max_seen_drop, gamma))
        return percentile_interval(replicates)

    def doubts(self) -> list[str]:
        """Return a warning if samples were left out."""
        n, used = self.usable.shape[0], int(self.usable.sum())
        if used == n:
            return []
        return [
            f"{n - used} of {n} samples were left out: -inf masks their label, so that no gamma makes it likely, or a "
            "whole group, so that gamma changes nothing"
        ]


def likelihood_of(scan: LabelledScan) -> Likelihood:
    """Take log-sum-exps of the logits, and see that samples of both groups say something about gamma."""
    seen, absent = group_log_sum_exps(scan.logits, scan.mask)
    log_odds, is_seen = seen - absent, scan.scalars.is_seen
    usable = log_odds.isfinite() & (scan.scalars.own > -math.inf)
    for group, member in (("seen", is_seen), ("absent", ~is_seen)):
        if not bool((usable & member).any()):
            raise ValueError(
                f"logits are -inf on the label, or on a whole group, in all samples of {group} classes; the likelihood "
                "does not determine gamma: pass logits in which the labels and both groups are scored"
            )
    return Likelihood(log_odds, is_seen, usable)


def likeliest_gamma(log_odds: Tensor, is_seen: Tensor, weight: Tensor | None = None, start: float = 0.0) -> float:
    """Return the gamma of the smallest (weighted) mean NLL, from the log-odds of the seen group; +-inf for one group.

    There the expected number of absent labels among the seen ones, A = sum of sigmoid(gamma - d), equals that of seen
    labels among the absent ones, B = sum of sigmoid(d - gamma). log A - log B never falls and is nearly linear in
    gamma, however far the groups are apart: Newton's method on it, and bisection where that does not halve its step.
    """
    weight = torch.ones_like(log_odds) if weight is None else weight
    seen_rows, absent_rows = is_seen.nonzero().squeeze(1), (~is_seen).nonzero().squeeze(1)
    seen = _Group(-log_odds[seen_rows], weight[seen_rows])
    absent = _Group(log_odds[absent_rows], weight[absent_rows])
    balance = float(absent.weight.sum().log() - seen.weight.sum().log())
    if not math.isfinite(balance):
        return balance
    # At these ends all sigmoids are on one side of the share of absent labels.
    low, high = float(log_odds.min()) + balance, float(log_odds.max()) + balance
    gamma, last_step = min(max(start, low), high), math.inf
    while True:
        (log_a, a_slope), (log_b, b_slope) = seen.log_expected(gamma), absent.log_expected(-gamma)
        low, high = (low, gamma) if log_a > log_b else (gamma, high)
        step = (log_b - log_a) / (a_slope + b_slope) if a_slope + b_slope > 0 else math.inf
        if not (low <= gamma + step <= high and 2 * abs(step) <= last_step):
            step = low + (high - low) / 2 - gamma
        gamma, last_step = gamma + step, abs(step)
        if last_step <= _CONVERGED * max(1.0, abs(gamma)):
            return gamma


class _Group(NamedTuple):
    """The samples of one group of labels: log-odds of the other group, and weights."""

    odds: Tensor
    weight: Tensor

    def log_expected(self, shift: float) -> tuple[float, float]:
        """Return the logarithm of the weighted sum of sigmoid(odds + shift), and its derivative."""
        share = (self.odds + shift).sigmoid_()
        weighted = self.weight * share
        total, square = torch.stack([weighted.sum(), weighted @ share]).tolist()
        if total > _TAIL:
            return math.log(total), 1 - square / total
        # So small a sigmoid is an exponential.
        return float((self.odds + self.weight.log()).logsumexp(0)) + shift, 1.0
