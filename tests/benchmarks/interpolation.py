"""What `search_interpolation` brings over gamma for the fine-tuned model alone, on test samples of models of `runs`.

See README.md.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finecal._core.results import format_table

DAMAGE = 3.0
"""Points of `Acc_{U/U}` that a damaged model has lost in fine-tuning."""
HARM = 0.5
FIXED = 0.5
"""An alpha to compare with, the same for all models."""
DROP = 2.0
"""Points below the best `Acc_{S/S}` that the rule which was tried first allows."""


@dataclass(frozen=True)
class Run:
    """The table of a model, as ``runs --interpolate`` writes it: accuracies on test, in points."""

    name: str
    control: bool
    alpha: float
    steps: dict[float, dict[str, float]]

    @property
    def family(self) -> str:
        return self.name.partition("_")[0]

    @property
    def kind(self) -> str:
        if self.control:
            return "no gap"
        return "damaged" if self.damage > DAMAGE else "not damaged"

    @property
    def damage(self) -> float:
        """Points of `Acc_{U/U}` lost in fine-tuning."""
        return self.steps[0.0]["acc_absent_within"] - self.steps[1.0]["acc_absent_within"]

    def gain(self, alpha: float, accuracy: str = "acc_all") -> float:
        """Points over alpha = 1, with gamma estimated at each."""
        return self.steps[alpha][accuracy] - self.steps[1.0][accuracy]

    @property
    def near_best(self) -> float:
        """The smallest alpha whose `Acc_{S/S}` on the held-out samples is near the best."""
        within = {alpha: step["held_out_acc_seen_within"] for alpha, step in self.steps.items()}
        return min(alpha for alpha in within if within[alpha] >= max(within.values()) - DROP - 1e-9)

    @property
    def ceiling(self) -> float:
        """The same with the best alpha and the best gamma, by the labels of the test samples."""
        best = [step["best_acc_all"] for step in self.steps.values()]
        return max(best) - self.steps[1.0]["best_acc_all"]


RULES: dict[str, Callable[[Run], float]] = {
    "search": lambda run: run.gain(run.alpha),
    "balanced": lambda run: run.gain(run.alpha, "balanced"),
    f"within {DROP:g}": lambda run: run.gain(run.near_best),
    f"alpha {FIXED:g}": lambda run: run.gain(FIXED),
    "ceiling": lambda run: run.ceiling,
}
"""Points gained; those that need no labels of absent classes first."""


def load(path: Path) -> Run:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Run(path.stem, found["control"], found["alpha"], {step["alpha"]: step for step in found["steps"]})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the tables that runs --interpolate wrote (.json)")
    parser.add_argument("--without", nargs="*", default=[], metavar="FAMILY", help="families to leave out")
    options = parser.parse_args(arguments)
    runs = [run for run in map(load, sorted(options.folder.glob("*.json"))) if run.family not in options.without]
    if not runs:
        parser.error("no .json files of runs in the folder")
    print(
        "Points gained over gamma for the fine-tuned model alone. search: Acc_Y/Y at the alpha that was chosen;\n"
        f"balanced: the same in balanced accuracy; within {DROP:g}: at the smallest alpha whose held-out Acc_S/S is\n"
        f"within {DROP:g} points of the best; ceiling: at the best alpha and gamma by the test labels.\n"
        f"Damaged: Acc_U/U fell by more than {DAMAGE:g} points in fine-tuning. No gap: fine-tuned on all classes.\n"
    )
    print(format_table(["run", "kind", "damage", "alpha", *RULES], [*map(_line, sorted(runs, key=RULES["search"]))]))
    print(f"\nMedian / mean / worst (number that lose more than {HARM:g}):\n")
    rows = []
    for kind in ("damaged", "not damaged", "no gap"):
        chosen = [run for run in runs if run.kind == kind]
        for family in sorted({run.family for run in chosen}):
            rows.append(_summary(kind, family, [run for run in chosen if run.family == family]))
        if chosen:
            rows.append(_summary(kind, "all", chosen))
    print(format_table(["kind", "family", "runs", *RULES], rows))


def _line(run: Run) -> list[str]:
    gains = [f"{rule(run):+.1f}" for rule in RULES.values()]
    return [run.name, run.kind, f"{run.damage:.1f}", f"{run.alpha:g}", *gains]


def _summary(kind: str, family: str, runs: Sequence[Run]) -> list[str]:
    cells = []
    for rule in RULES.values():
        gains = [rule(run) for run in runs]
        harmed = sum(gain < -HARM for gain in gains)
        cells.append(f"{statistics.median(gains):+.1f} / {statistics.mean(gains):+.1f} / {min(gains):+.1f} ({harmed})")
    return [kind, family, str(len(runs)), *cells]


if __name__ == "__main__":
    main()
