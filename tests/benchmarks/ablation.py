"""What each step of `estimate_gamma` brings: the same models without it, by regime and by family. See README.md."""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from honesty import quality
from regimes import REGIMES, Outcome, all_outcomes

from estimators import task_files
from finecal._core.results import format_table
from finecal._estimators import auto
from finecal._estimators import decision as expected_accuracy
from finecal._estimators import decision as stream_evidence
from finecal._estimators import evidence as absent_health
from finecal._estimators import evidence as gap_evidence

Change = Callable[[], list[AbstractContextManager[Any]]]
SEEN = ("training", "held-out", "both")


def _decided_with(**change: Any) -> Change:
    """Change what is thought of the absent classes."""

    def decide(accuracy: Any, unit: float, unfamiliarity: float, absent: Any) -> Any:
        return expected_accuracy.decide(accuracy, unit, unfamiliarity, absent._replace(**change))

    return lambda: [patch.object(auto, "decide", decide)]


def _bayes_rule(accuracy: Any, unit: float, unfamiliarity: float, absent: Any) -> Any:
    """Take the gap, plus the log prior odds of the share."""
    gamma = absent.gap + unit * math.log((1 - absent.share) / absent.share)
    return expected_accuracy.Decision(max(gamma, 0.0) if absent.gap > 0 else gamma, 0.0)


def _as_if_new(accuracy: Any, unit: float, unfamiliarity: float, absent: Any) -> Any:
    return expected_accuracy.decide(accuracy, unit, 1.0, absent)


def _without_negative(scan: Any, residuals: Any, pairs: Any) -> Any:
    found = _EVIDENCE(scan, residuals, pairs)
    return found._replace(gap_weight=0.0) if found.gap < 0 else found


def _without_bound(scan: Any, residuals: Any, pairs: Any) -> Any:
    found = _EVIDENCE(scan, residuals, pairs)
    gap = found.unfamiliarity * residuals.gap + (1 - found.unfamiliarity) * pairs.gap
    return found._replace(gap=gap) if found.gap > 0 else found


def _one_unit(scan: Any, residuals: Any, pairs: Any) -> Any:
    """Take less than a unit of log-odds for no gap, in place of the test."""
    found = _EVIDENCE(scan, residuals, pairs)
    return found._replace(gap_weight=min(1.0, max(0.0, 2 * found.gap / found.unit - 2))) if found.gap > 0 else found


def _gap_as_it_was(seen: Any, unlabelled: Any, gap: float, *rest: Any) -> Any:
    return stream_evidence.UnlabelledEvidence(gap, expected_accuracy.GAP_ERROR * abs(gap))


def _share_as_it_was(found: Any, seen: Any, unlabelled: Any, expected: float, *rest: Any) -> Any:
    return expected, []


