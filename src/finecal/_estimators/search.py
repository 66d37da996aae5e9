"""Gamma from labelled samples of all classes: exact search over the reals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, check_choice
from .._core.checks import check_both_groups, check_not_empty
from .._core.curve import TradeoffCurve
from .._core.groups import Bootstrap, Grouping, check_several, group_warnings, in_groups, percentile_interval
from .._core.kernels import group_log_sum_exps
from .._core.objectives import OBJECTIVES, allowed_points, best_point, gamma_inside, interval_of, point_at
from .._core.plausibility import rounding_warnings
from .._core.report import Margins, resample
from .._core.samples import Scan, samples_of, takes_samples
from .estimate import GammaEstimate, with_warnings

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


SEARCH_OBJECTIVES = (*OBJECTIVES, "nll")
_RESAMPLE_EXPONENT = 0.75
_NARROW_STEPS = 4


@takes_samples
def search_gamma(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    objective: str = "overall",
    max_seen_drop: float | None = None,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Find the gamma that is best on labelled samples of all classes, over all reals, without a grid.

    .. math:: \gamma = \arg\max_{\gamma \in \mathbb R} f\big(\text{Acc}_{S/Y}(\gamma), \text{Acc}_{U/Y}(\gamma)\big)
        \quad \text{subject to} \quad \text{Acc}_{S/Y}(\gamma) \ge \text{Acc}_{S/Y}(0) - \varepsilon

    or, with ``objective="nll"``, at which the labels are likeliest:

    .. math:: \gamma = \arg\min_{\gamma \in \mathbb R} -\big\langle \log \operatorname{softmax}(\tilde z)_y \big\rangle,
        \qquad \tilde z_c = z_c + \gamma \, [c \in U]

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax. Searched on test data, this is the oracle.
    labels : (N,) int
        Class indices in ``[0, C)``, of seen and of absent classes.
    seen_mask : (C,) bool
        True for the seen classes.
    objective : {"overall", "balanced", "harmonic", "absent", "nll"}
        `Acc_{Y/Y}`; the mean or the harmonic mean of `Acc_{S/Y}` and `Acc_{U/Y}`; `Acc_{U/Y}`; or the likelihood.
    max_seen_drop : float in [0, 1], optional
        :math:`\varepsilon`, the loss of `Acc_{S/Y}` that is allowed, as a fraction: 0.02 are two points.
    n_bootstrap, seed : int, default 0
        Resamplings for a 95 % interval, of n^0.75 samples each, rescaled by the cube-root rate (ordinary ones for
        "nll", which is smooth), and their seed.

    Returns
    -------
    GammaEstimate
        The exact maximum on the given samples; `TradeoffCurve.best` says which among equals. The minimum of the NLL is
        found to 1e-12; if it costs more than `max_seen_drop`, the largest gamma that does not, the margin of a sample.

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError also if labels are of one group only, there are no samples, or an argument is out of
        its range.

    Warns
    -----
    FinecalWarning
        As `margins`; also if gamma sends all samples to one group, or its interval is narrower than four rounding steps
        of the largest logit; under "nll" if samples are left out since -inf masks their label, or a whole group.

    Notes
    -----
    `O(NC + N log N)`. Cube-root asymptotics: Kim and Pollard, Annals of Statistics 1990; m-out-of-n bootstrap: Bickel,
    Götze and van Zwet, Statistica Sinica 1997.

    Examples
    --------
    >>> import finecal
    >>> logits = [[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]]
    >>> finecal.search_gamma(logits, [0, 2, 0], [True, True, False]).gamma
    0.75
    """
    check_choice(objective, SEARCH_OBJECTIVES, "objective")
    given = samples_of(logits, labels)
    scan, bootstrap = given.scan(seen_mask), Bootstrap.from_arguments(n_bootstrap, seed)
    samples = scan.margins
    curve = samples.curve()
    with given.naming_errors():
        check_not_empty(len(samples), "search_gamma")
        check_both_groups(curve.n_seen, curve.n_absent)
    if objective == "nll":
        likelihood = likelihood_of(scan)
        gamma = likelihood.best(samples, max_seen_drop)
        interval = likelihood.interval(samples, gamma, max_seen_drop, bootstrap, scan.groups)
        sentences = likelihood.warnings()
        point = point_at(curve.breakpoints, gamma)
    else:
        point = best_point(curve, objective, max_seen_drop)
        gamma = gamma_inside(curve.breakpoints, point)
        interval = _interval(scan, gamma, objective, max_seen_drop, bootstrap)
        sentences = _narrow_warnings(curve, point, scan)

    doubts = [*scan.doubts(), *rounding_warnings(scan.logits, gamma)]
    n = len(samples)
    drop = "" if max_seen_drop is None else f", max_seen_drop={max_seen_drop:g}"
    estimate = GammaEstimate(
        gamma,
        f"search_gamma(objective={objective!r}{drop})",
        f"{n} labelled samples ({curve.n_seen} of seen, {curve.n_absent} of absent classes){in_groups(scan.groups)}",
        n,
        float(curve.acc_seen[point]),
        interval,
        acc_seen_at_zero=float(curve.acc_seen[point_at(curve.breakpoints, 0.0)]),
        sources={"labelled": n},
    )
    if interval is not None:
        sentences += group_warnings(scan.groups)
    return with_warnings(estimate, [*doubts, *_emptied_warnings(curve, point), *sentences])


