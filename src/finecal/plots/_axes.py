"""Shared parts of all pictures: arguments, colours, axes with a legend, and ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat, TypeAlias

import numpy as np

from .._core.arrays import NumpyArray
from .._core.checks import gamma_as_float
from .._core.warning import error_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

WIDTH, HEIGHT, DPI = 4.5, 4.1, 160
"""Inches, and dots per inch: text stays legible in a picture scaled to 400 pixels."""
MOST_STEPS = 6
"""Largest number of steps on the x-axis: with more, its numbers would touch."""
_SPARE, _SPARE_ALONE = 1.15, 1.03
"""Ratios of space to text: axes in a grid shrink a little when their neighbours get labels."""
_FULL = 0.93
"""Largest share of a width that texts may fill, so that two do not touch."""
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
"""Largest share of the height of the axes that the legend may take."""
MARKER: dict[str, Any] = {"linewidths": 0.8, "zorder": 3}
"""Look of the markers on a curve."""
STAR: dict[str, Any] = {"marker": "*", "s": 150, "linewidths": 0.8, "zorder": 4}
"""Look of the oracle: above the other markers, but slender, so that a marker below remains visible."""


def axes_or_new(ax: Axes | None, height: float = HEIGHT) -> Axes:
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
    """Put the legend below the x-axis in up to three columns, shrunk to fit; without a layout lower the axes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.transforms import ScaledTranslation

    earlier, taken = ax.get_legend(), 0.0  # the legend of an earlier picture, and its height in pixels
    if earlier is not None and earlier.get_gid() == _LEGEND_ID:
        taken = float(earlier.get_window_extent().height)
        earlier.remove()
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


def _lower(ax: Axes, pixels: float) -> None:
    """Move the lower side of `ax` up, permanently, even if the subplots are adjusted later."""
    from matplotlib.gridspec import GridSpecFromSubplotSpec

    share, place = pixels / ax.get_window_extent().height, ax.get_subplotspec()
    if place is None:
        box = ax.get_position()
        ax.set_position((box.x0, box.y0 + share * box.height, box.width, (1 - share) * box.height))
    else:
        ratios = [1 - share, share]
        ax.set_subplotspec(GridSpecFromSubplotSpec(2, 1, subplot_spec=place, height_ratios=ratios, hspace=0)[0])


def room_of(ax: Axes) -> tuple[float, float]:
    """Return the width and height inside `ax` for texts, in pixels."""
    ax.figure.figure.draw_without_rendering()  # the layout determines the size of the axes
    room, spare = ax.get_window_extent(), _SPARE if len(ax.figure.axes) > 1 else _SPARE_ALONE
    return room.width / spare, room.height / spare


def fit_texts(lines: Sequence[Sequence[Text]], width: float) -> None:
    """Shrink all texts so that those of each line together are narrower than `width` pixels."""
    widest = max((sum(text.get_window_extent().width for text in line) for line in lines), default=0.0)
    for text in (text for line in lines for text in line):
        text.set_fontsize(float(text.get_fontsize()) * min(1.0, _FULL * width / max(widest, 1.0)))


def gamma_text(gamma: float) -> str:
    """Return gamma with two decimals; with three digits below 0.1 or from 1e5."""
    return rf"$\gamma$ = {gamma:.2f}" if 0.1 <= abs(gamma) < 1e5 else rf"$\gamma$ = {gamma:.3g}"


def check_drawn(value: object, kind: type, name: str, source: str) -> None:
    """Raise TypeError unless `value` is a result of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a {kind.__name__}, which {source} returns")


def check_gammas(gammas: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Return finite numbers by name; an empty dict for None."""
    if gammas is None:
        return {}
    if not isinstance(gammas, Mapping):
        raise TypeError(f'gammas is a {type(gammas).__name__}; pass a dict of gamma by name: {{"mine": 1.5}}')
    checked = {}
    for name, gamma in gammas.items():
        with error_context(f"gammas[{name!r}]"):
            checked[str(name)] = gamma_as_float(gamma)
    return checked


RGB: TypeAlias = tuple[float, float, float]

