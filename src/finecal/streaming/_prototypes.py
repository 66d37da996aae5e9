"""Prototypes of the classes in the space of the features, from batches of unlabelled samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self, SupportsFloat

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._core.arrays import Mask, check_count, format_count, without_autocast
from .._core.checks import gamma_as_float
from .._core.samples import Samples, samples_with
from ._state import State, copy_checked_mask

_RIDGE = 0.1
"""Share of the identity in the covariance within classes: with few samples the covariance alone has no inverse."""
_HALF_TRUSTED = 3.0
"""Samples of an absent class at which its prototype counts half."""
_STEPS = 50
_NOISE = 1e-12
"""Share of the whole that is but rounding."""
_TINY = torch.finfo(torch.float64).tiny


class PrototypeParts(NamedTuple):
    """Parts of a `finecal.calibrators.Prototypes`, and the evidence for them; made by `PrototypeSums`.

    Attributes
    ----------
    weight : (C, D) float32 tensor
        Added to the logits per unit of each feature.
    center : (D,) float32 tensor
        Mean of the features.
    class_counts : (C,) float64 tensor
        Estimated samples of each class: the sum of its soft assignments.
    trust : float in [0, 1)
        w, the weight of the prototypes, which grows with the number of samples per absent class.
    scale : float
        s, by which similarities become logits; prototypes add nothing if it is 0 or less.
    explained : float
        Agreement of the prototypes of one half of the samples with the soft assignments of the other one: 1 for the
        best possible, 0 for chance.
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
    """Find the scale by Newton's method, in steps that at most double it; rows of `assigned` weigh what they sum to."""
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


_KEPT = 1024
"""Samples that are kept, to measure the scale on."""
_NO_KEY = 1 << 62
"""In place of the key of a sample that is not there: larger than all others."""
_MOST_FEATURES = 1 << 16
"""Products of each two of them are kept."""
_BLOCK = 1 << 22
"""Numbers in a block of rows: products of large matrices are the fastest."""


