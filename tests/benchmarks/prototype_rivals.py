"""Ways to adapt a calibrated model by features of unlabelled samples: `fit_prototypes`, its steps and its rivals."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import finecal
from estimators import labelled, load
from finecal.streaming import PrototypeSums
from finecal.streaming import _prototypes as library
from finecal.streaming._prototypes import LikeliestScale, Whitened

SUPPORTS = 1, 5, 20, None
"""Supports that T3A keeps per class; None is all."""


@dataclass(frozen=True)
class Model:
    """A task file, its gamma from training samples, and the best gamma, from test labels."""

    name: str
    mask: Tensor
    logits: Tensor
    labels: Tensor
    features: Tensor
    gamma: float
    best: float
    weight: Tensor
    bias: Tensor
    held_out: finecal.Samples | None

    @classmethod
    def read(cls, path: Path) -> "Model | None":
        """Return the model, or None if the file has no features of test samples or no training samples."""
        task = load(path)
        if not {"train_logits", "test_features", "weight"} <= task.keys():
            return None
        train = labelled(task, "train")
        parts = {name: torch.as_tensor(array) for name, array in task.items() if not name.startswith(("pcv", "pre"))}
        held_out = {name: parts.get(f"val_{name}") for name in ("logits", "labels", "features")}
        return cls(
            path.stem,
            *(parts[name] for name in ("seen_mask", "test_logits", "test_labels", "test_features")),
            float(finecal.estimate_gamma(task["seen_mask"], train=train)),
            finecal.tradeoff_curve(labelled(task, "test"), task["seen_mask"]).best(),
            *(parts[name] for name in ("weight", "bias")),
            None if any(part is None for part in held_out.values()) else finecal.Samples(**held_out),
        )

    @cached_property
    def calibrated(self) -> Tensor:
        return self.with_gamma(self.logits)

    def with_gamma(self, logits: Tensor) -> Tensor:
        return finecal.calibrate_logits(logits, self.mask, self.gamma)


Apply = Callable[[Tensor, Tensor], Tensor]
"""From logits and features of new samples to logits."""
Fit = Callable[[Model, Tensor], Apply]
"""From a model and the numbers of the test samples that it may see, without their labels."""


def prototypes(model: Model, rows: Tensor, **given: Any) -> finecal.calibrators.Prototypes:
    samples = finecal.Samples(model.logits[rows], features=model.features[rows])
    return finecal.calibrators.fit_prototypes(samples, model.mask, model.gamma, **given)


# --- other methods ----------------------------------------------------------------------------------------------------


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def class_means(features: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return the mean of each class, NaN for one without samples."""
    members = one_hot(classes, num_classes).to(features.dtype)
    return members.T @ features / members.sum(0)[:, None]


def t3a(kept: int | None, model: Model, rows: Tensor) -> Apply:
    """Iwasawa and Matsuo 2021: the rows of the head and the samples of the lowest entropies, averaged by class."""
    classes = len(model.mask)
    of_head = model.with_gamma(model.weight @ model.weight.T + model.bias)
    logits = torch.cat([of_head, model.calibrated[rows]])
    predicted = torch.cat([torch.arange(classes), model.calibrated[rows].argmax(1)])
    order = torch.special.entr(logits.softmax(1)).sum(1).argsort(stable=True)
    earlier = one_hot(predicted[order], classes).cumsum(0).gather(1, predicted[order, None])[:, 0] - 1
    chosen = order if kept is None else order[earlier < kept]
    supports = unit(torch.cat([model.weight, model.features[rows]]))
    centroids = unit(class_means(supports[chosen], predicted[chosen], classes))
    return lambda logits, features: features @ centroids.T


