"""A comparison of estimators as a table, with what must be said about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ._display import Block, Caution, Table
from .report import SeenAbsentReport

if TYPE_CHECKING:
    from .comparison import ComparedEstimate, EstimatorComparison

_OF_ESTIMATE = ("gamma", "n", "expected_acc_seen", "acc_seen_before")
_OF_REPORT = ("acc_all", "acc_seen", "acc_absent", "harmonic_mean", "balanced")


def blocks(comparison: EstimatorComparison) -> Iterator[Block]:
    """The table, then what it does not say, and the estimators' warnings."""
    with_interval = any(row.estimate is not None and row.estimate.interval is not None for row in comparison.rows)
    models = [("pre-trained", comparison.pretrained), ("fine-tuned", comparison.uncalibrated)]
    reports = [(name, report) for name, report in models if report is not None]
    yield [_table(comparison, with_interval)]
    if reports:
        notes = (
            f"{name} {_percent(at.acc_seen_within)}, {_percent(at.acc_absent_within)} and {at.ausuc:.3f}"
            for name, at in reports
        )
        yield [f"Acc_S/S, Acc_U/U and AUSUC, which no gamma changes: {'; '.join(notes)}."]
    if with_interval:
        yield ["Interval: 95 % bootstrap interval of gamma."]
    if comparison.cost_data is not None:
        yield [f"Cost: points of Acc_S/Y lost against gamma = 0, on {comparison.cost_data}."]
    for row in comparison.rows:
        if row.error is not None:
            yield [f"Not possible: {row.method} from {row.needs}: {row.error}"]
        for sentence in () if row.estimate is None else row.estimate.warnings:
            yield [Caution(f"Warning of {row.method} from {row.needs}: {sentence}")]


def record(row: ComparedEstimate) -> dict[str, Any]:
    """Return the row without nesting, NaN for each number that there is not."""
    interval = None if row.estimate is None else row.estimate.interval
    low, high = interval or (None, None)
    numbers = {
        **{name: getattr(row.estimate, name, None) for name in _OF_ESTIMATE},
        "interval_low": low,
        "interval_high": high,
        **{name: getattr(row.report, name, None) for name in _OF_REPORT},
        "recovered": row.recovered,
    }
    return {
        "method": row.method,
        "needs": row.needs,
        **{name: math.nan if value is None else value for name, value in numbers.items()},
        "warnings": "" if row.estimate is None else "; ".join(row.estimate.warnings),
        "error": row.error,
    }


def _table(comparison: EstimatorComparison, with_interval: bool) -> Table:
    with_test = comparison.uncalibrated is not None
    columns = ["gamma", *["interval"] * with_interval]
    columns += ["cost"] * (comparison.cost_data is not None)
    columns += ["S/Y", "U/Y", "Y/Y", "harmonic", "recovered"] * with_test
    places = _places([row.estimate.gamma for row in comparison.rows if row.estimate is not None])

    def line(name: str, needs: str, cells: dict[str, str]) -> list[str]:
        return [name, *(cells.get(column, "") for column in columns), needs]

    lines = []
    if comparison.pretrained is not None:
        lines.append(line("pre-trained", "", _accuracies(comparison.pretrained)))
    if comparison.uncalibrated is not None:
        lines.append(line("fine-tuned", "", {"gamma": "0", **_accuracies(comparison.uncalibrated)}))
    lines += [line(row.method, row.needs, _cells(row, places)) for row in comparison.rows]
    return Table(["Acc in %" if with_test else "estimator", *columns, "needs"], lines)


def _places(gammas: Sequence[float]) -> int:
    """Return the decimals that show the largest gamma to three digits, two at least."""
    largest = max(map(abs, gammas), default=0.0)
    return max(2, 2 - math.floor(math.log10(largest))) if largest > 0 else 2


def _cells(row: ComparedEstimate, places: int) -> dict[str, str]:
    estimate = row.estimate
    if estimate is None:
        return {"gamma": "-"}
    cells = {"gamma": f"{estimate.gamma:.{places}f}"}
    if estimate.interval is not None:
        cells["interval"] = ", ".join(f"{end:.{places}f}" for end in estimate.interval)
    if estimate.expected_acc_seen is not None and estimate.acc_seen_before is not None:
        cells["cost"] = f"{100 * (estimate.acc_seen_before - estimate.expected_acc_seen):.1f}"
    if row.report is not None:
        cells |= _accuracies(row.report)
    if row.recovered is not None:
        cells["recovered"] = f"{100 * row.recovered:.0f}"
    return cells


def _accuracies(at: SeenAbsentReport) -> dict[str, str]:
    shown = {"S/Y": at.acc_seen, "U/Y": at.acc_absent, "Y/Y": at.acc_all, "harmonic": at.harmonic_mean}
    return {column: _percent(value) for column, value in shown.items()}


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
