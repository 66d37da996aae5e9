"""What every result shows of itself."""

import json
import math
import re
from dataclasses import fields
from pathlib import Path

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


# --- documentation ----------------------------------------------------------------------------------------------------


def test_python_of_the_page_runs(capsys, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    labels = np.arange(240) % CLASSES
    logits = rng.normal(size=(240, CLASSES)) + 2.0 * np.eye(CLASSES)[labels] + 3.0 * MASK
    monkeypatch.chdir(tmp_path)
    Path("finecal-demo").mkdir()
    for name, rows in {"train": MASK[labels], "test": labels >= 0}.items():
        np.savez(f"finecal-demo/{name}.npz", logits=logits[rows], labels=labels[rows])
    names = {}
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "results.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert names["table"].index.tolist() == ["before", "after"]
    assert list(names["record"])[:3] == [field.name for field in fields(names["report"])][:3]
    assert names["points"].loc[names["best"], "acc_seen"] >= 0.8
    assert "own group allowed" in capsys.readouterr().out
