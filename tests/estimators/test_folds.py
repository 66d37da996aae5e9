import dataclasses
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

import finecal

MASK = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], bool)


@pytest.mark.parametrize("seen", range(4, 10))
def test_halves_are_distinct_and_of_seen_classes(seen):
    mask = np.arange(12) % 12 < seen
    splits = finecal.estimators.pseudo_cv_splits(mask, n_splits=5, seed=seen)
    assert splits.shape == (5, 12)
    assert splits.dtype == bool
    assert (splits.sum(1) == math.ceil(seen / 2)).all()
    assert not splits[:, ~mask].any()
    assert len(np.unique(splits, axis=0)) == 5


def test_all_halves_are_equally_likely():
    mask = np.array([1, 1, 1, 1, 0], bool)
    drawn = [tuple(finecal.estimators.pseudo_cv_splits(mask, 1, seed)[0]) for seed in range(600)]
    counts = [drawn.count(half) for half in set(drawn)]
    assert len(counts) == 6
    assert max(abs(count - 100) for count in counts) < 40  # four standard deviations


def test_more_splits_go_on_where_fewer_end():
    few, many = (finecal.estimators.pseudo_cv_splits(MASK, n, seed=7) for n in (3, 8))
    assert (many[:3] == few).all()
    assert (finecal.estimators.pseudo_cv_splits(MASK, 3, seed=8) != few).any()


@pytest.mark.parametrize(("mask", "distinct"), [([1, 1, 0], 2), ([1, 0, 1, 1], 3)])
def test_few_classes_have_few_halves(mask, distinct):
    mask = np.array(mask, bool)
    every = finecal.estimators.pseudo_cv_splits(mask, distinct)
    assert len(np.unique(every, axis=0)) == distinct
    with pytest.warns(finecal.FinecalWarning, match=f"only {distinct} distinct halves.* n_splits={distinct} saves"):
        splits = finecal.estimators.pseudo_cv_splits(mask, 5)
    assert (splits == np.concatenate([every, every, every])[:5]).all()


def test_mask_types(device):
    expected = finecal.estimators.pseudo_cv_splits(MASK)
    assert isinstance(finecal.estimators.pseudo_cv_splits(MASK.tolist()), np.ndarray)
    splits = finecal.estimators.pseudo_cv_splits(torch.tensor(MASK, device=device))
    assert splits.device.type == device.type
    assert (splits.cpu().numpy() == expected).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([True, False],), ValueError, "one seen class; .* needs two"),
        (([True, True],), ValueError, "no absent class"),
        (([1.0, 0, 1],), TypeError, "must be boolean"),
        ((MASK, 0), ValueError, "n_splits is 0"),
        ((MASK, 2.0), TypeError, "n_splits is a float"),
        ((MASK, 2, -1), ValueError, "seed is -1"),
    ],
)
def test_wrong_arguments_of_splits(arguments, error, message):
    with pytest.raises(error, match=message):
        finecal.estimators.pseudo_cv_splits(*arguments)


LOGITS = np.random.default_rng(0).normal(size=(8, 5))
LABELS = np.arange(8) % 4
SEEN = np.array([1, 1, 1, 1, 0], bool)
HALF = np.array([1, 1, 0, 0, 0], bool)


def fold(pseudo_seen_mask=HALF, **changes):
    given = {"logits": LOGITS, "labels": LABELS, "pretrained_logits": LOGITS + 1}
    return finecal.estimators.PseudoFold(finecal.Samples(**{**given, **changes}), pseudo_seen_mask)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, np.ndarray.tolist], ids=["array", "tensor", "list"])
def test_a_pair_is_samples(kind):
    pair = finecal.estimators.PseudoFold((kind(LOGITS), kind(LABELS)), kind(HALF))
    whole = finecal.estimators.PseudoFold(finecal.Samples(kind(LOGITS), kind(LABELS)), kind(HALF))
    assert isinstance(pair.samples, finecal.Samples)
    for samples in (pair.samples, whole.samples):
        assert np.array_equal(samples.logits, LOGITS)
        assert np.array_equal(samples.labels, LABELS)
        assert samples.pretrained_logits is samples.groups is None
    for objective in ("balanced", "nll"):
        assert gamma_of(pair, objective=objective) == gamma_of(whole, objective=objective)


