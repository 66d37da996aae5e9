import finecal
from iou_problems import IOUS, LABELS, LOGITS, MASK


def test_prints_as_a_table():
    report = finecal.evaluate_iou(LOGITS, LABELS, MASK, 1.5, background=1)
    assert str(report).splitlines() == [
        "gamma = 1.5",
        "|             | seen | absent |  all |",
        "| ----------- | ---: | -----: | ---: |",
        "| mean IoU, % | 50.0 |   50.0 | 66.7 |",
        "| accuracy, % | 50.0 |  100.0 | 75.0 |",
        "| classes     |    1 |      1 |    3 |",
        "| positions   |    2 |      1 |    4 |",
        "harmonic mean IoU 50.0 %",
    ]


def test_harmonic_mean_where_both_are_zero():
    report = finecal.evaluate_iou(LOGITS[:2], [1, 0], MASK, 0.0)
    assert (report.iou_seen, report.acc_all) == (0, 0)
    assert finecal.evaluate_iou(LOGITS[:2], [2, 0], MASK, 0.0).iou_harmonic == 0


def test_a_row_per_class():
    table = finecal.evaluate_iou(LOGITS, LABELS, MASK, 1.5).to_pandas()
    assert table.to_dict("list") == {
        "labelled": [2, 1, 1],
        "predicted": [1, 1, 2],
        "correct": [1, 1, 1],
        "iou": IOUS[2].tolist(),
    }
