"""The labelled samples that an estimate is made from: pairs, with errors that name their argument."""

import numpy as np
import pytest
import torch

import finecal
from finecal.evaluation.samples import scan_labelled
from finecal.gamma.given import labelled_pair, labelled_with_features, logits_with_features, scanned
from problems import MASK, seen_problem


@pytest.mark.parametrize("value", [np.ones((3, 4)), (np.ones((3, 4)),), "ab"])
def test_pairs_are_asked_for(value):
    with pytest.raises(TypeError, match=r"^train is a .*; pass a pair: train=\(logits, labels\)$"):
        finecal.estimate_gamma(MASK, train=value)


def test_four_items_are_counted():
    with pytest.raises(TypeError, match="^train is a tuple of 4 items; pass a pair: train="):
        finecal.estimate_gamma(MASK, train=(1, 2, 3, 4))


def test_what_is_given_is_scanned_by_name(rng):
    logits, labels = seen_problem(rng)
    scans = scanned(MASK, None, [logits, labels])
    assert list(scans) == ["held_out"]
    assert torch.equal(scans["held_out"].margin, scan_labelled(logits, labels, MASK).margin)
    scans = scanned(MASK, (logits, labels), (logits[:9], labels[:9]))
    assert {name: len(scan.labels) for name, scan in scans.items()} == {"train": 60, "held_out": 9}
    assert scanned(MASK, None, None) == {}


def test_features_are_not_taken(rng):
    triple = (*seen_problem(rng), rng.normal(size=(60, 3)))
    for name in ("train", "held_out"):
        with pytest.raises(TypeError, match=rf"^{name} is a tuple of 3 items; pass a pair: {name}=\(logits, labels\)$"):
            finecal.estimate_gamma(MASK, **{name: triple})


def test_errors_are_of_an_argument(rng):
    logits, labels = seen_problem(rng)
    with pytest.raises(ValueError, match="^held_out: labels contain absent class 1 .1 of 60 samples.; estimate_gamma"):
        scanned(MASK, (logits, labels), (logits, np.where(np.arange(60) == 5, 1, labels)))
    with pytest.raises(ValueError, match="^train: labels have"):
        scanned(MASK, (logits, labels[:3]), None)


def test_a_pair_is_two_items():
    assert labelled_pair(None, "test") is None
    assert labelled_pair([1, 2], "test") == (1, 2)
    for value, said in ((3, "an? int"), ((1, 2, 3), "a tuple of 3 items"), ("ab", "a str")):
        with pytest.raises(TypeError, match=rf"^test is {said}; pass a pair: test=\(logits, labels\)$"):
            labelled_pair(value, "test")


def test_features_may_come_with_labelled_samples():
    assert labelled_with_features(None, "test") == (None, None)
    assert labelled_with_features((1, 2), "test") == ((1, 2), None)
    assert labelled_with_features([1, 2, 3], "test") == ((1, 2), 3)
    with pytest.raises(TypeError, match=r"^test is a tuple of 4 items; pass a pair: test=\(logits, labels\)$"):
        labelled_with_features((1, 2, 3, 4), "test")


@pytest.mark.parametrize("logits", [None, [[1.0, 2.0], [3.0, 4.0]], np.ones((2, 3)), torch.ones(2, 3)])
def test_features_come_with_unlabelled_samples_in_a_tuple_only(logits):
    """A list of two is two rows."""
    assert logits_with_features(logits, "unlabelled") == (logits, None)
    assert logits_with_features((logits, 3), "unlabelled") == (logits, 3)


def test_groups_are_not_taken_for_features(rng):
    logits, labels = seen_problem(rng)
    triple = logits, labels, torch.arange(60) // 4
    with pytest.raises(TypeError, match=r"^held_out is a tuple of 3 items; .*, and groups as held_out_groups=$"):
        finecal.estimate_gamma(MASK, held_out=triple)
    with pytest.raises(TypeError, match=r"^train is a tuple of 3 items; .*, and groups as train_groups=$"):
        finecal.compare_estimators(MASK, train=triple)
    with pytest.raises(ValueError, match=r"^held_out has one number per sample .* pass them as held_out_groups=$"):
        finecal.compare_estimators(MASK, held_out=triple)
    with pytest.raises(ValueError, match=r"pass them as unlabelled_groups=$"):
        finecal.compare_estimators(MASK, held_out=triple[:2], unlabelled=(logits, triple[2]))
