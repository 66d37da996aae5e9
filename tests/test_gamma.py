import dataclasses
import pickle

import pytest

import finecal
from finecal.gamma import with_warnings


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
