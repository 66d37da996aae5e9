"""The four mean logits of a diagnosis."""

import numpy as np
import pytest

from drawn import artist, diagnosed, legend, make
from finecal.plots import plot_gaps


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
