"""Gamma and temperature as `SeenAbsentCalibratedClassifier` is told to find them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from ..calibrators.temperature import fit_temperature
from ..gamma.auto import estimate_gamma
from ..gamma.estimate import GammaEstimate
from ..gamma.estimators import BY_NAME, ESTIMATORS, Data
from ..gamma.search import search_gamma
from ..inputs.checks import gamma_as_float
from ..inputs.numbers import check_seed, check_temperature
from ..inputs.warning import naming, warn
from ..logits.predict import calibrate_logits

Scores: TypeAlias = NDArray[np.float64]
GammaFunction: TypeAlias = Callable[[Scores, NDArray[np.int64], NDArray[np.bool_]], SupportsFloat]
"""From scores, class indices and seen mask to gamma: `max_logit_gap`, for example."""
NAMED = tuple(estimator.name for estimator in ESTIMATORS if estimator.data in (Data.SEEN, Data.HELD_OUT, Data.LABELLED))
"""Estimators from labelled samples, which `fit` has."""


@dataclass(frozen=True)
class Labelled:
    """The samples given to `fit`: scores ``(N, C)``, class indices ``(N,)``, and the seen classes ``(C,)``."""

    scores: Scores
    indices: NDArray[np.int64]
    seen_mask: NDArray[np.bool_]


def check_gamma_source(gamma: object, held_out: object) -> None:
    """Accept "auto", the name of an estimator, a number, or a function; and whether the samples are held out."""
    if not isinstance(held_out, bool | np.bool_):
        raise TypeError(f"held_out is a {type(held_out).__name__}; pass True or False, and the samples to fit")
    if isinstance(gamma, str):
        if gamma not in ("auto", *NAMED):
            raise ValueError(
                f'gamma is {gamma!r}; pass "auto", a number, a function, or the name of an estimator from labelled '
                f"samples: {', '.join(NAMED)}"
            )
        if gamma in NAMED and BY_NAME[gamma].data is Data.HELD_OUT and not held_out:
            raise ValueError(
                f"gamma is {gamma!r}, which needs samples that the estimator was not trained on: pass held_out=True if "
                "the samples to fit are such"
            )
    elif not callable(gamma):
        gamma_as_float(gamma)


def find_gamma(
    gamma: str | SupportsFloat | GammaFunction,
    samples: Labelled,
    unlabelled: Scores | None,
    *,
    held_out: bool,
    seen_share: float | None,
    random_state: Any,
    prototypes: bool,
) -> tuple[float, GammaEstimate | None]:
    """Return gamma, and how it was estimated if that is known."""
    only_seen = bool(samples.seen_mask[samples.indices].all())
    if prototypes and not (gamma == "auto" and only_seen and (held_out or seen_share is not None)):
        unlabelled = None  # They are there for prototypes, so that it is no surprise if gamma cannot use them.
    found: SupportsFloat
    if isinstance(gamma, str) and gamma in NAMED:
        options = {"seen_share": seen_share} if "seen_share" in BY_NAME[gamma].options else {}
        function = partial(BY_NAME[gamma].function, **options, seed=_seed(random_state))
        found = function(samples.scores, samples.indices, samples.seen_mask)
        seen_share = None if options else seen_share
    elif not isinstance(gamma, str):
        found = gamma(samples.scores, samples.indices, samples.seen_mask) if callable(gamma) else gamma
    elif only_seen and samples.seen_mask.sum() == 1 and unlabelled is None:
        raise ValueError(
            'only one class is seen, and gamma="auto" has none to compare with: pass X_unlabelled, with seen_share or '
            "held-out samples, or gamma as a number"
        )
    elif only_seen:
        pair = samples.scores, samples.indices
        found = estimate_gamma(
            samples.seen_mask,
            train=None if held_out else pair,
            held_out=pair if held_out else None,
            unlabelled=unlabelled,
            seen_share=seen_share,
            seed=_seed(random_state),
        )
    elif held_out:
        found = search_gamma(samples.scores, samples.indices, samples.seen_mask)
    else:
        count = int((~samples.seen_mask[samples.indices]).sum())
        raise ValueError(
            f"y contains {count} samples of classes that are not in seen_classes: if the estimator was not trained on "
            "any of these samples, pass held_out=True, and gamma is searched for on them; otherwise drop them, or pass "
            "gamma as a number"
        )
    if not (gamma == "auto" and only_seen):
        for name, value in (("X_unlabelled", unlabelled), ("seen_share", seen_share)):
            if value is not None:
                warn(f'{name} has no effect: it is for gamma="auto" with samples of seen classes only')
    return gamma_as_float(found), found if isinstance(found, GammaEstimate) else None


def with_gamma(scores: Scores, seen_mask: NDArray[np.bool_], gamma: float) -> Scores:
    """Add gamma to the scores of absent classes, if there are any."""
    return scores if seen_mask.all() else calibrate_logits(scores, seen_mask, gamma)


def check_temperature_source(temperature: object) -> None:
    """Accept None, "auto" or a positive number."""
    if isinstance(temperature, str) and temperature != "auto":
        raise ValueError(f'temperature is {temperature!r}; pass "auto", a positive number, or None')
    if temperature is not None and not isinstance(temperature, str):
        check_temperature(temperature, "temperature")


def find_temperature(temperature: str | float | None, scores: Scores, indices: NDArray[np.int64]) -> float:
    """Return the temperature for scores to which gamma was added."""
    if temperature is None or scores.shape[1] < 2:
        return 1.0
    return float(fit_temperature(scores, indices).temperature if isinstance(temperature, str) else temperature)


def _seed(random_state: Any) -> int:
    """Return an integer as it is, so that it is the seed of `estimate_gamma`, and a random one otherwise."""
    with naming("random_state"):
        if isinstance(random_state, Integral):
            return check_seed(int(random_state))
        return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
