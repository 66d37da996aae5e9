"""The documentation names everything that is public, and what it shows runs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

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
    inputs = rng.normal(size=(300, 5)) + 4 * np.eye(5)[labels]
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture
def model():
    model = torch.nn.Linear(5, 5)
    with torch.no_grad():
        model.weight.copy_(torch.eye(5))
        model.bias.copy_(torch.tensor([3.0, 3.0, 3.0, 0.0, 0.0]))
    return model


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/quickstart.md"])
def test_python_runs(page, samples, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs, labels = samples
    seen = labels < 3
    with torch.no_grad():
        logits = model(inputs)
    train = {"train_inputs": inputs[seen], "train_labels": labels[seen], "train_logits": logits[seen]}
    test = {"test_inputs": inputs, "test_labels": labels, "test_logits": logits}
    names = {**train, **test, "model": model, "num_classes": 5, "torch": torch}
    names["train_loader"] = zip(train["train_inputs"].split(50), train["train_labels"].split(50), strict=True)
    for block in blocks(page, "python"):
        exec(block, names)
    calibrated = names.get("calibrated", names["model"])
    assert isinstance(calibrated[1], finecal.AdditiveBias)
    if "restored" in names:
        assert torch.equal(names["restored"](inputs), calibrated(inputs))


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


@pytest.mark.parametrize("command", ["estimate", "evaluate", "apply", "demo"])
def test_options_are_described(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert sorted(option for option in options if option not in text) == []
