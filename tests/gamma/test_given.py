"""The labelled samples that an estimate is made from: pairs or triples, with errors that name their argument."""

import numpy as np
import pytest
import torch

import finecal
from finecal.evaluation.scan import scan_labelled
from finecal.gamma.given import labelled_pair, scanned
from problems import MASK, seen_problem


@pytest.mark.parametrize("value", [np.ones((3, 4)), (np.ones((3, 4)),), "ab"])
def test_pairs_are_asked_for(value):
    with pytest.raises(TypeError, match=r"pass train=\(logits, labels\), or \(logits, labels, features\)"):
        finecal.estimate_gamma(MASK, train=value)


def test_four_items_are_counted():
    with pytest.raises(TypeError, match="train is a tuple of 4 items; pass train="):
        finecal.estimate_gamma(MASK, train=(1, 2, 3, 4))


def test_what_is_given_is_scanned_by_name(rng):
    logits, labels = seen_problem(rng)
    features = rng.normal(size=(60, 3))
    scans, found = scanned(MASK, None, [logits, labels, features])
    assert list(scans) == list(found) == ["held_out"]
    assert torch.equal(scans["held_out"].margin, scan_labelled(logits, labels, MASK).margin)
    assert found["held_out"].tolist() == features.tolist()
    scans, found = scanned(MASK, (logits, labels, None), (logits[:9], labels[:9]))
    assert {name: len(scan.labels) for name, scan in scans.items()} == {"train": 60, "held_out": 9}
    assert found == {}
    assert scanned(MASK, None, None) == ({}, {})


def test_errors_are_of_an_argument(rng):
    logits, labels = seen_problem(rng)
    with pytest.raises(ValueError, match="^held_out: labels contain absent class 1 .1 of 60 samples.; estimate_gamma"):
        scanned(MASK, (logits, labels), (logits, np.where(np.arange(60) == 5, 1, labels)))
    with pytest.raises(ValueError, match="^train: features have shape"):
        scanned(MASK, (logits, labels, np.ones((3, 3))), None)


def test_a_pair_is_two_items():
    assert labelled_pair(None, "test") is None
    assert labelled_pair([1, 2], "test") == (1, 2)
    for value, said in ((3, "an? int"), ((1, 2, 3), "a tuple of 3 items"), ("ab", "a str")):
        with pytest.raises(TypeError, match=rf"^test is {said}; pass a pair: test=\(logits, labels\)$"):
            labelled_pair(value, "test")
