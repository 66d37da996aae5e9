"""Pictures of a seen-absent curve, against brute force on the logits."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import finecal
from drawn import accuracies, artist, estimate, every_gamma, legend, only_seen, point, samples
from finecal.plots import plot_accuracy, plot_tradeoff


def test_tradeoff_draws_every_operating_point():
    line = artist(plot_tradeoff(samples().curve()), "finecal-tradeoff-curve").get_xydata()
    expected = np.array([accuracies(gamma)[:2] for gamma in every_gamma()])
    expected = expected[np.append(True, (np.diff(expected, axis=0) != 0).any(1))]
    assert len(expected) > 100
    np.testing.assert_allclose(line, expected)


def test_tradeoff_of_many_samples_looks_the_same_with_fewer_points():
    curve = samples(50_000).curve()
    line = artist(plot_tradeoff(curve), "finecal-tradeoff-curve").get_xydata()
    seen, absent = np.asarray(curve.acc_seen), np.asarray(curve.acc_absent)
    assert len(line) < 5000 < len(seen)
    # Along the curve seen - absent only falls, so that it tells where on the line each point should be.
    along = (line[:, 0] - line[:, 1])[::-1]
    for values, column in ((seen, 0), (absent, 1)):
        assert np.abs(np.interp(seen - absent, along, line[::-1, column]) - values).max() < 1 / 1024


def test_tradeoff_marks_no_calibration_the_given_and_the_best_point():
    gammas = {"mine": torch.tensor(0.5), "other": 2.0, "estimated": estimate(1, 0, 2)}
    ax = plot_tradeoff(samples().curve(), gammas=gammas)
    assert point(ax, "finecal-tradeoff-zero") == pytest.approx(accuracies(0)[:2])
    for number, gamma in enumerate((0.5, 2.0, 1.0)):
        assert point(ax, f"finecal-tradeoff-chosen-{number}") == pytest.approx(accuracies(gamma)[:2])
    most = max(accuracies(gamma)[2] for gamma in every_gamma())
    best = samples().curve().best()
    assert accuracies(best)[2] == most
    assert point(ax, "finecal-tradeoff-best") == pytest.approx(accuracies(best)[:2])
    assert legend(ax) == [
        rf"best (oracle), $\gamma$ = {best:.2f}",
        r"no calibration, $\gamma$ = 0",
        r"mine, $\gamma$ = 0.50",
        r"other, $\gamma$ = 2.00",
        r"estimated, $\gamma$ = 1.00",
    ]


def test_tradeoff_says_the_area():
    points = np.array([accuracies(gamma)[:2] for gamma in every_gamma()])
    area = sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    assert plot_tradeoff(samples().curve()).get_title() == f"Seen-absent curve, AUSUC {area:.3f}"


def test_along_a_thin_line_the_harmonic_mean_is_the_one_at_its_end():
    ax = plot_tradeoff(samples().curve())
    ax.figure.draw_without_rendering()
    (side,) = ax.child_axes
    labels = {tick.get_loc(): tick.label2.get_text() for tick in side.yaxis.get_major_ticks()}
    lines = [line.get_xydata() for line in ax.get_lines() if line.get_gid() is None]
    assert len(lines) == len(labels) == 4
    for line in lines:
        seen, absent = line.T
        mean = float(labels[absent[-1]])
        np.testing.assert_allclose(2 * seen * absent / (seen + absent), mean)
        assert seen[-1] == ax.get_xlim()[1]
        assert absent[0] == pytest.approx(ax.get_xlim()[1])


def test_tradeoff_needs_both_groups_and_finite_gammas():
    with pytest.raises(ValueError, match="seen classes only"):
        plot_tradeoff(finecal.tradeoff_curve(*only_seen()))
    with pytest.raises(ValueError, match="gamma is inf"):
        plot_tradeoff(samples().curve(), gammas={"wrong": np.inf})


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