# Colours of Okabe and Ito.
BLUE, SKY_BLUE, VERMILION, ORANGE = "#0072B2", "#56B4E9", "#D55E00", "#E69F00"
PURPLE, GREEN = "#CC79A7", "#009E73"
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
LEAST_CONTRAST, LEAST_CONTRAST_OF_TEXT = 3.0, 4.5
"""Contrast required by the Web Content Accessibility Guidelines, level AA, for graphics and for text."""


class Palette(NamedTuple):
    """Colours of the data by role, of text (`ink`) and of guide lines."""

    face: RGB
    ink: RGB
    guide: RGB
    seen: RGB
    absent: RGB
    gamma: RGB
    best: RGB
    other: RGB


def palette_of(ax: Axes) -> Palette:
    """Return colours with enough contrast to the face colour of `ax`."""
    from matplotlib import rcParams
    from matplotlib.colors import to_rgb, to_rgba

    face = WHITE  # below the face of the figure, and that of the axes
    for layer in (ax.figure.get_facecolor(), ax.get_facecolor()):
        red, green, blue, alpha = to_rgba(layer)
        face = mix(face, (red, green, blue), alpha)
    ink = to_rgb(rcParams["text.color"])
    if contrast(ink, face) < LEAST_CONTRAST_OF_TEXT:
        ink = max(BLACK, WHITE, key=lambda colour: contrast(colour, face))

    def visible(*candidates: str) -> RGB:
        clearest = max(map(to_rgb, candidates), key=lambda colour: contrast(colour, face))
        shades = (mix(clearest, ink, step / 20) for step in range(21))
        return next((shade for shade in shades if contrast(shade, face) >= LEAST_CONTRAST), ink)

    return Palette(
        face=face,
        ink=ink,
        guide=next(
            shade
            for shade in (mix(face, ink, step / 20) for step in range(8, 21))
            if contrast(shade, face) >= LEAST_CONTRAST or shade == ink
        ),
        seen=visible(BLUE, SKY_BLUE),
        absent=visible(VERMILION),
        gamma=visible(PURPLE),
        best=visible(ORANGE),
        other=visible(GREEN),
    )


def mix(start: RGB, end: RGB, share: float) -> RGB:
    """Interpolate between two colours."""
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(start, end, strict=True))
    return red, green, blue


def contrast(colour: RGB, other: RGB) -> float:
    """Return the contrast ratio of the Web Content Accessibility Guidelines, from 1 to 21."""
    darker, lighter = sorted((_luminance(colour), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: RGB) -> float:
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


_OUTLIERS = 0.005
"""Share of the margins at either end that may be outliers."""
_FAR = 0.5
"""Distance of outliers from the other margins, as a share of their range."""
CELLS = 1024
"""Cells along either side of a picture: smaller differences are invisible."""


def bulk(margin: NumpyArray) -> tuple[float, float]:
    """Return the range of the finite margins without outliers; (-1, 1) if there are none."""
    finite = margin[np.isfinite(margin)].astype(np.float64)
    if finite.size == 0:
        return -1.0, 1.0
    low, high = np.quantile(finite, (_OUTLIERS, 1 - _OUTLIERS))
    reach = _FAR * (high - low)
    inside = finite[(finite >= low - reach) & (finite <= high + reach)]
    return float(inside.min()), float(inside.max())


def widen(values: Sequence[float]) -> tuple[float, float]:
    """Return a range around `values`, 5 % wider on either side."""
    low, high = float(min(values)), float(max(values))
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def thin(x: NumpyArray, y: NumpyArray, width: float, height: float) -> tuple[NumpyArray, NumpyArray]:
    """Keep the first and last of consecutive points of a line in a cell of a fine grid over `width` and `height`."""
    cell = np.stack([np.floor(x * (CELLS / width)), np.floor(y * (CELLS / height))])
    enters = (np.diff(cell) != 0).any(axis=0)
    kept = np.ones(len(x), dtype=bool)
    kept[1:-1] = enters[:-1] | enters[1:]
    return x[kept], y[kept]
