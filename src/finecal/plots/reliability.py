"""The picture of how far probabilities can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.probabilities import ProbabilityReport
from ..inputs.arrays import to_numpy
from .arguments import check_drawn
from .axes import gamma_text, given_or_new, legend_below, room_of
from .palette import palette_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 0.08
"""Of the mark of a bin that has all samples, as a part of the side of the axes."""
START, END = -0.05, 1.05
"""Of both axes: such a mark at 0 or 1 is seen as a whole."""


def plot_reliability(report: ProbabilityReport[Any], ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the share of correct predictions against the confidence, for seen, for absent and for all samples.

    On the diagonal a confidence of 0.7 is right in 70 % of cases; below it the model is overconfident. A dot is a bin
    of equal width that has any samples; the area of the pale mark around it is the share of the group's samples in it.

    Parameters
    ----------
    report : ProbabilityReport
        Groups without samples are left out.
    ax : matplotlib Axes, optional
        As in `plot_tradeoff`.
    **style
        For the lines of the groups, as in `Axes.plot`.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `report` is something else, or `ax` no axes.
    ValueError
        If the report is of no samples.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_reliability
    >>> logits = np.log([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3]])
    >>> report = finecal.evaluate_probabilities(logits, [0, 1, 2], [True, True, False])
    >>> ax = plot_reliability(report)
    >>> ax.figure.savefig("reliability.png")  # doctest: +SKIP
    """
    check_drawn(report, ProbabilityReport, "report", "finecal.evaluate_probabilities")
    if report.all.n == 0:
        raise ValueError("the report is of no samples, and there is nothing to draw: pass one of at least one sample")
    ax = given_or_new(ax, 4.7)
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
