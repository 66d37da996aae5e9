"""Gamma by the paper's pseudo cross-validation (PCV): halves of the seen classes stand in for seen and absent ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from operator import attrgetter

import torch

from .._core.arrays import Mask, check_choice, check_flag
from .._core.groups import Bootstrap, group_warnings, percentile_interval
from .._core.objectives import MACRO_TOLERANCE, point_at
from .._core.report import AVERAGES, Margins
from .estimate import GammaEstimate, with_warnings
from .folds import FoldReading, PseudoFold, list_folds, read_fold
from .search import SEARCH_OBJECTIVES, likeliest_gamma

_COMBINATIONS: dict[str, Callable[[Sequence[float]], float]] = {"mean": statistics.fmean, "median": statistics.median}
FEW_CLASSES = 4
_RUINOUS = 0.5
"""Share of a fold's pseudo-seen accuracy at gamma = 0."""
_NOTABLE = 0.02
"""Share of a fold's best objective."""


def pseudo_cv_gamma(
    folds: Sequence[PseudoFold],
    seen_mask: Mask,
    objective: str = "overall",
    constrained: bool = False,
    combine: str = "mean",
    *,
    average: str = "micro",
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma by pseudo cross-validation (PCV), where half of the seen classes play the absent ones.

    .. math:: \gamma = \operatorname*{mean}_k \; \arg\max_{\gamma \in \mathbb R}
        f\big(\text{Acc}_{S_k/S}(\gamma), \text{Acc}_{(S \setminus S_k)/S}(\gamma)\big)

    with :math:`S_k` the pseudo-seen classes of fold k, on the columns of S only. The search is exact.

    Parameters
    ----------
    folds : sequence of PseudoFold
        One for each row of `pseudo_cv_splits`; `pseudo_cv` makes them.
    seen_mask : (C,) bool
        True for the seen classes S of the model that gamma is for; at least two.
    objective : {"overall", "balanced", "harmonic", "absent", "nll"}
        As in `search_gamma`, of the pseudo-seen and the pseudo-absent classes; "balanced" is that of the paper.
    constrained : bool, default False
        Admit only gamma at which the pseudo-absent accuracy is at least that of the pre-trained model at gamma = 0, as
        the paper does. A fold in which no gamma meets this takes its unconstrained gamma.
    combine : {"mean", "median", "pooled"}
        The mean or the median of the folds' gammas, or the one gamma at which the objective, averaged over the folds,
        is largest, under every constraint that can be met.
    average : {"micro", "macro"}
        Whether every sample counts the same, or every class, in the accuracies, the constraint and the likelihood.
    n_bootstrap, seed : int, default 0
        Resamplings for a 95 % interval, of the folds and of n^0.75 samples (or groups) in each, rescaled as in
        `search_gamma`, and their seed. A few folds understate the spread between splits.

    Returns
    -------
    GammaEstimate
        `data` lists the folds' gammas. `acc_seen_at_gamma` is None: folds are of other models.

    Raises
    ------
    TypeError, ValueError
        As `Samples.margins`, naming the fold; ValueError also if there are no folds, a label is not seen, a fold's
        labels are of one pseudo group, `pseudo_seen_mask` is no proper part of `seen_mask`, or ``constrained=True``
        lacks `pretrained_logits`.

    Warns
    -----
    FinecalWarning
        If a fold cannot meet the constraint, or only at the price of half of its pseudo-seen accuracy; if gamma does
        worse than a fold's own by more than half of what that gains; if there are fewer than 4 pseudo-absent classes;
        or if gamma leaves one side of a fold without a correct sample.

    Notes
    -----
    `O(N |S| + N log N)` per fold. Of equally good gammas, a fold takes the one nearest to 0 that its samples tell
    apart. Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024, section 5.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.estimators import PseudoFold
    >>> mask, one, two = np.arange(9) < 8, np.arange(9) < 4, np.arange(9) // 4 == 1
    >>> logits = 6 * np.eye(9)[:8]
    >>> folds = [PseudoFold((logits + 4 * half, range(8)), half) for half in (one, two)]
    >>> finecal.estimators.pseudo_cv_gamma(folds, mask).gamma
    4.0
    """
    listed = list_folds(folds)
    check_search(objective, combine, constrained, average)
    readings = [read_fold(fold, seen_mask, constrained, number, average) for number, fold in enumerate(listed)]
    return gamma_of_folds(readings, objective, constrained, combine, Bootstrap.from_arguments(n_bootstrap, seed))


def check_search(objective: str, combine: str, constrained: bool, average: str) -> None:
    check_choice(objective, SEARCH_OBJECTIVES, "objective")
    check_choice(combine, (*_COMBINATIONS, "pooled"), "combine")
    check_flag(constrained, "constrained")
    check_choice(average, AVERAGES, "average")


def gamma_of_folds(
    folds: Sequence[FoldReading], objective: str, constrained: bool, combine: str, bootstrap: Bootstrap
) -> GammaEstimate:
    """Return the estimate from checked folds."""
    own = [search_folds([fold], objective) for fold in folds]
    gamma = _combine(folds, own, objective, combine)
    n = sum(len(fold.margins) for fold in folds)
    groups = sum(fold.units for fold in folds if fold.groups is not None)
    words = f"{len(folds)} fold{'s' if len(folds) > 1 else ''}" + (f", of {groups} groups" if groups else "")
    options = ", constrained=True" if constrained else ""
    if folds[0].average != "micro":
        options += f", average={folds[0].average!r}"
    estimate = GammaEstimate(
        gamma,
        f"pseudo_cv_gamma(objective={objective!r}, combine={combine!r}{options})",
        f"{n} labelled samples (seen classes) in {words} (gamma {_list_gammas(own)})",
        n,
        interval=_interval(folds, objective, combine, bootstrap),
    )
    fewest = min((fold.groups for fold in folds if fold.groups is not None), key=attrgetter("number"), default=None)
    few = group_warnings(fewest) if bootstrap.n else []
    return with_warnings(estimate, [*_warnings(folds, own, gamma, objective), *few])


def _combine(folds: Sequence[FoldReading], own: Sequence[float], objective: str, combine: str) -> float:
    return search_folds(folds, objective) if combine == "pooled" else _COMBINATIONS[combine](own)


def search_folds(folds: Sequence[FoldReading], objective: str) -> float:
    """Return the gamma at which the objective, averaged over the folds, is largest: exactly, over all reals.

    Of equally good gammas, the one nearest to 0 among those half-way between neighbouring margins of any samples.
    """
    margin = torch.cat([fold.margins.margin.double() for fold in folds])
    anything = torch.ones_like(margin, dtype=torch.bool)
    gammas = Margins(margin, is_seen=anything, hit=anything, label=None).curve().gamma
    lower = max((fold.lower for fold in folds if fold.lower < math.inf), default=-math.inf)
    if objective == "nll":
        gamma = _likeliest(folds)
        return gamma if gamma > lower else float(gammas[gammas > lower][0])
    value = torch.stack([fold.values(gammas, objective) for fold in folds]).mean(0)
    value = value.masked_fill(gammas <= lower, -math.inf)
    best = value >= value.max() - MACRO_TOLERANCE
    if bool(best[1:-1].any()):
        best[[0, -1]] = False
    return float(gammas[gammas.abs().masked_fill(~best, math.inf).argmin()])


def _likeliest(folds: Sequence[FoldReading]) -> float:
    """Return the gamma of the smallest NLL, averaged over the folds; 0 where no sample of one group determines it."""
    usable = [~fold.log_odds.isnan() for fold in folds]
    log_odds = torch.cat([fold.log_odds[use] for fold, use in zip(folds, usable, strict=True)])
    is_seen = torch.cat([fold.margins.is_seen[use] for fold, use in zip(folds, usable, strict=True)])
    weight = torch.cat([fold.weight[use] for fold, use in zip(folds, usable, strict=True)])
    gamma = likeliest_gamma(log_odds, is_seen, weight)
    return gamma if math.isfinite(gamma) else 0.0


def _interval(
    folds: Sequence[FoldReading], objective: str, combine: str, bootstrap: Bootstrap
) -> tuple[float, float] | None:
    """Resample folds, and m < n samples in each, whose deviations shrink by the rate of the estimator.

    That is (m / n)^(1/3) for accuracies, which are step functions of gamma, and (m / n)^(1/2) for the smooth NLL.
    """
    exponent = 1 / 2 if objective == "nll" else 1 / 3

    def estimate(drawn: Sequence[FoldReading]) -> float:
        return _combine(drawn, [search_folds([fold], objective) for fold in drawn], objective, combine)

    generator = torch.Generator("cpu").manual_seed(bootstrap.seed)
    replicates = []
    for _ in range(bootstrap.n):
        index = torch.randint(len(folds), (len(folds),), generator=generator, device="cpu").tolist()
        drawn = [folds[i] for i in index]
        resampled = [fold.resample(generator) for fold in drawn]
        rate = (sum(fold.units for fold in resampled) / sum(fold.units for fold in drawn)) ** exponent
        centre = estimate(drawn)
        replicates.append(centre + rate * (estimate(resampled) - centre))
    return percentile_interval(replicates)


def _warnings(folds: Sequence[FoldReading], own: Sequence[float], gamma: float, objective: str) -> list[str]:
    sentences = []
    infeasible = [k for k, fold in enumerate(folds) if fold.lower == math.inf]
    if infeasible:
        sentences.append(
            f"in {_name_folds(infeasible)} no gamma brings the pseudo-absent accuracy to that of the pre-trained "
            "model; the unconstrained gamma was taken: fine-tuning damaged these classes, or the constraint asks too "
            "much"
        )
    ruined = [
        k
        for k, fold in enumerate(folds)
        if fold.required is not None and fold.lower < math.inf and _seen_left(fold) < _RUINOUS
    ]
    if ruined:
        left = ", ".join(f"{100 * _seen_left(folds[k]):.0f} %" for k in ruined)
        sentences.append(
            f"in {_name_folds(ruined)} the constraint is barely feasible: it leaves at most {left} of the pseudo-seen "
            "accuracy at gamma = 0; compare constrained=False"
        )
    torn = [k for k, fold in enumerate(folds) if _is_torn(fold, own[k], gamma, objective)]
    if torn:
        sentences.append(
            f"the folds disagree: in {_name_folds(torn)} gamma = {gamma:.4g} does worse than the fold's own gamma "
            f"({_list_gammas([own[k] for k in torn])}), by more than half of what that gains; more folds, or another "
            "estimator, would tell"
        )
    fewest = min(fold.num_absent for fold in folds)
    if fewest < FEW_CLASSES:
        sentences.append(
            f"there are only {fewest} pseudo-absent classes, too few to stand in for the absent ones: gamma may be far "
            "off, whatever the folds agree on; compare mixed_pair_gap"
        )
    left_out = sum(int(fold.log_odds.isnan().sum()) for fold in folds)
    if objective == "nll" and left_out:
        sentences.append(
            f"{left_out} of {sum(len(fold.margins) for fold in folds)} samples were left out: -inf masks their label, "
            "so that no gamma makes it likely, or a whole group, so that gamma changes nothing"
        )
    for group in ("seen", "absent"):
        emptied = [k for k, fold in enumerate(folds) if _is_emptied(fold, gamma, group)]
        if emptied:
            sentences.append(
                f"gamma = {gamma:.4g} empties one side in {_name_folds(emptied)}: no sample of the pseudo-{group} "
                "classes is predicted correctly; do not use it without checking"
            )
    return sentences


def _name_folds(folds: Sequence[int]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def _list_gammas(gammas: Sequence[float]) -> str:
    return ", ".join(f"{gamma:.4g}" for gamma in gammas)


def _seen_left(fold: FoldReading) -> float:
    """Return the share of the pseudo-seen accuracy at gamma = 0 that the smallest gamma under the constraint leaves."""
    accuracy = fold.curve.acc_seen
    before = float(accuracy[point_at(fold.curve.breakpoints, 0.0)])
    return float(accuracy[fold.curve.gamma > fold.lower][0]) / before if before else 1.0


def _is_torn(fold: FoldReading, own: float, gamma: float, objective: str) -> bool:
    best, here, before = fold.values(torch.tensor([own, gamma, 0.0], dtype=torch.float64), objective).tolist()
    return bool(best - here > max((best - before) / 2, _NOTABLE * abs(best)))


def _is_emptied(fold: FoldReading, gamma: float, group: str) -> bool:
    correct = fold.curve.seen_correct if group == "seen" else fold.curve.absent_correct
    return int(correct[point_at(fold.curve.breakpoints, gamma)]) == 0
