"""Compare estimators of gamma at other shares of seen samples than of seen classes, and with few unlabelled samples.

The unlabelled samples are drawn from the test samples of a task file, and gamma is scored at the share that they have.
See README.md.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from estimators import MIN_GAIN, Arrays, labelled, load, score, task_files

import finecal
from finecal.results.display import format_table

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
    "the same, unlabelled: estimate_gamma": lambda t, x, share: _estimate(t, x),
    "held-out, unlabelled: mixture_gamma": lambda t, x, share: finecal.mixture_gamma(
        t["val_logits"], x, t["seen_mask"]
    ),
    "unlabelled, true share: known_share_gamma": lambda t, x, share: finecal.known_share_gamma(
        x, t["seen_mask"], share
    ),
    "train, held-out, unlabelled, true share: estimate_gamma": lambda t, x, share: _estimate(t, x, seen_share=share),
}


def figures(task: Arrays, share: float | None, number: int | None, seed: int = 0) -> dict[str, float] | None:
    """Return what each estimator recovers of the oracle's gain at a share, in %; None where that gains too little."""
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
    curve = finecal.tradeoff_curve(*labelled(task, "test"), mask)

    def accuracy(seen: np.ndarray | float, absent: np.ndarray | float) -> np.ndarray | float:
        return share * seen + (1 - share) * absent

    def at(gamma: float | finecal.GammaEstimate) -> float:
        point = curve.at(gamma)
        return float(accuracy(point.acc_seen, point.acc_absent))

    before, best = at(0.0), float(np.max(accuracy(curve.acc_seen, curve.acc_absent)))
    if 100 * (best - before) < MIN_GAIN:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        gammas = {name: estimate(task, unlabelled, share) for name, estimate in ESTIMATORS.items()}
    return {name: 100 * (at(gamma) - before) / (best - before) for name, gamma in gammas.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of task files (.npz)")
    parser.add_argument("--without", nargs="*", default=[], metavar="FAMILY", help="families to leave out")
    options = parser.parse_args(arguments)
    paths = [path for path in task_files(options.folders) if path.stem.partition("_")[0] not in options.without]
    tasks = [load(path) for path in paths if score(path, []).counts]
    if not tasks:
        parser.error("no .npz files of runs that count in the folders")
    print("% of the oracle's gain at that share of seen samples, median / worst of n: runs that count, where they gain")
    print(f"{MIN_GAIN} points at that share; of 100 unlabelled samples {SEEDS} draws each.\n")
    rows = []
    for number in NUMBERS:
        for share in SHARES:
            seeds = range(1 if number is None else SEEDS)
            found = [f for task in tasks for seed in seeds if (f := figures(task, share, number, seed)) is not None]
            cells = [_summary([figure[name] for figure in found]) for name in ESTIMATORS]
            rows.append([number or "all", "own" if share is None else share, len(found), *cells])
    heads = [str(number) for number in range(1, len(ESTIMATORS) + 1)]
    print(*(f"{head:>2} = {name}" for head, name in zip(heads, ESTIMATORS, strict=True)), "", sep="\n")
    print(format_table(["unlabelled", "share", "n", *heads], [[str(cell) for cell in row] for row in rows]))


def _summary(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} / {min(values):.0f}" if values else "-"


if __name__ == "__main__":
    main()
