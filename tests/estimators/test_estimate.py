import dataclasses
import pickle
from dataclasses import replace

import numpy as np
import pytest

import finecal
from finecal._estimators.estimate import cost_in_words, share_in_words, with_cost, with_warnings
from problems import scan_labelled


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
        "Cost: accuracy on seen classes falls from 90.0 % to 87.5 % on these samples",
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
        (finecal.estimators.mixed_pair_gap(*seen, SHARES), 3 / 8, equal),
        (finecal.estimators.residual_gap(*seen, SHARES), 3 / 8, equal),
        (finecal.estimators.mixed_pair_gap(*seen, SHARES, 0.3), 0.3, given),
        (finecal.estimators.residual_gap(*seen, SHARES, 0.3), 0.3, given),
        (finecal.estimators.known_share_gamma(unlabelled, SHARES, 0.3), 0.3, given),
        (finecal.estimate_gamma(SHARES, held_out=seen), 3 / 8, equal),
        (finecal.estimate_gamma(SHARES, train=seen, seen_share=0.3), 0.3, given),
        (finecal.estimate_gamma(SHARES, train=seen, unlabelled=unlabelled, seen_share=0.3), 0.3, given),
        (finecal.estimate_gamma(SHARES, unlabelled=unlabelled, seen_share=0.3), 0.3, given),
        (finecal.estimate_gamma(SHARES, train=seen, unlabelled=unlabelled), 3 / 8, equal),
    ]
    for estimate, share, source in cases:
        assert (estimate.seen_share, estimate.seen_share_source) == (share, source), estimate.method
    for estimate in (
        finecal.estimators.mixture_gamma(seen[0], unlabelled, SHARES),
        finecal.estimate_gamma(SHARES, held_out=seen, unlabelled=unlabelled),
    ):
        assert estimate.seen_share_source == found
        assert estimate.seen_share == pytest.approx(0.5, abs=0.1)
        assert f"{100 * estimate.seen_share:.0f} % of them seen as estimated" in estimate.data
    for estimate in (
        finecal.estimators.average_logit_gap(*seen, SHARES),
        finecal.estimators.max_logit_gap(*seen, SHARES),
        finecal.estimators.seen_budget_gamma(*seen, SHARES, 0.1),
    ):
        assert estimate.seen_share is estimate.seen_share_source is None
        assert "Share of seen samples" not in str(estimate)


def test_the_default_share_leaves_out_masked_classes(shared):
    (logits, labels), _ = shared
    logits[:, 7] = -np.inf
    assert finecal.estimators.mixed_pair_gap(logits, labels, SHARES).seen_share == 3 / 7


def test_warnings_are_kept_and_issued_once():
    estimate = finecal.GammaEstimate(2.5, "by hand", "nothing", 0, warnings=("first",))
    with pytest.warns(finecal.FinecalWarning) as record:
        more = with_warnings(estimate, ["second"])
    assert [str(w.message) for w in record] == ["by hand: second"]
    assert more.warnings == ("first", "second")


def test_without_labelled_samples_nothing_is_said_of_them():
    estimate = finecal.GammaEstimate(2.5, "by hand", "9 samples", 9, 0.875)
    assert str(estimate).splitlines()[1] == "Cost: accuracy on seen classes is 87.5 % on these samples"


