"""From sums over unlabelled samples to prototypes: the space in which they are compared, and how much they count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

_RIDGE = 0.1
"""Share of the identity in the covariance within classes: with few samples the covariance alone has no inverse."""
_HALF_TRUSTED = 3.0
"""Samples of an absent class at which its prototype counts half."""
_STEPS = 50
_NOISE = 1e-12
"""Share of the whole that is but rounding."""
_TINY = torch.finfo(torch.float64).tiny


class PrototypeParts(NamedTuple):
    """What `PrototypeSums` computes: the parts of a `finecal.Prototypes`, and what they were made from.

    Attributes
    ----------
    weight : (C, D) float32 tensor
        What a unit of each feature adds to the logits.
    center : (D,) float32 tensor
        The mean of the features.
    class_counts : (C,) float64 tensor
        Samples that each class is thought to have: the sum of its soft assignments.
    trust : float in [0, 1)
        w: what the number of samples per absent class allows to make of the prototypes.
    scale : float
        s, by which similarities become logits; prototypes add nothing if it is 0 or less.
    explained : float
        How well the prototypes of one half of the samples tell the soft assignments of the other one, as far as those
        tell anything: 1 for as well as can be, 0 for no better than by chance.
    samples : int
        Samples that were counted: those with all logits -inf are not.
    changed : float
        Share of the samples that prototypes predict to be of another class.
    """

    weight: Tensor
    center: Tensor
    class_counts: Tensor
    trust: float
    scale: float
    explained: float
    samples: int
    changed: float


@dataclass(frozen=True)
class Whitened:
    """The space of the features in which classes spread equally far in all directions, with samples of mean size 1."""

    center: Tensor
    cholesky: Tensor
    size: Tensor

    @classmethod
    def of(cls, samples: int, features: Tensor, products: Tensor, assigned: Tensor, moments: Tensor) -> Self:
        """Make it from sums: `(D,)` of features, `(D, D)` of their products, and by class, `(C,)` and `(C, D)`."""
        center = features / samples
        total = products / samples - torch.outer(center, center)
        centred = moments - assigned[:, None] * center
        within = total - centred.T @ (centred / assigned[:, None].clamp(min=_TINY)) / samples
        ridge = within.diagonal().mean().clamp(min=0.0)
        identity = torch.eye(len(center), dtype=total.dtype, device=total.device)
        mixed = (1 - _RIDGE) * (within + within.T) / 2 + _RIDGE * ridge * identity
        cholesky, failed = torch.linalg.cholesky_ex(mixed)
        if failed:  # features that are all alike
            return cls(center, identity, torch.ones_like(ridge))
        return cls(center, cholesky, torch.cholesky_solve(total, cholesky).trace().clamp(min=0.0).sqrt())

    def to(self, rows: Tensor) -> Tensor:
        """Bring rows of centred features, or of sums of such, into this space."""
        columns = rows.reshape(-1, rows.shape[-1]).T
        brought: Tensor = torch.linalg.solve_triangular(self.cholesky, columns, upper=False)
        return (brought.T / self.size).reshape(rows.shape)

    def back(self, directions: Tensor) -> Tensor:
        """Return what features are multiplied by to have their products with these directions of the space."""
        brought: Tensor = torch.linalg.solve_triangular(self.cholesky.T, directions.T, upper=True)
        return brought.T / self.size


def unit(rows: Tensor) -> Tensor:
    """Give each row the length 1; a row of zeros stays as it is."""
    length = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def growth(logits: Tensor, rows: Tensor) -> Tensor:
    """Return the direction in which each class's logit grows against the others, of length 1; -inf does not count."""
    finite = logits.isfinite()
    values = logits.masked_fill(~finite, 0.0)
    for axis in (1, 0):
        means = values.sum(axis, keepdim=True) / finite.sum(axis, keepdim=True).clamp(min=1)
        values = (values - means).masked_fill(~finite, 0.0)
    return unit(values.T @ rows)


def spread(values: Tensor) -> Tensor:
    """Return how far the finite values of a row lie apart: the root of their mean squared distance from its mean."""
    finite = values.isfinite()
    kept = values.masked_fill(~finite, 0.0)
    means = kept.sum(1, keepdim=True) / finite.sum(1, keepdim=True).clamp(min=1)
    return (((kept - means) * finite).square().sum() / finite.sum().clamp(min=1)).sqrt()


def trust_in(absent_counts: Tensor) -> float:
    """Return what the numbers of samples of the absent classes allow to make of their prototypes, on average."""
    return float((absent_counts / (absent_counts + _HALF_TRUSTED)).mean())


class LikeliestScale(NamedTuple):
    """The s at which softmax(s similarity) is the likeliest model of soft assignments, and how good a model it is."""

    scale: float
    explained: float


def likeliest_scale(assigned: Tensor, similarity: Tensor) -> LikeliestScale:
    """Find the scale by Newton's method on a concave function, in steps that at most double it.

    The rows of `assigned` may sum to less than 1: they count as much as they sum to.
    """
    mass = assigned.sum(1)
    scale, told = similarity.new_zeros(()), (assigned * similarity).sum()
    for _ in range(_STEPS):
        probabilities = (scale * similarity).softmax(1)
        mean = (probabilities * similarity).sum(1)
        spread = (mass * ((probabilities * similarity.square()).sum(1) - mean.square())).sum()
        if not spread > _NOISE * mass.sum():  # nothing can be told, or all is told: the larger, the likelier
            break
        step = ((told - (mass * mean).sum()) / spread).clamp(-scale.abs().clamp(min=1.0), scale.abs().clamp(min=1.0))
        scale = scale + step
        if step.abs() <= 1e-6 * scale.abs():
            break
    chance = mass.sum() * math.log(assigned.shape[1])
    known = chance + torch.special.xlogy(assigned, assigned / mass[:, None].clamp(min=_TINY)).sum()
    found = chance + (assigned * (scale * similarity).log_softmax(1)).sum()
    return LikeliestScale(float(scale), float(found / known) if known > _NOISE * chance else 0.0)
