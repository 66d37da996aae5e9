"""The Python that the pages show runs."""

import re
from dataclasses import fields

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.preprocessing import FunctionTransformer

import finecal
from pages import DOCS, blocks


def test_the_line_of_the_readme_wraps_the_model(names):
    names["finecal"] = finecal
    (line,) = (block for block in blocks("README.md", "python") if "train_loader" in block)
    exec(line, names)
    assert isinstance(names["calibrated"], finecal.CalibratedModel)


def test_python_at_home_calibrates_the_model(names):
    for block in blocks("docs/index.md", "python"):
        exec(block, names)
    assert isinstance(names["model"][1], finecal.AdditiveBias)


def test_python_on_performance_runs(names, capsys):
    names |= {"finecal": finecal, "loader": names["test_loader"]}
    for block in blocks("docs/performance.md", "python"):
        exec(block, names)
    exact = finecal.tradeoff_curve(names["test_logits"], names["test_labels"], names["seen_mask"])
    assert names["gamma"] == exact.best()
    assert "BinnedCurve(65536 bins" in capsys.readouterr().out


def test_python_on_calibrators_runs(names):
    temperature, groups, bias, frequencies, normalized = blocks("docs/theory/calibrators.md", "python")
    exec(temperature, names)
    assert torch.equal(
        names["calibrated"](names["valid_inputs"]).argmax(1), names["brought_back"](names["valid_logits"]).argmax(1)
    )
    exec(groups, names)
    exec(bias, names)
    assert isinstance(names["calibrated"][1], finecal.calibrators.ClassBias)
    names["counts"] = np.arange(1.0, len(names["seen_mask"]) + 1)
    exec(frequencies, names)
    assert isinstance(names["per_class"], finecal.calibrators.ClassBias)
    exec(normalized, names)
    assert 0 < names["after"] <= 1


def test_python_on_results_runs(names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finecal-demo").mkdir()
    (tmp_path / "finecal-demo" / "classes.txt").write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    for split in ("train", "held_out", "test"):
        pretrained = names["pretrained_test_logits"] if split == "test" else None
        samples = finecal.Samples(names[f"{split}_logits"], names[f"{split}_labels"], pretrained_logits=pretrained)
        samples.save(f"finecal-demo/{split}.npz")
    run, titles = {}, []
    for block in blocks("docs/how-to/results.md", "python"):
        exec(block, run)
        titles += [run["ax"].get_title()] if "ax = " in block else []
    assert run["diagnosis"].verdict == "calibration helps"
    assert run["comparison"].rows[-1].recovered == 1
    assert "residual_gap" in {row.method for row in run["comparison"].rows}  # of the held-out samples
    assert run["table"].index.tolist() == ["before", "after"]
    assert list(run["record"])[:3] == [field.name for field in fields(run["report"])][:3]
    assert run["points"].loc[run["best"], "acc_seen"] >= 0.8
    assert "own group allowed" in capsys.readouterr().out
    assert len(set(titles)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finecal-demo", "report.html", "tradeoff.png"]
    text = (DOCS / "how-to" / "results.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\{image\} (\S+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(f"../images/{path.name}" for path in (DOCS / "images").glob("plot_*.png"))


def test_python_on_estimators_runs(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("docs/theory/estimators.md", "python")
    names["finecal"] = finecal
    with pytest.warns(finecal.FinecalWarning, match="pseudo-absent"):
        exec(block, names)
    assert 0 < names["estimate"].gamma < 6
    assert len(list((tmp_path / "folds").iterdir())) == 3


@pytest.mark.filterwarnings("ignore:Number of classes:RuntimeWarning")
def test_python_on_scikit_learn_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names = {"scaler": FunctionTransformer()}
    text = (DOCS / "how-to" / "scikit-learn.md").read_text(encoding="utf-8")
    for block in blocks("docs/how-to/scikit-learn.md", "python"):
        exec(block, names)
    plt.close("all")
    assert (names["restored"].predict(names["X_test"]) == names["calibrated"].predict(names["X_test"])).all()
    results = re.findall(r"^([a-z].*)  # (\d+\.\d+)$", text, re.MULTILINE)
    assert len(results) == 5
    for expression, value in results:
        assert f"{eval(expression, names):.{len(value.partition('.')[2])}f}" == value
    shown = capsys.readouterr().out
    assert shown.startswith("gamma = ")
    assert [f"{float(line):.2f}" for line in shown.splitlines()[-3:-1]] == ["0.66", "0.52"]
    assert shown.endswith("out of bounds for axis 1 with size 5\n")
