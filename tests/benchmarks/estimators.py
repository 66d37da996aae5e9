"""Compare estimators of gamma on fine-tuned models: how much of the oracle's gain each one recovers. See README.md."""

import argparse
import fnmatch
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import finecal
from finecal._core.results import format_table

MIN_GAIN, MIN_TEST, LEAST_SEEN, MOST_SEEN = 8, 500, 0.2, 0.8
"""Runs that count: by their gain in points, their test samples, and their share of seen classes."""
LITTLE = 3.0
"""Points: where there is less to gain, what counts is how many points are lost."""
ERROR = -math.inf
"""The figure of an estimator that refuses data which it should take."""

Arrays = dict[str, np.ndarray]


def labelled(task: Arrays, part: str, **more: np.ndarray) -> finecal.Samples:
    return finecal.Samples(task[f"{part}_logits"], task[f"{part}_labels"], **more)


def _share(task: Arrays) -> float:
    return float(task["seen_mask"][task["test_labels"]].mean())


def folds(task: Arrays) -> list[finecal.estimators.PseudoFold]:
    found = []
    for prefix in (f"pcv{fold}_" for fold in range(10) if f"pcv{fold}_logits" in task):
        logits, labels, before = (task[prefix + field] for field in ("logits", "labels", "pretrained_logits"))
        samples = finecal.Samples(logits, labels, pretrained_logits=before)
        found.append(finecal.estimators.PseudoFold(samples, task[prefix + "pseudo_seen_mask"]))
    return found


def _heads(task: Arrays) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    prefixes = {"head": "", "pretrained_head": "pretrained_"}
    return {name: (task[prefix + "weight"], task[prefix + "bias"]) for name, prefix in prefixes.items()}


def _drift(task: Arrays, part: str) -> finecal.GammaEstimate:
    samples = labelled(task, part, features=task[f"{part}_features"])
    return finecal.estimators.head_drift_gamma(samples, task["seen_mask"], **_heads(task))


def _estimate(task: Arrays, *parts: str, **given: Any) -> finecal.GammaEstimate:
    arguments = {"train": "train", "val": "held_out"}
    return finecal.estimate_gamma(task["seen_mask"], **{arguments[p]: labelled(task, p) for p in parts}, **given)


ESTIMATORS: dict[str, Callable[[Arrays], finecal.GammaEstimate]] = {
    "train: average_logit_gap": lambda t: finecal.estimators.average_logit_gap(labelled(t, "train"), t["seen_mask"]),
    "train: max_logit_gap": lambda t: finecal.estimators.max_logit_gap(labelled(t, "train"), t["seen_mask"]),
    "held-out: max_logit_gap": lambda t: finecal.estimators.max_logit_gap(labelled(t, "val"), t["seen_mask"]),
    "train: mixed_pair_gap": lambda t: finecal.estimators.mixed_pair_gap(labelled(t, "train"), t["seen_mask"]),
    "held-out: mixed_pair_gap": lambda t: finecal.estimators.mixed_pair_gap(labelled(t, "val"), t["seen_mask"]),
    "held-out: residual_gap": lambda t: finecal.estimators.residual_gap(labelled(t, "val"), t["seen_mask"]),
    "train, heads: head_drift_gamma": lambda t: _drift(t, "train"),
    "held-out, heads: head_drift_gamma": lambda t: _drift(t, "val"),
    "unlabelled: mixture_gamma": lambda t: finecal.estimators.mixture_gamma(
        t["val_logits"], t["test_logits"], t["seen_mask"]
    ),
    "true share: known_share_gamma": lambda t: finecal.estimators.known_share_gamma(
        t["test_logits"], t["seen_mask"], _share(t)
    ),
    "refits: pseudo_cv_gamma": lambda t: finecal.estimators.pseudo_cv_gamma(folds(t), t["seen_mask"], "balanced"),
    "(a) train: estimate_gamma": lambda t: _estimate(t, "train"),
    "(b) held-out: estimate_gamma": lambda t: _estimate(t, "val"),
    "(b+) both: estimate_gamma": lambda t: _estimate(t, "train", "val"),
    "(b+) both, refits: estimate_gamma": lambda t: _estimate(t, "train", "val", folds=folds(t)),
    "(c) unlabelled: estimate_gamma": lambda t: _estimate(t, "val", unlabelled=t["test_logits"]),
    "(c) true share: estimate_gamma": lambda t: _estimate(t, "val", unlabelled=t["test_logits"], seen_share=_share(t)),
}
"""What it is given, and the public function's name."""
LABELS = "test labels, across ten folds: search_gamma"
"""Gamma from nine tenths of the labelled test samples, scored on the last tenth: what even labels do not recover is the
luck of the oracle, which is scored on the samples that it was found on."""
ALL_NAMES = (*ESTIMATORS, LABELS)


NOT_IN_ALL_FILES = {"refits": "pcv0_logits", "heads": "train_features"}


@dataclass(frozen=True)
class Scored:
    """A run's figures by estimator: % of the oracle's gain recovered, or points where there is little to gain."""

    name: str
    gain: float
    counts: bool
    is_control: bool
    figures: dict[str, float]

    @property
    def has_little(self) -> bool:
        """Whether there is little to gain, or nothing, as in a control."""
        return self.is_control or self.gain < LITTLE


def task_files(folders: Iterable[Path]) -> list[Path]:
    return sorted((path for folder in folders for path in folder.glob("*.npz")), key=lambda path: path.stem)


