"""The gamma that makes labels likeliest, from one number per sample: the log-odds of the seen group."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..evaluation.margins import Margins, resample
from ..evaluation.objectives import allowed_points
from ..evaluation.operating_points import interval_of
from ..evaluation.samples import Scan
from ..inputs.groups import Grouping
from ..logits.torch_kernels import group_log_sum_exps
from .bootstrap import Bootstrap, percentile_interval

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
        used = (self.log_odds, self.is_seen)
        if not bool(self.usable.all()):
            used = (self.log_odds[self.usable], self.is_seen[self.usable])
        gamma = likeliest_gamma(*used, start=start)
        if max_seen_drop is None or not math.isfinite(gamma):
            return gamma
        curve = samples.curve()
        low, high = interval_of(curve.breakpoints, int(allowed_points(curve, max_seen_drop).sum()) - 1)
        if gamma <= high:
            return gamma
        with np.errstate(over="ignore"):
            single = np.float32(high)
        below = float(single) if float(single) <= high else float(np.nextafter(single, np.float32(-math.inf)))
        return below if below > low else high

    def interval(
        self,
        samples: Margins[Tensor],
        gamma: float,
        max_seen_drop: float | None,
        bootstrap: Bootstrap,
        groups: Grouping | None = None,
    ) -> tuple[float, float] | None:
        """Return the ordinary percentile interval: the minimum of a smooth function is asymptotically normal."""
        replicates = []
        for drawn in bootstrap.indices(len(samples), groups=groups):
            index = drawn.to(samples.margin.device)
            likelihood = Likelihood(*(column[index] for column in self))
            replicates.append(likelihood.best(resample(samples, index), max_seen_drop, gamma))
        return percentile_interval(replicates)

    def warnings(self) -> list[str]:
        """Return a warning if samples were left out."""
        n, used = self.usable.shape[0], int(self.usable.sum())
        if used == n:
            return []
        return [
            f"{n - used} of {n} samples were left out: -inf masks their label, so that no gamma makes it likely, or a "
            "whole group, so that gamma changes nothing"
        ]


def likelihood_of(scan: Scan) -> Likelihood:
    """Return the likelihood of labelled logits; ValueError if the samples of a group do not depend on gamma."""
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
    towards_own = is_seen.double().mul_(2).sub_(1)
    # The odds against the label's own group are those of -towards_own * d, in both groups at once: no rows are picked.
    against, groups = -towards_own * log_odds, torch.stack([weight * is_seen, weight * ~is_seen])
    seen_weight, absent_weight = groups.sum(1).tolist()
    if seen_weight == 0 or absent_weight == 0:
        return math.inf if seen_weight == 0 else -math.inf
    balance = math.log(absent_weight / seen_weight)

    def log_expected(gamma: float) -> tuple[list[float], list[float]]:
        """Return log A and log B, and how fast the one rises and the other falls with gamma."""
        share = against.add(towards_own, alpha=gamma).sigmoid_()
        totals, squares = (groups @ share).tolist(), (groups @ share.square_()).tolist()
        logs, slopes = [], []
        for group, total, square in zip(groups, totals, squares, strict=True):
            if total > _TAIL:
                logs.append(math.log(total))
                slopes.append(1 - square / total)
            else:  # So small a sigmoid is an exponential.
                logs.append(float((against + towards_own * gamma + group.log()).logsumexp(0)))
                slopes.append(1.0)
        return logs, slopes

    # At these ends all sigmoids are on one side of the share of absent labels.
    lowest, highest = log_odds.aminmax()
    low, high = float(lowest) + balance, float(highest) + balance
    gamma, last_step = min(max(start, low), high), math.inf
    while True:
        (log_a, log_b), slopes = log_expected(gamma)
        low, high = (low, gamma) if log_a > log_b else (gamma, high)
        step = (log_b - log_a) / sum(slopes) if sum(slopes) > 0 else math.inf
        if not (low <= gamma + step <= high and 2 * abs(step) <= last_step):
            step = low + (high - low) / 2 - gamma
        gamma, last_step = gamma + step, abs(step)
        if last_step <= _CONVERGED * max(1.0, abs(gamma)):
            return gamma
