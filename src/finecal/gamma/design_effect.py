"""Design effect of grouped samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs.groups import Grouping


def design_effect(values: Tensor, groups: Grouping | None) -> float:
    r"""Return by how much the variance of the mean is larger than that of as many independent samples, at least 1.

    .. math:: \frac{\sum_g \big(\sum_{i \in g} (x_i - \bar x)\big)^2}{\sum_i (x_i - \bar x)^2}

    The cluster-robust variance over the usual one, of the ranks x of the values, which may be infinite. n samples count
    as n over this: 1 without groups, the group size if samples of a group are equal, n for a single group.
    """
    n = len(values)
    if groups is None or n < 2 or groups.number == n:
        return 1.0
    if groups.number == 1:
        return float(n)
    _, place, counts = torch.unique(values.cpu(), return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0).double() - counts.double() / 2)[place] / n
    away = (rank - rank.mean()).unsqueeze(1)
    spread = float(away.square().sum())
    if spread == 0:
        return 1.0
    return max(1.0, float(groups.sums(away).square().sum()) / spread)


def design_effect_of_classes(classes: Tensor, groups: Grouping | None) -> float:
    r"""Return by how much the shares of classes vary more than those of as many independent samples, at least 1.

    .. math:: \frac{1}{n \, (k - 1)} \sum_c \frac{1}{p_c} \sum_g \Big(\sum_{i \in g} ([c_i = c] - p_c)\Big)^2

    over the k classes that occur, :math:`p_c` being their shares: the mean design effect of the chi-square statistic
    (Rao and Scott, Annals of Statistics 1984), by which an entropy is biased, too.
    """
    n = len(classes)
    if groups is None or n < 2 or groups.number == n:
        return 1.0
    if groups.number == 1:
        return float(n)
    occurring, place = torch.unique(classes.cpu(), return_inverse=True)
    k = len(occurring)
    if k == 1:
        return 1.0
    counts = torch.bincount(groups.index * k + place, minlength=groups.number * k).view(groups.number, k).double()
    share = counts.sum(0) / n
    away = counts - groups.sizes.unsqueeze(1) * share
    return max(1.0, float((away.square().sum(0) / share).sum()) / (n * (k - 1)))


def number_in_words(n: int, effect: float, kind: str) -> str:
    """Describe n samples, with the number of independent ones if that is smaller."""
    if effect == 1:
        return f"{n} {kind} samples"
    return f"{n / effect:.3g} independent {kind} samples, which {n} in groups count for"