def nearest_mean(cosine: bool, model: Model, rows: Tensor) -> Apply:
    """Compare with the means of the classes as predicted; a class without samples is never the nearest."""
    center = model.features[rows].mean(0)
    centred, predicted = model.features[rows] - center, model.calibrated[rows].argmax(1)
    means = class_means(centred, predicted, len(model.mask))

    def apply(logits: Tensor, features: Tensor) -> Tensor:
        if cosine:
            similarity = unit(features - center) @ unit(means).T
        else:
            similarity = 2 * (features - center) @ means.T - means.square().sum(1)  # less what is the same for all
        return similarity.nan_to_num(nan=-math.inf, neginf=-math.inf)

    return apply


def spread(logits: Tensor, mask: Tensor) -> Tensor:
    """Return how far the logits of absent classes differ within samples; -inf does not count."""
    values = logits[:, ~mask].masked_fill(logits[:, ~mask].isneginf(), math.nan)
    return (values - values.nanmean(1, keepdim=True)).square().nanmean().sqrt()


def added(rival: Fit, model: Model, rows: Tensor) -> Apply:
    """Add what a rival returns to the calibrated logits, with the same spread; nothing for a class without samples."""
    apply = rival(model, rows)
    own = spread(model.calibrated[rows], model.mask)
    scale = own / spread(apply(model.logits[rows], model.features[rows]), model.mask).clamp(min=1e-12)

    def both(logits: Tensor, features: Tensor) -> Tensor:
        told = apply(logits, features)
        told = told.masked_fill(told.isneginf(), math.nan)
        told = (told - told.nanmean(1, keepdim=True)).nan_to_num(nan=0.0)
        return model.with_gamma(logits) + scale.nan_to_num(nan=0.0) * told

    return both


def _count(kept: int | None) -> str:
    return "all supports" if kept is None else "1 support" if kept == 1 else f"{kept} supports"


_ALONE: dict[str, Fit] = {
    **{f"T3A, {_count(kept)}": partial(t3a, kept) for kept in SUPPORTS},
    "nearest mean, cosine": partial(nearest_mean, True),
    "nearest mean, Euclidean": partial(nearest_mean, False),
}
RIVALS: dict[str, Fit] = {
    "fit_prototypes": prototypes,
    **_ALONE,
    **{f"{name}, added": partial(added, rival) for name, rival in _ALONE.items()},
}


# --- without a step ---------------------------------------------------------------------------------------------------


def _unwhitened(samples: int, features: Tensor, products: Tensor, *others: Tensor) -> Whitened:
    center = features / samples
    total = products.trace() / samples - center.square().sum()
    return Whitened(center, torch.eye(len(center), dtype=total.dtype), total.clamp(min=1e-300).sqrt())


def _equal_spread(assigned: Tensor, similarity: Tensor) -> LikeliestScale:
    """The log of assignments differs between classes as the logits do."""
    own, theirs = (
        (values - values.mean(1, keepdim=True)).square().mean().sqrt()
        for values in (assigned.clamp(min=1e-300).log(), similarity)
    )
    return LikeliestScale(float(own / theirs) if theirs > 0 else 0.0, 1.0)


def _no_growth(logits: Tensor, rows: Tensor) -> Tensor:
    return rows.new_zeros(logits.shape[1], rows.shape[1])


def _hard(sums: PrototypeSums, logits: Tensor) -> Tensor:
    found = sums._with_gamma(logits)
    return torch.zeros_like(found).scatter(1, found.argmax(1, keepdim=True), 1.0)


STEPS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "all of it": nullcontext,
    "no whitening": lambda: patch.object(Whitened, "of", _unwhitened),
    "w = 1": lambda: patch.object(library, "trust_in", lambda counts: 1.0),
    "equal spread for the likeliest scale": lambda: patch.object(library, "likeliest_scale", _equal_spread),
    "no made-up sample": lambda: patch.object(library, "growth", _no_growth),
    "hard assignments": lambda: patch.object(PrototypeSums, "_assign", _hard),
}
"""What takes a step of the method out."""


@contextmanager
def without(step: str) -> Iterator[Fit]:
    with STEPS[step]():
        yield prototypes


def halves(samples: int) -> tuple[Tensor, Tensor]:
    first, second = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).tensor_split(2)
    return first, second
