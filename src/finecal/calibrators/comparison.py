"""Several estimates of gamma side by side: the record, and its table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..evaluation.report import SeenAbsentReport
from ..gamma.estimate import GammaEstimate
from ..results import lazy
from ..results.display import Block, Caution, Table
from ..results.format import UNDEFINED, decimal, percent
from ..results.records import data_frame
from ..results.result import Result
from .prototypes import PrototypesReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


_OF_ESTIMATE = ("gamma", "n", "expected_acc_seen", "acc_seen_before", "seen_share")
_OF_REPORT = ("acc_all", "acc_seen", "acc_absent", "harmonic_mean", "balanced")


@dataclass(frozen=True)
class ComparedEstimate:
    """One row of an `EstimatorComparison`.

    Attributes
    ----------
    method : str
        Name of the function.
    needs : str
        The data it was given, in words.
    estimate : GammaEstimate or None
        None where the data did not allow it; `error` says why.
    error : str or None
    report : SeenAbsentReport or None
        The accuracies on the test samples at this gamma, if there are any.
    recovered : float or None
        Share of the oracle's gain in `Acc_{Y/Y}` on the test samples; None without them, or if the oracle gains
        nothing. With prototypes it may exceed 1: the oracle has gamma alone.
    prototypes : PrototypesReport or None
        What the prototypes were made from, in the row that has them. There `estimate` is the gamma that they were made
        with, and its `expected_acc_seen` is what both leave, None without features of held-out samples; `report` is of
        the logits that they give, which need no gamma any more.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]])
    >>> comparison = finecal.compare_estimators(
    ...     [True, True, False, False], train=(logits, [0, 1])
    ... )
    >>> row = comparison.rows[1]
    >>> row.method, row.needs, row.estimate.gamma
    ('max_logit_gap', 'training logits', 2.0)
    """

    method: str
    needs: str
    estimate: GammaEstimate | None
    error: str | None = None
    report: SeenAbsentReport | None = None
    recovered: float | None = None
    prototypes: PrototypesReport | None = None


@dataclass(frozen=True)
class EstimatorComparison(Result):
    """Estimators of gamma side by side; made by `compare_estimators`. Prints as a Markdown table, with the warnings.

    Attributes
    ----------
    rows : tuple of ComparedEstimate
        Those that need least come first; prototypes follow the gamma that they were made with; the last one is the
        oracle where there are test samples of both groups.
    uncalibrated : SeenAbsentReport or None
        The accuracies on the test samples at gamma = 0.
    pretrained : SeenAbsentReport or None
        The same of the model before fine-tuning.
    cost_data : str or None
        What the cost to the seen classes was measured on.

    Examples
    --------
    See `compare_estimators`.
    """

    rows: tuple[ComparedEstimate, ...]
    uncalibrated: SeenAbsentReport | None = None
    pretrained: SeenAbsentReport | None = None
    cost_data: str | None = None

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per estimator: its estimate, and the accuracies at its gamma; NaN where unknown."""
        return data_frame([_record(row) for row in self.rows])

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw what each estimator reaches; see `finecal.plots.plot_estimators` (needs the extra ``plots``)."""
        axes: Axes = lazy.plots().plot_estimators(self, ax, **style)
        return axes

    def _blocks(self) -> Iterator[Block]:
        """The table, its notes, and the estimators' warnings."""
        with_interval = any(row.estimate is not None and row.estimate.interval is not None for row in self.rows)
        models = [("pre-trained", self.pretrained), ("fine-tuned", self.uncalibrated)]
        models += [("with prototypes", row.report) for row in self.rows if row.prototypes is not None]
        reports = [(name, report) for name, report in models if report is not None]
        yield [_table(self, with_interval)]
        if reports:
            notes = (
                f"{name} {percent(at.acc_seen_within)}, {percent(at.acc_absent_within)} and {decimal(at.ausuc, 3)}"
                for name, at in reports
            )
            yield [f"Acc_S/S, Acc_U/U and AUSUC, which no gamma changes: {'; '.join(notes)}."]
        if with_interval:
            yield ["Interval: 95 % sampling interval of gamma; of estimate_gamma with the error of the method."]
        if self.cost_data is not None:
            yield [f"Cost: points of Acc_S/Y lost against gamma = 0, on {self.cost_data}."]
        for row in self.rows:
            if row.error is not None:
                yield [f"Not possible: {row.method} from {row.needs}: {row.error}"]
            for sentence in _warnings(row):
                yield [Caution(f"Warning of {row.method} from {row.needs}: {sentence}")]


def _warnings(row: ComparedEstimate) -> tuple[str, ...]:
    """Return the warnings of the prototypes if it has any, else of gamma."""
    source = row.estimate if row.prototypes is None else row.prototypes
    return () if source is None else source.warnings


def _record(row: ComparedEstimate) -> dict[str, Any]:
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
        "warnings": "; ".join(_warnings(row)),
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
        return {"gamma": UNDEFINED}
    cells = {"gamma": f"{estimate.gamma:.{places}f}"}
    if estimate.interval is not None:
        cells["interval"] = ", ".join(f"{end:.{places}f}" for end in estimate.interval)
    if estimate.expected_acc_seen is not None and estimate.acc_seen_before is not None:
        cells["cost"] = percent(estimate.acc_seen_before - estimate.expected_acc_seen)
    if row.report is not None:
        cells |= _accuracies(row.report)
    if row.recovered is not None:
        cells["recovered"] = percent(row.recovered, 0)
    return cells


def _accuracies(at: SeenAbsentReport) -> dict[str, str]:
    shown = {"S/Y": at.acc_seen, "U/Y": at.acc_absent, "Y/Y": at.acc_all, "harmonic": at.harmonic_mean}
    return {column: percent(value) for column, value in shown.items()}
