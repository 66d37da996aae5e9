"""The picture of estimators side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..calibrators.comparison import ComparedEstimate, EstimatorComparison
from .arguments import check_drawn
from .axes import MOST_STEPS, fit_texts, gamma_text, given_or_new, legend_below, room_of
from .palette import Palette, palette_of
from .scale import widened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

TEXT, LINE = -0.28, -0.75
"""Where in a row, of height 1, its name and its line are."""
LARGEST_TEXT, LARGEST_MARK = 0.45, 0.5
"""Parts of a row that letters and marks may be high."""


def plot_estimators(comparison: EstimatorComparison, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw what each estimator reaches: `Acc_{Y/Y}` on the test samples, or gamma where there are none.

    With test samples, a line leads from the accuracy without calibration to that of the oracle in each row: the point
    of an estimator lies on it where it recovers a part of the gain, and left of it where it does harm; with prototypes
    it lies right of it where they bring more than any gamma. Without, the bar through a point is the interval of gamma,
    if there is one.

    Parameters
    ----------
    comparison : EstimatorComparison
        An estimator that the data did not allow has no point and says "not possible".
    ax : matplotlib Axes, optional
        As in `plot_tradeoff`.
    **style
        For the points, as in `Axes.plot`.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `comparison` is something else, or `ax` no axes.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_estimators
    >>> logits = np.tile([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]], (20, 1))
    >>> labels = np.tile([0, 1], 20)
    >>> comparison = finecal.compare_estimators(
    ...     [True, True, False, False], train=(logits, labels)
    ... )
    >>> ax = plot_estimators(comparison)
    >>> ax.figure.savefig("estimators.png")  # doctest: +SKIP
    """
    check_drawn(comparison, EstimatorComparison, "comparison", "finecal.compare_estimators")
    rows = [row for row in comparison.rows if row.method != "oracle"]
    ax = given_or_new(ax, 1.6 + 0.42 * len(rows))
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
        xlim=widened(ax.dataLim.intervalx),
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
    """Return what is drawn of a row, if there is anything."""
    if row.estimate is None:
        return None
    return row.estimate.gamma if row.report is None else row.report.acc_all


def _references(comparison: EstimatorComparison) -> Mapping[str, float]:
    """Return the accuracies that the estimators are measured by; none without test samples."""
    oracle = next((row.report for row in comparison.rows if row.method == "oracle"), None)
    if oracle is None or comparison.uncalibrated is None:
        return {}
    return {"no calibration": comparison.uncalibrated.acc_all, "oracle": oracle.acc_all}


def _draw_references(ax: Axes, references: Mapping[str, float], rows: int, palette: Palette) -> None:
    """Mark the references in each row, beside the text; without any, mark 0."""
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
    """Write name and number over the line of each row: inside the axes, where nothing cuts them off."""
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