@pytest.mark.parametrize("kind", [torch.tensor, np.ndarray.tolist], ids=["tensor", "list"])
def test_samples_are_the_same_of_any_kind_and_after_any_use(kind):
    arrays = {"logits": LOGITS, "labels": LABELS, "pretrained_logits": LOGITS + 1, "groups": np.arange(8) // 2}
    used = finecal.Samples(**{name: kind(array) for name, array in arrays.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        finecal.evaluate(used, [True, False, True, False, True])
        finecal.search_gamma(used, HALF)
    longer = finecal.Samples(**{name: np.concatenate([array[:3], array]) for name, array in arrays.items()})
    expected = gamma_of(fold(**arrays), constrained=True)
    assert gamma_of(finecal.estimators.PseudoFold(used, kind(HALF)), constrained=True) == expected
    assert gamma_of(finecal.estimators.PseudoFold(longer[3:], HALF), constrained=True) == expected
    assert gamma_of(fold(**{**arrays, "groups": None}), constrained=True).interval != expected.interval


def gamma_of(fold, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        return finecal.estimators.pseudo_cv_gamma([fold, fold], SEEN, **options, n_bootstrap=5)


def test_a_fold_is_frozen_and_shown_shortly():
    made = fold(groups=np.arange(8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.samples = made.samples
    assert repr(made).startswith("PseudoFold(samples=Samples(8 x 5 logits, labels, pretrained_logits, groups), ")
    assert (dataclasses.replace(made, pseudo_seen_mask=~HALF).pseudo_seen_mask == ~HALF).all()


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (finecal.Samples(LOGITS), TypeError, "samples has no labels"),
        (LOGITS, TypeError, r"samples is a ndarray; pass a pair, samples=\(logits, labels\)"),
        ((LOGITS, LABELS, HALF), TypeError, "samples is a tuple of 3 items; pass a pair"),
        ((LOGITS, LABELS[:7]), ValueError, r"samples: labels have shape \(7,\) for 8 rows"),
        ((LOGITS.round().astype(int), LABELS), TypeError, "samples: logits has dtype int64"),
    ],
)
def test_wrong_samples_are_refused_at_once(samples, error, message):
    with pytest.raises(error, match=message):
        finecal.estimators.PseudoFold(samples, HALF)


def test_pretrained_logits_are_of_the_same_samples():
    with pytest.raises(ValueError, match=r"pretrained_logits have shape \(7, 5\), logits \(8, 5\)"):
        fold(pretrained_logits=LOGITS[:7])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"logits": LOGITS[:, :4], "pretrained_logits": None},
            ValueError,
            "seen_mask has 5 entries for logits of 4 classes",
        ),
        ({"logits": np.where(LOGITS > 1.4, np.nan, LOGITS)}, ValueError, "logits contain NaN"),
        ({"logits": np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)}, ValueError, "look like probabilities"),
        (
            {"logits": LOGITS[:0], "labels": np.arange(0), "pretrained_logits": None},
            ValueError,
            "logits are empty",
        ),
        ({"labels": np.arange(8) % 5}, ValueError, "labels contain absent class 4"),
        ({"labels": np.arange(8) % 2}, ValueError, r"labels are of pseudo-seen classes only \(8 samples\)"),
        ({"labels": np.full(8, 3)}, ValueError, "labels are of pseudo-absent classes only"),
        ({"pseudo_seen_mask": [0, 1]}, TypeError, "pseudo_seen_mask has dtype int64"),
        ({"pseudo_seen_mask": [True, False]}, ValueError, "pseudo_seen_mask has 2 entries .* one boolean per column"),
        ({"pseudo_seen_mask": [[True]]}, ValueError, r"pseudo_seen_mask has shape \(1, 1\)"),
        ({"pseudo_seen_mask": ~SEEN}, ValueError, "True for class 4, outside seen_mask"),
        ({"pseudo_seen_mask": SEEN}, ValueError, "has 4 of the 4 seen classes"),
        ({"pseudo_seen_mask": SEEN & ~SEEN}, ValueError, "has 0 of the 4 seen classes"),
        ({"pretrained_logits": LOGITS * np.inf}, ValueError, "pretrained_logits contain .inf"),
    ],
)
def test_wrong_folds_are_named(changes, error, message):
    with pytest.raises(error, match=f"fold 1: .*{message}"):
        finecal.estimators.pseudo_cv_gamma([fold(), fold(**changes)], SEEN)


def test_what_is_no_fold():
    with pytest.raises(TypeError, match=r"folds\[0\] is a tuple; pass a PseudoFold"):
        finecal.estimators.pseudo_cv_gamma([(LOGITS, LABELS)], SEEN)
    for other, kind in ((fold(), "PseudoFold"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"folds is one {kind}; pass a sequence"):
            finecal.estimators.pseudo_cv_gamma(other, SEEN)
    with pytest.raises(ValueError, match="fold 0: constrained=True .* pretrained_logits"):
        finecal.estimators.pseudo_cv_gamma([fold(pretrained_logits=None)], SEEN, constrained=True)


def test_reindexed_labels_are_warned_of():
    mask = np.array([0, 1, 1, 1, 1], bool)
    part = fold(pseudo_seen_mask=np.array([0, 1, 1, 0, 0], bool))
    with (
        pytest.warns(finecal.FinecalWarning, match="look re-indexed"),
        pytest.raises(ValueError, match="labels contain absent class 0"),
    ):
        finecal.estimators.pseudo_cv_gamma([part], mask)


def test_each_warning_points_here():
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimators.pseudo_cv_gamma([fold(), fold()], SEEN)
    assert {warning.filename for warning in record} == {__file__}
    messages = [str(warning.message) for warning in record]
    assert all(a != b for a, b in pairwise(messages))
