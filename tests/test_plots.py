import sys
from io import BytesIO

import matplotlib.pyplot
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import finecal
from finecal.plots import plot_margins, plot_tradeoff


@pytest.fixture(params=["numpy", "torch"])
def samples(request, rng):
    logits = rng.normal(size=(200, 6)).astype(np.float32)
    logits[:, :3] += 1
    labels = rng.integers(0, 6, 200)
    if request.param == "torch":
        logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    return finecal.margins(logits, labels, np.arange(6) < 3)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def marked_points(ax):
    return {points.get_label(): tuple(points.get_offsets()[0]) for points in ax.collections}


def test_tradeoff_draws_the_curve(samples):
    curve = samples.curve()
    ax = plot_tradeoff(curve)
    (line,) = ax.get_lines()
    np.testing.assert_allclose(line.get_xdata(), curve.acc_seen)
    np.testing.assert_allclose(line.get_ydata(), curve.acc_absent)
    assert f"AUSUC {curve.ausuc:.3f}" in ax.get_title()
    assert "seen" in ax.get_xlabel()
    assert "absent" in ax.get_ylabel()


def test_tradeoff_marks_no_calibration_the_given_and_the_best_point(samples):
    curve = samples.curve()
    points = marked_points(plot_tradeoff(curve, gammas={"mine": torch.tensor(0.5), "other": 2.0}))
    expected = {
        "best (oracle)": curve.best(),
        "no calibration": 0.0,
        "mine": 0.5,
        "other": 2.0,
    }
    assert list(points) == [rf"{name}, $\gamma$ = {gamma:.2f}" for name, gamma in expected.items()]
    for point, gamma in zip(points.values(), expected.values(), strict=True):
        assert point == pytest.approx((curve.at(gamma).acc_seen, curve.at(gamma).acc_absent))


def test_tradeoff_uses_the_given_axes_and_style(samples):
    ax = Figure().subplots()
    assert plot_tradeoff(samples.curve(), ax=ax, color="red", linestyle=":") is ax
    assert (ax.get_lines()[0].get_color(), ax.get_lines()[0].get_linestyle()) == ("red", ":")


def test_curve_plots_itself(samples):
    ax = samples.curve().plot(alpha=0.5)
    assert ax.get_lines()[0].get_alpha() == 0.5
    assert any("oracle" in text for text in legend(ax))


def test_tradeoff_needs_both_groups():
    one_group = finecal.tradeoff_curve(2 * np.eye(3), [0, 1, 1], [True, True, False])
    with pytest.raises(ValueError, match="seen classes only"):
        plot_tradeoff(one_group)


def test_margins_counts_every_sample_of_either_group(samples):
    is_seen, margin = np.asarray(samples.is_seen), np.asarray(samples.margin)
    edges = np.linspace(margin.min(), margin.max(), 6)
    ax = plot_margins(samples, bins=edges, histtype="bar")
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert heights == [np.histogram(margin[group], edges)[0].tolist() for group in (is_seen, ~is_seen)]
    assert {f"seen ({is_seen.sum()})", f"absent ({(~is_seen).sum()})"} <= set(legend(ax))


def test_margins_draws_lines_at_zero_and_at_gamma(samples):
    ax = plot_margins(samples, gamma=torch.tensor(1.25))
    assert [line.get_xdata()[0] for line in ax.get_lines()] == [0, 1.25]
    assert r"$\gamma$ = 1.25" in legend(ax)
    assert [line.get_xdata()[0] for line in plot_margins(samples).get_lines()] == [0]


def test_margins_leaves_out_infinite_ones():
    logits = np.array([[1.0, 2.0, -np.inf], [1.0, 2.0, 0.5], [-np.inf, -np.inf, 3.0]])
    samples = finecal.margins(logits, [0, 1, 2], [True, True, False])
    assert {"seen (1)", "absent (0)"} <= set(legend(plot_margins(samples)))


@pytest.mark.parametrize("draw", [lambda samples: plot_tradeoff(samples.curve()), plot_margins])
def test_new_figures_can_be_saved_and_are_unknown_to_pyplot(samples, draw):
    ax = draw(samples)
    file = BytesIO()
    ax.figure.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert matplotlib.pyplot.get_fignums() == []


@pytest.mark.parametrize("draw", [lambda samples: plot_tradeoff(samples.curve()), plot_margins])
def test_lines_and_legend_do_not_overlap(samples, draw):
    ax = draw(samples)
    ax.figure.draw_without_rendering()
    legend_box = ax.get_legend().get_window_extent()
    for line in ax.get_lines():
        assert not line.get_transform().transform_path(line.get_path()).intersects_bbox(legend_box, filled=False)


@pytest.mark.parametrize("draw", [lambda samples: plot_tradeoff(samples.curve()), plot_margins])
def test_says_what_to_install(samples, draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'finecal\[plots\]'"):
        draw(samples)
