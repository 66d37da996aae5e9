import math
import warnings

import numpy as np
import pytest
import torch

import finecal
from finecal._estimators.table import BY_NAME
from problems import OUTGROWN, data_of_every_kind, data_with_features

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
            ("average_logit_gap", "training logits", finecal.estimators.average_logit_gap(*train, OUTGROWN)),
            ("max_logit_gap", "training logits", finecal.estimators.max_logit_gap(*train, OUTGROWN)),
            (
                "mixed_pair_gap",
                "training, seen share",
                finecal.estimators.mixed_pair_gap(*train, OUTGROWN, 0.6, seed=3),
            ),
            (
                "estimate_gamma",
                "training, seen share",
                finecal.estimate_gamma(OUTGROWN, train=train, seen_share=0.6, seed=3),
            ),
            ("average_logit_gap", "held-out logits", finecal.estimators.average_logit_gap(*held_out, OUTGROWN)),
            ("max_logit_gap", "held-out logits", finecal.estimators.max_logit_gap(*held_out, OUTGROWN)),
            (
                "mixed_pair_gap",
                "held-out, seen share",
                finecal.estimators.mixed_pair_gap(*held_out, OUTGROWN, 0.6, seed=3),
            ),
            ("residual_gap", "held-out, seen share", finecal.estimators.residual_gap(*held_out, OUTGROWN, 0.6)),
            ("seen_budget_gamma", "held-out logits", finecal.estimators.seen_budget_gamma(*held_out, OUTGROWN)),
            (
                "estimate_gamma",
                "train, held-out, share",
                finecal.estimate_gamma(OUTGROWN, train=train, held_out=held_out, seen_share=0.6, seed=3),
            ),
            ("pseudo_cv_gamma", "2 refits", finecal.estimators.pseudo_cv_gamma(data["folds"], OUTGROWN, "balanced")),
            (
                "estimate_gamma",
                "both, 2 refits",
                finecal.estimate_gamma(
                    OUTGROWN, train=train, held_out=held_out, seen_share=0.6, folds=data["folds"], seed=3
                ),
            ),
            (
                "mixture_gamma",
                "held-out, unlabelled",
                finecal.estimators.mixture_gamma(held_out[0], unlabelled, OUTGROWN),
            ),
            (
                "estimate_gamma",
                "both, unlabelled",
                finecal.estimate_gamma(OUTGROWN, train=train, held_out=held_out, unlabelled=unlabelled, seed=3),
            ),
            ("known_share_gamma", "unlabelled, share", finecal.estimators.known_share_gamma(unlabelled, OUTGROWN, 0.6)),
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
        assert row.estimate.acc_seen_at_gamma == at.acc_seen
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


@pytest.fixture
def featured(rng):
    return data_with_features(rng)


def without_features(data, *names):
    """The data, with the features of these samples left out."""
    return data | {name: with_features(data[name], None) for name in names}


def with_features(samples, features):
    """The samples, with other features or none."""
    return finecal.Samples(samples.logits, samples.labels, features=features)


