"""New axes, and a legend that nothing can run into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

WIDTH, HEIGHT, DPI = 4.5, 3.8, 160
"""Inches, and dots per inch: text can be read where the picture is scaled to 400 pixels."""
MOST_STEPS = 6
"""Between numbers on the x-axis: more would touch."""
_SPARE, _SPARE_ALONE = 1.15, 1.03
"""How much larger than a text its room is: axes in a grid shrink a little when their neighbours get labels."""
_FULL = 0.93
"""Part of a width that texts may take: between two some space remains."""
_LEGEND: dict[str, Any] = {
    "loc": "upper left",
    "frameon": False,
    "borderaxespad": 0.2,
    "columnspacing": 1.0,
    "handletextpad": 0.5,
    "labelspacing": 0.35,
}
_GAP = 2
"""Points between the legend and the data."""
_MOST = 0.5
"""Part of the height of the axes that the legend may take."""


def given_or_new(ax: Axes | None, height: float = HEIGHT) -> Axes:
    """Return `ax`; for None axes on a figure that pyplot does not know."""
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("finecal.plots draws with matplotlib: pip install 'finecal[plots]'") from error
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"ax is a {type(ax).__name__}; pass one matplotlib Axes, as plt.subplots()[1] is, or None")
        return ax
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained").subplots()


def legend_above(ax: Axes, palette: Palette, top: float) -> None:
    """Put the legend above the data, which end at y = `top`: the y-axis grows by its height, without ticks.

    As many columns as the width allows, three at most. If one is too wide or too high, letters and handles shrink.
    """
    from matplotlib.font_manager import FontProperties

    width, height = room_of(ax)
    size, look = FontProperties(size="small").get_size_in_points(), {**_LEGEND, "labelcolor": palette.ink}
    for columns in (3, 2, 1):
        box = ax.legend(ncols=columns, fontsize=size, **look).get_window_extent()
        if box.width <= width:
            break
    shrink = min(1.0, width / box.width, _MOST * height / box.height)
    if shrink < 1:
        box = ax.legend(ncols=columns, fontsize=shrink * size, markerscale=shrink, **look).get_window_extent()
    share = (ax.get_window_extent().y1 - box.y0 + _GAP * ax.figure.dpi / 72) / height
    bottom = ax.get_ylim()[0]
    ax.set_yticks([tick for tick in ax.get_yticks() if bottom <= tick <= top])
    ax.set_ylim(bottom, bottom + (top - bottom) / (1 - share))
    ax.grid(visible=False, axis="x")  # Its lines would run through the legend.


def room_of(ax: Axes) -> tuple[float, float]:
    """Return the width and the height inside `ax`, in pixels, that texts may fill."""
    ax.figure.figure.draw_without_rendering()  # Only the layout tells how large the axes are.
    room, spare = ax.get_window_extent(), _SPARE if len(ax.figure.axes) > 1 else _SPARE_ALONE
    return room.width / spare, room.height / spare


def fit_texts(lines: Sequence[Sequence[Text]], width: float) -> None:
    """Make the letters of all texts smaller if those of one of the lines together fill `width` pixels."""
    widest = max((sum(text.get_window_extent().width for text in line) for line in lines), default=0.0)
    for text in (text for line in lines for text in line):
        text.set_fontsize(float(text.get_fontsize()) * min(1.0, _FULL * width / max(widest, 1.0)))


def gamma_number(gamma: float) -> str:
    """Return gamma with two decimals, or three digits where these say nothing or are too many."""
    return f"{gamma:.2f}" if 0.1 <= abs(gamma) < 1e5 else f"{gamma:.3g}"


def gamma_text(gamma: float) -> str:
    return rf"$\gamma$ = {gamma_number(gamma)}"
