import numpy as np
import pytest
import torch

import finecal

MASK = [True, True, False, False]
f = finecal
WRONG_CALLS = {
    "0 and 1 as indices": (
        lambda: f.seen_mask_from_indices([0, 1, 1, 0], 4),
        ValueError,
        "indices contain 0 more than once; name each seen class once: for labels use seen_mask_from_labels",
    ),
    "mask for indices": (
        lambda: f.seen_mask_from_indices(MASK, 4),
        TypeError,
        "indices have dtype bool; expected integer",
    ),
    "index too large": (
        lambda: f.seen_mask_from_indices([0, 4], 4),
        ValueError,
        r"indices contain 4, outside \[0, 4\)",
    ),
    "no indices": (lambda: f.seen_mask_from_indices([], 4), ValueError, "indices are empty: no class would be seen"),
    "2-d labels": (lambda: f.seen_mask_from_labels([[0], [1]], 4), ValueError, r"labels have shape \(2, 1\)"),
    "every class": (lambda: f.seen_mask_from_labels([0, 1], 2), ValueError, "no absent class: all 2 are seen"),
    "every name": (
        lambda: f.seen_mask_from_names(["cat", "dog"], ["cat", "dog"]),
        ValueError,
        r"\(if the head was made for the fine-tuned classes alone, .*finecal.restore_head .* full list of classes\)",
    ),
    "misspelt name": (
        lambda: f.seen_mask_from_names(["cta"], ["cat", "dog"]),
        ValueError,
        r"seen_names contain 'cta' \(1 unknown of 1 names\); did you mean 'cat'\?",
    ),
    "foreign name": (
        lambda: f.seen_mask_from_names(["zebra"], ["cat", "dog"]),
        ValueError,
        "class_names start with 'cat', 'dog'",
    ),
    "one string": (lambda: f.seen_mask_from_names("cat", ["cat", "dog"]), TypeError, "seen_names is one string, 'cat'"),
    "two of a name": (lambda: f.seen_mask_from_names(["a"], ["a", "a", "b"]), ValueError, "contain 'a' more than once"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_call(name):
    call, error, message = WRONG_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_from_labels(device):
    assert finecal.seen_mask_from_labels([3, 0, 3], 5).tolist() == [True, False, False, True, False]
    mask = finecal.seen_mask_from_labels(torch.tensor([1, 1], device=device), 3)
    assert mask.device.type == device.type
    assert mask.tolist() == [False, True, False]


def test_from_indices():
    mask = finecal.seen_mask_from_indices(np.array([2, 0], np.uint8), 3)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [True, False, True]


def test_from_names():
    mask = finecal.seen_mask_from_names({"b"}, ("a", "b"))
    assert mask.dtype == np.bool_
    assert mask.tolist() == [False, True]


def test_indices_of_other_types_are_named():
    with pytest.raises(TypeError, match="^indices hold class names, such as 'a'; .* for name in indices"):
        finecal.seen_mask_from_indices(["a"], 3)
    with pytest.raises(
        ValueError, match=r"labels contain 3, outside \[0, 3\) \(3 is the number of classes\); drop such"
    ):
        finecal.seen_mask_from_labels([3], 3)
    with pytest.raises(TypeError, match="^class_names is a str; pass a list of str"):
        finecal.seen_mask_from_names(["a"], "ab")


def test_unknown_names_show_the_first_three():
    with pytest.raises(ValueError, match="class_names start with 'aa', 'bb', 'cc'$"):
        finecal.seen_mask_from_names(["zebra"], ["aa", "bb", "cc", "dd"])


def test_a_set_of_indices():
    assert finecal.seen_mask_from_indices({2, 0}, 3).tolist() == [True, False, True]
