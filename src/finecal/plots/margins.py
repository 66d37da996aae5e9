"""The picture of the margins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, SupportsFloat, cast

import numpy as np

from ..evaluation.margins import Margins
from ..inputs.arrays import to_numpy
from ..inputs.checks import gamma_as_float
from .arguments import check_drawn
from .axes import MOST_STEPS, gamma_text, given_or_new, legend_below
from .palette import palette_of
from .scale import bulk, widened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

BINS = 40


def plot_margins(
    margins: Margins[Any], ax: Axes | None = None, *, gamma: SupportsFloat | None = None, **style: Any
) -> Axes:
    """Draw histograms of the margins of seen and of absent samples, with lines at 0 and at gamma.

    A sample is predicted absent if its margin lies left of the line: of the line at 0 before, at gamma after.

    Parameters
    ----------
    margins : Margins
        Infinite ones and far outliers are left out; the legend counts them.
    ax : matplotlib Axes, optional
        As in `plot_tradeoff`.
    gamma : float, 0-d tensor or GammaEstimate, optional
        By default there is no line but the one at 0.
    **style
        For both histograms, as in `Axes.hist`: ``bins``, ``density``, ...

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `margins` is something else, or `ax` no axes.
    ValueError
        If `gamma` is not finite.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_margins
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> samples = finecal.margins(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False]
    ... )
    >>> ax = plot_margins(samples, gamma=0.75)
    >>> ax.figure.savefig("margins.png")  # doctest: +SKIP
    """
    check_drawn(margins, Margins, "margins", "finecal.margins")
    ax = given_or_new(ax)
    palette = palette_of(ax)
    margin, is_seen = to_numpy(margins.margin), to_numpy(margins.is_seen)
    low, high = bulk(margin)
    shown = (margin >= low) & (margin <= high)
    groups = {"seen": is_seen, "absent": ~is_seen}
    edges = np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 1, low + 1, BINS + 1)
    if isinstance(style.get("color"), str):  # one for both, which older versions of matplotlib do not take
        style = {**style, "color": [style["color"]] * len(groups)}
    _, _, bars = ax.hist(
        [margin[shown & group].astype(np.float64) for group in groups.values()],
        **{
            "bins": edges,
            "histtype": "stepfilled",
            "color": [(*colour, 0.5) for colour in (palette.seen, palette.absent)],
            "label": [f"{name} ({_counted(shown[group])})" for name, group in groups.items()],
            **style,
        },
    )
    # Where they overlap, an outline and hatching tell the groups apart, without colours as well.
    colours = style.get("color", (palette.seen, palette.absent))
    looks: list[dict[str, Any]] = [{}, {"hatch": "////"}]
    for group_bars, colour, look in zip(cast("Iterable[Iterable[Patch]]", bars), colours, looks, strict=True):
        for bar in group_bars:
            bar.set(edgecolor=colour, **look)

    top = ax.get_ylim()[1]
    lines = {"zero": 0.0} if gamma is None else {"zero": 0.0, "gamma": gamma_as_float(gamma)}
    line_looks: list[dict[str, Any]] = [
        {"color": palette.ink, "linestyle": "--"},
        {"color": palette.gamma, "linewidth": 2.5},
    ]
    for (name, value), look in zip(lines.items(), line_looks, strict=False):
        ax.plot([value, value], [0, top], label=gamma_text(value), gid=f"finecal-margins-{name}", **look)
    ax.set(
        xlim=widened(ax.dataLim.intervalx),
        ylim=(0, top),
        xlabel="margin: largest seen $-$ largest absent logit",
        ylabel="density" if style.get("density") else "samples",
        title="Left of the line: predicted absent",
    )
    ax.locator_params(axis="x", nbins=MOST_STEPS)
    legend_below(ax, palette)
    return ax


def _counted(shown: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    outside = int((~shown).sum())
    return f"{shown.sum()}, {outside} outside" if outside else str(shown.sum())
