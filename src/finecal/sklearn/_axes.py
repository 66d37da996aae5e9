"""The axes that displays draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pyplot_axes() -> Axes:
    """Return the axes of a new figure that pyplot knows, as scikit-learn's displays do."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("finecal.sklearn draws with matplotlib: pip install 'finecal[plots]'") from error
    return pyplot.subplots(layout="constrained")[1]
