import math

import numpy as np
import pytest
import torch

import finecal
from finecal.gamma.estimators import BY_NAME
from problems import OUTGROWN, data_of_every_kind

OF_TODAY = {
    *("average_logit_gap", "max_logit_gap", "mixed_pair_gap", "residual_gap", "seen_budget_gamma", "pseudo_cv_gamma"),
    *("mixture_gamma", "known_share_gamma", "search_gamma", "estimate_gamma", "oracle"),
}


def of_today(comparison):
    """Estimators that are added later may come between these."""
    return [row for row in comparison.rows if row.method in OF_TODAY]


@pytest.fixture
def data(rng):
    return data_of_every_kind(rng)


def test_rows_are_what_the_estimators_say(data):
    comparison = finecal.compare_estimators(OUTGROWN, **data, seed=3)
    train, held_out, unlabelled = data["train"], data["held_out"], data["unlabelled"]
    with pytest.warns(finecal.FinecalWarning):
        expected = [
            ("average_logit_gap", "training logits", finecal.average_logit_gap(*train, OUTGROWN)),
            ("max_logit_gap", "training logits", finecal.max_logit_gap(*train, OUTGROWN)),
            ("mixed_pair_gap", "training, seen share", finecal.mixed_pair_gap(*train, OUTGROWN, 0.6, seed=3)),
            (
                "estimate_gamma",
                "training, seen share",
                finecal.estimate_gamma(OUTGROWN, train=train, seen_share=0.6, seed=3),
            ),
            ("average_logit_gap", "held-out logits", finecal.average_logit_gap(*held_out, OUTGROWN)),
            ("max_logit_gap", "held-out logits", finecal.max_logit_gap(*held_out, OUTGROWN)),
            ("mixed_pair_gap", "held-out, seen share", finecal.mixed_pair_gap(*held_out, OUTGROWN, 0.6, seed=3)),
            ("residual_gap", "held-out, seen share", finecal.residual_gap(*held_out, OUTGROWN, 0.6)),
            ("seen_budget_gamma", "held-out logits", finecal.seen_budget_gamma(*held_out, OUTGROWN)),
            (
                "estimate_gamma",
                "train, held-out, share",
                finecal.estimate_gamma(OUTGROWN, train=train, held_out=held_out, seen_share=0.6, seed=3),
            ),
            ("pseudo_cv_gamma", "2 refits", finecal.pseudo_cv_gamma(data["folds"], OUTGROWN)),
            (
                "estimate_gamma",
                "both, 2 refits",
                finecal.estimate_gamma(
                    OUTGROWN, train=train, held_out=held_out, seen_share=0.6, folds=data["folds"], seed=3
                ),
            ),
            ("mixture_gamma", "held-out, unlabelled", finecal.mixture_gamma(held_out[0], unlabelled, OUTGROWN)),
            (
                "estimate_gamma",
                "both, unlabelled",
                finecal.estimate_gamma(OUTGROWN, train=train, held_out=held_out, unlabelled=unlabelled, seed=3),
            ),
            ("known_share_gamma", "unlabelled, share", finecal.known_share_gamma(unlabelled, OUTGROWN, 0.6)),
            (
                "estimate_gamma",
                "known share, both",
                finecal.estimate_gamma(
                    OUTGROWN, train=train, held_out=held_out, unlabelled=unlabelled, seen_share=0.6, seed=3
                ),
            ),
            ("search_gamma", "labelled samples", finecal.search_gamma(*data["labelled"], OUTGROWN)),
            ("oracle", "test labels", finecal.search_gamma(*data["test"], OUTGROWN)),
        ]
    rows = of_today(comparison)
    assert [(row.method, row.needs) for row in rows] == [(name, needs) for name, needs, _ in expected]
    for row, (_, _, estimate) in zip(rows, expected, strict=True):
        assert row.error is None
        assert (row.estimate.gamma, row.estimate.method, row.estimate.warnings) == (
            estimate.gamma,
            estimate.method,
            estimate.warnings,
        )
        assert row.report == finecal.evaluate(*data["test"], OUTGROWN, estimate)
    assert comparison.uncalibrated == finecal.evaluate(*data["test"], OUTGROWN)
    accuracy = [comparison.uncalibrated.acc_all, *(row.report.acc_all for row in comparison.rows)]
    recovered = [row.recovered for row in comparison.rows]
    np.testing.assert_allclose(recovered, (np.array(accuracy[1:]) - accuracy[0]) / (accuracy[-1] - accuracy[0]))
    assert recovered[-1] == 1


def test_cost_is_measured_on_the_same_samples_for_all(data):
    comparison = finecal.compare_estimators(OUTGROWN, **data)
    assert comparison.cost_data == "120 held-out samples"
    for row in comparison.rows:  # the oracle as well, which was found on others
        at = finecal.evaluate(*data["held_out"], OUTGROWN, row.estimate)
        assert row.estimate.expected_acc_seen == at.acc_seen
    del data["test"]
    for row in finecal.compare_estimators(OUTGROWN, **data).rows:
        assert (row.report, row.recovered) == (None, None)
    del data["held_out"]
    assert finecal.compare_estimators(OUTGROWN, **data).cost_data == "150 training samples"


