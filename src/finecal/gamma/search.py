"""Gamma from labelled samples of all classes: exact search over the reals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..evaluation.curve import TradeoffCurve
from ..evaluation.margins import Margins, resample
from ..evaluation.objectives import OBJECTIVES, best_point
from ..evaluation.operating_points import gamma_inside, interval_of, point_at
from ..evaluation.rounding import rounding_warnings
from ..evaluation.samples import Scan, samples_of, takes_samples
from ..inputs.arrays import Labels, Logits, Mask
from ..inputs.checks import check_both_groups, check_not_empty
from ..inputs.groups import Grouping, check_several, group_warnings, in_groups
from ..inputs.numbers import check_choice
from .bootstrap import Bootstrap, percentile_interval
from .estimate import GammaEstimate, with_warnings
from .likelihood import likelihood_of

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
        `Acc_{Y/Y}`; the mean or the harmonic mean of `Acc_{S/Y}` and `Acc_{U/Y}`; `Acc_{U/Y}`; or the likelihood, which
        honest probabilities need and accuracy may not.
    max_seen_drop : float in [0, 1], optional
        :math:`\varepsilon`, the loss of `Acc_{S/Y}` that is allowed, as a fraction: 0.02 are two points.
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval, of n^0.75 samples each and rescaled by the cube-root rate: a maximiser of step
        functions is one of the statistics for which the ordinary bootstrap is inconsistent. The likelihood is smooth:
        there, the interval is the ordinary one.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    GammaEstimate
        Attains the exact maximum on the given samples, see `TradeoffCurve.best` for the choice among equals. The NLL is
        convex in gamma and its minimum found to 1e-12; if that costs more than `max_seen_drop`, the largest gamma that
        does not, which is the margin of a sample: `predict` keeps such a sample, rounding elsewhere may not.

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError if labels are of one group only, there are no samples, or an argument is out of its
        range.

    Warns
    -----
    FinecalWarning
        As `margins`; if gamma sends all samples to one group, or its interval is narrower than four rounding steps of
        the largest logit, so that adding gamma in the logits' dtype may not keep the maximum; under "nll" if samples
        are left out since -inf masks their label, or a whole group.

    Notes
    -----
    `O(NC + N log N)`. NLL: Newton's method on one log-sum-exp per sample and group. Cube-root asymptotics: Kim and
    Pollard, Annals of Statistics 1990; m-out-of-n bootstrap: Bickel, Götze and van Zwet, Statistica Sinica 1997.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> float(finecal.search_gamma(logits, [0, 2, 0], [True, True, False]))
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
        acc_seen_before=float(curve.acc_seen[point_at(curve.breakpoints, 0.0)]),
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
