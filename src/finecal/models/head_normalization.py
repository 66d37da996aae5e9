"""Heads with normalised rows: cosine and tau-normalised classifiers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..inputs.checks import named_classes
from ..inputs.features import check_linear
from ..inputs.numbers import check_finite
from ..inputs.warning import warn


def normalize_head(linear: nn.Linear, tau: float = 1.0) -> nn.Linear:
    r"""Return a copy of a linear classifier with its rows divided by a power of their norms.

    .. math:: \tilde w_c = w_c / \lVert w_c \rVert^\tau, \qquad \tilde b_c = b_c / \lVert w_c \rVert^\tau

    so that each class's logit is divided by :math:`\lVert w_c \rVert^\tau`.

    Parameters
    ----------
    linear : nn.Linear
        The classifier's head, `(C, D)` weight with or without a bias. It is left as it is.
    tau : float, default 1
        1 gives rows of unit norm: a logit is then the signed distance from the class's hyperplane. 0 gives the head
        back, values between are in between.

    Returns
    -------
    nn.Linear
        A deep copy of `linear`, of its dtype, device and ``requires_grad``, with other values.

    Raises
    ------
    TypeError
        If `linear` is not an nn.Linear or computes its weight (a parametrization), or `tau` is not a number.
    ValueError
        If `tau` is not finite, the weight or bias is not, or the results are not in the dtype of `linear`.

    Warns
    -----
    FinecalWarning
        If rows are all zero (pruned classes) and tau is positive: they stay as they are, with their bias.

    Notes
    -----
    :math:`\tau`-normalisation of Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
    ICLR 2020, whose code drops the bias; for that, zero it: ``head.bias.zero_()`` under ``torch.no_grad()``. Here it is
    divided along, since left at its old size against shrunken logits it would decide alone. The rows are not scaled
    back to their mean norm, so the logits shrink or grow, by about the same factor each: decisions depend on the norms'
    ratios only, but a temperature or a gamma has to be estimated anew.

    A cosine classifier also normalises the features: ``scale * F.normalize(features) @ head.weight.T`` with
    ``head = normalize_head(linear)`` gives its logits. Weight aligning (Zhao et al., "Maintaining Discrimination and
    Fairness in Class Incremental Learning", CVPR 2020) divides all rows of a group by one ratio of mean norms instead.
    Only the norms are used, no data; AUSUC may rise or fall.
    Rounded once, from float64.

    Examples
    --------
    >>> import torch, finecal
    >>> linear = torch.nn.Linear(2, 2)
    >>> _ = linear.load_state_dict(
    ...     {
    ...         "weight": torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
    ...         "bias": torch.tensor([5.0, 1.0]),
    ...     }
    ... )
    >>> head = finecal.normalize_head(linear)
    >>> head.weight.data, head.bias.data
    (tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]]), tensor([1.0000, 0.5000]))
    """
    check_linear(linear)
    power = check_finite(tau, "tau")
    weight, bias = linear.weight.detach().double(), linear.bias
    norms = torch.linalg.vector_norm(weight, dim=1)
    empty = norms == 0
    if power > 0 and bool(empty.any()):
        warn(
            f"linear has rows of zeros, which have no norm to be divided by, in {int(empty.sum())} of "
            f"{empty.shape[0]} classes: {named_classes(empty)}; they stay as they are"
        )
    divisor = torch.where(empty, 1.0, norms).pow(power)
    head = copy.deepcopy(linear)
    with torch.no_grad():
        head.weight.copy_(weight / divisor.unsqueeze(1))
        if bias is not None:
            head.bias.copy_(bias.detach().double() / divisor)
    _check_head(head, ~empty, power)
    return head


def _check_head(head: nn.Linear, filled: Tensor, tau: float) -> None:
    """Refuse a head with NaN or inf, or with rows that were rounded to zero."""
    rows = head.weight if head.bias is None else torch.cat([head.weight, head.bias.unsqueeze(1)], 1)
    lost = ~rows.isfinite().all(1) | (filled & (head.weight == 0).all(1))
    if bool(lost.any()):
        raise ValueError(
            f"linear divided by its norms to the power tau = {tau:g} has no finite non-zero rows in "
            f"{str(head.weight.dtype).removeprefix('torch.')} for {int(lost.sum())} of {lost.shape[0]} classes: "
            f"{named_classes(lost)}; "
            "check its weight for NaN and inf, convert it with linear.float(), or take a smaller tau"
        )
