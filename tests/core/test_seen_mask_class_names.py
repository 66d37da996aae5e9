"""Names of classes are in the order of the columns, whatever they come in."""

import re

import numpy as np
import pytest

import finecal

NAMES = ("hen", "cat", "dog")
MASK = [False, True, False]


@pytest.mark.parametrize(
    "class_names",
    [
        list(NAMES),
        np.array(NAMES),
        iter(NAMES),
        {0: "hen", 1: "cat", 2: "dog"},
        {2: "dog", 0: "hen", 1: "cat"},
        {"2": "dog", "0": "hen", "1": "cat"},
        {"cat": 1, "dog": 2, "hen": 0},
        {"cat": "1", "dog": "2", "hen": "0"},
        {"dog": np.int64(2), "cat": np.int64(1), "hen": np.int64(0)},
    ],
    ids=[
        "list",
        "array",
        "iterator",
        "id2label",
        "another order",
        "JSON",
        "class_to_idx",
        "label2id of a script",
        "NumPy indices",
    ],
)
def test_the_order_is_that_of_the_columns(class_names):
    assert finecal.seen_mask_from_names(["cat"], class_names).tolist() == MASK


def test_many_indices_in_texts_are_sorted_as_numbers():
    label2id = {f"tone {index}": str(index) for index in range(12)}
    mask = finecal.seen_mask_from_names(["tone 2", "tone 10"], label2id)
    assert np.flatnonzero(mask).tolist() == [2, 10]


def test_digits_in_texts_on_both_sides_are_taken_only_if_they_say_one_thing():
    same = {"0": "0", "1": "2", "2": "1"}
    assert finecal.seen_mask_from_names(["2"], same).tolist() == [False, True, False]
    one_way = {"0": "7", "1": "5", "2": "6"}  # only the keys can be indices
    assert finecal.seen_mask_from_names(["5"], one_way).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="numbers in texts to numbers in texts.* give the indices as integers"):
        finecal.seen_mask_from_names(["2"], {"0": "1", "1": "2", "2": "0"})


def test_names_that_are_digits_go_by_their_indices():
    digits = {str(number): number for number in (3, 0, 2, 1)}
    assert finecal.seen_mask_from_names(["0", "2"], digits).tolist() == [True, False, True, False]


@pytest.mark.usefixtures("without_figures")
def test_every_function_takes_dicts_alike(tmp_path):
    by_index, by_name = {2: "dog", 0: "hen", 1: "cat"}, {"dog": 2, "cat": 1, "hen": 0}
    logits, labels = np.array([[4.0, 1, 3], [2, 5, 4.5], [1, 2, 6]]), [0, 1, 2]
    pages = [finecal.html_report(logits, labels, MASK, class_names=names) for names in (NAMES, by_index, by_name)]
    assert pages[0] == pages[1] == pages[2]
    report = finecal.evaluate(logits, labels, MASK)
    pages = [report.to_html(class_names=names) for names in (NAMES, by_index, by_name)]
    assert pages[0] == pages[1] == pages[2]
    for names in (NAMES, by_index, by_name):
        finecal.save(finecal.AdditiveBias(MASK, 1.0), tmp_path / "a.safetensors", class_names=names)
        assert finecal.load(tmp_path / "a.safetensors").class_names == NAMES


@pytest.mark.parametrize(
    ("class_names", "kind", "sentence"),
    [
        (set(NAMES), TypeError, "class_names is a set, which has no order; pass a list of str, in the order of the"),
        (frozenset(NAMES), TypeError, "class_names is a frozenset, which has no order"),
        ("hen", TypeError, "class_names is a str; pass a list of str, one per class"),
        (None, TypeError, "class_names is a NoneType; pass a list of str, one per class"),
        ([0, 1, 2], TypeError, "class_names are not all texts: one is a int; pass a list of str, one per class"),
        (["cat", None], TypeError, "class_names are not all texts: one is a NoneType"),
        (np.array([NAMES]), TypeError, "class_names has 2 dimensions"),
        ({0: "hen", 2: "dog", 3: "cat"}, ValueError, "class_names is a dict of 3 classes, but none has the index 1"),
        ({1: "hen", 2: "dog", 3: "cat"}, ValueError, "but none has the index 0; give each class its own, from 0 to 2"),
        ({"hen": 0, "dog": 1, "cat": 1}, ValueError, "class_names is a dict of 3 classes, but none has the index 2"),
        ({0: "hen", "0": "dog"}, ValueError, "class_names is a dict of 2 classes, but none has the index 1"),
        ({"hen": "a", "dog": "b"}, TypeError, "class_names is a dict without indices; pass {index: name} or {name"),
        ({"hen": True, "dog": False}, TypeError, "class_names is a dict without indices"),
        ({0: 1, 1: 0}, TypeError, "class_names are not all texts: one is a int"),
        ({}, ValueError, "class_names are 0; at least one seen and one absent class are needed"),
    ],
)
def test_what_says_no_order_is_refused(class_names, kind, sentence):
    with pytest.raises(kind, match=re.escape(sentence)):
        finecal.seen_mask_from_names(["cat"], class_names)


@pytest.mark.parametrize(
    ("seen_names", "kind", "sentence"),
    [
        (None, TypeError, "seen_names is a NoneType; pass a list of class names"),
        ("cat", TypeError, "seen_names is one string, 'cat'; pass a list of class names"),
        ([], ValueError, "seen_names are empty: no class would be seen; pass at least one class name"),
        ([1], TypeError, "seen_names contain a int; pass a list of class names, each a str"),
    ],
)
def test_seen_names_are_texts(seen_names, kind, sentence):
    with pytest.raises(kind, match=re.escape(sentence)):
        finecal.seen_mask_from_names(seen_names, NAMES)
