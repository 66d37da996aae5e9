"""Pictures of estimators side by side, and of the reliability of probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._calibrators.compare import ComparedEstimate, EstimatorComparison
from .._core.arrays import to_numpy
from ..probabilities import ProbabilityReport
from ._axes import (
    MOST_STEPS,
    Palette,
    axes_or_new,
    check_drawn,
    fit_texts,
    gamma_text,
    legend_below,
    palette_of,
    room_of,
    widen,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

TEXT, LINE = -0.28, -0.75
"""Positions of name and line in a row, whose height is 1."""
LARGEST_TEXT, LARGEST_MARK = 0.45, 0.5
"""Largest heights of letters and marks, as shares of that of a row."""


def plot_estimators(comparison: EstimatorComparison, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the `Acc_{Y/Y}` of each estimator on the test samples; without test samples, its gamma.

    With test samples, each row has a line from the accuracy without calibration to that of the oracle. Without, the bar
    through a point is the interval of gamma, if there is one.

    Parameters
    ----------
    comparison : EstimatorComparison
        An estimator without an estimate has no point and the text "not possible".
    ax, **style
        As in `plot_tradeoff`; the style is that of the points.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_estimators
    >>> logits = np.tile([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]], (20, 1))
    >>> train, seen_mask = (logits, np.tile([0, 1], 20)), [True, True, False, False]
    >>> ax = plot_estimators(finecal.compare_estimators(seen_mask, train=train))
    """
    check_drawn(comparison, EstimatorComparison, "comparison", "finecal.compare_estimators")
    rows = [row for row in comparison.rows if row.method != "oracle"]
    ax = axes_or_new(ax, 1.6 + 0.42 * len(rows))
    palette = palette_of(ax)
    references = _references(comparison)
    point = {"marker": "o", "markersize": 10, "linestyle": "none", "color": palette.seen, "zorder": 3, **style}
    for number, row in enumerate(rows):
        y, value = LINE - number, _value(row)
        interval = None if references or row.estimate is None else row.estimate.interval
        ends = tuple(references.values()) if references else interval
        if ends is not None:
            ax.plot(ends, [y, y], color=palette.guide, linewidth=2, zorder=1, solid_capstyle="butt")
        if value is not None:
            label = "_" if number else "estimate"
            ax.plot(value, y, **{**point, "label": label, "gid": f"finecal-estimators-{number}"})
    _draw_references(ax, references, len(rows), palette)

    ax.set(
        xlim=widen(ax.dataLim.intervalx),
        ylim=(-len(rows), 0),
        yticks=[],
        xlabel="$Acc_{Y/Y}$ on the test samples" if references else r"$\gamma$",
        title=r"Estimators of $\gamma$",
    )
    ax.grid(visible=False)
    ax.locator_params(axis="x", nbins=MOST_STEPS)
    legend_below(ax, palette)
    _write_names(ax, rows, palette)
    return ax


def _value(row: ComparedEstimate) -> float | None:
    """Return the accuracy of a row, or gamma without test samples; None without an estimate."""
    if row.estimate is None:
        return None
    return row.estimate.gamma if row.report is None else row.report.acc_all


def _references(comparison: EstimatorComparison) -> Mapping[str, float]:
    """Return the accuracies without calibration and of the oracle; none without test samples."""
    oracle = next((row.report for row in comparison.rows if row.method == "oracle"), None)
    if oracle is None or comparison.uncalibrated is None:
        return {}
    return {"no calibration": comparison.uncalibrated.acc_all, "oracle": oracle.acc_all}


def _draw_references(ax: Axes, references: Mapping[str, float], rows: int, palette: Palette) -> None:
    """Mark the references, or else 0, in each row."""
    looks: dict[str, dict[str, Any]] = {
        "no calibration": {"marker": "|", "markersize": 13, "markeredgewidth": 2, "color": palette.ink, "zorder": 2},
        "oracle": {
            "marker": "*",
            "markersize": 12,
            "color": palette.best,
            "markeredgecolor": palette.ink,
            "markeredgewidth": 0.8,
            "zorder": 4,
        },
    }
    heights = [LINE - number for number in range(rows)]
    for name, value in references.items():
        label = f"{name} {value:.3f}"
        ax.plot([value] * rows, heights, linestyle="none", label=label, **looks[name])
    if not references:
        zero = {**looks["no calibration"], "linestyle": "none", "label": gamma_text(0)}
        ax.plot([0] * rows, heights, **zero)


