"""What holds for every picture: nothing runs into anything, colours stand out, and pyplot is left alone."""

import itertools
import sys
from dataclasses import replace
from functools import cache
from io import BytesIO

import matplotlib.style
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib import pyplot
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

import finecal
from drawn import legend
from finecal.plots import plot_accuracy, plot_estimators, plot_gaps, plot_margins, plot_reliability, plot_tradeoff
from finecal.plots.palette import palette_of
from finecal.plots.scale import bulk, thinned

STYLES = {
    "light": {},
    "dark": {"figure.facecolor": "black", "axes.facecolor": "black", "text.color": "white", "axes.labelcolor": "white"},
}
WIDTHS = [400, 1200]
BEYOND = 1.5
"""Pixels by which the boxes of texts may be larger than their letters."""
SPACE = 3
"""Pixels at least between numbers side by side."""


def make(n=300, torch_tensors=False, seed=0):
    """Logits whose first three of six classes have outgrown the others, before and after."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, n)
    before = (rng.normal(size=(n, 6)) + 3 * np.eye(6)[labels]).astype(np.float32)
    seen_mask = np.arange(6) < 3
    logits = before + 3 * seen_mask.astype(np.float32)
    if torch_tensors:
        return torch.from_numpy(before), torch.from_numpy(logits), torch.from_numpy(labels), seen_mask
    return before, logits, labels, seen_mask


@cache
def compared(long=False, impossible=(), test=False, n_bootstrap=0):
    _, logits, labels, seen_mask = make()
    seen = seen_mask[labels]
    train, held_out = np.flatnonzero(seen)[:80], np.flatnonzero(seen)[80:]
    comparison = finecal.compare_estimators(
        seen_mask,
        train=(logits[train], labels[train]),
        held_out=(logits[held_out], labels[held_out]),
        unlabelled=logits,
        test=(logits, labels) if test else None,
        n_bootstrap=n_bootstrap,
    )
    rows = [
        replace(
            row,
            method=row.method + "_of_a_very_long_name" * (long and row.method != "oracle"),
            **({"estimate": None, "report": None, "error": "no", "recovered": None} if i in impossible else {}),
        )
        for i, row in enumerate(comparison.rows)
    ]
    return replace(comparison, rows=tuple(rows))


def diagnosed(scale=1.0, absent=True):
    before, logits, labels, seen_mask = make()
    diagnosis = finecal.diagnose(scale * logits, labels, seen_mask, pretrained_logits=before / scale)
    if absent:
        return diagnosis
    gaps = {
        name: getattr(diagnosis, name)._replace(absent=getattr(diagnosis, name).absent._replace(max_gap=np.nan))
        for name in ("pretrained_gaps", "finetuned_gaps")
    }
    return replace(diagnosis, **gaps)


def samples(n=300):
    _, logits, labels, seen_mask = make(n)
    return finecal.margins(logits, labels, seen_mask)


def only_seen():
    _, logits, labels, seen_mask = make()
    rows = seen_mask[labels]
    return logits[rows], labels[rows], seen_mask


def two():
    """A seen and an absent sample, both with the same margin."""
    return np.array([[1.0, 0.0, 0.5, 0.0], [1.0, 0.0, 0.5, 0.0]]), [0, 2], [True, True, False, False]


def estimate(gamma, *interval):
    return finecal.GammaEstimate(gamma=float(gamma), method="mine", data="3 samples", n=3, interval=interval)


PLOTS = {
    "tradeoff": lambda ax=None, **style: plot_tradeoff(samples().curve(), ax, gammas={"mine": 2.0}, **style),
    "margins": lambda ax=None, **style: plot_margins(samples(), ax, gamma=2.0, **style),
    "accuracy": lambda ax=None, **style: plot_accuracy(samples().curve(), ax, gamma=estimate(2, 1, 2.5), **style),
    "reliability": lambda ax=None, **style: plot_reliability(
        finecal.evaluate_probabilities(*make()[1:], 2.0), ax, **style
    ),
    "estimators": lambda ax=None, **style: plot_estimators(compared(test=True), ax, **style),
    "gaps": lambda ax=None, **style: plot_gaps(diagnosed(), ax, **style),
}
HARD = {
    "tradeoff, five long names": lambda ax=None: plot_tradeoff(
        samples().curve(), ax, gammas={f"estimator of a rather long name {i}": float(i) for i in range(5)}
    ),
    "tradeoff, one very long name": lambda ax=None: plot_tradeoff(samples().curve(), ax, gammas={"name " * 20: 1.0}),
    "tradeoff, far away": lambda ax=None: plot_tradeoff(samples().curve(), ax, gammas={"far": 1e7, "near": -1e-9}),
    "tradeoff, two samples": lambda ax=None: plot_tradeoff(finecal.tradeoff_curve(*two()), ax),
    "tradeoff, many samples": lambda ax=None: plot_tradeoff(samples(100_000).curve(), ax),
    "margins, seen only": lambda ax=None: plot_margins(finecal.margins(*only_seen()), ax, gamma=2.0),
    "margins, far away": lambda ax=None: plot_margins(samples(), ax, gamma=1e4),
    "margins, two samples": lambda ax=None: plot_margins(finecal.margins(*two()), ax, gamma=-0.7),
    "margins, many samples": lambda ax=None: plot_margins(samples(100_000), ax, gamma=2.0),
    "accuracy, seen only": lambda ax=None: plot_accuracy(finecal.tradeoff_curve(*only_seen()), ax, gamma=2.0),
    "accuracy, far away": lambda ax=None: plot_accuracy(samples().curve(), ax, gamma=1e4),
    "accuracy, wide interval": lambda ax=None: plot_accuracy(samples().curve(), ax, gamma=estimate(40, -35, 90)),
    "accuracy, two samples": lambda ax=None: plot_accuracy(finecal.tradeoff_curve(*two()), ax),
    "accuracy, many samples": lambda ax=None: plot_accuracy(samples(100_000).curve(), ax, gamma=2.0),
    "reliability, seen only": lambda ax=None: plot_reliability(finecal.evaluate_probabilities(*only_seen()), ax),
    "reliability, two samples": lambda ax=None: plot_reliability(finecal.evaluate_probabilities(*two()), ax),
    "estimators, long names": lambda ax=None: plot_estimators(compared(test=True, long=True, impossible=(1, 4)), ax),
    "estimators, no test samples": lambda ax=None: plot_estimators(compared(n_bootstrap=20, impossible=(0,)), ax),
    "gaps, large and small": lambda ax=None: plot_gaps(diagnosed(-1e3), ax),
    "gaps, undefined": lambda ax=None: plot_gaps(diagnosed(absent=False), ax),
}


@cache
def usual(name):
    """Return the axes of a plot as it is drawn by itself, for who only looks at them."""
    return PLOTS[name]()


every_plot = pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
every_case = pytest.mark.parametrize("draw", [*PLOTS.values(), *HARD.values()], ids=[*PLOTS, *HARD])


def boxes(texts):
    """Where the letters of visible texts are."""
    return [text.get_window_extent().padded(-BEYOND) for text in texts if text.get_visible() and text.get_text()]


def assert_nothing_overlaps(ax):
    """Texts run into no other text, the legend into no data, and nothing leaves the figure."""
    figure = ax.figure
    figure.draw_without_rendering()
    legend_box = ax.get_legend().get_window_extent()
    assert legend_box.width <= ax.get_window_extent().width + BEYOND
    assert ax.get_window_extent().padded(BEYOND).count_contains(legend_box.corners()) == 4
    drawn = [*ax.get_lines(), *ax.patches, *(c for c in ax.collections if c.get_offsets().size == 0)]
    for shape in drawn:
        for path in [shape.get_path()] if hasattr(shape, "get_path") else shape.get_paths():
            assert not shape.get_transform().transform_path(path).intersects_bbox(legend_box, filled=False)
    for markers in ax.collections:
        at = markers.get_offset_transform().transform(markers.get_offsets())
        assert legend_box.count_contains(at) == 0
    for box in boxes(ax.texts):
        assert not box.overlaps(legend_box)

    (x_low, x_high), (y_low, y_high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    x_ticks = [t.label1 for t in ax.xaxis.get_major_ticks() if x_low <= t.get_loc() <= x_high]
    y_ticks = [t.label1 for t in ax.yaxis.get_major_ticks() if y_low <= t.get_loc() <= y_high]
    texts = boxes([*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label, *x_ticks, *y_ticks])
    assert len(texts) >= 3
    for one, other in itertools.combinations(texts, 2):
        assert not one.overlaps(other)
    for one, other in itertools.pairwise(boxes(x_ticks)):
        assert one.x1 + SPACE < other.x0
    for box in texts:
        assert figure.bbox.padded(BEYOND).count_contains(box.corners()) == 4


@every_case
def test_nothing_overlaps(draw):
    ax = draw()
    for width in WIDTHS:
        ax.figure.set_dpi(width / ax.figure.get_size_inches()[0])
        assert_nothing_overlaps(ax)


@every_plot
@pytest.mark.parametrize("size", [(4, 3), (12, 7)], ids=["400 pixels", "1200 pixels"])
def test_nothing_overlaps_in_given_axes(draw, size):
    ax = Figure(figsize=size, dpi=100, layout="constrained").subplots()
    assert draw(ax) is ax
    assert_nothing_overlaps(ax)


def test_a_grid_of_all_pictures():
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    axes = figure.subplots(2, 3).flat
    for ax, draw in zip(axes, PLOTS.values(), strict=True):
        draw(ax)
    for ax in axes:
        assert_nothing_overlaps(ax)


def text_heights(ax):
    """Of letters, in pixels, where the picture is 400 pixels wide."""
    scale = 400 / ax.figure.get_size_inches()[0] / 72
    ax.figure.draw_without_rendering()
    return [scale * text.get_fontsize() for text in ax.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("name", PLOTS)
def test_text_is_large_enough_at_400_pixels(name):
    assert min(text_heights(usual(name))) >= 9


@every_plot
def test_new_figures_can_be_saved_and_are_unknown_to_pyplot(draw):
    file = BytesIO()
    draw().figure.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []


@every_plot
def test_axes_of_pyplot_are_fine_too(draw):
    figure, ax = pyplot.subplots()
    try:
        assert draw(ax) is ax
        assert pyplot.get_fignums() == [figure.number]
    finally:
        pyplot.close(figure)


@pytest.mark.parametrize("name", sorted(PLOTS.keys() - {"estimators"}))
def test_results_of_torch_look_the_same(name, monkeypatch):
    def shape(ax):
        return [(line.get_gid(), line.get_xydata().round(5).tolist()) for line in ax.get_lines()], legend(ax)

    of_numpy = shape(usual(name))
    arrays_of = make
    monkeypatch.setitem(globals(), "make", lambda n=300: arrays_of(n, torch_tensors=True))
    of_torch = shape(PLOTS[name]())
    assert len(of_torch) > 0
    assert of_torch == of_numpy


@every_plot
def test_says_what_to_install(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'finecal\[plots\]'"):
        draw()


# --- colours ----------------------------------------------------------------------------------------------------------


def linear(rgb):
    rgb = np.asarray(rgb)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """Of the Web Content Accessibility Guidelines 2.1."""
    luminances = [linear(to_rgb(colour)) @ [0.2126, 0.7152, 0.0722] for colour in (one, other)]
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("style", STYLES)
def test_colours_stand_out(name, style):
    with matplotlib.rc_context(STYLES[style]):
        ax = PLOTS[name]() if STYLES[style] else usual(name)
    face = ax.get_facecolor()
    for line in ax.get_lines():
        assert contrast(line.get_color(), face) >= 3
    for patch in ax.patches:
        assert contrast(patch.get_edgecolor(), face) >= 3
    for markers in ax.collections:
        colour = markers.get_facecolor()[0]
        assert contrast(colour, face) >= 3
    for text in [*ax.texts, *ax.get_legend().get_texts(), ax.title]:
        assert contrast(text.get_color(), face) >= 4.5


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


# --- scales -----------------------------------------------------------------------------------------------------------


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


def test_colours_given_by_users_are_used():
    ax = PLOTS["tradeoff"](color="red", linestyle=":")
    assert (ax.get_lines()[0].get_color(), ax.get_lines()[0].get_linestyle()) == ("red", ":")
    assert to_rgba(PLOTS["margins"](color=["lime", "navy"]).patches[-1].get_edgecolor()) == to_rgba("lime")
    assert {line.get_linewidth() for line in PLOTS["accuracy"](linewidth=7).get_lines()[:3]} == {7}
    assert PLOTS["reliability"](linewidth=7).get_lines()[1].get_linewidth() == 7
    assert PLOTS["estimators"](marker="x").get_lines()[1].get_marker() == "x"
    assert {bar.get_linewidth() for bar in PLOTS["gaps"](linewidth=7).patches} == {7}


@pytest.mark.parametrize(("color", "edges"), [("red", ["red", "red"]), (["red", "0.5"], ["red", "0.5"])])
def test_margins_take_one_colour_or_two(color, edges):
    _, logits, labels, seen_mask = make()
    ax = plot_margins(finecal.margins(logits, labels, seen_mask), color=color)
    assert sorted(to_rgb(patch.get_edgecolor()) for patch in ax.patches) == sorted(map(to_rgb, edges))
