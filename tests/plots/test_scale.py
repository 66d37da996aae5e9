"""The range that is shown, and lines with fewer points."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finecal.plots.scale import bulk, thinned


def test_bulk_leaves_out_outliers_only():
    spread = np.linspace(-1, 3, 1001)
    assert bulk(spread) == (-1, 3)
    assert bulk(np.append(spread, [4.5, np.inf, -np.inf])) == (-1, 4.5)
    assert bulk(np.append(spread, [1e6, -1e6])) == (-1, 3)
    assert bulk(np.full(9, 2.0)) == (2, 2)
    assert bulk(np.array([])) == bulk(np.array([np.inf])) == (-1, 1)


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1)), st.sampled_from([1, 1e-3]))
def test_thinning_moves_a_line_by_less_than_a_pixel(y, spread):
    """Each point that is left out lies within one cell, a 1024th of either side, of points that are not."""
    x = np.linspace(0, spread, len(y))
    kept = np.column_stack(thinned(x, y, 1, 1))
    assert kept[0].tolist() == [x[0], y[0]]
    assert kept[-1].tolist() == [x[-1], y[-1]]
    for point in np.column_stack([x, y]):
        distance = np.abs(kept - point).max(1)
        assert distance.min() <= 1 / 1024


def test_long_lines_become_short():
    x = np.linspace(0, 1, 100_000)
    thin_x, thin_y = thinned(x, np.sqrt(x), 1, 1)
    assert len(thin_x) < 5000
    np.testing.assert_array_equal(thin_y, np.sqrt(thin_x))
