"""What `estimate_gamma` is given in each regime, and how its gamma is scored on the test samples of a task file."""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import finecal
from estimators import LITTLE, Arrays, folds, labelled, load

FAILED, HARM = 0.7, 0.7
"""A failure recovers less than this part of a gain, or costs more than so many points."""

_BOTH = {"train": "train", "held_out": "val"}
REGIMES: dict[str, Callable[[Arrays], dict[str, Any]]] = {
    "training": lambda t: {"train": labelled(t, "train")},
    "held-out": lambda t: {"held_out": labelled(t, "val")},
    "both": lambda t: {name: labelled(t, part) for name, part in _BOTH.items()},
    "unlabelled": lambda t: {"held_out": labelled(t, "val"), "unlabelled": t["test_logits"]},
    "unlabelled, before": lambda t: {
        "held_out": labelled(t, "val", pretrained_logits=t["pretrained_val_logits"]),
        "unlabelled": finecal.Samples(t["test_logits"], pretrained_logits=t["pretrained_test_logits"]),
    },
    "folds": lambda t: {**{name: labelled(t, part) for name, part in _BOTH.items()}, "folds": _some(folds(t))},
}
"""The arguments beside the mask; a KeyError if the file lacks what they need."""


@dataclass(frozen=True)
class Outcome:
    """What came of one estimate."""

    run: str
    is_control: bool
    gain: float
    """Of the oracle, in points."""
    points: float
    """Gained by the estimate."""
    warnings: tuple[str, ...]
    interval_holds: bool | None
    """Whether the interval meets the gammas within half a point of the best; None without one."""

    @property
    def has_gain(self) -> bool:
        return not self.is_control and self.gain >= LITTLE

    @property
    def recovered(self) -> float:
        """Share of the oracle's gain, in per cent."""
        return 100 * self.points / self.gain

    @property
    def failed(self) -> bool:
        return self.points < FAILED * self.gain if self.has_gain else self.points < -HARM

    @property
    def warned(self) -> bool:
        return bool(self.warnings)

    @property
    def family(self) -> str:
        return self.run.partition("_")[0]


def outcomes(path: Path, regimes: Sequence[str], n_bootstrap: int = 0) -> dict[str, Outcome]:
    """Score `estimate_gamma` in those regimes that the task file has the data of."""
    task = load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)  # that a ruined model guesses
        curve = finecal.tradeoff_curve(labelled(task, "test"), task["seen_mask"])
    accuracy, before = 100 * np.asarray(curve.acc_all), 100 * curve.at(0.0).acc_all
    near = np.asarray(curve.gamma)[accuracy >= accuracy.max() - 0.5]
    found = {}
    for regime in regimes:
        try:
            given = REGIMES[regime](task)
        except KeyError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", finecal.FinecalWarning)
            estimate = finecal.estimate_gamma(task["seen_mask"], **given, n_bootstrap=n_bootstrap)
        low, high = estimate.interval or (np.nan, np.nan)
        found[regime] = Outcome(
            path.stem,
            "_nogap" in path.stem,
            float(accuracy.max() - before),
            100 * curve.at(estimate).acc_all - before,
            estimate.warnings,
            None if estimate.interval is None else bool(((near >= low) & (near <= high)).any()),
        )
    return found


def all_outcomes(
    paths: Sequence[Path], regimes: Sequence[str], n_bootstrap: int = 0, jobs: int = 1
) -> list[dict[str, Outcome]]:
    """Score all files, in so many processes."""
    columns = list(paths), [regimes] * len(paths), [n_bootstrap] * len(paths)
    if jobs == 1:
        return list(map(outcomes, *columns))
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(outcomes, *columns, chunksize=4))


def _some(found: list[finecal.estimators.PseudoFold]) -> list[finecal.estimators.PseudoFold]:
    if not found:
        raise KeyError("folds")
    return found
