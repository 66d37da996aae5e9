"""Estimators compared in one picture, against brute force on the logits."""

import numpy as np
import pytest

import finecal
from drawn import accuracies, artist, compared, every_gamma, legend
from finecal.plots import plot_estimators
from problems import OUTGROWN, data_with_features


def test_estimators_draws_what_each_reaches():
    comparison = compared(test=True)
    ax = plot_estimators(comparison)
    rows = [row for row in comparison.rows if row.method != "oracle"]
    assert len(rows) >= 8
    for number, row in enumerate(rows):
        ((x, y),) = artist(ax, f"finecal-estimators-{number}").get_xydata()
        assert x == pytest.approx(accuracies(row.estimate.gamma)[2])
        assert -number - 1 < y < -number
    most = max(accuracies(gamma)[2] for gamma in every_gamma())
    assert legend(ax) == ["estimate", f"no calibration {accuracies(0)[2]:.3f}", f"oracle {most:.3f}"]
    spans = [line.get_xdata() for line in ax.get_lines() if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(spans, [[accuracies(0)[2], most]] * len(rows))


def test_estimators_draws_prototypes_right_of_the_oracle(rng):
    comparison = finecal.compare_estimators(OUTGROWN, **data_with_features(rng))
    *_, row, oracle = comparison.rows
    ax = plot_estimators(comparison)
    ((x, _),) = artist(ax, f"finecal-estimators-{len(comparison.rows) - 2}").get_xydata()
    assert x == row.report.acc_all > oracle.report.acc_all
    assert ax.get_xlim()[1] > x
    assert ax.texts[-2].get_text() == "estimate_gamma + prototypes, both, unlabelled, features"


def test_estimators_names_rows_in_their_order():
    comparison = compared(test=True, impossible=(2,))
    ax = plot_estimators(comparison)
    names, shown = ax.texts[::2], ax.texts[1::2]
    rows = [row for row in comparison.rows if row.method != "oracle"]
    assert [text.get_text() for text in names] == [f"{row.method}, {row.needs}" for row in rows]
    assert [text.get_position()[1] for text in names] == sorted(text.get_position()[1] for text in names)[::-1]
    assert shown[2].get_text() == "not possible"
    assert shown[0].get_text() == f"{accuracies(rows[0].estimate.gamma)[2]:.3f}"
    gids = {line.get_gid() for line in ax.get_lines()}
    assert "finecal-estimators-1" in gids
    assert "finecal-estimators-2" not in gids


def test_estimators_without_test_samples_draws_gamma_and_its_interval():
    comparison = compared(n_bootstrap=20)
    ax = plot_estimators(comparison)
    drawn = [artist(ax, f"finecal-estimators-{number}").get_xdata()[0] for number in range(len(comparison.rows))]
    assert drawn == [row.estimate.gamma for row in comparison.rows]
    intervals = [row.estimate.interval for row in comparison.rows if row.estimate.interval is not None]
    assert len(intervals) > 3
    assert [tuple(line.get_xdata()) for line in ax.get_lines() if line.get_linestyle() == "-"] == intervals
    assert ax.get_xlabel() == r"$\gamma$"
    assert r"$\gamma$ = 0" in legend(ax)