def load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        # Large files hold float16 where that loses nothing.
        return {name: file[name].astype(np.float32) if file[name].dtype == np.float16 else file[name] for name in file}


def accuracy_by_labels(task: Arrays) -> float:
    """Return the accuracy on each tenth of the test samples at the gamma of the other nine, together."""
    samples, mask = labelled(task, "test"), task["seen_mask"]
    fold, right = np.random.default_rng(0).permutation(len(samples)) % 10, 0
    for tenth in range(10):
        gamma, judged = finecal.search_gamma(samples[fold != tenth], mask), samples[fold == tenth]
        right += (finecal.predict(judged.logits, mask, gamma) == judged.labels).sum()
    return float(right / len(samples))


def score(path: Path, names: Iterable[str]) -> Scored:
    """Score each estimator's gamma by `Acc_{Y/Y}` on the test samples of a task file."""
    task = load(path)
    curve = finecal.tradeoff_curve(labelled(task, "test"), task["seen_mask"])
    before, is_control, figures = curve.at(0.0).acc_all, "_nogap" in path.stem, {}
    gain = curve.at(curve.best()).acc_all - before
    for name in names:
        if any(word in name and array not in task for word, array in NOT_IN_ALL_FILES.items()):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", finecal.FinecalWarning)
                after = accuracy_by_labels(task) if name == LABELS else curve.at(ESTIMATORS[name](task)).acc_all
                change = after - before
            figures[name] = 100 * (change if is_control or 100 * gain < LITTLE else change / gain)
        except ValueError:
            figures[name] = ERROR
    # A share is rounded to whole classes.
    usual_share = LEAST_SEEN - 0.01 <= float(task["seen_mask"].mean()) <= MOST_SEEN + 0.01
    counts = not is_control and usual_share and 100 * gain >= MIN_GAIN and len(task["test_labels"]) >= MIN_TEST
    return Scored(path.stem, 100 * gain, counts, is_control, figures)


def task_table(runs: Sequence[Scored], names: Sequence[str]) -> Iterable[list[str]]:
    """Yield a row for each run, and what they come to."""
    for run in runs:
        shown = "{:+.1f}" if run.has_little else "{:.0f}"
        yield [run.name + " *" * run.counts, f"{run.gain:.1f}", *(_cell([run], name, min, shown) for name in names)]
    counting, controls = [run for run in runs if run.counts], [run for run in runs if run.is_control]
    yield [f"median of {len(counting)} *", "", *(_cell(counting, name, statistics.median) for name in names)]
    yield [f"worst of {len(counting)} *", "", *(_cell(counting, name, min) for name in names)]
    yield ["failures (< 0)", "", *(_cell(counting, name, lambda f: sum(x < 0 for x in f)) for name in names)]
    yield [f"worst of {len(controls)} controls", "", *(_cell(controls, name, min, "{:+.1f}") for name in names)]
    little = [run for run in runs if run.has_little and not run.is_control]
    yield [f"worst of {len(little)} others", "", *(_cell(little, name, min, "{:+.1f}") for name in names)]


def family_table(runs: Sequence[Scored], names: Sequence[str]) -> Iterable[list[str]]:
    """Yield median / worst of each family's runs that count: the judges of what was tuned to the other families."""
    by_family = groupby((run for run in runs if run.counts), key=lambda run: run.name.partition("_")[0])
    for family, chosen in ((name, list(found)) for name, found in by_family):
        cells = (f"{_cell(chosen, name, statistics.median)} / {_cell(chosen, name, min)}" for name in names)
        yield [family, str(len(chosen)), *cells]


def _cell(runs: Iterable[Scored], name: str, summary: Callable[[list[float]], float], shown: str = "{:.0f}") -> str:
    figures = [run.figures[name] for run in runs if name in run.figures]
    figure = summary(figures) if figures else math.nan
    return "-" if math.isnan(figure) else "error" if figure == ERROR else shown.format(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of task files (.npz)")
    parser.add_argument("--estimators", default="*", metavar="PATTERN", help="such as '(b*' or '*: max_logit_gap'")
    parser.add_argument("--markdown", action="store_true", help="names as column heads, not numbers and a legend")
    options = parser.parse_args(arguments)
    names = [name for name in ALL_NAMES if fnmatch.fnmatch(name, options.estimators)]
    runs = [score(path, names) for path in task_files(options.folders)]
    if not names or not runs:
        parser.error("no .npz files in the folders" if names else f"no estimator matches {options.estimators!r}")
    heads = names if options.markdown else [str(number) for number in range(1, len(names) + 1)]
    if not options.markdown:
        print(*(f"{head:>2} = {name}" for head, name in zip(heads, names, strict=True)), "", sep="\n")
    print(
        "% of the oracle's gain in Acc_Y/Y that is recovered; in controls (_nogap), and in others that could gain less "
        f"than {LITTLE:g} points, points. A run with * counts:"
    )
    print(f"{MIN_GAIN} points of gain, {MIN_TEST} test samples, {LEAST_SEEN:.0%} to {MOST_SEEN:.0%} of classes seen.\n")
    print(format_table(["task", "gain", *heads], list(task_table(runs, names))))
    print("\nMedian / worst of those that count, by family:\n")
    print(format_table(["family", "runs", *heads], list(family_table(runs, names))))


if __name__ == "__main__":
    main()
