"""One bias per class: from known class frequencies, by Bayes' rule."""

from __future__ import annotations

from typing import SupportsFloat

import torch

from .._core.arrays import ArrayLike, Labels, Logits, Mask
from .._core.calibrate import absent_indicator
from .._core.checks import check_class_values, check_gamma
from .._core.groups import Bootstrap
from .._core.samples import samples_of, takes_samples
from .._estimators.auto import estimate_gamma
from .._estimators.estimate import scan_seen
from .._estimators.residuals import estimate_residual_gap
from .class_bias import ClassBias


@takes_samples
def class_bias_from_shares(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    class_shares: ArrayLike,
    gamma: SupportsFloat | None = None,
) -> ClassBias:
    r"""Add gamma and, per class, the log of its frequency in use over the mean frequency of its group.

    .. math:: b_c = \gamma \, [c \in U] + T \log \frac{p_c}{\bar p_{G(c)}}

    :math:`\bar p_{G(c)}` is the mean of :math:`p` over the classes of c's group, seen or absent, and T the temperature
    of these samples over the seen classes, as in `residual_gap`. With equal frequencies within the groups it is gamma.

    Parameters
    ----------
    logits : (N, C) tensor or array; or Samples
        Scores before softmax of held-out samples of seen classes.
    labels : (N,) int
        Their class indices.
    seen_mask : (C,) bool
        True for the seen classes.
    class_shares : (C,) float
        :math:`p`: how frequent each class is where the model will be used. Positive; shares or counts.
    gamma : float or GammaEstimate, optional
        Default: that of `estimate_gamma` with these samples as `held_out` and, as `seen_share`, the seen classes' part
        of `class_shares`. Pass that share to `estimate_gamma` yourself if you have other data, too.

    Returns
    -------
    ClassBias
        On the device of the logits.

    Raises
    ------
    TypeError, ValueError
        As `residual_gap` and `ClassBias`; ValueError if a share is not positive: a class that was never counted may
        still come, so give it half a count, or mask its column with -inf.

    Warns
    -----
    FinecalWarning
        As `estimate_gamma`, if gamma is not given.

    Notes
    -----
    It assumes that fine-tuning was on classes about equally frequent, or that its frequencies did not carry over.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 8.0, 1.0, 2.0], [7.0, 8.0, 0.0, 3.0]], (20, 1))
    >>> samples, mask = (logits, np.tile([0, 1], 20)), [True, True, False, False]
    >>> bias = finecal.calibrators.class_bias_from_shares(
    ...     *samples, mask, [30, 10, 5, 5], gamma=4.0
    ... ).bias
    >>> bool(bias[0] > bias[1]), bias[2:].tolist()
    (True, [4.0, 4.0])
    """
    samples = samples_of(logits, labels)
    scan = scan_seen(samples, seen_mask, "class_bias_from_shares")
    mask = scan.mask
    shares = check_class_values(class_shares, "class_shares", positive=True).double().to(mask.device)
    if len(shares) != len(mask):
        raise ValueError(f"class_shares has {len(shares)} numbers for {len(mask)} classes; pass one for each class")
    shares = shares / shares.sum()
    if gamma is None:
        gamma = estimate_gamma(mask, held_out=samples, seen_share=float(shares[mask].sum()))
    number = float(check_gamma(gamma, mask.device))
    unit = estimate_residual_gap(scan, Bootstrap()).unit
    usual = torch.where(mask, shares[mask].mean(), shares[~mask].mean())
    bias = number * absent_indicator(mask, torch.float64) + unit * (shares / usual).log()
    calibrator = ClassBias(bias)
    calibrator.method = "class_bias_from_shares"
    return calibrator
