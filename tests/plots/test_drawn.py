"""What each picture shows, against brute force on the logits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import finecal
from drawn import artist, legend, point
from finecal.plots import plot_accuracy, plot_estimators, plot_gaps, plot_margins, plot_reliability, plot_tradeoff
from plots.test_plots import compared, diagnosed, estimate, make, only_seen, samples


def accuracies(gamma, n=300):
    """Of the seen, of the absent and of all samples, by the argmax of calibrated logits."""
    _, logits, labels, seen_mask = make(n)
    right = (logits.astype(np.float64) + gamma * ~seen_mask).argmax(1) == labels
    seen = seen_mask[labels]
    return right[seen].mean(), right[~seen].mean(), right.mean()


def every_gamma(n=300):
    """Gammas between any two margins, and beyond them."""
    _, logits, _, seen_mask = make(n)
    margin = np.unique(logits[:, seen_mask].max(1) - logits[:, ~seen_mask].max(1)).astype(np.float64)
    return np.concatenate([[margin[0] - 1], (margin[1:] + margin[:-1]) / 2, [margin[-1] + 1]])


# --- seen-absent curve ------------------------------------------------------------------------------------------------


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


def test_results_draw_themselves():
    assert artist(samples().curve().plot(alpha=0.5), "finecal-tradeoff-curve").get_alpha() == 0.5
    assert samples().plot(gamma=1.0).get_xlabel().startswith("margin")
    assert compared(test=True).plot().get_title() == r"Estimators of $\gamma$"
    assert diagnosed().plot().get_title() == "Mean logit gap"
    assert "Reliability" in finecal.evaluate_probabilities(*make()[1:]).plot().get_title()


# --- margins ----------------------------------------------------------------------------------------------------------


def test_margins_counts_every_sample_of_either_group():
    _, logits, labels, seen_mask = make()
    margin = logits[:, seen_mask].max(1) - logits[:, ~seen_mask].max(1)
    groups = {"seen": seen_mask[labels], "absent": ~seen_mask[labels]}
    edges = np.linspace(margin.min(), margin.max(), 6)
    ax = plot_margins(samples(), bins=edges, histtype="bar")
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert heights == [np.histogram(margin[group], edges)[0].tolist() for group in groups.values()]
    assert {f"{name} ({group.sum()})" for name, group in groups.items()} <= set(legend(ax))


def test_margins_bins_hold_every_sample_by_default():
    ax = plot_margins(samples(), histtype="bar")
    assert [sum(bar.get_height() for bar in bars) for bars in ax.containers] == [
        np.sum(samples().is_seen),
        np.sum(~samples().is_seen),
    ]


def test_margins_draws_lines_at_zero_and_at_gamma():
    ax = plot_margins(samples(), gamma=torch.tensor(1.25))
    highest = max(polygon.get_xy()[:, 1].max() for polygon in ax.patches)
    for name, gamma in (("zero", 0), ("gamma", 1.25)):
        (low_x, low_y), (high_x, high_y) = artist(ax, f"finecal-margins-{name}").get_xydata()
        assert (low_x, low_y, high_x) == (gamma, 0, gamma)
        assert high_y >= highest > 0
    assert {r"$\gamma$ = 0", r"$\gamma$ = 1.25"} <= set(legend(ax))
    assert [line.get_gid() for line in plot_margins(samples()).get_lines()] == ["finecal-margins-zero"]


def test_margins_shows_where_gamma_is_however_far():
    low, high = plot_margins(samples(), gamma=-1e4).get_xlim()
    assert low < -1e4
    assert high > samples().margin.max()


def test_margins_leaves_out_what_lies_far_away_and_says_so():
    logits = np.array([[1.0, 2.0, -np.inf], [1.0, 2.0, 0.5], [-np.inf, -np.inf, 3.0]])
    ax = plot_margins(finecal.margins(logits, [0, 1, 2], [True, True, False]))
    assert {"seen (1, 1 outside)", "absent (0, 1 outside)"} <= set(legend(ax))

    _, logits, labels, seen_mask = make()
    logits[np.flatnonzero(seen_mask[labels])[0], :3] += 1e6
    ax = plot_margins(finecal.margins(logits, labels, seen_mask))
    assert f"seen ({seen_mask[labels].sum() - 1}, 1 outside)" in legend(ax)
    assert ax.get_xlim()[1] < 100


def test_margins_of_no_samples_are_an_empty_picture():
    ax = plot_margins(finecal.margins(np.zeros((0, 3)), np.zeros(0, int), [True, True, False]))
    assert {"seen (0)", "absent (0)"} <= set(legend(ax))


def test_margins_needs_a_finite_gamma():
    with pytest.raises(ValueError, match="gamma is nan"):
        plot_margins(samples(), gamma=np.nan)


# --- accuracies -------------------------------------------------------------------------------------------------------


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


# --- reliability ------------------------------------------------------------------------------------------------------


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


# --- estimators -------------------------------------------------------------------------------------------------------


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


# --- gaps -------------------------------------------------------------------------------------------------------------


def gap(logits, labels, seen_mask):
    """Mean of the largest seen minus the largest absent logit, the label's own left out."""
    own = np.arange(logits.shape[1]) == labels[:, None]
    left = np.where(own, -np.inf, logits)
    return np.mean(left[:, seen_mask].max(1) - left[:, ~seen_mask].max(1))


def test_gaps_draws_four_means():
    before, logits, labels, seen_mask = make()
    ax = plot_gaps(diagnosed())
    numbers = iter(text.get_text() for text in ax.texts)
    for model, scores in (("pretrained", before), ("finetuned", logits)):
        for group, rows in (("seen", seen_mask[labels]), ("absent", ~seen_mask[labels])):
            expected = gap(scores[rows].astype(np.float64), labels[rows], seen_mask)
            assert artist(ax, f"finecal-gaps-{model}-{group}").get_height() == pytest.approx(expected, rel=1e-5)
            assert next(numbers) == f"{expected:.2f}"
    assert legend(ax) == ["pre-trained", "fine-tuned"]


def test_gaps_writes_numbers_with_as_many_decimals_as_the_largest_needs():
    texts = [text.get_text() for text in plot_gaps(diagnosed(-1e3)).texts]
    assert texts[:2] == ["0", "0"]
    assert all(text.startswith("-") and text.endswith("0") and len(text) == 5 for text in texts[2:])


def test_gaps_says_what_is_undefined():
    ax = plot_gaps(diagnosed(absent=False))
    assert [text.get_text() for text in ax.texts][1::2] == ["undefined", "undefined"]
    assert artist(ax, "finecal-gaps-finetuned-absent").get_height() == 0


def test_ids_of_two_pictures_in_one_figure_are_all_there():
    one, other = Figure().subplots(1, 2)
    plot_margins(samples(), one, gamma=1.0)
    plot_tradeoff(samples().curve(), other)
    assert artist(one, "finecal-margins-gamma")
    assert artist(other, "finecal-tradeoff-curve")
