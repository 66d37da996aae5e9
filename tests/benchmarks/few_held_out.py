"""How far estimate_gamma falls short of the best gamma with few held-out samples, with and without smoothed steps.

The held-out samples are drawn from those of a task file. See README.md.
"""

import argparse
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np

import finecal
from estimators import Arrays, labelled, load, task_files
from finecal._core.results import format_table
from finecal._estimators.decision import SeenAccuracy

NUMBERS = (8, 15, 30, 60, 200)
DRAWS = 8
KEPT_ASIDE = ("kana", "hangul", "tongues", "languages", "speech", "cities")
"""Families of runs that the rule was not chosen on."""
AS_MEASURED = "finecal._estimators.evidence.SmoothedAccuracy"


def short(task: Arrays, seed: int) -> Iterator[tuple[tuple[str, int], float]]:
    """Yield by how many points of Acc_Y/Y each variant falls short of the best gamma, for a draw of each size."""
    mask, samples = task["seen_mask"], labelled(task, "val")
    curve = finecal.tradeoff_curve(labelled(task, "test"), mask)
    best = curve.at(curve.best()).acc_all
    order = np.random.default_rng(seed).permutation(len(samples))
    for number in NUMBERS:
        data = {"held_out": samples[order[:number]], "unlabelled": task["test_logits"]}
        for given, more in (
            ("unlabelled ones", {}),
            ("training and unlabelled ones", {"train": labelled(task, "train")}),
        ):
            smoothed = finecal.estimate_gamma(mask, **data, **more)
            with mock.patch(AS_MEASURED, SeenAccuracy):
                measured = finecal.estimate_gamma(mask, **data, **more)
            for how, gamma in (("as measured", measured), ("smoothed", smoothed)):
                yield (f"with {given}, {how}", number), 100 * (best - curve.at(gamma).acc_all)


def of_file(path: Path, draws: int = DRAWS) -> dict[tuple[str, int], float]:
    """Return the mean over draws, by variant and number; without those that a draw gives nothing to estimate from."""
    task, found = load(path), defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        for seed in range(draws):
            for key, points in short(task, seed):
                found[key].append(points)
    return {key: statistics.fmean(points) for key, points in found.items()}


def table(files: list[Path], draws: int = DRAWS) -> str:
    with ProcessPoolExecutor(2) as pool:
        by_file = list(pool.map(of_file, files, [draws] * len(files)))
    variants = dict.fromkeys(variant for found in by_file for variant, _ in found)
    rows = [
        [variant, *(f"{statistics.fmean(found[variant, n] for found in by_file):.2f}" for n in NUMBERS)]
        for variant in variants
    ]
    return format_table(["held-out samples", *map(str, NUMBERS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of task files, as runs makes them")
    files = [file for file in task_files(parser.parse_args().folders) if file.stem.split("_")[0] in KEPT_ASIDE]
    print(f"{len(files)} models of {', '.join(KEPT_ASIDE)}; points of Acc_Y/Y below the best gamma, {DRAWS} draws\n")
    print(table(files))


if __name__ == "__main__":
    main()
