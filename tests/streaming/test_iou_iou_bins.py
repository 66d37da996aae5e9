"""Mean IoU at the edges of bins, picture by picture."""

import numpy as np
import pytest
import torch

import finecal
from finecal.streaming import IoUBins
from iou_problems import MASK, pictures, problem

pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")  # of few classes, by chance


@pytest.mark.parametrize("seed", range(10))
def test_exact_at_every_edge(seed):
    logits, labels, mask, background = problem(seed, most=60)
    given = {"background": background, "ignore_index": 255}
    state = IoUBins(mask, 10, 2.0, **given)  # of which some edges are integers, as margins are
    for rows in torch.arange(len(labels)).split(7):
        state.update(logits[rows], labels[rows])
    curve = state.compute()
    for k, gamma in enumerate(curve.gamma[1:-1].tolist(), 1):
        report = finecal.dense.evaluate_iou(logits, labels, mask, gamma, **given)
        for name in ("iou_seen", "iou_absent", "iou_all", "iou_harmonic"):
            assert float(getattr(curve, name)[k]) == getattr(report, name), (name, gamma)
    whole = finecal.dense.iou_curve(logits, labels, mask, **given)
    for name in ("iou_seen", "iou_absent", "iou_all"):
        ends = getattr(curve, name)[[0, -1]].tolist()
        assert ends == getattr(whole, name)[[0, -1]].tolist(), name
    assert (curve.n_seen, curve.n_absent) == (whole.n_seen, whole.n_absent)


def test_dense_batches(dtype):
    logits, labels, mask = pictures(dtype=dtype)
    state = IoUBins(mask, 16, 2.0, dim=1, ignore_index=255)
    for picture in (1, 2, 0):
        state.update(logits[picture : picture + 1], labels[picture : picture + 1])
    rows = IoUBins(mask, 16, 2.0, ignore_index=255).update(logits.movedim(1, -1).reshape(-1, 5), labels.flatten())
    for name, value in rows.state_dict().items():
        assert torch.equal(state.state_dict()[name], value), name
    assert int(state.state_dict()["union_changes"].sum()) > 0


def test_settings_have_to_agree():
    with pytest.raises(ValueError, match="background differs between the two states"):
        IoUBins(MASK, 8, background=1).merge(IoUBins(MASK, 8))
    with pytest.raises(ValueError, match="n_bins is 1; pass at least 2"):
        IoUBins(MASK, 1)
    with pytest.raises(ValueError, match="scale is 0"):
        IoUBins(MASK, scale=0)


def test_reindexed_labels_are_noticed():
    state = IoUBins(np.array([False, True, True]), 8).update(np.array([[2.0, 1, 0], [0, 2.0, 1]]), [0, 1])
    with pytest.warns(finecal.FinecalWarning, match="labels are exactly 0..1"):
        state.compute()
