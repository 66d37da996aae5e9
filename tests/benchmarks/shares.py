"""Compare estimators of gamma at other shares of seen samples than of seen classes, and with few unlabelled samples.

The unlabelled samples are drawn from the test samples of a task file, and gamma is scored at the share that they have.
See README.md.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from regimes import HARM

import finecal
from estimators import LITTLE, MIN_GAIN, Arrays, labelled, load, task_files
from finecal._core.results import format_table

SHARES = (None, 0.1, 0.25, 0.75)
"""Of seen samples; None is that of the test samples."""
NUMBERS = (None, 100)
"""Of unlabelled samples; None is as many as there are."""
SEEDS = 3
"""Draws of a hundred."""


def _estimate(task: Arrays, unlabelled: np.ndarray | None, **given: float) -> finecal.GammaEstimate:
    both = {"train": labelled(task, "train"), "held_out": labelled(task, "val")}
    return finecal.estimate_gamma(task["seen_mask"], **both, unlabelled=unlabelled, **given)


ESTIMATORS: dict[str, Callable[[Arrays, np.ndarray, float], finecal.GammaEstimate]] = {
    "train, held-out: estimate_gamma": lambda t, x, share: _estimate(t, None),
    "train, held-out, true share: estimate_gamma": lambda t, x, share: _estimate(t, None, seen_share=share),
    "the same, unlabelled: estimate_gamma": lambda t, x, share: _estimate(t, x),
    "held-out, unlabelled: mixture_gamma": lambda t, x, share: finecal.estimators.mixture_gamma(
        t["val_logits"], x, t["seen_mask"]
    ),
    "unlabelled, true share: known_share_gamma": lambda t, x, share: finecal.estimators.known_share_gamma(
        x, t["seen_mask"], share
    ),
    "train, held-out, unlabelled, true share: estimate_gamma": lambda t, x, share: _estimate(t, x, seen_share=share),
}


class Scores(NamedTuple):
    """What the oracle gains at a share, and what each estimator does, in points."""

    gain: float
    gained: dict[str, float]


def scores(task: Arrays, share: float | None, number: int | None, seed: int = 0) -> Scores:
    """Score every estimator at a share of seen samples, with so many unlabelled samples of that share."""
    mask, is_seen = task["seen_mask"], task["seen_mask"][task["test_labels"]]
    share = float(is_seen.mean()) if share is None else share
    groups = is_seen.nonzero()[0], (~is_seen).nonzero()[0]
    most = min(len(groups[0]) / share, len(groups[1]) / (1 - share), number or np.inf)
    rng = np.random.default_rng(seed)
    rows = [
        rng.choice(group, round(most * part), replace=False)
        for group, part in zip(groups, (share, 1 - share), strict=True)
    ]
    unlabelled = task["test_logits"][np.concatenate(rows)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)  # that a ruined model guesses
        curve = finecal.tradeoff_curve(labelled(task, "test"), mask)

    def accuracy(seen: np.ndarray | float, absent: np.ndarray | float) -> np.ndarray | float:
        return 100 * (share * seen + (1 - share) * absent)

    def at(gamma: float | finecal.GammaEstimate) -> float:
        point = curve.at(gamma)
        return float(accuracy(point.acc_seen, point.acc_absent))

    before, best = at(0.0), float(np.max(accuracy(curve.acc_seen, curve.acc_absent)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        gammas = {name: estimate(task, unlabelled, share) for name, estimate in ESTIMATORS.items()}
    return Scores(best - before, {name: at(gamma) - before for name, gamma in gammas.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of task files (.npz)")
    parser.add_argument("--without", nargs="*", default=[], metavar="FAMILY", help="families to leave out")
    options = parser.parse_args(arguments)
    paths = [path for path in task_files(options.folders) if path.stem.partition("_")[0] not in options.without]
    tasks = [task for path in paths if {"train_logits", "val_logits"} <= (task := load(path)).keys()]
    if not tasks:
        parser.error("no .npz files of runs with training and held-out samples in the folders")
    print(
        f"Where the oracle gains {MIN_GAIN} points at that share of seen samples: % of it, median / worst of n; where"
    )
    print(f"it gains less than {LITTLE:g}: points, worst (number that lose more than {HARM}) of m.")
    print(f"Of 100 unlabelled samples {SEEDS} draws each.\n")
    rows = []
    for number in NUMBERS:
        for share in SHARES:
            seeds = range(1 if number is None else SEEDS)
            found = [scores(task, share, number, seed) for task in tasks for seed in seeds]
            large = [score for score in found if score.gain >= MIN_GAIN]
            little = [score for score in found if score.gain < LITTLE]
            cells = [_summary(large, little, name) for name in ESTIMATORS]
            rows.append([number or "all", "own" if share is None else share, len(large), len(little), *cells])
    heads = [str(number) for number in range(1, len(ESTIMATORS) + 1)]
    print(*(f"{head:>2} = {name}" for head, name in zip(heads, ESTIMATORS, strict=True)), "", sep="\n")
    print(format_table(["unlabelled", "share", "n", "m", *heads], [[str(cell) for cell in row] for row in rows]))


def _summary(large: Sequence[Scores], little: Sequence[Scores], name: str) -> str:
    recovered = [100 * score.gained[name] / score.gain for score in large]
    lost = [score.gained[name] for score in little]
    cell = f"{statistics.median(recovered):.0f} / {min(recovered):.0f}" if recovered else "-"
    return f"{cell}; {min(lost):+.1f} ({sum(points < -HARM for points in lost)})" if lost else cell


if __name__ == "__main__":
    main()