def _interval(
    scan: Scan, gamma: float, objective: str, max_seen_drop: float | None, bootstrap: Bootstrap
) -> tuple[float, float] | None:
    """Resample m < n samples, and shrink deviations from gamma by the cube-root rate (m / n)^(1/3)."""
    samples = scan.margins
    if scan.groups is not None and bootstrap.n:
        return _interval_of_groups(samples, scan.groups, gamma, objective, max_seen_drop, bootstrap)
    groups = [samples.is_seen.nonzero().squeeze(1), (~samples.is_seen).nonzero().squeeze(1)]
    kept = len(samples) ** (_RESAMPLE_EXPONENT - 1)
    draws = [
        bootstrap.indices(len(group), math.ceil(len(group) * kept), substream=substream)
        for substream, group in enumerate(groups)
    ]
    replicates = []
    for drawn in zip(*draws, strict=True):
        index = torch.cat([group[draw.to(group.device)] for group, draw in zip(groups, drawn, strict=True)])
        resampled = resample(samples, index)
        rate = (len(resampled) / len(samples)) ** (1 / 3)
        replicates.append(gamma + rate * (resampled.curve().best(objective, max_seen_drop) - gamma))
    return percentile_interval(replicates)


def _interval_of_groups(
    samples: Margins[Tensor],
    groups: Grouping,
    gamma: float,
    objective: str,
    max_seen_drop: float | None,
    bootstrap: Bootstrap,
) -> tuple[float, float] | None:
    """Resample m < G whole groups, again where they bring no seen or no absent sample: there is nothing to search."""
    check_several(groups)
    size = math.ceil(groups.number**_RESAMPLE_EXPONENT)
    rate = (size / groups.number) ** (1 / 3)
    generator, sides = torch.Generator("cpu").manual_seed(bootstrap.seed), groups.sides(samples.is_seen)
    replicates = []
    for _ in range(bootstrap.n):
        resampled = resample(samples, groups.members(groups.draw(size, generator, sides)))
        replicates.append(gamma + rate * (resampled.curve().best(objective, max_seen_drop) - gamma))
    return percentile_interval(replicates)


def _emptied_warnings(curve: TradeoffCurve[Tensor], point: int) -> list[str]:
    return [
        f"the best gamma empties one side: no sample of the {group} classes is predicted correctly"
        for group, correct in (("seen", curve.seen_correct), ("absent", curve.absent_correct))
        if int(correct[point]) == 0 and int(correct.max()) > 0
    ]


def _narrow_warnings(curve: TradeoffCurve[Tensor], point: int, scan: Scan) -> list[str]:
    low, high = interval_of(curve.breakpoints, point)
    step = scan.rounding_step()
    if high - low >= _NARROW_STEPS * step:
        return []
    dtype = str(scan.logits.dtype).removeprefix("torch.")
    return [
        f"the best gamma lies in an interval {high - low:.3g} wide, and {dtype} numbers of the size of the largest "
        f"logit are {step:.3g} apart: adding gamma in {dtype} may lose the maximum; use predict, or wider logits"
    ]
