"""Compare estimators of gamma at other shares of seen samples than of seen classes, and with few unlabelled samples.

The unlabelled samples are drawn from one half of the test samples of a task file, and gamma is scored on the other
half, at the share that they have. See README.md.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import finecal
from estimators import Arrays, labelled, load, task_files
from finecal._core.results import format_table

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Of seen samples."""
NUMBERS = (None, 100)
"""Of unlabelled samples; None is as many as there are."""
SEEDS = 3
"""Draws of a hundred."""
HARM = 1.0
"""A model is harmed if it ends more than so many points below gamma = 0."""


def _estimate(task: Arrays, unlabelled: np.ndarray | None, **given: float) -> finecal.GammaEstimate:
    both = {"train": labelled(task, "train"), "held_out": labelled(task, "val")}
    return finecal.estimate_gamma(task["seen_mask"], **both, unlabelled=unlabelled, **given)


def _held_out(task: Arrays, unlabelled: np.ndarray | None, **given: float) -> finecal.GammaEstimate:
    return finecal.estimate_gamma(task["seen_mask"], held_out=labelled(task, "val"), unlabelled=unlabelled, **given)


ESTIMATORS: dict[str, Callable[[Arrays, np.ndarray, float], finecal.GammaEstimate]] = {
    "held-out: estimate_gamma": lambda t, x, share: _held_out(t, None),
    "held-out, true share: estimate_gamma": lambda t, x, share: _held_out(t, None, seen_share=share),
    "held-out, unlabelled: estimate_gamma": lambda t, x, share: _held_out(t, x),
    "held-out, unlabelled, true share: estimate_gamma": lambda t, x, share: _held_out(t, x, seen_share=share),
    "train, held-out, unlabelled: estimate_gamma": lambda t, x, share: _estimate(t, x),
    "held-out, unlabelled: mixture_gamma": lambda t, x, share: finecal.estimators.mixture_gamma(
        t["val_logits"], x, t["seen_mask"]
    ),
    "unlabelled, true share: known_share_gamma": lambda t, x, share: finecal.estimators.known_share_gamma(
        x, t["seen_mask"], share
    ),
}


class Score(NamedTuple):
    """What a gamma does at a share, in points."""

    regret: float
    """What is missing to the best gamma."""
    gained: float
    """Over gamma = 0."""
    warned: bool

    @property
    def is_harm(self) -> bool:
        return self.gained < -HARM


def scores(task: Arrays, share: float, number: int | None, seed: int = 0) -> dict[str, Score]:
    """Score every estimator at a share of seen samples, with so many unlabelled samples of that share."""
    mask, is_seen = task["seen_mask"], task["seen_mask"][task["test_labels"]]
    rng = np.random.default_rng(seed)
    half, other = np.array_split(rng.permutation(len(is_seen)), 2)
    groups = half[is_seen[half]], half[~is_seen[half]]
    most = min(len(groups[0]) / share, len(groups[1]) / (1 - share), number or np.inf)
    rows = [group[: round(most * part)] for group, part in zip(groups, (share, 1 - share), strict=True)]
    unlabelled = task["test_logits"][np.concatenate(rows)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        curve = finecal.tradeoff_curve(task["test_logits"][other], task["test_labels"][other], mask)
        estimates = {name: estimate(task, unlabelled, share) for name, estimate in ESTIMATORS.items()}

    def accuracy(seen: np.ndarray | float, absent: np.ndarray | float) -> np.ndarray | float:
        return 100 * (share * seen + (1 - share) * absent)

    def at(gamma: float) -> float:
        point = curve.at(gamma)
        return float(accuracy(point.acc_seen, point.acc_absent))

    before, best = at(0.0), float(np.max(accuracy(curve.acc_seen, curve.acc_absent)))
    return {
        name: Score(best - at(float(of)), at(float(of)) - before, bool(of.warnings)) for name, of in estimates.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of task files (.npz)")
    parser.add_argument("--without", nargs="*", default=[], metavar="FAMILY", help="families to leave out")
    options = parser.parse_args(arguments)
    paths = [path for path in task_files(options.folders) if path.stem.partition("_")[0] not in options.without]
    tasks = [task for path in paths if {"train_logits", "val_logits"} <= (task := load(path)).keys()]
    if not tasks:
        parser.error("no .npz files of runs with training and held-out samples in the folders")
    print(f"{len(tasks)} models at each share of seen samples: points below the best gamma, mean; how many end more")
    print(f"than {HARM:g} point below gamma = 0 (without a warning), and the worst of all.")
    print(f"Of 100 unlabelled samples {SEEDS} draws.\n")
    rows = []
    for number in NUMBERS:
        for share in SHARES:
            seeds = range(1 if number is None else SEEDS)
            found = [scores(task, share, number, seed) for task in tasks for seed in seeds]
            cells = [_summary([score[name] for score in found]) for name in ESTIMATORS]
            rows.append([number or "all", f"{share:g}", *cells])
    heads = [str(number) for number in range(1, len(ESTIMATORS) + 1)]
    print(*(f"{head:>2} = {name}" for head, name in zip(heads, ESTIMATORS, strict=True)), "", sep="\n")
    print(format_table(["unlabelled", "share", *heads], [[str(cell) for cell in row] for row in rows]))


def _summary(found: Sequence[Score]) -> str:
    harmed = [score for score in found if score.is_harm]
    silent = sum(not score.warned for score in harmed)
    worst = min(score.gained for score in found)
    return f"{statistics.mean(score.regret for score in found):.1f}; {len(harmed)} ({silent}), {worst:+.1f}"


if __name__ == "__main__":
    main()
