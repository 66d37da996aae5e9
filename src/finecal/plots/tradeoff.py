"""The picture of the seen-absent curve."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from ..evaluation.curve import TradeoffCurve
from ..inputs.arrays import to_numpy
from .arguments import check_drawn, check_gammas
from .axes import MARKER, STAR, gamma_text, given_or_new, legend_below
from .palette import Palette, palette_of
from .scale import thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HARMONIC_MEANS = (0.2, 0.4, 0.6, 0.8)
END = 1.02
"""Of both axes: a marker at 1 is seen as a whole."""


def plot_tradeoff(
    curve: TradeoffCurve[Any],
    ax: Axes | None = None,
    *,
    gammas: Mapping[str, SupportsFloat] | None = None,
    **style: Any,
) -> Axes:
    """Draw `Acc_{U/Y}` against `Acc_{S/Y}` over all gamma, marking gamma = 0 and the best point.

    The best point is the one with the highest `Acc_{Y/Y}` on the labels of the curve, and says so: oracle. Along a thin
    line the harmonic mean of the two accuracies is the same: it is written where the line meets the right side.

    Parameters
    ----------
    curve : TradeoffCurve
        Of samples of seen and of absent classes.
    ax : matplotlib Axes, optional
        Where to draw; by default on a new figure, which pyplot does not know: save it with ``ax.figure.savefig``.
    gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
        Further points to mark, by the name that they get in the legend.
    **style
        For the line of the curve, as in `Axes.plot`.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `curve` is something else, or `ax` no axes.
    ValueError
        If the samples of the curve are of one group only, or one of `gammas` is not finite.

    Notes
    -----
    Operating points that lie closer together than a pixel are left out of the line.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_tradeoff
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> samples = finecal.margins(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False]
    ... )
    >>> ax = plot_tradeoff(samples.curve(), gammas={"mine": 0.75})
    >>> ax.figure.savefig("tradeoff.png")  # doctest: +SKIP
    """
    check_drawn(curve, TradeoffCurve, "curve", "finecal.tradeoff_curve")
    chosen = {"best (oracle)": curve.best(), "no calibration": 0.0, **check_gammas(gammas)}
    points = {name: curve.at(gamma) for name, gamma in chosen.items()}
    ax = given_or_new(ax, 4.7)
    palette = palette_of(ax)

    seen, absent = thinned(to_numpy(curve.acc_seen), to_numpy(curve.acc_absent), 1, 1)
    ax.plot(seen, absent, **{"color": palette.seen, "linewidth": 2, "gid": "finecal-tradeoff-curve", **style})
    looks: list[dict[str, Any]] = [
        {**STAR, "facecolors": palette.best, "gid": "finecal-tradeoff-best"},
        {"marker": "o", "facecolors": palette.ink, "gid": "finecal-tradeoff-zero"},
    ]
    colours = cycle((palette.absent, palette.other, palette.gamma))
    for number, marker, colour in zip(range(len(points) - 2), cycle("sDv^<"), colours, strict=False):
        looks.append({"marker": marker, "facecolors": colour, "gid": f"finecal-tradeoff-chosen-{number}"})
    for (name, at), look in zip(points.items(), looks, strict=True):
        mark = {**MARKER, "s": 75, "edgecolors": palette.ink, "clip_on": False, **look}
        ax.scatter(at.acc_seen, at.acc_absent, label=f"{name}, {gamma_text(at.gamma)}", **mark)

    ticks = np.linspace(0, 1, 6)
    ax.set(
        xlim=(0, END),
        ylim=(0, END),
        xticks=ticks,
        yticks=ticks,
        xlabel=r"$Acc_{S/Y}$, seen classes",
        ylabel=r"$Acc_{U/Y}$, absent classes",
        title=f"Seen-absent curve, AUSUC {curve.ausuc:.3f}",
    )
    ax.grid(visible=False)
    _draw_harmonic_means(ax, palette)
    legend_below(ax, palette)
    return ax


def _draw_harmonic_means(ax: Axes, palette: Palette) -> None:
    """Draw a line through all points of equal harmonic mean, for a few values."""
    for mean in HARMONIC_MEANS:
        seen = np.geomspace(mean * END / (2 * END - mean), END, 60)
        absent = mean * seen / (2 * seen - mean)
        ax.plot(seen, absent, color=palette.guide, linewidth=0.7, zorder=0.5)
    side = ax.secondary_yaxis("right")
    side.set_yticks([mean * END / (2 * END - mean) for mean in HARMONIC_MEANS], [str(mean) for mean in HARMONIC_MEANS])
    side.set_ylabel("harmonic mean")
    side.tick_params(labelsize="small")
