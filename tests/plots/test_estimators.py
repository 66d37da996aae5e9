"""Pictures of estimators and of reliability, against brute force on the logits."""

import numpy as np
import pytest

import finecal
from drawn import accuracies, artist, compared, every_gamma, legend, make, only_seen
from finecal.plots import plot_estimators, plot_reliability
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
    data = data_with_features(rng)
    comparison = finecal.compare_estimators(OUTGROWN, **data)
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


def test_reliability_draws_bins_and_their_weight():
    _, logits, labels, seen_mask = make()
    ax = plot_reliability(finecal.probabilities.evaluate_probabilities(logits, labels, seen_mask, 1.5, n_bins=7))
    shifted = logits.astype(np.float64) + 1.5 * ~seen_mask
    probabilities = np.exp(shifted - shifted.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    clouds = iter(ax.collections)
    for name, rows in {"all": labels >= 0, "seen": seen_mask[labels], "absent": ~seen_mask[labels]}.items():
        members = [rows & (confidence > b / 7) & (confidence <= (b + 1) / 7) for b in range(7)]
        members = [m for m in members if m.any()]
        expected = [(confidence[m].mean(), right[m].mean()) for m in members]
        np.testing.assert_allclose(artist(ax, f"finecal-reliability-{name}").get_xydata(), expected, atol=1e-6)
        count = np.array([m.sum() for m in members])
        ece = np.sum(count * np.abs([a - b for a, b in expected])) / rows.sum()
        assert f"{name} ({rows.sum()}), ECE {ece:.3f}" in legend(ax)
        if name != "all":
            cloud = next(clouds)
            np.testing.assert_allclose(cloud.get_offsets(), expected, atol=1e-6)
            np.testing.assert_allclose(cloud.get_sizes() / cloud.get_sizes().sum(), count / rows.sum())
    assert ax.get_title() == r"Reliability at $\gamma$ = 1.50"


def test_reliability_leaves_out_a_group_without_samples():
    ax = plot_reliability(finecal.probabilities.evaluate_probabilities(*only_seen()))
    assert {line.get_gid() for line in ax.get_lines()} == {None, "finecal-reliability-all", "finecal-reliability-seen"}
    assert not any("absent" in text for text in legend(ax))


def test_reliability_needs_samples():
    nothing = finecal.probabilities.evaluate_probabilities(np.zeros((0, 3)), np.zeros(0, int), [True, True, False])
    with pytest.raises(ValueError, match="no samples"):
        plot_reliability(nothing)
