import numpy as np
import pytest
import torch

import finecal


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
    with pytest.raises(TypeError, match="^indices is list of dtype"):
        finecal.seen_mask_from_indices(["a"], 3)
    with pytest.raises(
        ValueError, match=r"labels contain 3, outside \[0, 3\) \(3 is the number of classes\); drop such"
    ):
        finecal.seen_mask_from_labels([3], 3)
    with pytest.raises(TypeError, match="^class_names is one string"):
        finecal.seen_mask_from_names(["a"], "ab")


def test_unknown_names_show_the_first_three():
    with pytest.raises(ValueError, match="class_names start with 'aa', 'bb', 'cc'$"):
        finecal.seen_mask_from_names(["zebra"], ["aa", "bb", "cc", "dd"])


def test_a_set_of_indices():
    assert finecal.seen_mask_from_indices({2, 0}, 3).tolist() == [True, False, True]
