"""The documentation names everything that is public, and what it shows runs."""

import copy
import re
import shlex
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.preprocessing import FunctionTransformer

import finecal
from finecal.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_reference_has_each_public_name_once():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    found = re.findall(r"^\.\. auto(?:function|class|exception):: finecal\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == sorted(finecal.__all__)


def test_overview_has_each_public_name_once():
    text = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    found = re.findall(r"^   ([A-Za-z]\w*)$", text.partition(".. currentmodule")[2], re.MULTILINE)
    assert sorted(found) == sorted(finecal.__all__)


@pytest.fixture
def samples(rng):
    """Of a linear model whose seen classes, the first three of five, have outgrown the others."""
    labels = np.arange(300) % 5
    inputs = rng.normal(size=(300, 5)) + 3 * np.eye(5)[labels]
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture
def model():
    model = torch.nn.Linear(5, 5)
    with torch.no_grad():
        model.weight.copy_(torch.eye(5))
        model.bias.copy_(torch.tensor([3.0, 3.0, 3.0, 0.0, 0.0]))
    return model


@pytest.fixture
def names(samples, model):
    """What the pages take for granted; the first half of the samples are for training."""
    inputs, labels = samples
    seen = labels < 3
    pretrained = torch.nn.Linear(5, 5)
    with torch.no_grad():
        pretrained.weight.copy_(torch.eye(5))
        pretrained.bias.zero_()
        logits, pretrained_logits = model(inputs), pretrained(inputs)
    first = torch.arange(len(labels)) < 150
    names = {
        "model": model,
        "pretrained": pretrained,
        "num_classes": 5,
        "torch": torch,
        "seen_mask": torch.arange(5) < 3,
    }
    for split, rows in {"train": seen & first, "held_out": seen & ~first, "test": labels >= 0, "valid": ~first}.items():
        names[f"{split}_inputs"], names[f"{split}_labels"] = inputs[rows], labels[rows]
        names[f"{split}_logits"], names[f"pretrained_{split}_logits"] = logits[rows], pretrained_logits[rows]
    for split in ("train", "test"):
        batches = zip(names[f"{split}_inputs"].split(50), names[f"{split}_labels"].split(50), strict=True)
        names[f"{split}_loader"] = list(batches)

    def fine_tune(start, inputs, labels):
        tuned = copy.deepcopy(start).requires_grad_(False)
        tuned.bias[labels.unique()] += 3.0
        return tuned

    return {**names, "fine_tune": fine_tune}


def test_python_of_the_readme_runs(names, capsys):
    names["finecal"] = finecal
    for block in blocks("README.md", "python"):
        if "finecal.integrations" not in block:  # tests/integrations runs such lines
            exec(block, names)
            assert len(block.splitlines()) <= 4
    assert isinstance(names["calibrated"], finecal.CalibratedModel)
    assert names["model"].bias[4].item() == pytest.approx(names["estimate"].gamma)
    assert "verdict: calibration helps" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["docs/index.md", "docs/quickstart.md"])
def test_python_calibrates_the_model(page, names, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(block, names)
    calibrated = names.get("calibrated", names["model"])
    assert isinstance(calibrated[1], finecal.AdditiveBias)
    if "restored" in names:
        assert torch.equal(names["restored"](samples[0]), calibrated(samples[0]))


def test_python_on_performance_runs(names, capsys):
    names |= {"finecal": finecal, "loader": names["test_loader"]}
    for block in blocks("docs/performance.md", "python"):
        exec(block, names)
    exact = finecal.tradeoff_curve(names["test_logits"], names["test_labels"], names["seen_mask"])
    assert names["gamma"] == exact.best()
    assert "BinnedCurve(65536 bins" in capsys.readouterr().out


def test_python_on_calibrators_runs(names):
    temperature, groups, bias, normalized = blocks("docs/calibrators.md", "python")
    exec(temperature, names)
    assert torch.equal(
        names["calibrated"](names["valid_inputs"]).argmax(1), names["brought_back"](names["valid_logits"]).argmax(1)
    )
    exec(groups, names)
    exec(bias, names)
    assert isinstance(names["calibrated"][1], finecal.ClassBias)
    exec(normalized, names)
    assert 0 < names["after"] <= 1


def test_python_on_diagnosis_runs(names, capsys):
    for block in blocks("docs/diagnosis.md", "python"):
        exec(block, names)
    assert capsys.readouterr().out.startswith("verdict: calibration helps")
    assert names["comparison"].rows[-1].recovered == 1


def test_python_on_the_report_runs(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names["class_names"] = list("abcde")
    for block in blocks("docs/report.md", "python"):
        exec(block, names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["margins.html", "report.html"]


def test_python_on_pictures_runs(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    titles = []
    for block in blocks("docs/pictures.md", "python"):
        exec(block, names)
        titles += [names["ax"].get_title()] if "ax = " in block else []
    assert len(set(titles)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.png", "tradeoff.png"]
    text = (DOCS / "pictures.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\{image\} (\S+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(f"images/{path.name}" for path in (DOCS / "images").glob("plot_*.png"))


def test_python_on_estimators_runs(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("docs/estimators.md", "python")
    names["finecal"] = finecal
    with pytest.warns(finecal.FinecalWarning, match="pseudo-absent"):
        exec(block, names)
    assert 0 < names["estimate"].gamma < 6
    assert len(list((tmp_path / "folds").iterdir())) == 3


@pytest.mark.filterwarnings("ignore:Number of classes:RuntimeWarning", "ignore:.*recognises nearly all of the 199")
def test_python_on_scikit_learn_runs(capsys):
    matplotlib.use("agg")
    names = {"scaler": FunctionTransformer()}
    text = (DOCS / "scikit-learn.md").read_text(encoding="utf-8")
    for block in blocks("docs/scikit-learn.md", "python"):
        exec(block, names)
    plt.close("all")
    results = re.findall(r"^([a-z].*)  # (\d+\.\d+)$", text, re.MULTILINE)
    assert len(results) == 4
    for expression, value in results:
        assert f"{eval(expression, names):.{len(value.partition('.')[2])}f}" == value
    shown = capsys.readouterr().out
    assert shown.startswith("gamma = ")
    assert [f"{float(line):.2f}" for line in shown.splitlines()[-3:-1]] == ["0.90", "0.51"]
    assert shown.endswith("out of bounds for axis 1 with size 5\n")


def test_commands_run(samples, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inputs, labels = samples
    Path("finecal-demo").mkdir()
    with torch.no_grad():
        logits = model(inputs)
    for name, rows in {"train": labels < 3, "held_out": labels < 3, "test": labels >= 0}.items():
        np.savez(f"finecal-demo/{name}.npz", logits=logits[rows], labels=labels[rows], class_names=list("abcde"))
    Path("finecal-demo/seen.txt").write_text("a\nb\nc\n", encoding="utf-8")

    shown = blocks("README.md", "bash") + blocks("docs/command-line.md", "console")
    commands = re.findall(r"^(?:\$ )?finecal ((?!demo).*)$", "".join(shown).replace("\\\n", ""), re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", ["estimate", "evaluate", "apply", "report", "demo"])
def test_options_are_described(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert sorted(option for option in options if option not in text) == []
