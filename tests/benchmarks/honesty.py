"""What `estimate_gamma` recovers, what harm it does, whether it says so, and what its intervals hold. See README.md."""

import argparse
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from regimes import REGIMES, Outcome, all_outcomes

from estimators import LITTLE, MIN_GAIN, task_files
from finecal._core.results import format_table

SHOWN = "{:.0f} / {:.0f} ({})"


def quality(found: Sequence[Outcome]) -> list[str]:
    """Return median / worst (number) of two classes of gains in %, the worst loss in points, and the mean regret."""
    large = [outcome.recovered for outcome in found if outcome.has_gain and outcome.gain >= MIN_GAIN]
    gains = [outcome.recovered for outcome in found if outcome.has_gain]
    little = [outcome.points for outcome in found if not outcome.has_gain]
    regret = [outcome.gain - outcome.points for outcome in found]
    cells = [SHOWN.format(statistics.median(part), min(part), len(part)) if part else "-" for part in (large, gains)]
    return [*cells, f"{min(little):+.1f} ({len(little)})" if little else "-", f"{statistics.fmean(regret):.2f}"]


def told(found: Sequence[Outcome]) -> list[str]:
    """Return failures with and without a warning, successes with one, without the controls, and held intervals."""
    failures = [outcome for outcome in found if outcome.failed]
    fine = [outcome for outcome in found if not outcome.failed and not outcome.is_control]
    intervals = [outcome.interval_holds for outcome in found if outcome.interval_holds is not None]
    warned = sum(outcome.warned for outcome in failures)
    share = 100 * sum(outcome.warned for outcome in fine) / max(1, len(fine))
    held = f"{100 * statistics.fmean(intervals):.0f} % of {len(intervals)}" if intervals else "-"
    return [str(warned), str(len(failures) - warned), f"{share:.0f} % of {len(fine)}", held]


def kind(sentence: str) -> str:
    """Return the beginning of a warning, without its numbers."""
    return re.split(r" \(|[:;,]", re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", sentence))[0]


def worth(found: Iterable[Outcome]) -> list[list[str]]:
    """Return on how many failures, successes and controls each kind of warning came, and on how many alone."""
    counts: dict[str, list[list[int]]] = {}
    for outcome in found:
        kinds = {kind(sentence) for sentence in outcome.warnings}
        column = 0 if outcome.failed else 2 if outcome.is_control else 1
        for name in kinds:
            cell = counts.setdefault(name, [[0, 0], [0, 0], [0, 0]])[column]
            cell[0] += 1
            cell[1] += len(kinds) == 1
    return [[name, *(f"{n} ({alone})" for n, alone in cells)] for name, cells in sorted(counts.items())]


def held_by_family(found: Iterable[Outcome]) -> list[list[str]]:
    """Return how many intervals of each family hold: the width was chosen on all of them together."""
    groups: dict[str, list[bool]] = {}
    for outcome in found:
        if outcome.interval_holds is not None:
            groups.setdefault(outcome.family, []).append(outcome.interval_holds)
    return [[family, f"{sum(holds)} of {len(holds)}"] for family, holds in sorted(groups.items())]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of task files (.npz)")
    parser.add_argument("--only", nargs="*", default=[], metavar="FAMILY", help="families to look at (default: all)")
    parser.add_argument("--without", nargs="*", default=[], metavar="FAMILY", help="families to leave out")
    parser.add_argument("--bootstrap", type=int, default=100, help="resamplings for the intervals (default 100)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    options = parser.parse_args(arguments)
    paths = [
        path
        for path in task_files(options.folders)
        if (family := path.stem.partition("_")[0]) not in options.without
        and (not options.only or family in options.only)
    ]
    if not paths:
        parser.error("no .npz files in the folders")
    every = all_outcomes(paths, list(REGIMES), options.bootstrap, options.jobs)
    by_regime = {regime: [found[regime] for found in every if regime in found] for regime in REGIMES}
    by_regime = {regime: found for regime, found in by_regime.items() if found}
    heads = [f"gain of {MIN_GAIN} points", f"{LITTLE:g} points", "less: worst, points", "regret"]
    heads += ["failed, warned", "silent", "fine, warned", "intervals"]
    print(f"{len(paths)} models. Recovered of the oracle's gain in %, median / worst (models); regret in points.\n")
    print(format_table(["given", *heads], [[r, *quality(found), *told(found)] for r, found in by_regime.items()]))
    print("\nFor how many estimates each warning came (as the only one), all regimes together:\n")
    everything = [outcome for found in by_regime.values() for outcome in found]
    print(format_table(["warning", "failures", "successes", "controls"], worth(everything)))
    print("\nIntervals that hold a gamma within half a point of the best, by family, all regimes together:\n")
    print(format_table(["family", "hold"], held_by_family(everything)))


if __name__ == "__main__":
    main()
