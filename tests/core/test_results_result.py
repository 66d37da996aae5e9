"""What every result shows of itself."""

import json
import math

import numpy as np
import pytest

import finecal
from every_result import CLASSES, MASK, Reader, markdown_tables
from finecal._core.results import to_json


def test_an_average_over_classes_is_named():
    report = finecal.evaluate(2 * np.eye(3), [0, 1, 2], [True, True, False], 0.5, "macro")
    assert str(report).startswith("gamma = 0.5 (macro)\n|")


@pytest.mark.parametrize("label", [0, 5])
def test_samples_of_one_group(label, results):
    logits = 2 * np.eye(CLASSES)[[label] * 3]
    curve, probabilities = (
        function(logits, [label] * 3, MASK)
        for function in (finecal.tradeoff_curve, finecal.probabilities.evaluate_probabilities)
    )
    record, missing = curve.at(0.0).to_dict(), "acc_absent" if label == 0 else "acc_seen"
    assert math.isnan(record[missing])
    assert json.loads(to_json(record))[missing] is None
    assert math.isnan(curve.at(0.0).to_pandas()[missing].item())
    assert len(markdown_tables(curve.to_markdown())[0]) == 2
    for result in (curve, curve.at(0.0), probabilities):
        page = Reader(result._repr_html_())
        assert page.tables == markdown_tables(result.to_markdown())
        assert not page.pictures
        assert "nan" not in str(page.tables)
        assert "-" in str(page.tables)
