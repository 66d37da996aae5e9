"""What holds for every picture: nothing runs into anything, colours stand out, and pyplot is left alone."""

import itertools
import sys
from functools import cache
from io import BytesIO

import matplotlib.style
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import drawn
import finecal
from contrast import contrast
from drawn import artist, compared, diagnosed, estimate, legend, make, only_seen, samples, two
from finecal.plots import plot_accuracy, plot_estimators, plot_gaps, plot_margins, plot_reliability, plot_tradeoff

STYLES = {
    "light": {},
    "dark": {"figure.facecolor": "black", "axes.facecolor": "black", "text.color": "white", "axes.labelcolor": "white"},
}
WIDTHS = [400, 1200]
BEYOND = 1.5
"""Pixels by which the boxes of texts may be larger than their letters."""
SPACE = 3
"""Pixels at least between numbers side by side."""
PLOTS = {
    "tradeoff": lambda ax=None, **style: plot_tradeoff(samples().curve(), ax, gammas={"mine": 2.0}, **style),
    "margins": lambda ax=None, **style: plot_margins(samples(), ax, gamma=2.0, **style),
    "accuracy": lambda ax=None, **style: plot_accuracy(samples().curve(), ax, gamma=estimate(2, 1, 2.5), **style),
    "reliability": lambda ax=None, **style: plot_reliability(
        finecal.probabilities.evaluate_probabilities(*make()[1:], 2.0), ax, **style
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
    "margins, seen only": lambda ax=None: plot_margins(
        finecal.Samples(*only_seen()[:2]).margins(only_seen()[2]), ax, gamma=2.0
    ),
    "margins, far away": lambda ax=None: plot_margins(samples(), ax, gamma=1e4),
    "margins, two samples": lambda ax=None: plot_margins(finecal.Samples(*two()[:2]).margins(two()[2]), ax, gamma=-0.7),
    "margins, many samples": lambda ax=None: plot_margins(samples(100_000), ax, gamma=2.0),
    "accuracy, seen only": lambda ax=None: plot_accuracy(finecal.tradeoff_curve(*only_seen()), ax, gamma=2.0),
    "accuracy, far away": lambda ax=None: plot_accuracy(samples().curve(), ax, gamma=1e4),
    "accuracy, wide interval": lambda ax=None: plot_accuracy(samples().curve(), ax, gamma=estimate(40, -35, 90)),
    "accuracy, two samples": lambda ax=None: plot_accuracy(finecal.tradeoff_curve(*two()), ax),
    "accuracy, many samples": lambda ax=None: plot_accuracy(samples(100_000).curve(), ax, gamma=2.0),
    "reliability, seen only": lambda ax=None: plot_reliability(
        finecal.probabilities.evaluate_probabilities(*only_seen()), ax
    ),
    "reliability, two samples": lambda ax=None: plot_reliability(
        finecal.probabilities.evaluate_probabilities(*two()), ax
    ),
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
    """Texts run into no other text, the legend stands outside of the axes, and nothing leaves the figure."""
    figure = ax.figure
    figure.draw_without_rendering()
    legend_box = ax.get_legend().get_window_extent()
    assert legend_box.width <= ax.get_window_extent().width + BEYOND
    assert figure.bbox.padded(BEYOND).count_contains(legend_box.corners()) == 4
    for other in figure.axes:
        assert not other.get_window_extent().overlaps(legend_box)
        for box in boxes([other.title, other.xaxis.label]):
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


@every_plot
@pytest.mark.parametrize("place", ["subplots", "axes"])
def test_without_a_layout_axes_get_lower_by_the_legend(draw, place):
    figure = Figure(dpi=100)
    ax = figure.subplots() if place == "subplots" else figure.add_axes((0.125, 0.11, 0.775, 0.77))
    left, bottom, width, height = ax.get_position().bounds
    for _ in range(2):  # The second time, the legend has twice as many lines.
        draw(ax)
        rise = ax.get_legend().get_window_extent().height / figure.bbox.height
        assert ax.get_position().bounds == pytest.approx((left, bottom + rise, width, height - rise))


@every_plot
def test_nothing_overlaps_in_a_figure_without_a_layout(draw):
    ax = draw(Figure(dpi=100).subplots())
    assert_nothing_overlaps(ax)
    ax.figure.tight_layout()
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
    for names in (globals(), vars(drawn)):
        monkeypatch.setitem(names, "make", lambda n=300: arrays_of(n, torch_tensors=True))
    of_torch = shape(PLOTS[name]())
    assert len(of_torch) > 0
    assert of_torch == of_numpy


@every_plot
def test_says_what_to_install(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'finecal\[plots\]'"):
        draw()


# --- colours ----------------------------------------------------------------------------------------------------------


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


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_colours_given_by_users_are_used():
    ax = PLOTS["tradeoff"](color="red", linestyle=":")
    assert (ax.get_lines()[0].get_color(), ax.get_lines()[0].get_linestyle()) == ("red", ":")
    assert to_rgba(PLOTS["margins"](color=["lime", "navy"]).patches[-1].get_edgecolor()) == to_rgba("lime")
    assert {line.get_linewidth() for line in PLOTS["accuracy"](linewidth=7).get_lines()[:3]} == {7}
    assert PLOTS["reliability"](linewidth=7).get_lines()[1].get_linewidth() == 7
    assert PLOTS["estimators"](marker="x").get_lines()[1].get_marker() == "x"
    assert {bar.get_linewidth() for bar in PLOTS["gaps"](linewidth=7).patches} == {7}


def test_results_draw_themselves():
    assert artist(samples().curve().plot(alpha=0.5), "finecal-tradeoff-curve").get_alpha() == 0.5
    assert samples().plot(gamma=1.0).get_xlabel().startswith("margin")
    assert compared(test=True).plot().get_title() == r"Estimators of $\gamma$"
    assert diagnosed().plot().get_title() == "Mean logit gap"
    assert "Reliability" in finecal.probabilities.evaluate_probabilities(*make()[1:]).plot().get_title()


def test_ids_of_two_pictures_in_one_figure_are_all_there():
    one, other = Figure().subplots(1, 2)
    plot_margins(samples(), one, gamma=1.0)
    plot_tradeoff(samples().curve(), other)
    assert artist(one, "finecal-margins-gamma")
    assert artist(other, "finecal-tradeoff-curve")


@pytest.mark.parametrize("name", ["tradeoff", "accuracy", "estimators"])
def test_the_oracle_lies_above_the_other_markers_and_hides_none(name):
    ax = usual(name)
    if name == "estimators":
        marks = {line.get_marker(): line for line in ax.get_lines() if line.get_linestyle() == "None"}
        star, others = marks["*"], [mark for marker, mark in marks.items() if marker != "*"]
        ends = [star.get_markersize(), *(mark.get_markersize() for mark in others if mark.get_marker() == "o")]
    else:
        star = artist(ax, f"finecal-{name}-best")
        others = [*ax.get_lines(), *(mark for mark in ax.collections if mark is not star)]
        ends = [
            mark.get_sizes()[0] ** 0.5
            for mark in (star, *others)
            if hasattr(mark, "get_sizes") and mark.get_sizes().size
        ]
    assert all(star.get_zorder() > mark.get_zorder() for mark in others)
    # The body of a star, between its points, is 0.38 of its size.
    assert all(end > 0.5 * ends[0] for end in ends[1:])


@pytest.mark.parametrize("name", ["tradeoff", "accuracy"])
def test_borders_of_markers_do_not_cut_curves(name):
    ax = usual(name)
    marks = [mark for mark in ax.collections if mark.get_offsets().size and mark.get_sizes().size]
    assert marks
    for mark in marks:
        assert contrast(mark.get_edgecolor()[0], ax.get_facecolor()) >= 3
