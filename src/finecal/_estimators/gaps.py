"""Gamma from logit gaps of labelled seen samples: average gap (ALG), gap of maxima (MLG) and drift of the head."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._core.arrays import Features, Labels, Logits, Mask
from .._core.checks import LinearHead, check_features, check_head, head_warnings
from .._core.groups import Bootstrap, groups_of
from .._core.kernels import tile_rows
from .._core.reductions import margin_of, weighted_sums
from .._core.report import Margins, resample
from .._core.samples import Scan, samples_of, takes_samples
from .estimate import GammaEstimate, finish_from_seen, scan_seen


@takes_samples
def average_logit_gap(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma by the paper's average logit gap (ALG).

    .. math::
        \gamma = \Big\langle \operatorname*{mean}_{c \in S,\, c \ne y} z_c
                             - \operatorname*{mean}_{c \in U} z_c \Big\rangle

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax; the paper takes the training samples. -inf logits are left out of the means.
    labels : (N,) int
        Class indices, of seen classes only.
    seen_mask : (C,) bool
        True for the seen classes; at least two.
    n_bootstrap, seed : int, default 0
        Resamplings for a 95 % interval, and their seed.

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError if a label is absent, there are no samples, or only one class is seen.

    Warns
    -----
    FinecalWarning
        If gamma <= 0 (no gap: a distilled or already balanced model), or it sends every sample to the absent classes.

    Notes
    -----
    `O(NC)`. Usually too low: see :doc:`/theory/estimators`. Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS
    2024, section 5.

    Examples
    --------
    >>> import finecal
    >>> logits, mask = [[9.0, 4, 1, 2], [3.0, 8, 0, 1]], [True, True, False, False]
    >>> finecal.estimators.average_logit_gap(logits, [0, 1], mask).gamma
    2.5
    """
    scan = scan_seen(samples_of(logits, labels), seen_mask, "average_logit_gap")
    return _estimate(scan, "average_logit_gap", Bootstrap.from_arguments(n_bootstrap, seed))


