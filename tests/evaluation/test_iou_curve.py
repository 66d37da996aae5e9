import pickle

import numpy as np
import pytest

import finecal
from iou_problems import BREAKPOINTS, IOUS, LABELS, LOGITS, MASK


def test_prints_what_matters():
    curve = finecal.dense.iou_curve(LOGITS, LABELS, MASK)
    assert repr(curve) == str(curve) == "IoUCurve(5 operating points, 3 seen and 1 absent positions)"
    assert curve.to_markdown().splitlines() == [
        "5 operating points, 3 seen and 1 absent positions",
        "",
        "| mean IoU, %                 | gamma |  seen | absent |   all | harmonic |",
        "| --------------------------- | ----: | ----: | -----: | ----: | -------: |",
        "| no calibration              |     0 |  75.0 |    0.0 |  50.0 |      0.0 |",
        "| best mean IoU (oracle)      |  0.75 | 100.0 |  100.0 | 100.0 |    100.0 |",
        "| best balanced (oracle)      |  0.75 | 100.0 |  100.0 | 100.0 |    100.0 |",
        "| best harmonic mean (oracle) |  0.75 | 100.0 |  100.0 | 100.0 |    100.0 |",
    ]


def test_a_row_per_operating_point():
    table = finecal.dense.iou_curve(LOGITS, LABELS, MASK).to_pandas()
    assert table["gamma_high"].tolist() == [*BREAKPOINTS, np.inf]
    assert table["gamma_low"].tolist() == [-np.inf, *BREAKPOINTS]
    np.testing.assert_allclose(table["iou_all"], IOUS.mean(1), rtol=1e-15)
    assert table.columns[-1] == "iou_harmonic"


def test_can_be_pickled():
    curve = finecal.dense.iou_curve(LOGITS, LABELS, MASK)
    kept = pickle.loads(pickle.dumps(curve))
    assert kept.at(1.5).to_dict() == curve.at(1.5).to_dict()
    assert kept.best() == curve.best()


def test_best_takes_the_widest_of_equal_intervals():
    # Class 0 keeps its position up to 1, and class 1 gets its own one at -3: equally good, and 4 wide, from -3 to 1. At
    # 5 another position of class 1 joins what class 0 would have lost.
    logits, labels = np.array([[1.0, 0], [-3.0, 0], [5.0, 0]]), [0, 1, 0]
    curve = finecal.dense.iou_curve(logits, labels, [True, False])
    assert curve.best() == -1.0
    assert curve.best("absent") == -1.0
    assert finecal.dense.iou_curve(logits[:2], [1, 1], [True, False]).iou_absent.tolist() == [0.0, 0.5, 1.0]


def test_objectives_are_named():
    with pytest.raises(ValueError, match="objective is 'all'; choose one of 'overall', 'balanced'"):
        finecal.dense.iou_curve(LOGITS, LABELS, MASK).best("all")