@pytest.mark.parametrize(
    ("source", "left", "before", "words"),
    [
        (
            "training samples",
            0.9,
            1.0,
            "falls from 100.0 % to 90.0 % on these samples (training samples, so optimistic)",
        ),
        ("held-out samples", 0.9, 1.0, "falls from 100.0 % to 90.0 % on the held-out samples"),
        (None, 0.9, 1.0, "falls from 100.0 % to 90.0 % on these samples"),
        ("written by hand", 0.9, 1.0, "falls from 100.0 % to 90.0 % on these samples"),
        (None, 0.9, 0.8, "rises from 80.0 % to 90.0 % on these samples"),
        (None, 0.90001, 0.9, "stays at 90.0 % on these samples"),
        (None, 0.0, 0.0, "stays at 0.0 % on these samples"),
        (None, 0.9, None, "is 90.0 % on these samples"),
        (None, 0.9, float("nan"), "is 90.0 % on these samples"),
        ("training samples", None, 0.9, None),
        ("training samples", float("nan"), 0.9, None),
    ],
)
def test_what_gamma_costs_in_words(source, left, before, words):
    estimate = finecal.GammaEstimate(2.5, "by hand", "9 samples", 9, left, acc_seen_at_zero=before, cost_source=source)
    assert cost_in_words(estimate) == words
    assert (f"Cost: accuracy on seen classes {words}" in str(estimate).splitlines()) == (words is not None)
    assert estimate.to_dict()["cost_source"] == source


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_only_what_was_told_of_the_samples_is_said(shared):
    seen, unlabelled = shared
    options = {"train": seen}, {"held_out": seen}, {"train": seen, "held_out": (seen[0] + 1, seen[1])}
    sources = [finecal.estimate_gamma(SHARES, **given).cost_source for given in options]
    assert sources == ["training samples", "held-out samples", "held-out samples"]
    alone = finecal.estimate_gamma(SHARES, unlabelled=unlabelled, seen_share=0.5)
    for estimate in (
        alone,
        finecal.estimators.max_logit_gap(*seen, SHARES),
        finecal.estimators.residual_gap(*seen, SHARES),
    ):
        assert estimate.cost_source is None
    compared = finecal.compare_estimators(SHARES, train=seen)
    assert {row.estimate.cost_source for row in compared.rows if row.estimate} == {"training samples"}


def test_the_cost_counts_from_gamma_zero():
    logits = np.array([[0.5, 0.0, -9.0, -9.0], [5.0, 0.0, 4.5, 0.0]] * 20)
    labels, mask = np.tile([0, 0], 20), [True, True, False, False]
    for estimate in (
        finecal.search_gamma(np.r_[logits, [[0.0, 0, 9, 0]]], np.r_[labels, 2], mask),
        finecal.estimators.seen_budget_gamma(logits, labels, mask, 0.9),
    ):
        assert estimate.acc_seen_at_zero == 1.0


@pytest.mark.parametrize(
    ("gamma", "gain", "share", "words"),
    [
        # Of these ten margins two are below gamma = 2; mirrored there, the four from 2 to 4 come to lie above 0.
        (2.0, None, 2 / 6, "Pays if more than 33.3 % of the samples are of absent classes"),
        (2.0, 0.6, 2 / 8, "Pays if more than 25.0 % of the samples are of absent classes"),
        (2.0, 0.0, 1.0, "Pays at no share of absent samples"),
        (2.0, -0.1, 1.0, "Pays at no share of absent samples"),
        (0.5, 0.6, 0.0, "Pays at any share of absent samples"),
        (0.5, 0.0, 1.0, "Pays at no share of absent samples"),
        (0.0, 0.6, None, None),
        (-1.0, 0.6, None, None),
    ],
)
def test_the_share_of_absent_samples_from_which_gamma_pays(gamma, gain, share, words):
    margins = np.array([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 6.0, 6.0, 6.0, 6.0])
    logits = np.stack([margins, np.full(10, -9.0), np.zeros(10)], axis=1)
    scan = scan_labelled(logits, np.zeros(10, int), [True, True, False])
    estimate = with_cost(finecal.GammaEstimate(gamma, "by hand", "10 samples", 10), scan, gain=gain)
    assert estimate.min_absent_share == (None if share is None else pytest.approx(share))
    assert [line for line in str(estimate).splitlines() if line.startswith("Pays")] == (
        [] if words is None else [words]
    )


def test_an_estimate_prints_no_escapes():
    estimate = finecal.GammaEstimate(1.0, "\x1b[2J", "1 \x07 sample", 1, warnings=("\x1b]0;title\x07",))
    assert "\x1b" not in str(estimate)
    assert r"\x1b[2J" in str(estimate)


def test_resamplings_have_an_end():
    sentence = "n_bootstrap is 1000001; pass at most 1000000: 1000 give an interval"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        finecal.estimators.max_logit_gap(
            [[9.0, 4.0, 1.0], [3.0, 8.0, 0.0]], [0, 1], [True, True, False], n_bootstrap=1_000_001
        )
