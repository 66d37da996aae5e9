"""Colours that suit any background and every eye, the range that is shown, and lines with fewer points."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from contrast import contrast, linear
from finecal.plots._axes import bulk, palette_of, thin


@pytest.mark.parametrize("face", ["white", "black", "#131416", "#E5E5E5", "#777777", "#fdf6e3", "navy"])
def test_palette_suits_any_face(face):
    palette = palette_of(Figure(facecolor="red").subplots(subplot_kw={"facecolor": face}))
    assert palette.face == pytest.approx(to_rgb(face))
    assert contrast(palette.ink, face) >= 4.5
    for name in ("guide", "seen", "absent", "gamma", "best", "other"):
        assert contrast(getattr(palette, name), face) >= 3


def test_what_is_seen_through_transparent_axes_counts():
    assert palette_of(Figure(facecolor="black").subplots(subplot_kw={"facecolor": "none"})).face == (0, 0, 0)
    half = palette_of(Figure(facecolor="black").subplots(subplot_kw={"facecolor": (1, 1, 1, 0.5)}))
    assert half.face == pytest.approx((0.5, 0.5, 0.5))
    assert palette_of(Figure(facecolor="none").subplots(subplot_kw={"facecolor": "none"})).face == (1, 1, 1)


# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009.
EYES = {
    "all colours": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(rgb):
    """Of linear RGB under D65; distances below 2.3 are not visible."""
    xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    x, y, z = np.cbrt(xyz @ np.clip(rgb, 0.009, 1) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("face", ["white", "black", "#131416"])
def test_the_colour_blind_tell_lines_apart(eye, face):
    palette = palette_of(Figure().subplots(subplot_kw={"facecolor": face}))
    seen = {name: lab(EYES[eye] @ linear(getattr(palette, name))) for name in ("ink", "seen", "absent", "gamma")}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 20, (one, other)


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
    kept = np.column_stack(thin(x, y, 1, 1))
    assert kept[0].tolist() == [x[0], y[0]]
    assert kept[-1].tolist() == [x[-1], y[-1]]
    for point in np.column_stack([x, y]):
        distance = np.abs(kept - point).max(1)
        assert distance.min() <= 1 / 1024


def test_long_lines_become_short():
    x = np.linspace(0, 1, 100_000)
    thin_x, thin_y = thin(x, np.sqrt(x), 1, 1)
    assert len(thin_x) < 5000
    np.testing.assert_array_equal(thin_y, np.sqrt(thin_x))
