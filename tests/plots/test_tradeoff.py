"""The seen-absent curve, against brute force on the logits."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import finecal
from drawn import accuracies, artist, estimate, every_gamma, legend, only_seen, point, samples
from finecal.plots import plot_tradeoff


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
