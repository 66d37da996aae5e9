"""Compare gammas on uneven streams: classes as frequent as Zipf's law says, and a share of seen samples that drifts.

The test samples of a task file are drawn anew, with the frequencies of the stream. See README.md.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import finecal
from estimators import Arrays, labelled, load, task_files
from finecal._core.results import format_table
from finecal._core.samples import Samples
from finecal._estimators.evidence import _power_law_share

EXPONENTS = (0.5, 1.0, 1.5)
LENGTH, BATCH, WINDOWS = 2400, 200, (100, 200, 400, 2400)
"""Samples of a drifting stream, those between two estimates, and those that gamma is estimated from."""
DRIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "wave, 10 to 90 %": lambda time: 0.5 + 0.4 * np.sin(2 * np.pi * time),
    "jump, 90 to 20 %": lambda time: np.where(time < 0.5, 0.9, 0.2),
    "steady 75 %": lambda time: np.full_like(time, 0.75),
}
Scores = dict[str, float]


def _drawn(rng: np.random.Generator, labels: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Draw as many samples as there are, with these frequencies of their classes."""
    number = np.bincount(labels, minlength=len(frequency))
    chance = np.where(number > 0, frequency / np.maximum(number, 1), 0)[labels]
    return rng.choice(len(labels), len(labels), p=chance / chance.sum())


def zipf_scores(task: Arrays, exponent: float, lead: float, seed: int) -> Scores:
    """Score gammas on a stream of Zipf's law, in points of accuracy; with a `lead`, seen classes tend to come first."""
    rng, mask = np.random.default_rng(seed), task["seen_mask"]
    frequency = np.empty(len(mask))
    frequency[np.argsort(-(rng.gumbel(size=len(mask)) + lead * mask))] = np.arange(1.0, len(mask) + 1) ** -exponent
    rows = _drawn(rng, task["val_labels"], np.where(mask, frequency, 0))
    held_out = Samples(task["val_logits"][rows], task["val_labels"][rows])
    stream, others = np.array_split(_drawn(rng, task["test_labels"], frequency), 2)
    scan = held_out.scan(mask)
    shares = {
        "known share": float(np.clip(frequency[mask].sum() / frequency.sum(), 0.02, 0.98)),
        "power law": float(np.clip(_power_law_share(scan.labels, scan.mask), 0.02, 0.98)),
    }
    given = {"|S|/C": {}, "unlabelled": {"unlabelled": task["test_logits"][others]}}
    given |= {name: {"seen_share": share} for name, share in shares.items()}
    estimates = {name: finecal.estimate_gamma(mask, held_out=held_out, **data) for name, data in given.items()}
    biases = {name: np.where(mask, 0, estimate.gamma) for name, estimate in estimates.items()}
    bias = finecal.calibrators.class_bias_from_shares(held_out, mask, frequency, estimates["known share"]).bias
    biases |= {"gamma = 0": np.zeros(len(mask)), "class shares": bias.numpy()}
    logits, labels = task["test_logits"][stream], task["test_labels"][stream]
    found = {name: 100 * float(((logits + of).argmax(1) == labels).mean()) for name, of in biases.items()}
    found["warned"] = float(any("labels are as unequal" in sentence for sentence in estimates["|S|/C"].warnings))
    return found


def drift_scores(task: Arrays, drift: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Scores:
    """Score gammas that are estimated from the last samples, each on the next ones, in points of accuracy."""
    rng, mask, held_out = np.random.default_rng(seed), task["seen_mask"], labelled(task, "val")
    share, is_seen = drift(np.arange(LENGTH) / LENGTH), task["seen_mask"][task["test_labels"]]
    from_seen, from_absent = (rng.choice(np.flatnonzero(group), LENGTH) for group in (is_seen, ~is_seen))
    rows = np.where(rng.random(LENGTH) < share, from_seen, from_absent)
    logits, labels = task["test_logits"][rows], task["test_labels"][rows]
    fixed, right = finecal.estimate_gamma(mask, held_out=held_out), {}
    for start in range(BATCH, LENGTH, BATCH):
        now = slice(start, start + BATCH)
        known = finecal.estimate_gamma(mask, held_out=held_out, seen_share=float(share[now].mean()))
        gammas = {"gamma = 0": 0.0, "fixed": fixed, "known share": known}
        for window in WINDOWS:
            last = logits[max(0, start - window) : start]
            gammas[f"last {window}"] = finecal.estimate_gamma(mask, held_out=held_out, unlabelled=last)
        for name, gamma in gammas.items():
            right.setdefault(name, []).append(finecal.predict(logits[now], mask, gamma) == labels[now])
    return {name: 100 * float(np.concatenate(of).mean()) for name, of in right.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of task files (.npz)")
    parser.add_argument("--without", nargs="*", default=[], metavar="FAMILY", help="families to leave out")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="look at every N-th model (default: all)")
    options = parser.parse_args(arguments)
    paths = [path for path in task_files(options.folders) if path.stem.partition("_")[0] not in options.without]
    tasks = [load(path) for path in paths if "_nogap" not in path.stem][:: options.every]
    tasks = [task for task in tasks if "val_logits" in task]
    if not tasks:
        parser.error("no .npz files of runs with held-out samples in the folders")
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    print(f"{len(tasks)} models, mean accuracy in %; warned: the share that are told of unequal labels\n")
    zipf, drifts = [], []
    for exponent in EXPONENTS:
        for name, lead in (("any", 0.0), ("frequent ones", 1.5)):
            found = [zipf_scores(task, exponent, lead, seed) for task in tasks for seed in range(2)]
            zipf.append([f"{exponent:g}", name, *_means(found)])
    print(format_table(["Zipf exponent", "seen classes", *found[0]], zipf), "", sep="\n")
    for name, drift in DRIFTS.items():
        found = [drift_scores(task, drift) for task in tasks]
        drifts.append([name, *_means(found)])
    print(format_table(["share of seen samples", *found[0]], drifts))


def _means(found: Sequence[Scores]) -> list[str]:
    return [f"{statistics.fmean(of[name] for of in found):.{2 if name == 'warned' else 1}f}" for name in found[0]]


if __name__ == "__main__":
    main()
