"""The figures: pictures of `finecal.plots` as SVG, where their axes lie, and their colours in the dark."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, NamedTuple, SupportsFloat, cast

import numpy as np

from ..evaluation.curve import TradeoffCurve
from ..inputs.arrays import NumpyArray
from ..plots.accuracy import plot_accuracy
from ..plots.margins import plot_margins
from ..plots.palette import palette_of
from ..plots.tradeoff import plot_tradeoff
from .words import accuracy_words, margin_words, tradeoff_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK_FACE = "#14181d"
"""Background of the page in the dark, as in `page.css`."""
_POINTS = 72
"""Units of an SVG per inch."""
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


class AxesBox(NamedTuple):
    """Where the axes lie in the SVG, in its units, from the upper left corner; and the values at their edges."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    line_top: float
    """Where a vertical line ends, below the legend."""


class FigureOnPage(NamedTuple):
    """An SVG element, with what it shows in words."""

    name: str
    svg: str
    width: float
    height: float
    axes: AxesBox
    words: str


class Colour(NamedTuple):
    """A colour of the figures by name, on a light and on a dark page."""

    name: str
    light: str
    dark: str


def draw_figures(curve: TradeoffCurve[NumpyArray], gamma: SupportsFloat) -> list[FigureOnPage]:
    """Draw the seen-absent curve (if there are samples of both groups), the accuracies and the margins."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the report has pictures, made with matplotlib: pip install 'finecal[report]'") from error
    figures = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.fonttype"] = "none"  # Text stays text.
        if curve.n_seen and curve.n_absent:
            marked = {"chosen": gamma} if float(gamma) != 0 else None
            figures.append(_figure("tradeoff", plot_tradeoff(curve, gammas=marked), tradeoff_words(curve)))
        figures.append(_figure("accuracy", plot_accuracy(curve, gamma=gamma), accuracy_words(curve)))
        figures.append(_figure("margins", plot_margins(curve.samples, gamma=gamma), margin_words(curve)))
    return figures


def figure_colours() -> list[Colour]:
    """Return the colours that the pictures have on white, and those that they would have on the dark page."""
    import matplotlib
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        light, dark = (
            palette_of(Figure(facecolor=face).subplots(subplot_kw={"facecolor": face})) for face in ("white", DARK_FACE)
        )
    return [Colour(name, to_hex(a), to_hex(b)) for name, a, b in zip(light._fields, light, dark, strict=True)]


def _figure(name: str, ax: Axes, words: str) -> FigureOnPage:
    import matplotlib

    figure = cast("Figure", ax.figure)
    figure.draw_without_rendering()  # Only then there are ticks.
    line_top = max(
        (float(np.asarray(line.get_ydata())[-1]) for line in ax.lines if line.get_gid() == f"finecal-{name}-zero"),
        default=1.0,
    )
    # Ids of three pictures on one page must differ.
    for number, artist in enumerate(figure.findobj()):
        artist.set_gid(f"{name}-{artist.get_gid() or number}")
    file = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    width, height = (float(inches) * _POINTS for inches in figure.get_size_inches())
    box = ax.get_position()
    axes = AxesBox(
        box.x0 * width,
        (1 - box.y1) * height,
        box.width * width,
        box.height * height,
        ax.get_xlim(),
        ax.get_ylim(),
        line_top,
    )
    return FigureOnPage(name, text[text.index("<svg") :], width, height, axes, words)
