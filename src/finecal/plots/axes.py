"""New axes, a legend that nothing can run into, and the looks of markers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

WIDTH, HEIGHT, DPI = 4.5, 4.1, 160
"""Inches, and dots per inch: text can be read where the picture is scaled to 400 pixels."""
MOST_STEPS = 6
"""Between numbers on the x-axis: more would touch."""
_SPARE, _SPARE_ALONE = 1.15, 1.03
"""How much larger than a text its room is: axes in a grid shrink a little when their neighbours get labels."""
_FULL = 0.93
"""Part of a width that texts may take: between two some space remains."""
_LEGEND: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, 0.0),
    "frameon": False,
    "borderaxespad": 0.2,
    "columnspacing": 1.0,
    "handletextpad": 0.5,
    "labelspacing": 0.35,
}
_LEGEND_ID = "finecal-legend"
_MOST = 0.5
"""Part of the height of the axes that the legend may take."""
MARKER: dict[str, Any] = {"linewidths": 0.8, "zorder": 3}
"""Of markers on a curve."""
STAR: dict[str, Any] = {"marker": "*", "s": 150, "linewidths": 0.8, "zorder": 4}
"""Of the oracle: above the other markers, and so slender that one at the same place is seen between its points."""


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


def legend_below(ax: Axes, palette: Palette) -> None:
    """Put the legend below the label of the x-axis, outside of the axes, where it hides nothing.

    As many columns as the width allows, three at most. If one is too wide or too high, letters and handles shrink. A
    layout of the figure makes room for it; without one, the axes get lower.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.transforms import ScaledTranslation

    taken = _remove_legend(ax)
    width, height = room_of(ax)
    inches = (ax.xaxis.label.get_window_extent().y0 - ax.get_window_extent().y0) / ax.figure.dpi
    under_label = ax.transAxes + ScaledTranslation(0, inches, ax.figure.dpi_scale_trans)
    size = FontProperties(size="small").get_size_in_points()
    look = {**_LEGEND, "labelcolor": palette.ink, "bbox_transform": under_label}
    for columns in (3, 2, 1):
        legend = ax.legend(ncols=columns, fontsize=size, **look)
        box = legend.get_window_extent()
        if box.width <= width:
            break
    shrink = min(1.0, width / box.width, _MOST * height / box.height)
    if shrink < 1:
        legend = ax.legend(ncols=columns, fontsize=shrink * size, markerscale=shrink, **look)
        box = legend.get_window_extent()
    legend.set_gid(_LEGEND_ID)
    if ax.figure.figure.get_layout_engine() is None and box.height > taken:
        _lower(ax, box.height - taken)


def _remove_legend(ax: Axes) -> float:
    """Remove the legend of a picture that was drawn on `ax` before, and return its height in pixels."""
    legend = ax.get_legend()
    if legend is None or legend.get_gid() != _LEGEND_ID:
        return 0.0
    height = float(legend.get_window_extent().height)
    legend.remove()
    return height


def _lower(ax: Axes, pixels: float) -> None:
    """Move the lower side of `ax` up, so that it stays there if the subplots of the figure are adjusted."""
    from matplotlib.gridspec import GridSpecFromSubplotSpec

    share, place = pixels / ax.get_window_extent().height, ax.get_subplotspec()
    if place is None:
        box = ax.get_position()
        ax.set_position((box.x0, box.y0 + share * box.height, box.width, (1 - share) * box.height))
    else:
        ratios = [1 - share, share]
        ax.set_subplotspec(GridSpecFromSubplotSpec(2, 1, subplot_spec=place, height_ratios=ratios, hspace=0)[0])


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
