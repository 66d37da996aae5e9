"""The picture of the gap between the logits of seen and of absent classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..evaluation.diagnosis import Diagnosis
from .arguments import check_drawn
from .axes import fit_texts, given_or_new, legend_below, room_of
from .palette import palette_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR = 0.38
"""Its width; groups of bars are 1 apart."""
LEFT, RIGHT = -0.6, 1.6
"""Ends of the x-axis."""
LONGEST = 9
"""Characters of a number in full."""
SPARE = 0.16
"""Part of the height that numbers at the ends of the bars may need, above and below."""


def plot_gaps(diagnosis: Diagnosis, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the mean gap between the largest seen and the largest absent logit, before and after fine-tuning.

    For samples with a seen and with an absent label, the label's own logit left out: what is left should be the same
    for both groups, and near 0. What fine-tuning added for absent samples is about the gamma that takes it back.

    Parameters
    ----------
    diagnosis : Diagnosis
        Its `pretrained_gaps` and `finetuned_gaps` are drawn, of which `max_gap`; a gap that is NaN has no bar and says
        "undefined".
    ax : matplotlib Axes, optional
        As in `plot_tradeoff`.
    **style
        For the bars, as in `Axes.bar`.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `diagnosis` is something else, or `ax` no axes.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_gaps
    >>> labels = np.arange(300) % 4
    >>> pretrained_logits = 5 * np.eye(4)[labels]
    >>> seen_mask = np.array([True, True, False, False])
    >>> logits = pretrained_logits + 9 * seen_mask
    >>> samples = finecal.Samples(logits, labels, pretrained_logits=pretrained_logits)
    >>> ax = plot_gaps(finecal.diagnose(samples, seen_mask))
    >>> ax.figure.savefig("gaps.png")  # doctest: +SKIP
    """
    check_drawn(diagnosis, Diagnosis, "diagnosis", "finecal.diagnose")
    ax = given_or_new(ax)
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
                "undefined" if math.isnan(gap) else _rounded(gap, max(high, -low)),
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


def _rounded(gap: float, largest: float) -> str:
    """Return `gap` with as many decimals as three digits of `largest` have, as numbers side by side should."""
    digits = 2 - math.floor(math.log10(largest)) if largest else 0
    text = f"{round(gap, digits) + 0.0:.{max(digits, 0)}f}"  # + 0.0: no minus before zero
    return text if len(text) <= LONGEST else f"{gap:.3g}"
