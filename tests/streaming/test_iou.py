"""Mean IoU picture by picture."""

import math

import numpy as np
import pytest
import torch

import finecal
from finecal.streaming import IoUSums
from iou_problems import LABELS, LOGITS, MASK, pictures

DENSE = {"dim": 1, "ignore_index": 255}


@pytest.mark.parametrize("background", [None, 0, [0, 1]])
@pytest.mark.parametrize("gamma", [-1.0, 0.0, 1.5])
def test_pictures_equal_the_function(gamma, background, dtype):
    logits, labels, mask = pictures(dtype=dtype)
    state = IoUSums(mask, gamma, background=background, **DENSE)
    for picture in (2, 0, 1):
        state.update(logits[picture : picture + 1], labels[picture : picture + 1])
    whole = finecal.dense.evaluate_iou(logits, labels, mask, gamma, background=background, **DENSE).to_dict()
    for name, value in state.compute().to_dict().items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_a_wrong_picture_leaves_the_state_as_it_was():
    logits, labels, mask = pictures()
    state = IoUSums(mask, **DENSE).update(logits, labels)
    before = state.state_dict()
    with pytest.raises(ValueError, match="labels contain 77"):
        state.update(logits, labels.where(labels != 255, 77))
    assert all(torch.equal(value, before[name]) for name, value in state.state_dict().items())


def test_nothing_yet():
    report = IoUSums(MASK).compute()
    assert math.isnan(report.iou_all)
    assert report.n_all == 0


def test_settings_have_to_agree():
    state = IoUSums(MASK, 1.0, background=1).update(LOGITS, LABELS)
    assert (state.dim, state.ignore_index) == (-1, None)
    with pytest.raises(ValueError, match="background differs between the two states"):
        state.merge(IoUSums(MASK, 1.0, background=0))
    with pytest.raises(ValueError, match="gamma differs"):
        state.merge(IoUSums(MASK, background=1))
    with pytest.raises(ValueError, match="background contains class 2"):
        IoUSums(MASK, background=2)


def test_reindexed_labels_are_noticed():
    with pytest.warns(finecal.FinecalWarning, match="labels are exactly 0..1"):
        IoUSums(~MASK | [False, True, False]).update(LOGITS, [0, 1, 0, 1]).compute()
