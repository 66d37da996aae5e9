"""Margins in bins, and the second pass over one of them."""

import math

import numpy as np
import pytest

from finecal.streaming import BestGamma, MarginBins
from streams import tied

INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")  # of few classes, by chance


def test_the_second_pass_is_merged_saved_and_checked():
    logits, labels, mask = tied(7)
    first = MarginBins(mask, 8, 1.0).update(logits, labels)
    whole = BestGamma(first).update(logits, labels)
    half = BestGamma(first).update(logits[::2], labels[::2])
    with pytest.raises(
        ValueError, match="BestGamma has .* pass all samples of the first pass once more, and no others"
    ):
        half.compute()
    half.merge(BestGamma(first).update(logits[1::2], labels[1::2]))
    assert half.compute() == whole.compute()
    assert BestGamma(first).load_state_dict(whole.state_dict()).compute() == whole.compute()
    other = MarginBins(mask, 8, 1.0).update(logits[:-1], labels[:-1])
    with pytest.raises(ValueError, match="seen_hits|absent_hits|hits|samples"):
        BestGamma(other).merge(whole)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda mask: MarginBins(mask, 1), ValueError, "n_bins is 1; pass at least 2"),
        (lambda mask: MarginBins(mask, 2.5), TypeError, "n_bins"),
        (lambda mask: MarginBins(mask, scale=0), ValueError, "scale is 0"),
        (lambda mask: BestGamma(mask), TypeError, "bins is a ndarray; pass the MarginBins of a first pass"),
        (lambda mask: MarginBins(~mask & mask), ValueError, "seen_mask"),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make(np.array([True, False]))


def test_objectives_are_named():
    state = MarginBins(np.array([True, False])).update(np.array([[3.0, 1.0], [1.0, 0.5]]), [0, 1])
    with pytest.raises(ValueError, match="objective is 'best'"):
        BestGamma(state, "best")
