import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import finecal

MASK = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], bool)


@pytest.mark.parametrize("seen", range(4, 10))
def test_halves_are_distinct_and_of_seen_classes(seen):
    mask = np.arange(12) % 12 < seen
    splits = finecal.pseudo_cv_splits(mask, n_splits=5, seed=seen)
    assert splits.shape == (5, 12)
    assert splits.dtype == bool
    assert (splits.sum(1) == math.ceil(seen / 2)).all()
    assert not splits[:, ~mask].any()
    assert len(np.unique(splits, axis=0)) == 5


def test_all_halves_are_equally_likely():
    mask = np.array([1, 1, 1, 1, 0], bool)
    drawn = [tuple(finecal.pseudo_cv_splits(mask, 1, seed)[0]) for seed in range(600)]
    counts = [drawn.count(half) for half in set(drawn)]
    assert len(counts) == 6
    assert max(abs(count - 100) for count in counts) < 40  # four standard deviations


def test_more_splits_go_on_where_fewer_end():
    few, many = (finecal.pseudo_cv_splits(MASK, n, seed=7) for n in (3, 8))
    assert (many[:3] == few).all()
    assert (finecal.pseudo_cv_splits(MASK, 3, seed=8) != few).any()


@pytest.mark.parametrize(("mask", "distinct"), [([1, 1, 0], 2), ([1, 0, 1, 1], 3)])
def test_few_classes_have_few_halves(mask, distinct):
    mask = np.array(mask, bool)
    every = finecal.pseudo_cv_splits(mask, distinct)
    assert len(np.unique(every, axis=0)) == distinct
    with pytest.warns(finecal.FinecalWarning, match=f"only {distinct} distinct halves.* n_splits={distinct} saves"):
        splits = finecal.pseudo_cv_splits(mask, 5)
    assert (splits == np.concatenate([every, every, every])[:5]).all()


def test_mask_types(device):
    expected = finecal.pseudo_cv_splits(MASK)
    assert isinstance(finecal.pseudo_cv_splits(MASK.tolist()), np.ndarray)
    splits = finecal.pseudo_cv_splits(torch.tensor(MASK, device=device))
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
        finecal.pseudo_cv_splits(*arguments)


def fold(**changes):
    logits = np.random.default_rng(0).normal(size=(8, 5))
    fields = {
        "logits": logits,
        "labels": np.arange(8) % 4,
        "pseudo_seen_mask": np.array([1, 1, 0, 0, 0], bool),
        "pretrained_logits": logits + 1,
    }
    return finecal.PseudoFold(**{**fields, **changes})


SEEN = np.array([1, 1, 1, 1, 0], bool)
LOGITS = fold().logits


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": LOGITS.round().astype(int)}, TypeError, "logits has dtype int64"),
        ({"logits": LOGITS[:, :4]}, ValueError, "seen_mask has 5 entries for logits of 4 classes"),
        ({"logits": np.where(LOGITS > 1.4, np.nan, LOGITS)}, ValueError, "logits contain NaN"),
        ({"logits": np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)}, ValueError, "look like probabilities"),
        ({"logits": LOGITS[:0], "labels": np.arange(0)}, ValueError, "logits are empty"),
        ({"labels": np.arange(7)}, ValueError, r"labels have shape \(7,\) for 8 rows"),
        ({"labels": np.arange(8) % 5}, ValueError, "labels contain absent class 4"),
        ({"labels": np.arange(8) % 2}, ValueError, r"labels are of pseudo-seen classes only \(8 samples\)"),
        ({"labels": np.full(8, 3)}, ValueError, "labels are of pseudo-absent classes only"),
        ({"pseudo_seen_mask": [0, 1]}, TypeError, "pseudo_seen_mask has dtype int64"),
        ({"pseudo_seen_mask": [True, False]}, ValueError, "pseudo_seen_mask has 2 entries .* one boolean per column"),
        ({"pseudo_seen_mask": [[True]]}, ValueError, r"pseudo_seen_mask has shape \(1, 1\)"),
        ({"pseudo_seen_mask": ~SEEN}, ValueError, "True for class 4, outside seen_mask"),
        ({"pseudo_seen_mask": SEEN}, ValueError, "has 4 of the 4 seen classes"),
        ({"pseudo_seen_mask": SEEN & ~SEEN}, ValueError, "has 0 of the 4 seen classes"),
        ({"pretrained_logits": LOGITS[:7]}, ValueError, r"pretrained_logits have shape \(7, 5\), logits \(8, 5\)"),
        ({"pretrained_logits": LOGITS[:, :4]}, ValueError, r"pretrained_logits have shape \(8, 4\), logits \(8, 5\)"),
        ({"pretrained_logits": LOGITS * np.inf}, ValueError, "pretrained_logits contain .inf"),
    ],
)
def test_wrong_folds_are_named(changes, error, message):
    with pytest.raises(error, match=f"fold 1: .*{message}"):
        finecal.pseudo_cv_gamma([fold(), fold(**changes)], SEEN)


def test_what_is_no_fold():
    with pytest.raises(TypeError, match=r"folds\[0\] is a tuple; pass a PseudoFold"):
        finecal.pseudo_cv_gamma([(LOGITS, np.arange(8) % 4)], SEEN)
    for other, kind in ((fold(), "PseudoFold"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"folds is one {kind}; pass a sequence"):
            finecal.pseudo_cv_gamma(other, SEEN)
    with pytest.raises(ValueError, match="fold 0: constrained=True .* pretrained_logits"):
        finecal.pseudo_cv_gamma([fold(pretrained_logits=None)], SEEN, constrained=True)


def test_reindexed_labels_are_warned_of():
    mask = np.array([0, 1, 1, 1, 1], bool)
    part = fold(pseudo_seen_mask=np.array([0, 1, 1, 0, 0], bool))
    with (
        pytest.warns(finecal.FinecalWarning, match="look re-indexed"),
        pytest.raises(ValueError, match="labels contain absent class 0"),
    ):
        finecal.pseudo_cv_gamma([part], mask)


def test_each_warning_points_here():
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.pseudo_cv_gamma([fold(), fold()], SEEN)
    assert {warning.filename for warning in record} == {__file__}
    messages = [str(warning.message) for warning in record]
    assert all(a != b for a, b in pairwise(messages))
