"""The pictures on a page."""

import re
from itertools import pairwise

import numpy as np
import pytest

import finecal
from contrast import contrast
from finecal._report.figures import draw_figures
from report_pages import data_of, problem, read, usual_page

INF = np.inf


def figures_of(seed=0, gamma=1.0, samples=60):
    curve = finecal.tradeoff_curve(*problem(seed, samples))
    return {figure.name: figure for figure in draw_figures(curve, gamma, curve.best())}, curve


def corners(path):
    """Return the corners of a path of M, H and V, in units of the SVG."""
    x = y = None
    found = []
    for letter, numbers in re.findall(r"([MHV])([-\d.,]+)", path):
        values = [float(number) for number in numbers.split(",")]
        x, y = values if letter == "M" else (values[0], y) if letter == "H" else (x, values[0])
        found.append((x, y))
    return found


def test_figures_lie_where_the_markers_are_put():
    """The scripts put a marker on a picture by the axes in the data: at gamma = 0 it must cover what is drawn there."""
    html = usual_page()
    root, axes = read(html), data_of(html)["axes"]
    assert set(axes) == {"tradeoff", "accuracy", "margins"}

    def place(figure, x, y):
        box = axes[figure]
        across, down = ((value - low) / (high - low) for value, (low, high) in ((x, box["x"]), (y, box["y"])))
        return box["left"] + box["width"] * across, box["top"] + box["height"] * (1 - down)

    report = finecal.evaluate(*problem())
    (tradeoff,) = root.all("svg", data_figure="tradeoff")
    at = tradeoff.one("path", **{"class": "mark zero"}).attributes["transform"]
    drawn = [float(number) for number in re.findall(r"[\d.]+", at)]
    assert drawn == pytest.approx(place("tradeoff", report.acc_seen, report.acc_absent), abs=0.06)
    for figure in ("accuracy", "margins"):
        (line,) = root.one("svg", data_figure=figure).all("path", **{"class": "line zero"})
        ends = [place(figure, 0.0, y) for y in axes[figure]["y"]]
        assert np.ravel(corners(line.attributes["d"])) == pytest.approx(np.ravel(ends), abs=0.06)
    for marker in root.all("circle", data_figure=True) + root.all("line", data_figure=True):
        assert marker.attributes["class"] == "now"


def test_accuracies_are_steps_at_the_breakpoints():
    figures, curve = figures_of()
    figure = figures["accuracy"]
    for look in ("all", "seen", "absent"):
        (line,) = (line for line in figure.lines if line.look == look)
        for (x, y), (after, level) in pairwise(corners(line.path)):
            if level != y or after - x < 0.3:
                continue
            gamma = np.interp((x + after) / 2 - figure.axes.left, [0, figure.axes.width], figure.axes.x)
            accuracy = (figure.axes.top + figure.axes.height - y) / figure.axes.height
            assert accuracy == pytest.approx(getattr(curve.at(gamma), f"acc_{look}"), abs=2e-4)


def test_bars_are_counts():
    figures, curve = figures_of(samples=500)
    figure = figures["margins"]
    seen = curve.samples.is_seen
    for look, group in (("seen bars", seen), ("absent bars", ~seen)):
        (line,) = (line for line in figure.lines if line.look == look)
        height = figure.axes.height * (figure.axes.y[1] - np.arange(61)) / figure.axes.y[1] + figure.axes.top
        found, last = [], None
        for x, y in corners(line.path):
            count = int(np.abs(height - y).argmin())
            assert y == pytest.approx(height[count], abs=0.06)
            if last is not None and x != last[0]:
                found.append(last[1])
            last = x, count
        low, high = (
            np.interp(end - figure.axes.left, [0, figure.axes.width], figure.axes.x)
            for end in (corners(line.path)[0][0], corners(line.path)[-1][0])
        )
        inside = curve.samples.margin[group]
        inside = inside[(inside >= low - 0.02) & (inside <= high + 0.02)]
        assert sum(found) == len(inside)
        assert f"({len(inside)}" in next(entry.text for entry in figure.legend if entry.look == look)


