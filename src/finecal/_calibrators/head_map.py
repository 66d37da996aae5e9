"""A head of all classes from one of the fine-tuned classes alone: ridge regression of the old logits on new features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.groups import Bootstrap
from .._core.samples import Samples
from .._estimators.estimate import scan_seen
from .._estimators.mixed_pairs import NoPairs, estimate_pair_gap, share_or_default

_PENALTIES = tuple(10 ** (exponent / 4) for exponent in range(-16, 13))
"""From which the penalty is chosen, in units of the mean variance of the features: 1e-4 to 1e3."""
_TINY = torch.finfo(torch.float64).tiny


class MapSums(NamedTuple):
    """Sums over samples, from which the map is fitted; sums of batches add up by `merge`.

    All are float64. `features` and `logits` are sums of `(D,)` and `(C,)`, `products` is X'X, `cross` X'Y, and
    `squares` the sums of the squared logits.
    """

    samples: int
    features: Tensor
    logits: Tensor
    products: Tensor
    cross: Tensor
    squares: Tensor

    @classmethod
    def of(cls, features: Tensor, old_logits: Tensor) -> MapSums:
        """Add up `(N, D)` features and `(N, C)` logits."""
        x, y = features.double(), old_logits.double()
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0))

    def merge(self, other: MapSums) -> MapSums:
        return MapSums(*map(add, self, other))


@dataclass(frozen=True)
class HeadMap:
    """A linear map from the features of the fine-tuned model to the logits of the pre-trained one.

    Attributes
    ----------
    weight, bias : (C, D) and (C,) float64 tensors
        The old logits are about ``features @ weight.T + bias``.
    penalty : float
        Of the ridge regression, in units of the mean variance of the features; chosen by cross-validation.
    explained : (C,) float64 tensor
        Share of the variance of each class's logit that the map explains on samples it was not fitted to; may be
        negative.
    samples : int
        N, the samples it was fitted to.
    center : (D,) float64 tensor
        Mean of the features.
    root : (D, D) float64 tensor
        R such that a sample's leverage is 1 / N + |(x - center) R|².
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    explained: Tensor
    samples: int
    center: Tensor
    root: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the mapped logits, `(N, C)` float64."""
        return features.double() @ self.weight.T + self.bias

    def leave_one_out(self, features: Tensor, old_logits: Tensor) -> Tensor:
        """Return the mapped logits of samples it was fitted to, each as mapped by a fit to all the other ones."""
        y = old_logits.double()
        leverage = 1 / self.samples + ((features.double() - self.center) @ self.root).square().sum(1)
        return y - (y - self(features)) / (1 - leverage).clamp(min=_TINY)[:, None]


def fit_head_map(features: Tensor, old_logits: Tensor, old_weight: Tensor | None = None) -> HeadMap:
    """Fit the map to `(N, D)` features of the new model and `(N, C)` logits of the old one on the same samples.

    `old_weight`, `(C, D)`, is the weight of the old head. Where it is given, the map is pulled towards it and not
    towards zero. It only fits if both models have the same architecture.
    """
    return fit_head_map_from_sums(MapSums.of(features, old_logits), old_weight)


def fit_head_map_from_sums(sums: MapSums, old_weight: Tensor | None = None) -> HeadMap:
    """Fit the map to sums of all samples."""
    n = sums.samples
    center, level = sums.features / n, sums.logits / n
    products = sums.products - n * torch.outer(center, center)
    cross = sums.cross - n * torch.outer(center, level)
    total = (sums.squares - n * level.square()).clamp(min=0)
    start = torch.zeros_like(cross.T) if old_weight is None else old_weight.double()
    pulled = cross - products @ start.T
    left_over = (total - ((cross + pulled) * start.T).sum(0)).clamp(min=0)
    values, vectors = torch.linalg.eigh(products)
    values = values.clamp(min=0)
    unit = float(values.mean()) or 1.0
    rotated = vectors.T @ pulled
    best = None
    for penalty in _PENALTIES:
        inverse = 1 / (values + penalty * unit)
        left = 1 - (1 + float((values * inverse).sum())) / n
        fitted = ((2 * inverse - values * inverse.square())[:, None] * rotated.square()).sum(0)
        errors = (left_over - fitted).clamp(min=0) / max(left, 1e-6) ** 2
        if best is None or float(errors.sum()) < best[0]:
            best = float(errors.sum()), penalty, errors, inverse
    assert best is not None
    _, penalty, errors, inverse = best
    weight = start + ((vectors * inverse) @ rotated).T
    return HeadMap(
        weight,
        level - weight @ center,
        penalty,
        1 - errors / total.clamp(min=_TINY),
        n,
        center,
        vectors * inverse.sqrt(),
    )


class RestoredHead(NamedTuple):
    """A head of all classes: the old ones in their order, and behind them those that the old head does not have.

    Attributes
    ----------
    weight, bias : (C', D) and (C',) float64 tensors
        The new rows of fine-tuned classes, and scaled rows of the map for all others. Gamma is not in them.
    seen_mask : (C',) bool tensor
        Classes of the new head.
    classes : (K,) int64 tensor
        The class in the restored head of each class of the new head.
    scale : float
        By which the mapped logits are multiplied.
    leave_one_out : (N, C') float64 tensor
        Logits of the given samples; those of absent classes by fits to all the other samples.
    gamma : float or None
        To add to the absent logits; None without labels.
    """

    weight: Tensor
    bias: Tensor
    seen_mask: Tensor
    classes: Tensor
    scale: float
    leave_one_out: Tensor
    gamma: float | None


def restored_head(
    head_map: HeadMap,
    new_weight: Tensor,
    new_bias: Tensor | None,
    new_to_old: Tensor,
    features: Tensor,
    old_logits: Tensor,
    labels: Tensor | None = None,
    *,
    seen_share: float | None = None,
) -> RestoredHead:
    """Put the rows of the new head and mapped rows of the absent classes together.

    `new_to_old`, `(K,)`, has the old class of each new one, -1 for a class of its own. `features`, `old_logits` and
    `labels`, in the numbering of the new head, are of samples of fine-tuned classes that the map was fitted to.
    """
    own = new_to_old < 0
    classes = new_to_old.long().clone()
    old = len(head_map.weight)
    classes[own] = old + torch.arange(int(own.sum()), device=classes.device)
    mask = torch.zeros(old + int(own.sum()), dtype=torch.bool, device=classes.device)
    mask[classes] = True
    new_rows = new_weight.double()
    new_level = torch.zeros_like(new_rows[:, 0]) if new_bias is None else new_bias.double()
    new_logits = features.double() @ new_rows.T + new_level
    mapped = head_map.leave_one_out(features, old_logits)
    scale = scale_of_map(head_map(features), new_logits, new_to_old)

    def whole(of_map: Tensor, of_new: Tensor) -> Tensor:
        """Fill the columns of all classes."""
        out = of_map.new_zeros((len(of_map), len(mask)))
        out[:, :old] = scale * of_map
        out[:, classes] = of_new
        return out

    logits = whole(mapped, new_logits)
    return RestoredHead(
        whole(head_map.weight.T, new_rows.T).T,
        whole(head_map.bias[None], new_level[None])[0],
        mask,
        classes,
        scale,
        logits,
        None if labels is None else restored_gamma(logits, classes[labels.long()], mask, seen_share),
    )


def scale_of_map(mapped: Tensor, new_logits: Tensor, new_to_old: Tensor) -> float:
    """Return how much wider than the mapped logits the new ones spread over the classes that both heads have.

    Spread: the standard deviation of logits centred by row. 1 where there is none to compare.
    """
    both = new_to_old >= 0
    spreads = [_spread(logits) for logits in (new_logits.double()[:, both], mapped[:, new_to_old[both]])]
    return spreads[0] / spreads[1] if min(spreads) > 0 else 1.0


def _spread(logits: Tensor) -> float:
    if logits.shape[1] < 2:
        return 0.0
    return float((logits - logits.mean(1, keepdim=True)).square().mean().sqrt())


def restored_gamma(logits: Tensor, labels: Tensor, seen_mask: Tensor, seen_share: float | None = None) -> float:
    """Return gamma from leave-one-out logits of labelled samples of fine-tuned classes, by mixed pairs."""
    scan = scan_seen(Samples(logits, labels), seen_mask, "restore_head")
    try:
        found = estimate_pair_gap(scan, Bootstrap.from_arguments(0, 0))
    except NoPairs:
        return math.nan
    return found.gamma(share_or_default(scan, seen_share))