@pytest.mark.parametrize(
    ("given", "methods"),
    [
        (["train"], ["average_logit_gap", "max_logit_gap", "mixed_pair_gap", "estimate_gamma"]),
        (["folds"], ["pseudo_cv_gamma"]),
        (["labelled"], ["search_gamma"]),
        (["unlabelled", "seen_share"], ["known_share_gamma"]),
        (["labelled", "test"], ["search_gamma", "oracle"]),
    ],
)
def test_what_the_data_allow(data, given, methods):
    comparison = finecal.compare_estimators(OUTGROWN, **{name: data[name] for name in given})
    assert [row.method for row in of_today(comparison)] == methods
    assert {row.method for row in comparison.rows} <= {*BY_NAME, "estimate_gamma", "oracle"}


@pytest.mark.filterwarnings("ignore:.*these are the same samples")
def test_nothing_to_gain(rng):
    labels = np.arange(50) % 5
    logits = 9 * np.eye(5)[labels] + rng.normal(size=(50, 5))
    comparison = finecal.compare_estimators(OUTGROWN, labelled=(logits, labels), test=(logits, labels))
    assert [row.recovered for row in comparison.rows] == [None, None]


def test_types_and_devices(data, device):
    def moved(value):
        if isinstance(value, np.ndarray):
            return torch.tensor(value, device=device)
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    del data["folds"]
    expected = finecal.compare_estimators(OUTGROWN, **data)
    comparison = finecal.compare_estimators(OUTGROWN, **{name: moved(value) for name, value in data.items()})
    assert str(comparison) == str(expected)
    assert all(isinstance(row.estimate.gamma, float) and not math.isnan(row.report.ausuc) for row in comparison.rows)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": None, "held_out": None, "folds": None, "labelled": None, "unlabelled": None}, ValueError, "no data"),
        ({"train": (1, 2, 3)}, TypeError, "train is a tuple of 3 items"),
        ({"seen_share": 60}, ValueError, "seen_share is 60"),
        ({"n_bootstrap": -1}, ValueError, "n_bootstrap is -1"),
        ({"test": None, "pretrained_logits": np.zeros((300, 5))}, ValueError, "pass test="),
        ({"pretrained_logits": np.zeros((3, 5))}, ValueError, "pretrained_logits: labels have shape"),
        ({"held_out": (np.zeros((3, 5), int), [0, 0, 0])}, TypeError, "held_out: logits has dtype int64"),
        ({"train": (np.full((3, 5), math.nan), [0, 0, 0])}, ValueError, "train: logits contain NaN"),
        ({"labelled": (np.full((3, 5), math.nan), [0, 0, 0])}, ValueError, "labelled: logits contain NaN"),
        ({"test": (np.zeros((3, 5), int), [0, 0, 0])}, TypeError, "test: logits has dtype int64"),
        ({"folds": 3}, TypeError, "folds is one int"),
        ({"folds": []}, ValueError, "folds are empty"),
        ({"unlabelled": np.full((3, 5), math.nan)}, ValueError, "unlabelled contain NaN"),
    ],
)
def test_bad_arguments(data, change, error, message):
    with pytest.raises(error, match=message):
        finecal.compare_estimators(OUTGROWN, **(data | change))


def test_test_samples_of_one_group(data):
    logits, labels = data["test"]
    seen = OUTGROWN[labels]
    with pytest.raises(ValueError, match="test: labels are of seen classes only"):
        finecal.compare_estimators(OUTGROWN, train=data["train"], test=(logits[seen], labels[seen]))
    with pytest.raises(ValueError, match="labels contain absent class"):
        finecal.compare_estimators(OUTGROWN, train=data["test"])


def test_unlabelled_samples_that_are_of_no_use_are_named(data):
    with pytest.warns(finecal.FinecalWarning, match="unlabelled samples were not used: mixture_gamma needs held_out="):
        finecal.compare_estimators(OUTGROWN, train=data["train"], unlabelled=data["unlabelled"])


def test_labels_that_look_reindexed_are_warned_of(data):
    logits, labels = data["labelled"]
    two = labels < 2
    mask = np.array([False, True, True, False, False])
    with pytest.warns(finecal.FinecalWarning, match="they look re-indexed"):
        finecal.compare_estimators(mask, labelled=(logits[two], labels[two]))


def test_folds_may_be_an_iterator(data):
    given = {"held_out": data["held_out"]}
    listed = finecal.compare_estimators(OUTGROWN, folds=data["folds"], **given)
    iterated = finecal.compare_estimators(OUTGROWN, folds=iter(data["folds"]), **given)
    assert [row.estimate for row in iterated.rows] == [row.estimate for row in listed.rows]