@takes_samples
def max_logit_gap(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma by the maximum logit gap (MLG): ALG by the maxima, which decide a prediction.

    .. math:: \gamma = \Big\langle \max_{c \in S,\, c \ne y} z_c - \max_{c \in U} z_c \Big\rangle

    Parameters
    ----------
    logits, labels, seen_mask, n_bootstrap, seed
        As in `average_logit_gap`; held-out samples are better than training samples, which the model has memorised.

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `average_logit_gap`.

    Warns
    -----
    FinecalWarning
        As `average_logit_gap`; also if samples are left out because -inf masks a whole group.

    Notes
    -----
    `O(NC)`. Too low where there is a gap, unbiased where there is none. Finecal's own, after ALG.

    Examples
    --------
    >>> import finecal
    >>> logits, mask = [[9.0, 4, 1, 2], [3.0, 8, 0, 1]], [True, True, False, False]
    >>> finecal.estimators.max_logit_gap(logits, [0, 1], mask).gamma
    2.0
    """
    scan = scan_seen(samples_of(logits, labels), seen_mask, "max_logit_gap")
    return _estimate(scan, "max_logit_gap", Bootstrap.from_arguments(n_bootstrap, seed))


def _average_gaps(scan: Scan) -> Tensor:
    """Return each sample's gap of means, in float64; over the finite logits only where some are -inf."""
    seen = scan.mask.double()
    absent = 1 - seen
    gaps = weighted_sums(scan.logits, scan.labels, seen / (seen.sum() - 1) - absent / absent.sum())
    masked = (~gaps.isfinite()).nonzero().squeeze(1)
    for index in torch.split(masked, tile_rows(scan.logits)):
        rows = scan.logits[index].double().scatter_(1, scan.labels[index].unsqueeze(1), -math.inf)
        finite = rows.isfinite()
        rows, finite = rows.masked_fill_(~finite, 0), finite.double()
        gaps[index] = (rows @ seen) / (finite @ seen) - (rows @ absent) / (finite @ absent)
    return gaps


def _max_gaps(scan: Scan) -> Tensor:
    return scan.scalars.seen_rival.double() - scan.scalars.absent_rival.double()


GAPS: dict[str, Callable[[Scan], Tensor]] = {"average_logit_gap": _average_gaps, "max_logit_gap": _max_gaps}
"""The gap of each sample, in float64."""


def _estimate(scan: Scan, method: str, bootstrap: Bootstrap) -> GammaEstimate:
    gaps = GAPS[method](scan)
    total, usable = gap_sum(gaps)
    gamma, sentences = mean_gap(total, usable, gaps.shape[0], method)
    finite = gaps.isfinite()
    draws = bootstrap.counts(int(usable), groups=groups_of(scan.groups, finite))
    replicates = draws.means(gaps[finite])
    return finish_from_seen(scan, gamma, method, replicates, sentences, n=int(usable), gap=gamma)


def gap_sum(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and number of the finite gaps."""
    finite = gaps.isfinite()
    return gaps[finite].sum(), finite.sum()


def mean_gap(total: Tensor, usable: Tensor, samples: int, method: str) -> tuple[float, list[str]]:
    """Return gamma from the result of `gap_sum`, and a warning if samples were left out."""
    if usable == 0:
        raise ValueError(
            "logits are -inf on all absent classes, or on all seen ones but the label, in each of the "
            f"{samples} samples; {method} has nothing to estimate from: pass logits in which both groups are scored"
        )
    sentences = []
    if usable < samples:
        sentences.append(
            f"{samples - int(usable)} of {samples} samples were left out: -inf logits mask all their absent classes, "
            "or all seen ones but the label"
        )
    return float(total / usable), sentences


@takes_samples
def head_drift_gamma(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    *,
    features: Features | None = None,
    head: LinearHead,
    pretrained_head: LinearHead,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma with the drift of the head: pseudo cross-validation without a refit.

    Every seen sample gets a twin as if its class y had been absent: the same features f and logits, but for

    .. math::
        \tilde z_y = f^\top \Big( w_y^\text{pre} + \langle w_u - w_u^\text{pre} \rangle_{u \in U} \Big)
                     + b_y^\text{pre} + \langle b_u - b_u^\text{pre} \rangle_{u \in U}

    Its margin is :math:`\max_{c \in S, c \ne y} z_c - \max(\tilde z_y, \max_{c \in U} z_c)`, and it is a hit if
    :math:`\tilde z_y` is the larger one. Gamma maximises the accuracy on samples and twins together.

    Parameters
    ----------
    logits, labels, seen_mask, n_bootstrap, seed
        As in `average_logit_gap`, of training or held-out samples; samples are resampled with their twins.
    features : (N, D) tensor or array, floating point
        Input of the head of the fine-tuned model, for the same samples.
    head, pretrained_head : nn.Linear, or (weight, bias)
        The head after and before fine-tuning: weight `(C, D)`, bias `(C,)` or None.

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `average_logit_gap`; also if features or heads have the wrong shape or dtype, or are not finite.

    Warns
    -----
    FinecalWarning
        If `head` applied to `features` does not give `logits`, both heads are equal (no drift), or gamma sends every
        sample to the absent classes.

    Notes
    -----
    `O(NC + N log N)`. After the paper's Fig. 10. Too low if fine-tuning has changed the features much, and on training
    samples: see :doc:`/theory/estimators`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> features, before = np.tile(np.eye(4)[:2], (20, 1)), 4 * np.eye(4)
    >>> after = before + np.outer([2, 2, -2, -2], [1, 1, 0, 0])
    >>> samples = features @ after.T, np.tile([0, 1], 20), [True, True, False, False]
    >>> heads = {"head": (after, None), "pretrained_head": (before, None)}
    >>> finecal.estimators.head_drift_gamma(*samples, features=features, **heads).gamma
    4.0
    """
    samples = samples_of(logits, labels)
    scan = scan_seen(samples, seen_mask, "head_drift_gamma")
    inputs = samples.features_tensor if features is None else check_features(features, len(samples), scan.logits.device)
    if inputs is None:
        raise TypeError("features are missing; pass features=, or Samples(logits, labels, features=...)")
    num_classes, device = scan.logits.shape[1], scan.logits.device
    weight, bias = check_head(head, num_classes, device)
    before = check_head(pretrained_head, num_classes, device, "pretrained_head")
    sentences = head_warnings(scan.logits, inputs, weight, bias)
    if before[0].shape != weight.shape:
        raise ValueError(
            f"pretrained_head takes {before[0].shape[1]} features, head takes {weight.shape[1]}; pass the same layer "
            "before and after fine-tuning"
        )
    if all(torch.equal(old.float(), new.float()) for old, new in zip(before, (weight, bias), strict=True)):
        sentences.append(
            "head and pretrained_head are equal: fine-tuning left the head as it was, and there is no drift"
        )
    problem = _with_twins(scan, _twin_logits(scan, inputs, (weight, bias), before))
    n = len(samples)
    draws = Bootstrap.from_arguments(n_bootstrap, seed).indices(n, groups=scan.groups)
    replicates = [resample(problem, torch.cat([drawn, drawn + n])).curve().best() for drawn in draws]
    return finish_from_seen(scan, problem.curve().best(), "head_drift_gamma", replicates, sentences)


def _twin_logits(
    scan: Scan, features: Tensor, head: tuple[Tensor, Tensor], pretrained_head: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the logit of each sample's own class had that been absent, in float64; a constant per row stays."""
    (weight, bias), (old_weight, old_bias) = ([part.double() for part in pair] for pair in (head, pretrained_head))
    absent = ~scan.mask
    row_change = (weight - old_weight)[absent].mean(0) - (weight - old_weight)
    bias_change = (bias - old_bias)[absent].mean() - (bias - old_bias)
    labels = scan.labels
    return scan.scalars.own.double() + (features.double() * row_change[labels]).sum(1) + bias_change[labels]


def _with_twins(scan: Scan, twin: Tensor) -> Margins[Tensor]:
    """Return the margins of the samples, followed by those of their twins."""
    seen_rival, absent_rival = scan.scalars.seen_rival.double(), scan.scalars.absent_rival.double()
    margin = torch.cat([scan.margin.double(), margin_of(seen_rival, torch.maximum(twin, absent_rival))])
    is_seen = torch.arange(len(margin), device=margin.device) < len(twin)
    return Margins(margin, is_seen, torch.cat([scan.scalars.hit, twin > absent_rival]), None)