_EVIDENCE = gap_evidence._evidence
STEPS: dict[str, tuple[Sequence[str], Change]] = {
    "all of it": (tuple(REGIMES), list),
    "the gap of residuals alone": (SEEN, lambda: [patch.object(gap_evidence, "_LIKE_NEW", 1e-9)]),
    "the gap of mixed pairs, residuals as a bound": (SEEN, lambda: [patch.object(gap_evidence, "_LIKE_NEW", 1e9)]),
    "residuals no bound": (SEEN, lambda: [patch.object(gap_evidence, "_evidence", _without_bound)]),
    "no test for a gap": (SEEN, lambda: [patch.multiple(gap_evidence, _UNCLEAR=-2e9, _CLEAR=-1e9)]),
    "a unit of log-odds in place of the test": (SEEN, lambda: [patch.object(gap_evidence, "_evidence", _one_unit)]),
    "no negative gaps": (SEEN, lambda: [patch.object(gap_evidence, "_evidence", _without_negative)]),
    "the gap and the log odds of the share": (SEEN, lambda: [patch.object(auto, "decide", _bayes_rule)]),
    "the gap certain": (SEEN, _decided_with(error=0.0)),
    "smoothed half as much": (SEEN, lambda: [patch.object(expected_accuracy, "BANDWIDTH", 0.25)]),
    "smoothed twice as much": (SEEN, lambda: [patch.object(expected_accuracy, "BANDWIDTH", 1.0)]),
    "training samples taken for new ones": (("training",), lambda: [patch.object(auto, "decide", _as_if_new)]),
    "no limit of what gamma costs": (SEEN, lambda: [patch.object(expected_accuracy, "_MOST_SEEN_LOST", 1.0)]),
    "absent classes in good health": ((*SEEN, "unlabelled", "folds"), _decided_with(retention=1.0)),
    "held-out samples alone": (("both",), lambda: [patch.object(gap_evidence, "_TRAINING_COUNTS_AS", 1e-9)]),
    "training samples alone for the gap": (("both",), lambda: [patch.object(gap_evidence, "_TRAINING_COUNTS_AS", 1e9)]),
    "nothing but health from unlabelled samples": (
        ("unlabelled",),
        lambda: [
            patch.object(auto, "fit_unlabelled", _gap_as_it_was),
            patch.object(auto, "estimate_share", _share_as_it_was),
        ],
    ),
    "the gap not from unlabelled samples": (
        ("unlabelled",),
        lambda: [patch.object(auto, "fit_unlabelled", _gap_as_it_was)],
    ),
    "the share not from unlabelled samples": (
        ("unlabelled",),
        lambda: [patch.object(auto, "estimate_share", _share_as_it_was)],
    ),
    "all belief from unlabelled samples": (("unlabelled",), lambda: [patch.object(stream_evidence, "_KEPT", 0.0)]),
    "health not from unlabelled samples": (
        ("unlabelled",),
        lambda: [patch.object(auto, "retention_from_unlabelled", lambda *given: None)],
    ),
    "health of rivals from a half on": (SEEN, lambda: [patch.object(absent_health, "_HEALTHY_RIVALS", 0.5)]),
    "health of rivals from four fifths on": (SEEN, lambda: [patch.object(absent_health, "_HEALTHY_RIVALS", 0.8)]),
}
"""The regimes that a step matters in, and what takes it out."""


def changes_by_family(found: Sequence[Outcome], whole: Sequence[Outcome]) -> dict[str, float]:
    """Return what taking a step out adds to the regret of each family, on average, in points."""
    changes: dict[str, list[float]] = {}
    for outcome, before in zip(found, whole, strict=True):
        changes.setdefault(outcome.family, []).append(before.points - outcome.points)
    return {family: statistics.fmean(values) for family, values in sorted(changes.items())}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of task files (.npz)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    options = parser.parse_args(arguments)
    paths = task_files(options.folders)
    if not paths:
        parser.error("no .npz files in the folders")
    rows, families, whole = [], {}, {}
    for step, (regimes, change) in STEPS.items():
        with ExitStack() as patches:  # worker processes are forked, so that they have the change as well
            for context in change():
                patches.enter_context(context)
            every = all_outcomes(paths, regimes, jobs=options.jobs)
        for regime in regimes:
            found = {outcome[regime].run: outcome[regime] for outcome in every if regime in outcome}
            if not found:
                continue
            whole.setdefault(regime, found)
            rows.append([step, regime, *quality(list(found.values()))])
            if found is not whole[regime]:
                families[f"{step}, {regime}"] = changes_by_family(
                    list(found.values()), [whole[regime][run] for run in found]
                )
    print(f"{len(paths)} models. Recovered of the oracle's gain in %, median / worst (models); regret in points.\n")
    print(format_table(["changed", "given", "gain of 8 points", "3 points", "less: worst", "regret"], rows))
    names = sorted(set().union(*families.values()))
    print("\nPoints of regret that the change adds, by family:\n")
    cells = [[step, *(f"{of[name]:+.1f}" if name in of else "" for name in names)] for step, of in families.items()]
    print(format_table(["changed", *names], cells))


if __name__ == "__main__":
    main()
