"""Pictures of logits: histograms of the margins, and the gap before and after fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, SupportsFloat, cast

import numpy as np

from .._core.arrays import to_numpy
from .._core.checks import gamma_as_float
from .._core.report import Margins
from .._evaluation.diagnosis import Diagnosis
from ._axes import (
    MOST_STEPS,
    axes_or_new,
    bulk,
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
    from matplotlib.patches import Patch

BINS = 40


def plot_margins(
    margins: Margins[Any], ax: Axes | None = None, *, gamma: SupportsFloat | None = None, **style: Any
) -> Axes:
    """Draw histograms of the margins of seen and absent samples, with lines at 0 and at `gamma`.

    Samples to the left of a line are predicted absent at that gamma.

    Parameters
    ----------
    margins : Margins
        Infinite margins and outliers are not drawn; the legend has their number.
    ax : matplotlib Axes, optional
        As in `plot_tradeoff`.
    gamma : float, 0-d tensor or GammaEstimate, optional
        By default only 0 has a line. ValueError if it is not finite.
    **style
        For both histograms, as in `Axes.hist`: ``bins``, ``density``, ...

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_margins
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> samples = finecal.Samples(logits, labels=[0, 2, 0])
    >>> ax = plot_margins(samples.margins([True, True, False]), gamma=0.75)
    """
    check_drawn(margins, Margins, "margins", "Samples.margins")
    ax = axes_or_new(ax)
    palette = palette_of(ax)
    margin, is_seen = to_numpy(margins.margin), to_numpy(margins.is_seen)
    low, high = bulk(margin)
    shown = (margin >= low) & (margin <= high)
    groups = {"seen": is_seen, "absent": ~is_seen}
    edges = np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 1, low + 1, BINS + 1)
    if isinstance(style.get("color"), str):  # older versions of matplotlib require one per group
        style = {**style, "color": [style["color"]] * len(groups)}
    _, _, bars = ax.hist(
        [margin[shown & group].astype(np.float64) for group in groups.values()],
        **{
            "bins": edges,
            "histtype": "stepfilled",
            "color": [(*colour, 0.5) for colour in (palette.seen, palette.absent)],
            "label": [f"{name} ({_count_text(shown[group])})" for name, group in groups.items()],
            **style,
        },
    )
    # Outline and hatching distinguish the groups where they overlap, and without colours.
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
        xlim=widen(ax.dataLim.intervalx),
        ylim=(0, top),
        xlabel="margin: largest seen $-$ largest absent logit",
        ylabel="density" if style.get("density") else "samples",
        title="Left of the line: predicted absent",
    )
    ax.locator_params(axis="x", nbins=MOST_STEPS)
    legend_below(ax, palette)
    return ax


def _count_text(shown: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    outside = int((~shown).sum())
    return f"{shown.sum()}, {outside} outside" if outside else str(shown.sum())


BAR = 0.38
"""Width of a bar; groups of bars are 1 apart."""
LEFT, RIGHT = -0.6, 1.6
"""Ends of the x-axis."""
LONGEST = 9
"""Most characters of a number in fixed-point notation."""
SPARE = 0.16
"""Share of the height reserved above and below for the numbers at the ends of the bars."""


def plot_gaps(diagnosis: Diagnosis, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the mean gap between the largest seen and the largest absent logit, before and after fine-tuning.

    The gap excludes the logit of the label. Its increase for absent samples is about the gamma that removes it.

    Parameters
    ----------
    diagnosis : Diagnosis
        Drawn is the `max_gap` of `pretrained_gaps` and `finetuned_gaps`; NaN has the text "undefined" and no bar.
    ax, **style
        As in `plot_tradeoff`; the style is that of the bars, as in `Axes.bar`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_gaps
    >>> labels, seen_mask = np.arange(300) % 4, np.array([True, True, False, False])
    >>> before = 5 * np.eye(4)[labels]
    >>> logits = before + 9 * seen_mask
    >>> samples = finecal.Samples(logits, labels, pretrained_logits=before)
    >>> ax = plot_gaps(finecal.diagnose(samples, seen_mask))
    """
    check_drawn(diagnosis, Diagnosis, "diagnosis", "finecal.diagnose")
    ax = axes_or_new(ax)
    palette = palette_of(ax)
    models = {"pretrained": diagnosis.pretrained_gaps, "finetuned": diagnosis.finetuned_gaps}
    means = {model: (gaps.seen.max_gap, gaps.absent.max_gap) for model, gaps in models.items()}
    ends = [0.0, *(gap for pair in means.values() for gap in pair if not math.isnan(gap))]
    low, high = min(ends), max(ends)
    spare = SPARE * (high - low) or 1.0
    top = high + spare
    numbers = []
    for model, label, shift, look in (
        ("pretrained", "pre-trained", -0.5, {"facecolor": palette.face, "hatch": "///"}),
        ("finetuned", "fine-tuned", 0.5, {"facecolor": palette.other}),
    ):
        common = {"width": BAR, "edgecolor": palette.other, "linewidth": 1.2, **look, **style}
        for place, (group, gap) in enumerate(zip(("seen", "absent"), means[model], strict=True)):
            x, height = place + shift * BAR, 0.0 if math.isnan(gap) else gap
            (bar,) = ax.bar(x, height, label=label if place == 0 else "_", **common)
            bar.set_gid(f"finecal-gaps-{model}-{group}")
            number = ax.annotate(
                "undefined" if math.isnan(gap) else _gap_text(gap, max(high, -low)),
                (x, height),
                xytext=(0, 3 if height >= 0 else -3),
                textcoords="offset points",
                horizontalalignment="center",
                verticalalignment="bottom" if height >= 0 else "top",
                color=palette.ink,
            )
            numbers.append([number])

    ax.axhline(0, color=palette.ink, linewidth=1)
    ax.set(
        xlim=(LEFT, RIGHT),
        ylim=(low - spare if low < 0 else 0, top),
        xlabel="label of the sample",
        ylabel="largest seen $-$ largest absent logit",
        title="Mean logit gap",
    )
    ax.set_xticks([0, 1], ["seen", "absent"])
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False)
    legend_below(ax, palette)
    fit_texts(numbers, room_of(ax)[0] * BAR / (RIGHT - LEFT))
    return ax


def _gap_text(gap: float, largest: float) -> str:
    """Return `gap` with the number of decimals that shows three digits of `largest`."""
    digits = 2 - math.floor(math.log10(largest)) if largest else 0
    text = f"{round(gap, digits) + 0.0:.{max(digits, 0)}f}"  # + 0.0: no minus before zero
    return text if len(text) <= LONGEST else f"{gap:.3g}"
