import math

import numpy as np
import pytest
import torch

import finecal

MASK = np.array([True, True, True, False, False])


@pytest.fixture
def data(rng):
    """Logits of a model whose seen classes have outgrown the others by 3, for every argument."""

    def samples(n, classes):
        labels = rng.choice(classes, size=n)
        return rng.normal(size=(n, 5)) + 4 * np.eye(5)[labels] + 3.0 * MASK, labels

    folds = []
    for half in finecal.pseudo_cv_splits(MASK, n_splits=2):
        logits, labels = samples(90, [0, 1, 2])
        folds.append(finecal.PseudoFold(logits + 2.0 * half, labels, half))
    return {
        "train": samples(150, [0, 1, 2]),
        "held_out": samples(120, [0, 1, 2]),
        "unlabelled": samples(200, range(5))[0],
        "seen_share": 0.6,
        "folds": folds,
        "labelled": samples(80, range(5)),
        "test": samples(300, range(5)),
    }


def test_rows_are_what_the_estimators_say(data):
    comparison = finecal.compare_estimators(MASK, **data, seed=3)
    train, held_out, unlabelled = data["train"], data["held_out"], data["unlabelled"]
    with pytest.warns(finecal.FinecalWarning):
        expected = [
            ("average_logit_gap", "training logits", finecal.average_logit_gap(*train, MASK)),
            ("max_logit_gap", "training logits", finecal.max_logit_gap(*train, MASK)),
            ("mixed_pair_gap", "training, seen share", finecal.mixed_pair_gap(*train, MASK, 0.6, seed=3)),
            (
                "estimate_gamma",
                "training, seen share",
                finecal.estimate_gamma(MASK, train=train, seen_share=0.6, seed=3),
            ),
            ("average_logit_gap", "held-out logits", finecal.average_logit_gap(*held_out, MASK)),
            ("max_logit_gap", "held-out logits", finecal.max_logit_gap(*held_out, MASK)),
            ("mixed_pair_gap", "held-out, seen share", finecal.mixed_pair_gap(*held_out, MASK, 0.6, seed=3)),
            ("residual_gap", "held-out, seen share", finecal.residual_gap(*held_out, MASK, 0.6)),
            ("seen_budget_gamma", "held-out logits", finecal.seen_budget_gamma(*held_out, MASK)),
            (
                "estimate_gamma",
                "train, held-out, share",
                finecal.estimate_gamma(MASK, train=train, held_out=held_out, seen_share=0.6, seed=3),
            ),
            ("pseudo_cv_gamma", "2 refits", finecal.pseudo_cv_gamma(data["folds"], MASK)),
            (
                "estimate_gamma",
                "both, 2 refits",
                finecal.estimate_gamma(
                    MASK, train=train, held_out=held_out, seen_share=0.6, folds=data["folds"], seed=3
                ),
            ),
            ("mixture_gamma", "held-out, unlabelled", finecal.mixture_gamma(held_out[0], unlabelled, MASK)),
            (
                "estimate_gamma",
                "both, unlabelled",
                finecal.estimate_gamma(MASK, train=train, held_out=held_out, unlabelled=unlabelled, seed=3),
            ),
            ("known_share_gamma", "unlabelled, share", finecal.known_share_gamma(unlabelled, MASK, 0.6)),
            (
                "estimate_gamma",
                "known share, both",
                finecal.estimate_gamma(
                    MASK, train=train, held_out=held_out, unlabelled=unlabelled, seen_share=0.6, seed=3
                ),
            ),
            ("search_gamma", "labelled samples", finecal.search_gamma(*data["labelled"], MASK)),
            ("oracle", "test labels", finecal.search_gamma(*data["test"], MASK)),
        ]
    assert [(row.method, row.needs) for row in comparison.rows] == [(name, needs) for name, needs, _ in expected]
    for row, (_, _, estimate) in zip(comparison.rows, expected, strict=True):
        assert row.error is None
        assert (row.estimate.gamma, row.estimate.method, row.estimate.warnings) == (
            estimate.gamma,
            estimate.method,
            estimate.warnings,
        )
        assert row.report == finecal.evaluate(*data["test"], MASK, estimate)
    assert comparison.uncalibrated == finecal.evaluate(*data["test"], MASK)
    accuracy = [comparison.uncalibrated.acc_all, *(row.report.acc_all for row in comparison.rows)]
    recovered = [row.recovered for row in comparison.rows]
    np.testing.assert_allclose(recovered, (np.array(accuracy[1:]) - accuracy[0]) / (accuracy[-1] - accuracy[0]))
    assert recovered[-1] == 1


def test_cost_is_measured_on_the_same_samples_for_all(data):
    comparison = finecal.compare_estimators(MASK, **data)
    assert comparison.cost_data == "120 held-out samples"
    for row in comparison.rows:  # the oracle as well, which was found on others
        at = finecal.evaluate(*data["held_out"], MASK, row.estimate)
        assert row.estimate.expected_acc_seen == at.acc_seen
    del data["test"]
    for row in finecal.compare_estimators(MASK, **data).rows:
        assert (row.report, row.recovered) == (None, None)
    del data["held_out"]
    assert finecal.compare_estimators(MASK, **data).cost_data == "150 training samples"


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
    comparison = finecal.compare_estimators(MASK, **{name: data[name] for name in given})
    assert [row.method for row in comparison.rows] == methods


