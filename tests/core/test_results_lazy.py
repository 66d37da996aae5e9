"""The way up to what draws results."""

import importlib

import pytest

from finecal._core import results as lazy


def test_leads_to_the_packages():
    assert lazy.plots() is importlib.import_module("finecal.plots")
    assert lazy.page() is importlib.import_module("finecal._report")


@pytest.mark.parametrize("name", ["curve", "comparison", "diagnosis", "probabilities", "margins"])
def test_plots_draw_on_the_axes_given(results, name):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.subplots()
    result = results["curve"].samples if name == "margins" else results[name]
    assert result.plot(ax) is ax
    assert ax.has_data()
