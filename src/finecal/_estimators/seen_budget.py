"""Gamma from held-out seen samples alone, with a guarantee on what it costs the seen classes."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, check_share
from .._core.groups import Bootstrap
from .._core.samples import samples_of, takes_samples
from .estimate import GammaEstimate, finish_from_seen, scan_seen

_ROUNDED = 1e-6
"""Largest rounding error of a sum of shares that is a whole number."""


@takes_samples
def seen_budget_gamma(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    max_seen_drop: float = 0.02,
    confidence: float = 0.95,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Find the largest gamma that provably costs the seen classes no more than a budget.

    .. math::
        \gamma \le V_{(k)}, \qquad
        k = \max\{k : P(\mathrm{Bin}(n, \varepsilon) \le k - 1) \le 1 - \text{confidence}\}

    V is the margin of the samples that are correct at gamma = 0, and +inf for the others; :math:`\gamma` is the bound
    less one rounding step of the logits. With probability at least `confidence` over the draw of the samples, the loss
    :math:`\text{Acc}_{S/Y}(0) - \text{Acc}_{S/Y}(\gamma)` *in the population* is at most :math:`\varepsilon`; for any
    distribution, with ties, at any n. With `groups`, that holds for the mean over groups of the share of a group's
    samples that is lost.

    Parameters
    ----------
    logits, labels, seen_mask, n_bootstrap, seed
        As in `average_logit_gap`, of samples that the model was *not* trained on, drawn as those that it will be used
        on; one seen class suffices.
    max_seen_drop : float in (0, 1), default 0.02
        :math:`\varepsilon`, the loss of `Acc_{S/Y}` that is allowed, as a fraction: 0.02 are two points.
    confidence : float in (0, 1), default 0.95
        Probability with which the budget is to be kept.

    Returns
    -------
    GammaEstimate
        With gamma >= 0; 0 if there are too few samples to guarantee anything else.

    Raises
    ------
    TypeError, ValueError
        As `average_logit_gap`; ValueError also if no sample is predicted correctly at gamma = 0, or a fraction is not
        in (0, 1).

    Warns
    -----
    FinecalWarning
        If there are too few samples (or groups), or so few are correct that no gamma can exceed the budget.

    Notes
    -----
    `O(NC + N log N)`. One-sided distribution-free tolerance limit (Wilks, Annals of Mathematical Statistics 1941). With
    groups: p-values of Hoeffding and Bentkus (Bates et al., "Distribution-free, risk-controlling prediction sets",
    Journal of the ACM 2021). See :doc:`/theory/estimators`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits, labels = np.outer(np.arange(1.0, 201.0), [1, 0, 0]), np.zeros(200, int)
    >>> samples, mask = finecal.Samples(logits, labels), [True, True, False]
    >>> gamma = finecal.estimators.seen_budget_gamma(samples, mask, max_seen_drop=0.05)
    >>> round(float(gamma), 6)
    5.0
    """
    budget, sure = check_share(max_seen_drop, "max_seen_drop"), check_share(confidence, "confidence")
    scan = scan_seen(samples_of(logits, labels), seen_mask, "seen_budget_gamma", min_seen=1)
    correct = scan.scalars.hit & (scan.margin >= 0)
    losable = torch.where(correct, scan.margin, math.inf).double()
    if not bool(losable.isfinite().any()):
        raise ValueError(
            f"logits predict none of the {losable.shape[0]} samples correctly at gamma = 0 (or mask the absent "
            "classes by -inf), so there is nothing to lose and the budget sets no gamma: check that labels belong "
            "to these logits"
        )
    n = losable.shape[0]
    bound = _Bound(budget, sure)
    units, kind = (n, "samples") if scan.groups is None else (scan.groups.number, "groups")
    order = losable.argsort()
    ordered = losable[order]
    weight = None if scan.groups is None else 1 / scan.groups.sizes[scan.groups.index].double()
    rank = bound.rank(n if weight is None else weight[order.cpu()])
    sentences = []
    if rank == 0:
        needed = math.ceil(math.log(1 - sure) / math.log(1 - budget))
        sentences.append(
            f"{units} {kind} are too few to guarantee a drop of at most {budget:g} with {sure:g} confidence: {needed} "
            "are needed"
        )
    beyond = float(ordered[ordered.isfinite()].max()) + 1
    if rank > 0 and not math.isfinite(float(ordered[rank - 1])):
        sentences.append(
            f"only {int(correct.sum())} of {n} samples are correct at gamma = 0: no gamma can cost more than the "
            "budget; this one, beyond all their margins, gives up every seen sample"
        )
    step = scan.rounding_step()
    replicates = []
    for drawn in Bootstrap.from_arguments(n_bootstrap, seed).indices(n, groups=scan.groups):
        again = losable[drawn.to(losable.device)].sort()
        left = rank if weight is None else bound.rank(weight[drawn[again.indices.cpu()]])
        replicates.append(_below(again.values, left, step, beyond))
    method = f"seen_budget_gamma(max_seen_drop={budget:g}, confidence={sure:g})"
    return finish_from_seen(scan, _below(ordered, rank, step, beyond), method, replicates, sentences)


def _below(ordered: Tensor, rank: int, step: float, beyond: float) -> float:
    """Return a gamma one rounding step below V_(rank), but no more than half-way to the next smaller value, or to 0.

    On V_(rank) itself, rounding would decide whether that sample is lost, and those that tie with it. `beyond` where
    V_(rank) is infinite.
    """
    if rank == 0:
        return 0.0
    value = float(ordered[rank - 1])
    if not math.isfinite(value):
        return beyond
    smaller = float(ordered[ordered < value].max()) if float(ordered[0]) < value else 0.0
    return max(value - step, (value + smaller) / 2)


class _Bound(NamedTuple):
    """A loss of at most `budget`, with probability `confidence`."""

    budget: float
    confidence: float

    def rank(self, losses: int | Tensor) -> int:
        """Return the largest k such that gamma = V_(k), which loses all before V_(k), keeps to the bound; 0 if none.

        `losses` is the number of samples, or for G groups each sample's share of its group in the order of V: the sum
        before V_(k) is G times the mean loss. P-values grow with k.
        """
        from scipy.special import bdtr

        alpha = 1 - self.confidence
        if isinstance(losses, int):
            return bisect_right(range(losses), alpha, key=lambda lost: bdtr(lost, losses, self.budget))
        lost = (losses.cumsum(0) - losses).numpy()
        return int((self._p_values(lost, round(float(losses.sum()))) <= alpha).sum())

    def _p_values(self, lost: NDArray[np.float64], number: int) -> NDArray[np.float64]:
        r"""Return the p-values of Hoeffding and Bentkus for "the mean loss exceeds the budget".

        .. math:: \min\big(e^{-G \, h(\min(r, \varepsilon), \varepsilon)},
                  \; e \, P(\mathrm{Bin}(G, \varepsilon) \le \lceil G r \rceil)\big),
                  \qquad h(a, b) = a \log \tfrac a b + (1 - a) \log \tfrac{1 - a}{1 - b}

        r is the mean loss of the given groups, and `lost` is r times their number G.
        """
        from scipy.special import bdtr, rel_entr

        share = np.clip(lost / number, 0, self.budget)
        exponent = rel_entr(share, self.budget) + rel_entr(1 - share, 1 - self.budget)
        ceiling = np.clip(np.ceil(lost - _ROUNDED), 0, number).astype(int)
        bentkus = math.e * bdtr(np.arange(number + 1), number, self.budget)[ceiling]
        smaller: NDArray[np.float64] = np.minimum(np.exp(-number * exponent), bentkus)
        return smaller
