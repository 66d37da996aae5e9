import dataclasses
import pickle

import numpy as np
import pytest

import finecal
from finecal.gamma.estimate import with_warnings


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
        "95 % sampling interval: 2 to 3",
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


def test_an_estimate_prints_no_escapes():
    estimate = finecal.GammaEstimate(1.0, "\x1b[2J", "1 \x07 sample", 1, warnings=("\x1b]0;title\x07",))
    assert "\x1b" not in str(estimate)
    assert r"\x1b[2J" in str(estimate)


def test_resamplings_have_an_end():
    sentence = "n_bootstrap is 1000001; pass at most 1000000: 1000 give an interval"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        finecal.max_logit_gap([[9.0, 4.0, 1.0], [3.0, 8.0, 0.0]], [0, 1], [True, True, False], n_bootstrap=1_000_001)
