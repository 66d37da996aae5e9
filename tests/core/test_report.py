import math
import pickle
from dataclasses import asdict

import numpy as np

import finecal


def test_prints_as_a_table():
    text = str(finecal.evaluate(np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]]), [0, 2], [True, True, False]))
    assert text.splitlines() == [
        "gamma = 0",
        "| accuracy, %         |  seen | absent |  all |",
        "| ------------------- | ----: | -----: | ---: |",
        "| every class allowed | 100.0 |    0.0 | 50.0 |",
        "| own group allowed   | 100.0 |  100.0 |      |",
        "| samples             |     1 |      1 |    2 |",
        "harmonic mean 0.0 %, balanced 50.0 %, AUSUC 0.0000",
    ]


def test_one_sided_data_print_a_dash():
    report = finecal.evaluate(np.zeros((1, 2)), [0], [True, False])
    assert math.isnan(report.harmonic_mean)
    assert "nan" not in str(report)
    assert " - |" in str(report)


def test_harmonic_mean_where_the_accuracies_are_equal_or_zero():
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert finecal.evaluate(logits, [0, 1], [True, False]).harmonic_mean == 1.0
    assert finecal.evaluate(logits, [0, 1], [True, False], 9.0).harmonic_mean == 0.0
    wrong = np.array([[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 0.0]])
    assert finecal.evaluate(wrong, [0, 3], [True, True, False, False]).harmonic_mean == 0.0


def test_keeps_the_margins_aside(rng):
    logits, labels, mask = rng.normal(size=(50, 4)), rng.integers(0, 4, 50), np.arange(4) < 2
    report = finecal.evaluate(logits, labels, mask, 0.5, "macro")
    assert report.average == "macro"
    for kept in (report.samples, pickle.loads(pickle.dumps(report)).samples):
        np.testing.assert_array_equal(kept.margin, finecal.Samples(logits, labels).margins(mask).margin)
        assert kept.curve(report.average).at(report.gamma) == report
    assert "samples" not in asdict(report)
    assert "samples" not in repr(report)