def test_prototypes_beside_their_gamma(featured):
    comparison = finecal.compare_estimators(OUTGROWN, **featured)
    methods = [row.method for row in comparison.rows]
    assert methods[-3:] == ["estimate_gamma", "estimate_gamma + prototypes", "oracle"]
    alone, row, oracle = comparison.rows[-3:]
    assert (alone.needs, row.needs) == ("both, unlabelled", "both, unlabelled, features")
    assert (row.estimate.gamma, row.estimate.method) == (alone.estimate.gamma, alone.estimate.method)
    assert alone.prototypes is oracle.prototypes is None

    # By hand: logits plus what the fitted module says, and plain NumPy.
    test = featured["test"]
    test_logits, test_labels, test_features = test.logits, test.labels, test.features
    module = finecal.calibrators.fit_prototypes(
        featured["unlabelled"], OUTGROWN, alone.estimate, held_out=featured["held_out"]
    )
    assert row.prototypes == module.report

    def calibrated(logits, features):
        weight, center = module.weight.double().numpy(), module.center.double().numpy()
        return logits + alone.estimate.gamma * ~OUTGROWN + (features - center) @ weight.T

    right = calibrated(test_logits, test_features).argmax(1) == test_labels
    seen = OUTGROWN[test_labels]
    assert row.report.acc_all == right.mean()
    assert (row.report.acc_seen, row.report.acc_absent) == (right[seen].mean(), right[~seen].mean())
    scores = np.where(seen[:, None] == OUTGROWN, calibrated(test_logits, test_features), -np.inf)
    told = scores.argmax(1) == test_labels
    assert (row.report.acc_seen_within, row.report.acc_absent_within) == (told[seen].mean(), told[~seen].mean())
    assert row.report.acc_all > oracle.report.acc_all > alone.report.acc_all
    before = comparison.uncalibrated.acc_all
    assert row.recovered == pytest.approx((right.mean() - before) / (oracle.report.acc_all - before))
    assert row.recovered > 1

    held_out = featured["held_out"]
    kept = (calibrated(held_out.logits, held_out.features).argmax(1) == held_out.labels).mean()
    assert row.estimate.acc_seen_at_gamma == kept
    assert row.estimate.acc_seen_at_zero == alone.estimate.acc_seen_at_zero


def test_prototypes_change_no_other_row(featured):
    rows = finecal.compare_estimators(OUTGROWN, **featured).rows
    plain = finecal.compare_estimators(OUTGROWN, **without_features(featured, "held_out", "unlabelled", "test"))
    assert tuple(row for row in rows if row.prototypes is None) == plain.rows


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        (["train"], "training logits, features"),
        (["held_out"], "held-out, unlabelled, features"),
        (["train", "seen_share"], "known share, training, features"),
        (["train", "held_out", "seen_share"], "known share, both, features"),
    ],
)
def test_prototypes_take_the_best_founded_gamma(featured, given, needs):
    data = {name: value for name, value in (featured | {"seen_share": 0.6}).items() if name in given}
    test, unlabelled = featured["test"], featured["unlabelled"]
    comparison = finecal.compare_estimators(OUTGROWN, **data, unlabelled=unlabelled, test=test)
    (row,) = (row for row in comparison.rows if row.prototypes is not None)
    assert row.needs == needs
    gammas = [row.estimate.gamma for row in comparison.rows if row.method == "estimate_gamma"]
    assert row.estimate.gamma == gammas[-1]


def test_prototypes_that_fail_their_check_are_left_out(featured, rng):
    held_out = featured["held_out"]
    featured["held_out"] = with_features(held_out, rng.permutation(held_out.features))
    alone, row = finecal.compare_estimators(OUTGROWN, **featured).rows[-3:-1]
    assert "held-out samples are lost" in " ".join(row.prototypes.warnings)
    assert (row.report.acc_seen, row.report.acc_absent) == (alone.report.acc_seen, alone.report.acc_absent)
    assert row.estimate.acc_seen_at_gamma == alone.estimate.acc_seen_at_gamma


def test_prototypes_without_features_of_held_out_samples_cost_an_unknown_amount(featured):
    comparison = finecal.compare_estimators(OUTGROWN, **without_features(featured, "held_out"))
    (row,) = (row for row in comparison.rows if row.prototypes is not None)
    assert row.estimate.acc_seen_at_gamma is None
    assert row.prototypes.acc_seen_within is None
    assert comparison.rows[-3].estimate.acc_seen_at_gamma is not None


@pytest.mark.parametrize("missing", [("unlabelled",), ("test",), ("unlabelled", "test")])
def test_features_that_are_of_no_use_are_named(featured, missing):
    with pytest.warns(finecal.FinecalWarning, match=r"^features were not used: prototypes need those of unlabelled"):
        comparison = finecal.compare_estimators(OUTGROWN, **without_features(featured, *missing))
    assert all(row.prototypes is None for row in comparison.rows)


