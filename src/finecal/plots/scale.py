"""What fits on an axis: the bulk of the margins, and the points of a line that an eye tells apart."""

from collections.abc import Sequence

import numpy as np

from ..inputs.arrays import NumpyArray

_OUTLIERS = 0.005
"""Share of the margins at either end that may lie outside the picture."""
_FAR = 0.5
"""Margins that lie beyond the others by at most this part of their range are no outliers."""
CELLS = 1024
"""Along either side of the picture: differences below one part of so many are not visible."""


def bulk(margin: NumpyArray) -> tuple[float, float]:
    """Return the range of the finite margins without outliers; (-1, 1) if there are none."""
    finite = margin[np.isfinite(margin)].astype(np.float64)
    if finite.size == 0:
        return -1.0, 1.0
    low, high = np.quantile(finite, (_OUTLIERS, 1 - _OUTLIERS))
    reach = _FAR * (high - low)
    inside = finite[(finite >= low - reach) & (finite <= high + reach)]
    return float(inside.min()), float(inside.max())


def widened(values: Sequence[float]) -> tuple[float, float]:
    """Return a range that holds `values`, with a margin on either side."""
    low, high = float(min(values)), float(max(values))
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def thinned(x: NumpyArray, y: NumpyArray, width: float, height: float) -> tuple[NumpyArray, NumpyArray]:
    """Leave out points of a line that nobody misses in a picture of `width` times `height`, in units of the data.

    Of points in a row that lie in one cell of a fine grid, the first and the last remain.
    """
    cell = np.stack([np.floor(x * (CELLS / width)), np.floor(y * (CELLS / height))])
    enters = (np.diff(cell) != 0).any(axis=0)
    kept = np.ones(len(x), dtype=bool)
    kept[1:-1] = enters[:-1] | enters[1:]
    return x[kept], y[kept]
