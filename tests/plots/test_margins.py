"""Pictures of margins and of logit gaps, against brute force on the logits."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

import finecal
from drawn import artist, diagnosed, legend, make, samples
from finecal.plots import plot_gaps, plot_margins


@pytest.mark.parametrize(("color", "edges"), [("red", ["red", "red"]), (["red", "0.5"], ["red", "0.5"])])
def test_margins_take_one_colour_or_two(color, edges):
    _, logits, labels, seen_mask = make()
    ax = plot_margins(finecal.Samples(logits, labels).margins(seen_mask), color=color)
    assert sorted(to_rgb(patch.get_edgecolor()) for patch in ax.patches) == sorted(map(to_rgb, edges))


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
    ax = plot_margins(finecal.Samples(logits, [0, 1, 2]).margins([True, True, False]))
    assert {"seen (1, 1 outside)", "absent (0, 1 outside)"} <= set(legend(ax))

    _, logits, labels, seen_mask = make()
    logits[np.flatnonzero(seen_mask[labels])[0], :3] += 1e6
    ax = plot_margins(finecal.Samples(logits, labels).margins(seen_mask))
    assert f"seen ({seen_mask[labels].sum() - 1}, 1 outside)" in legend(ax)
    assert ax.get_xlim()[1] < 100


def test_margins_of_no_samples_are_an_empty_picture():
    ax = plot_margins(finecal.Samples(np.zeros((0, 3)), np.zeros(0, int)).margins([True, True, False]))
    assert {"seen (0)", "absent (0)"} <= set(legend(ax))


def test_margins_needs_a_finite_gamma():
    with pytest.raises(ValueError, match="gamma is nan"):
        plot_margins(samples(), gamma=np.nan)


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
