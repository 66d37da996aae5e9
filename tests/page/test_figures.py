"""The pictures on a page."""

import re

import pytest

import finecal
from report_pages import data_of, problem, read, usual_page


def test_figures_lie_where_the_markers_are_put():
    """The scripts put a marker on a picture by the axes in the data: at gamma = 0 it must cover what is drawn there."""
    logits, labels, mask = problem()
    html = usual_page()
    root, axes = read(html), data_of(html)["axes"]
    assert set(axes) == {"tradeoff", "accuracy", "margins"}

    def place(figure, x, y):
        box = axes[figure]
        across, down = ((value - low) / (high - low) for value, (low, high) in ((x, box["x"]), (y, box["y"])))
        return box["left"] + box["width"] * across, box["top"] + box["height"] * (1 - down)

    report = finecal.evaluate(logits, labels, mask)
    (point,) = root.one("g", id="tradeoff-finecal-tradeoff-zero").all("use")
    drawn = [float(point.attributes[name]) for name in "xy"]
    assert drawn == pytest.approx(place("tradeoff", report.acc_seen, report.acc_absent), abs=0.01)
    for figure in ("accuracy", "margins"):
        (line,) = root.one("g", id=f"{figure}-finecal-{figure}-zero").all("path")
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", line.attributes["d"])]
        ends = [*place(figure, 0.0, 0.0), *place(figure, 0.0, axes[figure]["line_top"])]
        assert numbers == pytest.approx(ends, abs=0.01)


def test_the_same_samples_give_the_same_page():
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.facecolor": "red"}):
        styled = finecal.html_report(*problem(), 1.0)
        assert matplotlib.rcParams["font.size"] == 30
    assert styled == usual_page()
