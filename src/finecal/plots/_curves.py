"""Pictures of a seen-absent curve: its accuracies against each other, and against gamma."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from .._core.arrays import to_numpy
from .._core.checks import gamma_as_float
from .._core.curve import TradeoffCurve
from .._estimators.estimate import GammaEstimate
from ._axes import (
    MARKER,
    MOST_STEPS,
    STAR,
    Palette,
    axes_or_new,
    bulk,
    check_drawn,
    check_gammas,
    gamma_text,
    legend_below,
    palette_of,
    thin,
    widen,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HARMONIC_MEANS = (0.2, 0.4, 0.6, 0.8)
END = 1.02
"""End of both axes; beyond 1, so that a marker at 1 is complete."""


def plot_tradeoff(
    curve: TradeoffCurve[Any],
    ax: Axes | None = None,
    *,
    gammas: Mapping[str, SupportsFloat] | None = None,
    **style: Any,
) -> Axes:
    """Draw `Acc_{U/Y}` against `Acc_{S/Y}` over all gamma, with marks at gamma = 0 and the oracle.

    The oracle has the largest `Acc_{Y/Y}` on the labels of the curve. Thin lines have a constant harmonic mean.

    Parameters
    ----------
    curve : TradeoffCurve
        Of samples of seen and of absent classes.
    ax : matplotlib Axes, optional
        By default those of a new figure outside pyplot: save it with ``ax.figure.savefig``.
    gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
        Further points to mark, by their name in the legend.
    **style
        For the line, as in `Axes.plot`.

    Raises
    ------
    ValueError
        If the samples of the curve are of one group only, or one of `gammas` is not finite.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_tradeoff
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.tradeoff_curve(logits, [0, 2, 0], [True, True, False])
    >>> ax = plot_tradeoff(curve, gammas={"mine": 0.75})
    >>> ax.figure.savefig("tradeoff.png")  # doctest: +SKIP
    """
    check_drawn(curve, TradeoffCurve, "curve", "finecal.tradeoff_curve")
    chosen = {"best (oracle)": curve.best(), "no calibration": 0.0, **check_gammas(gammas)}
    points = {name: curve.at(gamma) for name, gamma in chosen.items()}
    ax = axes_or_new(ax, 4.7)
    palette = palette_of(ax)

    seen, absent = thin(to_numpy(curve.acc_seen), to_numpy(curve.acc_absent), 1, 1)
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
    """Draw lines of equal harmonic mean."""
    for mean in HARMONIC_MEANS:
        seen = np.geomspace(mean * END / (2 * END - mean), END, 60)
        absent = mean * seen / (2 * seen - mean)
        ax.plot(seen, absent, color=palette.guide, linewidth=0.7, zorder=0.5)
    side = ax.secondary_yaxis("right")
    side.set_yticks([mean * END / (2 * END - mean) for mean in HARMONIC_MEANS], [str(mean) for mean in HARMONIC_MEANS])
    side.set_ylabel("harmonic mean")
    side.tick_params(labelsize="small")


def plot_accuracy(
    curve: TradeoffCurve[Any], ax: Axes | None = None, *, gamma: SupportsFloat | None = None, **style: Any
) -> Axes:
    """Draw `Acc_{S/Y}`, `Acc_{U/Y}` and `Acc_{Y/Y}` against gamma, with lines at 0 and at `gamma`, and the oracle.

    The x-axis covers 0, `gamma` with its interval, the oracle, and the margins without outliers. Steps are exact.

    Parameters
    ----------
    curve : TradeoffCurve
        If its samples are of one group only, the oracle and the line of the other group are left out.
    gamma : float, 0-d tensor or GammaEstimate, optional
        By default only 0 has a line. The 95 % interval of an estimate, if it has one, is shaded.
    ax, **style
        As in `plot_tradeoff`.

    Raises
    ------
    ValueError
        If the curve has no samples, or `gamma` is not finite.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_accuracy
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> curve = finecal.tradeoff_curve(logits, [0, 2, 0], [True, True, False])
    >>> ax = plot_accuracy(curve, gamma=0.75)
    """
    check_drawn(curve, TradeoffCurve, "curve", "finecal.tradeoff_curve")
    if curve.n_seen + curve.n_absent == 0:
        raise ValueError("the curve has no samples, and no accuracies to draw: pass one of at least one sample")
    chosen = None if gamma is None else gamma_as_float(gamma)
    interval = gamma.interval if isinstance(gamma, GammaEstimate) else None
    best = curve.best() if curve.n_seen and curve.n_absent else None
    marked = [value for value in (0.0, chosen, best, *(interval or ())) if value is not None and np.isfinite(value)]
    ends = widen([*bulk(to_numpy(curve.samples.margin)), *marked])
    ax = axes_or_new(ax)
    palette = palette_of(ax)

    _draw_accuracies(ax, curve, ends, palette, style)
    ax.plot([0, 0], [0, 1], color=palette.guide, linestyle=":", label=gamma_text(0), gid="finecal-accuracy-zero")
    if chosen is not None:
        _draw_gamma(ax, chosen, interval, ends, palette)
    if best is not None:
        star: dict[str, Any] = {**STAR, "facecolors": palette.best, "edgecolors": palette.ink}
        label = f"best (oracle), {gamma_text(best)}"
        ax.scatter(best, curve.at(best).acc_all, label=label, gid="finecal-accuracy-best", **star)
    ax.set(
        xlim=ends,
        ylim=(0, 1.02),
        yticks=np.linspace(0, 1, 6),
        xlabel=r"$\gamma$, added to every absent logit",
        ylabel="accuracy",
        title=r"Accuracy at every $\gamma$",
    )
    ax.grid(axis="y", alpha=0.25)
    ax.locator_params(axis="x", nbins=MOST_STEPS)
    legend_below(ax, palette)
    return ax


def _draw_accuracies(
    ax: Axes, curve: TradeoffCurve[Any], ends: tuple[float, float], palette: Palette, style: dict[str, Any]
) -> None:
    """Draw the steps of each accuracy between the `ends` of the x-axis; not those that are NaN."""
    breakpoints = to_numpy(curve.breakpoints)
    first, last = np.searchsorted(breakpoints, ends)
    edges = np.concatenate([[ends[0]], breakpoints[first:last], [ends[1]]])
    for name, accuracy, colour, look in (
        ("all", curve.acc_all, palette.ink, {"label": "$Acc_{Y/Y}$, all", "linewidth": 2.5}),
        ("seen", curve.acc_seen, palette.seen, {"label": "$Acc_{S/Y}$, seen", "linestyle": "--"}),
        ("absent", curve.acc_absent, palette.absent, {"label": "$Acc_{U/Y}$, absent", "linestyle": "-."}),
    ):
        values = to_numpy(accuracy)[first : last + 1]
        if np.isnan(values).any():
            continue
        x, y = thin(edges, np.append(values, values[-1]), ends[1] - ends[0], 1)
        line = {"color": colour, "gid": f"finecal-accuracy-{name}", "drawstyle": "steps-post", **look, **style}
        ax.plot(x, y, **line)


def _draw_gamma(
    ax: Axes, gamma: float, interval: tuple[float, float] | None, ends: tuple[float, float], palette: Palette
) -> None:
    """Draw the line at gamma, and its interval as far as the `ends` of the x-axis."""
    label = gamma_text(gamma)
    if interval is not None:
        label += " ({:.3g} to {:.3g})".format(*interval)
        shade: dict[str, Any] = {"alpha": 0.3, "linewidth": 0, "gid": "finecal-accuracy-interval"}
        ax.fill_betweenx([0, 1], *np.clip(interval, *ends), color=palette.gamma, **shade)
    ax.plot([gamma, gamma], [0, 1], color=palette.gamma, linewidth=2, label=label, gid="finecal-accuracy-gamma")
