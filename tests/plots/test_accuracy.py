"""Accuracies over gamma, against brute force on the logits."""

import numpy as np
import pytest

import finecal
from drawn import accuracies, artist, estimate, every_gamma, legend, only_seen, point, samples
from finecal.plots import plot_accuracy


def step(line, gamma):
    """Height of a line of steps."""
    x, y = line.get_xydata().T
    assert line.get_drawstyle() == "steps-post"
    return y[np.searchsorted(x, gamma, side="right") - 1]


def test_accuracy_draws_the_accuracies_at_every_gamma(rng):
    ax = plot_accuracy(samples().curve())
    low, high = ax.get_xlim()
    for gamma in rng.uniform(low, high, 200):
        drawn = [step(artist(ax, f"finecal-accuracy-{name}"), gamma) for name in ("seen", "absent", "all")]
        assert drawn == pytest.approx(accuracies(gamma))
    for name in ("seen", "absent", "all"):
        assert artist(ax, f"finecal-accuracy-{name}").get_xydata()[[0, -1], 0].tolist() == [low, high]


def test_accuracy_of_many_samples_is_within_a_pixel(rng):
    curve = samples(20_000).curve()
    ax = plot_accuracy(curve)
    low, high = ax.get_xlim()
    pixel = (high - low) / 1024
    line = artist(ax, "finecal-accuracy-all")
    assert len(line.get_xdata()) < 5000
    for gamma in rng.uniform(low, high, 300):
        near = [curve.at(gamma + shift).acc_all for shift in np.linspace(-pixel, pixel, 9)]
        assert min(near) - 1 / 1024 <= step(line, gamma) <= max(near) + 1 / 1024


def test_accuracy_marks_zero_gamma_its_interval_and_the_best():
    ax = plot_accuracy(samples().curve(), gamma=estimate(2.5, 1.25, 4))
    assert artist(ax, "finecal-accuracy-zero").get_xydata().tolist() == [[0, 0], [0, 1]]
    assert artist(ax, "finecal-accuracy-gamma").get_xydata().tolist() == [[2.5, 0], [2.5, 1]]
    (path,) = artist(ax, "finecal-accuracy-interval").get_paths()
    assert path.get_extents().bounds == (1.25, 0, 2.75, 1)
    gamma, accuracy = point(ax, "finecal-accuracy-best")
    assert accuracy == accuracies(gamma)[2] == max(accuracies(other)[2] for other in every_gamma())
    assert r"$\gamma$ = 2.50 (1.25 to 4)" in legend(ax)
    assert rf"best (oracle), $\gamma$ = {gamma:.2f}" in legend(ax)


def test_accuracy_without_gamma_or_interval_draws_none():
    gids = {line.get_gid() for line in plot_accuracy(samples().curve()).get_lines()}
    assert gids == {f"finecal-accuracy-{name}" for name in ("seen", "absent", "all", "zero")}
    ax = plot_accuracy(samples().curve(), gamma=3)
    assert r"$\gamma$ = 3.00" in legend(ax)
    assert [area.get_gid() for area in ax.collections] == ["finecal-accuracy-best"]


def test_accuracy_of_one_group_has_no_other_line_and_no_best():
    ax = plot_accuracy(finecal.tradeoff_curve(*only_seen()))
    gids = {line.get_gid() for line in ax.get_lines()} | {area.get_gid() for area in ax.collections}
    assert gids == {f"finecal-accuracy-{name}" for name in ("seen", "all", "zero")}


def test_accuracy_needs_samples():
    with pytest.raises(ValueError, match="no samples"):
        plot_accuracy(finecal.tradeoff_curve(np.zeros((0, 3)), np.zeros(0, int), [True, True, False]))
