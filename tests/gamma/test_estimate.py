import dataclasses
import pickle

import numpy as np
import pytest

import finecal
from finecal.evaluation.scan import scan_labelled
from finecal.gamma.estimate import doubts_about_seen, with_warnings


def test_an_estimate_is_a_number():
    estimate = finecal.GammaEstimate(2.5, "by hand", "nothing", 0)
    assert float(estimate) == 2.5
    assert pickle.loads(pickle.dumps(estimate)) == estimate
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.gamma = 1.0


def test_prints_all_it_knows():
    estimate = finecal.GammaEstimate(2.5, "by hand", "9 samples", 9, 0.875, (2.0, 3.0), ("it is a guess",), 0.9)
    assert str(estimate).splitlines() == [
        "gamma = 2.5  (by hand; from 9 samples)",
        "95 % bootstrap interval: 2 to 3",
        "Acc_S/Y of the labelled seen samples given: 87.5 % (90.0 % at gamma = 0)",
        "warning: it is a guess",
    ]


def test_warnings_are_kept_and_issued_once():
    estimate = finecal.GammaEstimate(2.5, "by hand", "nothing", 0, warnings=("first",))
    with pytest.warns(finecal.FinecalWarning) as record:
        more = with_warnings(estimate, ["second"])
    assert [str(w.message) for w in record] == ["by hand: second"]
    assert more.warnings == ("first", "second")


def test_without_labelled_samples_nothing_is_said_of_them():
    estimate = finecal.GammaEstimate(2.5, "by hand", "9 samples", 9, 0.875)
    assert str(estimate).splitlines()[1] == "Acc_S/Y of the labelled seen samples given: 87.5 %"


def test_the_cost_counts_from_gamma_zero():
    logits = np.array([[0.5, 0.0, -9.0, -9.0], [5.0, 0.0, 4.5, 0.0]] * 20)
    labels, mask = np.tile([0, 0], 20), [True, True, False, False]
    for estimate in (
        finecal.search_gamma(np.r_[logits, [[0.0, 0, 9, 0]]], np.r_[labels, 2], mask),
        finecal.seen_budget_gamma(logits, labels, mask, 0.9),
    ):
        assert estimate.acc_seen_before == 1.0


@pytest.mark.parametrize(
    ("num_seen", "right", "warned"), [(5, 40, True), (5, 41, False), (10, 20, True), (4, 1, False)]
)
def test_twice_a_guess_is_hardly_more_than_guessing(num_seen, right, warned):
    """Of 100 samples of class 0, `right` are told apart."""
    logits = np.zeros((100, num_seen + 1))
    logits[:, -1] = -9
    logits[np.arange(100), np.where(np.arange(100) < right, 0, 1)] = 5
    scan = scan_labelled(logits, np.zeros(100, int), np.arange(num_seen + 1) < num_seen)
    assert (
        doubts_about_seen(scan, 0.0)
        == [
            f"only {right}.0 % of the seen samples given are told apart, hardly more than by guessing among {num_seen} "
            "classes: check that labels index all columns of these logits, in this order (labels re-indexed to "
            "0..|S|-1, or a head that was made anew, look like this)"
        ]
        * warned
    )