def test_print(data):
    pretrained = data["test"][0] - 3.0 * MASK
    comparison = finecal.compare_estimators(MASK, **data, pretrained_logits=pretrained, n_bootstrap=20)
    assert comparison.pretrained == finecal.evaluate(pretrained, data["test"][1], MASK)
    lines = str(comparison).splitlines()
    assert len({len(line) for line in lines[:22]}) == 1
    assert len(lines[0]) <= 120
    header = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    accuracies = ["S/Y", "U/Y", "Y/Y", "harmonic"]
    assert header == ["Acc in %", "gamma", "interval", "cost", *accuracies, "recovered", "needs"]
    fine_tuned = dict(zip(header, (cell.strip() for cell in lines[3].split("|")[1:-1]), strict=True))
    assert fine_tuned["Acc in %"] == "fine-tuned"
    assert fine_tuned["Y/Y"] == f"{100 * comparison.uncalibrated.acc_all:.1f}"
    oracle = dict(zip(header, (cell.strip() for cell in lines[21].split("|")[1:-1]), strict=True))
    low, high = comparison.rows[-1].estimate.interval
    assert (oracle["Acc in %"], oracle["recovered"]) == ("oracle", "100")
    assert oracle["interval"] == f"{low:.2f}, {high:.2f}"
    text = str(comparison)
    at = comparison.uncalibrated
    assert f"; fine-tuned {100 * at.acc_seen_within:.1f}, {100 * at.acc_absent_within:.1f} and {at.ausuc:.3f}." in text
    assert "Interval: 95 % bootstrap interval of gamma." in text
    assert "Cost: points of Acc_S/Y lost against gamma = 0, on 120 held-out samples." in text
    for row in comparison.rows:
        for sentence in row.estimate.warnings:
            assert f"Warning of {row.method} from {row.needs}: {sentence}" in text


def test_small_gammas_keep_three_digits(data):
    labelled = data["labelled"][0] * 1e-4, data["labelled"][1]
    cells = str(finecal.compare_estimators(MASK, labelled=labelled)).split()
    assert f"{finecal.search_gamma(*labelled, MASK).gamma:.6f}" in cells


def test_an_estimator_that_is_not_possible_says_why(data):
    logits, labels = data["train"]
    one_class = labels == 0
    comparison = finecal.compare_estimators(MASK, train=(logits[one_class], labels[one_class]), test=data["test"])
    row = comparison.rows[2]
    assert (row.method, row.estimate, row.report, row.recovered) == ("mixed_pair_gap", None, None, None)
    assert row.error.startswith("labels are all of class 0")
    assert f"Not possible: mixed_pair_gap from training logits: {row.error}" in str(comparison)


def test_nothing_to_gain(rng):
    labels = np.arange(50) % 5
    logits = 9 * np.eye(5)[labels] + rng.normal(size=(50, 5))
    comparison = finecal.compare_estimators(MASK, labelled=(logits, labels), test=(logits, labels))
    assert [row.recovered for row in comparison.rows] == [None, None]


def test_types_and_devices(data, device):
    def moved(value):
        if isinstance(value, np.ndarray):
            return torch.tensor(value, device=device)
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    del data["folds"]
    expected = finecal.compare_estimators(MASK, **data)
    comparison = finecal.compare_estimators(MASK, **{name: moved(value) for name, value in data.items()})
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
        finecal.compare_estimators(MASK, **(data | change))


def test_test_samples_of_one_group(data):
    logits, labels = data["test"]
    seen = MASK[labels]
    with pytest.raises(ValueError, match="test: labels are of seen classes only"):
        finecal.compare_estimators(MASK, train=data["train"], test=(logits[seen], labels[seen]))
    with pytest.raises(ValueError, match="labels contain absent class"):
        finecal.compare_estimators(MASK, train=data["test"])


def test_unlabelled_samples_that_are_of_no_use_are_named(data):
    with pytest.warns(finecal.FinecalWarning, match="unlabelled samples were not used: mixture_gamma needs held_out="):
        finecal.compare_estimators(MASK, train=data["train"], unlabelled=data["unlabelled"])


def test_labels_that_look_reindexed_are_warned_of(data):
    logits, labels = data["labelled"]
    two = labels < 2
    mask = np.array([False, True, True, False, False])
    with pytest.warns(finecal.FinecalWarning, match="they look re-indexed"):
        finecal.compare_estimators(mask, labelled=(logits[two], labels[two]))


def test_folds_may_be_an_iterator(data):
    given = {"held_out": data["held_out"]}
    listed = finecal.compare_estimators(MASK, folds=data["folds"], **given)
    iterated = finecal.compare_estimators(MASK, folds=iter(data["folds"]), **given)
    assert [row.estimate for row in iterated.rows] == [row.estimate for row in listed.rows]
