import numpy as np
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
