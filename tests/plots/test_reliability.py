"""Reliability, against brute force on the logits."""

import numpy as np
import pytest

import finecal
from drawn import artist, legend, make, only_seen
from finecal.plots import plot_reliability


def test_reliability_draws_bins_and_their_weight():
    _, logits, labels, seen_mask = make()
    ax = plot_reliability(finecal.evaluate_probabilities(logits, labels, seen_mask, 1.5, n_bins=7))
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
    ax = plot_reliability(finecal.evaluate_probabilities(*only_seen()))
    assert {line.get_gid() for line in ax.get_lines()} == {None, "finecal-reliability-all", "finecal-reliability-seen"}
    assert not any("absent" in text for text in legend(ax))


def test_reliability_needs_samples():
    nothing = finecal.evaluate_probabilities(np.zeros((0, 3)), np.zeros(0, int), [True, True, False])
    with pytest.raises(ValueError, match="no samples"):
        plot_reliability(nothing)