class PrototypeSums(State):
    """Prototypes from batches of unlabelled samples: what `fit_prototypes` computes, as sums that merge.

    ``Prototypes.from_sums(state)`` makes the calibrator. `O(N D (C + D))` time, `O(D (C + D))` memory. Hashes of the
    features split the samples into halves and choose the 1024 that are kept, so neither order nor batches matter.

    Parameters
    ----------
    seen_mask, gamma
        As in `AccuracySums`, with its errors; gamma has no default.
    num_features : int
        D, the width of the features; ValueError or TypeError if it is not a positive integer.

    Examples
    --------
    >>> import torch, finecal
    >>> noise = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    >>> features = 3 * torch.eye(4).repeat(100, 1) + noise
    >>> logits = features + torch.tensor([4.0, 4.0, 0.0, 0.0])
    >>> samples = finecal.Samples(logits, features=features)
    >>> mask = [True, True, False, False]
    >>> state = finecal.streaming.PrototypeSums(mask, gamma=4.0, num_features=4)
    >>> finecal.calibrators.Prototypes.from_sums(state.update(samples))
    Prototypes(gamma=4, features=4, method='PrototypeSums', seen=2, absent=2)
    """

    def __init__(self, seen_mask: Mask, gamma: SupportsFloat, num_features: int) -> None:
        mask = copy_checked_mask(seen_mask)
        width = check_count(num_features, "num_features")
        if not 0 < width <= _MOST_FEATURES:
            raise ValueError(f"num_features is {format_count(width)}; pass D, the width of the features")
        classes, wide = mask.shape[0], torch.float64
        sums = {
            "samples": torch.zeros((), dtype=torch.int64),
            "assigned": torch.zeros(2, classes, dtype=wide),
            "moments": torch.zeros(2, classes, width, dtype=wide),
            "features": torch.zeros(width, dtype=wide),
            "products": torch.zeros(width, width, dtype=wide),
            "kept_keys": torch.full((_KEPT,), _NO_KEY),
            "kept_logits": torch.zeros(_KEPT, classes, dtype=wide),
            "kept_features": torch.zeros(_KEPT, width, dtype=wide),
        }
        settings = {
            "gamma": torch.tensor(gamma_as_float(gamma, torch.float32), dtype=torch.float32),
            "num_features": torch.tensor(width),
        }
        super().__init__(mask, sums, settings)

    @property
    def gamma(self) -> float:
        """Added to the logits of the absent classes."""
        return float(self._settings["gamma"])

    def update(self, samples: Samples) -> Self:
        """Add a batch of samples with features, checked as `finecal.calibrators.fit_prototypes` checks them."""
        scores, rows = self._check_samples(samples)
        height = max(1, _BLOCK // max(scores.shape[1], rows.shape[1]))
        for z, f in zip(torch.split(scores, height), torch.split(rows, height), strict=True):
            with without_autocast(z.device):
                self._add(self._sums_of(z, f))
        return self

    def compute(self) -> PrototypeParts:
        """Return the parts of a `finecal.calibrators.Prototypes`; ValueError without samples."""
        sums, absent = self._sums, ~self.seen_mask
        samples = int(sums["samples"])
        if samples == 0:
            raise ValueError(
                "no logits were given, or none but rows of -inf, so there is nothing to make prototypes of; pass "
                "unlabelled samples"
            )
        counts = sums["assigned"].sum(0)
        space = Whitened.of(samples, sums["features"], sums["products"], counts, sums["moments"].sum(0))
        moments = space.to(sums["moments"] - sums["assigned"][..., None] * space.center)
        kept = sums["kept_keys"] != _NO_KEY
        logits, features = sums["kept_logits"][kept], sums["kept_features"][kept]
        before, rows = self._with_gamma(logits), space.to(features - space.center)
        half = sums["kept_keys"][kept] % 2
        apart = unit(moments + torch.stack([growth(logits[half == h], rows[half == h]) for h in (0, 1)]))
        others = torch.where((half == 0)[:, None], rows @ apart[1].T, rows @ apart[0].T)
        classes = absent if int(absent.sum()) > 1 else torch.ones_like(absent)
        scale, explained = likeliest_scale(self._assign(logits)[:, classes], others[:, classes])
        most, own = spread(logits[:, classes]), spread(others[:, classes])
        if scale * own > most:  # as of a few samples that lie far apart
            scale = float(most / own)
        trust = trust_in(counts[absent])
        prototypes = unit(moments.sum(0) + growth(logits, rows))
        weight = trust * max(0.0, scale) * space.back(prototypes)
        if not bool(weight.float().isfinite().all()):
            raise ValueError(
                "features are too small or too large for the weight of prototypes of them to be finite in float32; "
                "divide them by a constant, such as their mean length"
            )
        after = before + (features - space.center) @ weight.T
        changed = float((after.argmax(1) != before.argmax(1)).double().mean())
        return PrototypeParts(weight.float(), space.center.float(), counts, trust, scale, explained, samples, changed)

    def _check_samples(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return the logits and features of the rows that have a logit that is not -inf, in float32."""
        rows = samples_with(samples, "samples", "features").features_tensor
        assert rows is not None
        scores, margin = samples.logits_tensor, samples.margin(self.seen_mask)
        width = self._sums["features"].shape[0]
        if rows.shape[1] != width:
            raise ValueError(f"features have {rows.shape[1]} columns, but num_features is {width}")
        usable = ~(margin.isposinf() & scores.isneginf().all(1)) if bool(margin.isposinf().any()) else None
        pair = (scores, rows) if usable is None else (scores[usable], rows[usable])
        return _single(pair[0], "logits"), _single(pair[1], "features")

    def _sums_of(self, logits: Tensor, features: Tensor) -> dict[str, Tensor]:
        assigned, keys = self._assign(logits), _keys(features)
        halves = [(assigned[rows], features[rows]) for rows in (keys % 2 == 0, keys % 2 == 1)]
        kept = keys.argsort()[:_KEPT]
        empty = _KEPT - len(kept)
        wide = features.double()
        return {
            "samples": torch.tensor(len(logits)),
            "assigned": torch.stack([half.sum(0, dtype=torch.float64) for half, _ in halves]),
            "moments": torch.stack([(half.T @ rows).double() for half, rows in halves]),
            "features": wide.sum(0),
            "products": wide.T @ wide,
            "kept_keys": pad(keys[kept], (0, empty), value=_NO_KEY),
            "kept_logits": pad(logits[kept].double(), (0, 0, 0, empty)),
            "kept_features": pad(wide[kept], (0, 0, 0, empty)),
        }

    def _assign(self, logits: Tensor) -> Tensor:
        return self._with_gamma(logits).softmax(1)

    def _with_gamma(self, logits: Tensor) -> Tensor:
        return logits + self._settings["gamma"].to(logits.device) * ~self.seen_mask.to(logits.device)

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        """Add what can be added; of the samples kept by both, keep those with the smallest keys."""
        both = {name: (own, sums[name].to(own.device)) for name, own in self._sums.items()}
        order = torch.cat(both["kept_keys"]).argsort(stable=True)[:_KEPT]
        self._sums = {
            name: torch.cat(pair)[order] if name.startswith("kept_") else pair[0] + pair[1]
            for name, pair in both.items()
        }


def _single(values: Tensor, name: str) -> Tensor:
    single = values.float()
    if values.dtype == torch.float64 and not torch.equal(single.isinf(), values.isinf()):
        raise ValueError(f"{name} are too large for float32, in which they are summed up; divide them by a constant")
    return single


def _keys(features: Tensor) -> Tensor:
    """Return a number for each row of float32 features, as if at random, and the same for the same row: a hash."""
    golden = -7046029254386353131  # the odd integer next to 2^64 / golden ratio: products with it spread over all bits
    factors = (2 * torch.arange(features.shape[1], device=features.device) + 1) * golden
    key = ((features + 0.0).view(torch.int32).to(torch.int64) * factors).sum(1)  # -0.0 is 0.0
    for shift in (32, 29, 32):
        key = (key ^ ((key >> shift) & ((1 << (64 - shift)) - 1))) * golden
    return key & (_NO_KEY - 1)