def test_prototypes_need_an_estimate(featured):
    del featured["train"], featured["held_out"]
    with pytest.warns(finecal.FinecalWarning, match="features were not used: .*, and train= or held_out="):
        comparison = finecal.compare_estimators(OUTGROWN, **featured, seen_share=0.6)
    assert [row.method for row in comparison.rows] == ["known_share_gamma", "oracle"]


def test_without_a_gamma_there_are_no_prototypes(featured):
    one_seen = np.arange(5) == 0
    logits, labels = featured.pop("train")
    featured.pop("held_out")
    rows = labels == 0
    comparison = finecal.compare_estimators(one_seen, train=(logits[rows], labels[rows]), **featured)
    assert {row.error is None for row in comparison.rows if row.method == "estimate_gamma"} == {False}
    assert all(row.prototypes is None for row in comparison.rows)


def test_warnings_of_prototypes_are_in_their_row_and_not_issued(featured, rng):
    for name in ("unlabelled", "held_out", "test"):
        featured[name] = with_features(featured[name], rng.normal(size=featured[name].features.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("error", finecal.FinecalWarning)
        comparison = finecal.compare_estimators(OUTGROWN, **featured)
    row = comparison.rows[-2]
    assert "the features hardly cluster by class" in " ".join(row.prototypes.warnings)
    for sentence in row.prototypes.warnings:
        said = f"Warning of estimate_gamma + prototypes from both, unlabelled, features: {sentence}"
        assert str(comparison).count(said) == 1


@pytest.mark.parametrize("name", ["unlabelled", "held_out", "test"])
def test_wrong_features_are_refused(featured, name):
    features = featured[name].features
    for wrong, error, message in (
        (features[1:], ValueError, "features have shape"),
        (features.astype(int), TypeError, "features have dtype"),
        (features * math.nan, ValueError, "features contain NaN"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            finecal.compare_estimators(OUTGROWN, **featured | {name: with_features(featured[name], wrong)})


@pytest.mark.parametrize("name", ["held_out", "test"])
def test_features_of_another_width_are_named(featured, name):
    other = with_features(featured[name], featured[name].features[:, 1:])
    with pytest.raises(ValueError, match=f"^{name}: features have shape"):
        finecal.compare_estimators(OUTGROWN, **featured | {name: other})


@pytest.mark.filterwarnings("ignore:.*these are the same samples")
def test_nothing_to_gain(rng):
    labels = np.arange(50) % 5
    logits = 9 * np.eye(5)[labels] + rng.normal(size=(50, 5))
    comparison = finecal.compare_estimators(OUTGROWN, labelled=(logits, labels), test=(logits, labels))
    assert [row.recovered for row in comparison.rows] == [None, None]


@pytest.mark.parametrize("problem", [data_of_every_kind, data_with_features])
def test_types_and_devices(problem, rng, device):
    def moved(value):
        if isinstance(value, np.ndarray):
            return torch.tensor(value, device=device)
        if isinstance(value, finecal.Samples):
            return value.to(device)
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    data = problem(rng)
    data.pop("folds", None)
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
        (
            {"test": finecal.Samples(9 * np.eye(5), range(5), pretrained_logits=np.full((5, 5), math.nan))},
            ValueError,
            "test: pretrained_logits contain NaN",
        ),
        ({"held_out": (np.zeros((3, 5), int), [0, 0, 0])}, TypeError, "held_out: logits has dtype int64"),
        ({"train": (np.full((3, 5), math.nan), [0, 0, 0])}, ValueError, "train: logits contain NaN"),
        ({"labelled": (np.full((3, 5), math.nan), [0, 0, 0])}, ValueError, "labelled: logits contain NaN"),
        ({"test": (np.zeros((3, 5), int), [0, 0, 0])}, TypeError, "test: logits has dtype int64"),
        ({"folds": 3}, TypeError, "folds is one int"),
        ({"folds": []}, ValueError, "folds are empty"),
        ({"unlabelled": np.full((3, 5), math.nan)}, ValueError, "unlabelled: logits contain NaN"),
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
