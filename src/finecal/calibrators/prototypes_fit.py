"""Fitting prototypes to unlabelled samples."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import SupportsFloat

from ..evaluation.samples import Samples, samples_with
from ..gamma.estimate import scan_seen
from ..inputs.arrays import Mask, as_tensor
from ..streaming.prototypes import PrototypeSums
from .prototypes import Prototypes

_ONE_SIDED = 1.64
"""Standard deviations of a normal distribution that 5 % exceed."""


def fit_prototypes(
    samples: Samples, seen_mask: Mask, gamma: SupportsFloat, *, held_out: Samples | None = None
) -> Prototypes:
    r"""Make prototypes of all classes from unlabelled samples of what the model meets.

    The calibrated model assigns samples to classes, each class gets the mean direction of its samples, and a sample's
    similarity to it is added to the logits:

    .. math::

        P &= \mathrm{softmax}(z + \gamma u), \quad x = \Sigma^{-1/2} (f - \bar f), \quad
        m_c = \mathrm{unit}\Big(\sum_n P_{nc} x_n + d_c\Big), \\
        \tilde z_c &= z_c + \gamma u_c + w s \, m_c^\top x, \quad
        w = \left\langle \frac{n_c}{n_c + 3} \right\rangle_{c \in U}, \quad n_c = \sum_n P_{nc}

    with u = 1 on absent classes, the covariance within classes Σ (with a tenth of the identity), x scaled to a mean
    squared length of 1, and :math:`d_c` the direction in which the logit of c grows, as one made-up sample. At the
    scale s the prototypes of one half of the samples best predict the assignments of the other half to absent classes,
    in likelihood; s is at most the scale at which similarities lie as far apart as the logits.

    Parameters
    ----------
    samples : Samples
        Unlabelled, with `features`, what the final linear layer takes, in the proportions in which the model will meet
        them. Labels are ignored.
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate
        From any estimator; it stays as it is.
    held_out : Samples, optional
        With `labels` and `features`: samples of seen classes that the model was not trained on. If `Acc_{S/S}` on them
        falls by more than chance explains (McNemar's test, one-sided, 5 %, for independent samples), the model is left
        alone.

    Returns
    -------
    Prototypes
        With a `report`. Its `weight` is 0 if nothing can be gained.

    Raises
    ------
    TypeError, ValueError
        As `known_share_gamma` for the logits; TypeError also if `samples` or `held_out` lack what they need; ValueError
        without samples, or if `held_out` has samples of absent classes.

    Warns
    -----
    FinecalWarning
        If the model is left alone; if an absent class has fewer than two samples on average, two fifths of the absent
        classes or more do not seem to occur, or the features hardly cluster.

    See Also
    --------
    finecal.streaming.PrototypeSums : the same from batches, without keeping their logits.
    fold_into_head : puts the result into the head of the model, for nothing at inference.

    Notes
    -----
    `O(N D (C + D))`: one pass, in float32; the order of the samples does not matter. For a loss other than
    cross-entropy divide the logits by `fit_temperature` first. :doc:`/theory/beyond` has the gain, and the relation to
    T3A (Iwasawa and Matsuo, NeurIPS 2021).

    Examples
    --------
    >>> import torch, finecal
    >>> generator = torch.Generator().manual_seed(1)
    >>> centers = 2.5 * torch.randn(6, 16, generator=generator)
    >>> labels = torch.arange(6).repeat(100)
    >>> features = centers[labels] + 2 * torch.randn(600, 16, generator=generator)
    >>> head = centers + 2.5 * torch.randn(6, 16, generator=generator)
    >>> logits = features @ head.T / 8 + torch.tensor([5.0, 5.0, 5.0, 0.0, 0.0, 0.0])
    >>> seen_mask = torch.tensor([True, True, True, False, False, False])
    >>> print(f"{finecal.evaluate(logits, labels, seen_mask, gamma=5.0).acc_all:.3f}")
    0.702
    >>> samples = finecal.Samples(logits, features=features)
    >>> prototypes = finecal.fit_prototypes(samples, seen_mask, gamma=5.0)
    >>> prototypes
    Prototypes(gamma=5, features=16, method='fit_prototypes', seen=3, absent=3)
    >>> print(prototypes.report)
    prototypes of 6 classes from 600 unlabelled samples: weight 0.95, scale 9.082
    6.2 % of the samples change their class
    >>> print(f"{finecal.evaluate(prototypes(logits, features), labels, seen_mask).acc_all:.3f}")
    0.748
    """
    rows = samples_with(samples, "samples", "features").features_tensor
    assert rows is not None
    samples.check_not_empty("fit_prototypes")
    sums = PrototypeSums(as_tensor(seen_mask, "seen_mask").to(rows.device), gamma, rows.shape[1])
    prototypes = Prototypes._of(sums.update(samples), gamma)
    if held_out is not None:
        _check_on(held_out, prototypes)
    prototypes._issue("fit_prototypes")
    return prototypes


def _check_on(held_out: Samples, prototypes: Prototypes) -> None:
    """Compare `Acc_{S/S}` by gamma alone and with prototypes, and take these out again where it falls."""
    samples = samples_with(held_out, "held_out", "labels", "features").named("held_out")
    mask = samples.check_mask(prototypes.seen_mask)
    scan = scan_seen(samples, mask, "fit_prototypes", min_seen=1)
    with samples.naming_errors():
        after = (
            prototypes(scan.logits.float(), samples.features_tensor).masked_fill(~scan.mask, -math.inf).argmax(1)
            == scan.labels
        )
    before = scan.scalars.hit
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    report = prototypes.report
    assert report is not None
    report = replace(
        report,
        acc_seen_within_before=float(before.double().mean()),
        acc_seen_within=float(after.double().mean()),
    )
    if lost - won > _ONE_SIDED * math.sqrt(lost + won):
        prototypes.weight.zero_()
        sentence = (
            f"with prototypes {lost} of {len(before)} held-out samples are lost within the seen classes, {won} won, so "
            "the model is left alone: gamma is all that is added"
        )
        report = replace(report, trust=0.0, changed=0.0, warnings=(*report.warnings, sentence))
    prototypes.report = report