def test_an_interval_is_shaded_as_far_as_the_axis():
    curve = finecal.tradeoff_curve(*problem())
    estimate = finecal.GammaEstimate(1.0, "known_share_gamma", "9 samples", 9, interval=(-INF, 2.0))
    figure = draw_figures(curve, estimate, curve.best())[1]
    (shade,) = (line for line in figure.lines if line.look == "interval")
    (left, _), (right, _), *_ = corners(shade.path)
    assert left == pytest.approx(figure.axes.left)
    assert right == pytest.approx(float(figure.axes.across(2.0)), abs=0.06)
    assert "\N{MINUS SIGN}inf to 2" in [entry.text.removeprefix("interval, ") for entry in figure.legend]


@pytest.mark.parametrize("gamma", [0.0, 1.0, None])
def test_legends_name_all_that_is_drawn_and_nothing_else(gamma):
    curve = finecal.tradeoff_curve(*problem())
    oracle = curve.best()
    for figure in draw_figures(curve, oracle if gamma is None else gamma, oracle):
        drawn = {shape.look for shape in (*figure.lines, *figure.marks)} | {"now"}
        named = [entry.look for entry in figure.legend]
        assert sorted(named) == sorted(drawn)
        assert len({entry.text for entry in figure.legend}) == len(named)
        assert ("gamma" in named or "chosen" in named) == (gamma == 1 or (gamma is None and figure.name != "tradeoff"))
    html = finecal.html_report(*problem(), 1.0)
    for figure in read(html).all("div", role="img"):
        (picture,) = figure.all("svg", data_figure=True)
        looks = {element.attributes["class"] for element in picture.all() if "class" in element.attributes}
        looks -= {"frame", "across", "down"}
        in_legend = {
            element.attributes["class"] for entry in figure.all("li") for element in entry.all(**{"class": True})
        }
        assert in_legend == looks - ({"line absent"} if "hatched" in looks else set())


def test_far_gammas_and_equal_margins_are_drawn():
    for gamma in (0.0, -1e-9, 1e6, 3.4e38):
        for figure in figures_of(gamma=gamma)[0].values():
            assert not any("nan" in line.path or "inf" in line.path for line in figure.lines)
            assert 2 <= len(figure.y_ticks) <= 8
            assert 1 <= len(figure.x_ticks) <= 8
    logits, labels, mask = np.array([[2.0, 0.0], [2.0, 0.0]]), [0, 1], [True, False]
    assert finecal.html_report(logits, labels, mask).count("<h3>") == 3
    assert finecal.html_report(np.full((2, 2), -INF), labels, mask).count("<h3>") == 3


def test_pictures_of_many_samples_stay_small():
    def size(samples):
        return sum(len(line.path) for figure in figures_of(samples=samples)[0].values() for line in figure.lines)

    assert size(40_000) < 60_000


def test_colours_stand_out_on_light_and_dark_pages():
    html = usual_page()
    light = dict(re.findall(r"--([\w-]+): (#\w{6});", html.split("@media", 1)[0]))
    dark = light | dict(re.findall(r"--([\w-]+): (#\w{6});", html.split("@media", 2)[1]))
    assert light["page"] != dark["page"]
    for colours in (light, dark):
        for name in ("seen", "absent", "gamma", "best", "guide"):
            assert contrast(colours[name], colours["page"]) >= 2.95
        for name in ("text", "quiet"):
            assert contrast(colours[name], colours["page"]) >= 4.5
    looks = set(re.findall(r'class="(?:line|mark) ([^"]+)"', html)) - {"zero", "all"}
    for look in looks:
        assert re.search(rf"\.(?:line|mark)\.{look.split()[-1]}\b", html), look


def test_the_same_samples_give_the_same_page():
    assert finecal.html_report(*problem(), 1.0) == usual_page()
