import dataclasses
import pickle
from dataclasses import replace

import numpy as np
import pytest

import finecal
from finecal.gamma.estimate import share_in_words, with_warnings


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


def test_says_which_share_it_is_for():
    estimate = finecal.GammaEstimate(2.5, "by hand", "9 samples", 9, seen_share=0.125, seen_share_source="given")
    record = estimate.to_dict()
    assert (record["seen_share"], record["seen_share_source"]) == (0.125, "given")
    assert share_in_words(estimate) == "12.5 % (given)"
    assert share_in_words(replace(estimate, seen_share_source=None)) == "12.5 %"
    assert share_in_words(replace(estimate, seen_share=None)) is None


SHARES = np.array([True] * 3 + [False] * 5)


@pytest.fixture
def shared(rng):
    """Labelled seen samples, and unlabelled ones of all classes of which a half are seen."""

    def sample(labels):
        return rng.normal(size=(len(labels), 8)) + 4 * np.eye(8)[labels] + 3 * SHARES

    labels = np.arange(240) % 3
    unlabelled = sample(np.r_[labels, 3 + np.arange(240) % 5])
    return (sample(labels), labels), unlabelled


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_every_estimator_says_which_share_it_is_for(shared):
    seen, unlabelled = shared
    given, equal, found = "given", "every class equally frequent", "estimated from unlabelled samples"
    cases = [
        (finecal.mixed_pair_gap(*seen, SHARES), 3 / 8, equal),
        (finecal.residual_gap(*seen, SHARES), 3 / 8, equal),
        (finecal.mixed_pair_gap(*seen, SHARES, 0.3), 0.3, given),
        (finecal.residual_gap(*seen, SHARES, 0.3), 0.3, given),
        (finecal.known_share_gamma(unlabelled, SHARES, 0.3), 0.3, given),
        (finecal.estimate_gamma(SHARES, held_out=seen), 3 / 8, equal),
        (finecal.estimate_gamma(SHARES, train=seen, seen_share=0.3), 0.3, given),
        (finecal.estimate_gamma(SHARES, train=seen, unlabelled=unlabelled, seen_share=0.3), 0.3, given),
        (finecal.estimate_gamma(SHARES, unlabelled=unlabelled, seen_share=0.3), 0.3, given),
        (finecal.estimate_gamma(SHARES, train=seen, unlabelled=unlabelled), 3 / 8, equal),
    ]
    for estimate, share, source in cases:
        assert (estimate.seen_share, estimate.seen_share_source) == (share, source), estimate.method
    for estimate in (
        finecal.mixture_gamma(seen[0], unlabelled, SHARES),
        finecal.estimate_gamma(SHARES, held_out=seen, unlabelled=unlabelled),
    ):
        assert estimate.seen_share_source == found
        assert estimate.seen_share == pytest.approx(0.5, abs=0.1)
        assert f"{100 * estimate.seen_share:.0f} % of them seen as estimated" in estimate.data
    for estimate in (
        finecal.average_logit_gap(*seen, SHARES),
        finecal.max_logit_gap(*seen, SHARES),
        finecal.seen_budget_gamma(*seen, SHARES, 0.1),
    ):
        assert estimate.seen_share is estimate.seen_share_source is None
        assert "Share of seen samples" not in str(estimate)


def test_the_default_share_leaves_out_masked_classes(shared):
    (logits, labels), _ = shared
    logits[:, 7] = -np.inf
    assert finecal.mixed_pair_gap(logits, labels, SHARES).seen_share == 3 / 7


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
