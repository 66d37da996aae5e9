"""Gamma from features and the head before and after fine-tuning: every seen sample gets a twin of an absent class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..evaluation.margins import Margins, resample
from ..evaluation.samples import Scan, samples_of, takes_samples
from ..inputs.arrays import Features, Labels, Logits, Mask
from ..inputs.features import LinearHead, check_features, check_head, head_warnings
from ..logits.reductions import margin_of
from .bootstrap import Bootstrap
from .estimate import GammaEstimate, finish_from_seen, scan_seen


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

    Fine-tuning moves the rows of all absent classes in the head in nearly the same direction. So every seen sample gets
    a twin, which is what it would be had its class been absent: the same features f and logits, but of its own class y

    .. math::
        \tilde z_y = f^\top \Big( w_y^\text{pre} + \langle w_u - w_u^\text{pre} \rangle_{u \in U} \Big)
                     + b_y^\text{pre} + \langle b_u - b_u^\text{pre} \rangle_{u \in U}

    Its margin is :math:`\max_{c \in S, c \ne y} z_c - \max(\tilde z_y, \max_{c \in U} z_c)`, and it is a hit if
    :math:`\tilde z_y` is the larger one. Gamma is the best for the samples and their twins together.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax of the fine-tuned model, on training or held-out samples.
    labels : (N,) int
        Class indices, of seen classes only.
    seen_mask : (C,) bool
        True for the seen classes; at least two.
    features : (N, D) tensor or array, floating point
        What the head of the fine-tuned model takes, for the same samples.
    head, pretrained_head : nn.Linear, or (weight, bias)
        The head after and before fine-tuning: weight `(C, D)`, bias `(C,)` or None.
    n_bootstrap : int, default 0
        Resamplings of the samples, with their twins, for a 95 % interval.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `average_logit_gap`; if features or heads have the wrong shape or dtype, or are not finite.

    Warns
    -----
    FinecalWarning
        If `head` applied to `features` does not give `logits`, if both heads are the same, so that there is no drift,
        or gamma sends every sample to the absent classes.

    Notes
    -----
    After the paper's Fig. 10, where the rows of absent classes are seen to move together. `O(NC + N log N)`. It assumes
    a linear head, and features that move little: gamma is low where fine-tuning has changed them much, and on training
    samples, which the model has memorised. `estimate_gamma` takes a fifth of it, from held-out samples.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> features = np.tile(np.eye(4)[:2], (20, 1))
    >>> before, after = (
    ...     4 * np.eye(4),
    ...     4 * np.eye(4) + np.outer([2, 2, -2, -2], [1, 1, 0, 0]),
    ... )
    >>> labels, mask = np.tile([0, 1], 20), [True, True, False, False]
    >>> float(
    ...     finecal.head_drift_gamma(
    ...         features @ after.T,
    ...         labels,
    ...         mask,
    ...         features=features,
    ...         head=(after, None),
    ...         pretrained_head=(before, None),
    ...     )
    ... )
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
    """Return the logit of each sample's own class had that been absent, in float64.

    As a change of the logit there is, so that a constant per row (log-probabilities) stays.
    """
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