def _write_names(ax: Axes, rows: Sequence[ComparedEstimate], palette: Palette) -> None:
    """Write name and number above the line of each row, inside the axes, so that nothing cuts them off."""
    points_per_pixel = 72 / ax.figure.dpi
    row_height = abs(ax.transData.transform((0, 1))[1] - ax.transData.transform((0, 0))[1]) * points_per_pixel
    for line in ax.get_lines():
        line.set_markersize(min(line.get_markersize(), LARGEST_MARK * row_height))
    texts: list[tuple[Text, Text]] = []
    for number, row in enumerate(rows):
        value = _value(row)
        shown = "not possible" if value is None else gamma_text(value) if row.report is None else f"{value:.3f}"
        common: dict[str, Any] = {
            "color": palette.ink,
            "transform": ax.get_yaxis_transform(),
            "verticalalignment": "center",
        }
        texts.append(
            (
                ax.text(0.015, TEXT - number, f"{row.method}, {row.needs}", **common),
                ax.text(0.985, TEXT - number, shown, horizontalalignment="right", **common),
            )
        )
    for pair in texts:
        for text in pair:
            text.set_fontsize(min(float(text.get_fontsize()) * 0.9, LARGEST_TEXT * row_height))
    fit_texts(texts, room_of(ax)[0])


SIDE = 0.08
"""Side of the mark of a bin with all samples, as a share of the side of the axes."""
START, END = -0.05, 1.05
"""Ends of both axes, so that such a mark at 0 or 1 is complete."""


def plot_reliability(report: ProbabilityReport[Any], ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the share of correct predictions against the confidence, for seen, for absent and for all samples.

    A dot is a bin of equal width with samples; the area of the pale mark around it is proportional to their number.

    Parameters
    ----------
    report : ProbabilityReport
        Groups without samples are left out. ValueError if there are none at all.
    ax, **style
        As in `plot_tradeoff`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_reliability
    >>> from finecal.probabilities import evaluate_probabilities
    >>> logits = np.log([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3]])
    >>> report = evaluate_probabilities(logits, [0, 1, 2], [True, True, False])
    >>> ax = plot_reliability(report)
    """
    check_drawn(report, ProbabilityReport, "report", "finecal.probabilities.evaluate_probabilities")
    if report.all.n == 0:
        raise ValueError("the report is of no samples, and there is nothing to draw: pass one of at least one sample")
    ax = axes_or_new(ax, 4.7)
    palette = palette_of(ax)
    side = SIDE * min(room_of(ax)) * 72 / ax.figure.dpi
    ax.plot([0, 1], [0, 1], color=palette.guide, linestyle=":", linewidth=1, label="as confident as correct")
    for name, scores, marker, look in (
        ("all", report.all, "", {"color": palette.ink, "linestyle": "-."}),
        ("seen", report.seen, "o", {"color": palette.seen, "linestyle": "-"}),
        ("absent", report.absent, "s", {"color": palette.absent, "linestyle": "--"}),
    ):
        if scores.n == 0:
            continue
        count = to_numpy(scores.bins.count)
        filled = count > 0
        x, y = to_numpy(scores.bins.confidence)[filled], to_numpy(scores.bins.accuracy)[filled]
        label = f"{name} ({scores.n}), ECE {scores.ece:.3f}"
        line = {"linewidth": 1, "marker": marker, "markersize": 3, "label": label, **look, **style}
        (drawn,) = ax.plot(x, y, gid=f"finecal-reliability-{name}", **line)
        if marker:
            area = side**2 * count[filled] / scores.n
            ax.scatter(x, y, s=area, marker=marker, color=drawn.get_color(), alpha=0.5, linewidths=0, clip_on=False)
    ticks = np.linspace(0, 1, 6)
    ax.set(
        xlim=(START, END),
        ylim=(START, END),
        xticks=ticks,
        yticks=ticks,
        xlabel="confidence: probability of the prediction",
        ylabel="share of correct predictions",
        title=f"Reliability at {gamma_text(report.gamma)}",
    )
    ax.grid(axis="y", alpha=0.25)
    legend_below(ax, palette)
    return ax
