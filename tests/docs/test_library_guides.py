"""The guides to a training script and to the command line, from their first line to their last."""

import re
import shlex

import numpy as np
import pytest
import torch

import finecal
from finecal.cli import main
from pages import blocks


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.mark.filterwarnings("ignore:.*recognises nearly all of the:finecal.FinecalWarning")
def test_training_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = "docs/how-to/training-script.md"
    names, printed = {}, []
    for block in blocks(page, "python"):
        exec(block, names)
        printed.append(capsys.readouterr().out)
    shown = [text for text in printed if text]
    one_seed, seeds = blocks(page, "text")
    assert len(shown) == 2

    # Words to the letter; accuracies differ with the processor.
    for expected, found in zip((one_seed, seeds), shown, strict=True):
        assert re.sub(r"[\d.]+", "#", found).split() == re.sub(r"[\d.]+", "#", expected).split()
    for expected, found in zip(seeds.splitlines()[1:], shown[1].splitlines()[1:], strict=True):
        assert numbers(found) == pytest.approx(numbers(expected), abs=6.0)

    _, seen_mask, estimate, curve = names["runs"][0]
    assert curve.at(estimate).acc_absent > curve.at(0.0).acc_absent + 0.3
    assert curve.at(estimate).acc_all > curve.at(0.0).acc_all + 0.1
    restored = names["restored"]
    assert float(restored[1].gamma) == pytest.approx(estimate.gamma)
    inputs, labels = names["test"].tensors
    with torch.no_grad():
        report = finecal.evaluate(restored.eval()(inputs), labels, seen_mask)
    assert report.acc_absent == curve.at(estimate).acc_absent


def test_command_line(names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names["class_names"] = list("abcde")
    writing, wrapping = blocks("docs/how-to/command-line.md", "python")
    exec(writing, names)
    (commands, _) = blocks("docs/how-to/command-line.md", "bash")
    for command in commands.splitlines():
        assert main(shlex.split(command.removeprefix("finecal "))) == 0
    assert "Acc_U/Y, absent" in capsys.readouterr().out
    exec(wrapping, names)
    with np.load("calibrated.npz") as file, torch.no_grad():
        found = names["calibrated"](names["test_inputs"])
        np.testing.assert_allclose(found, file["logits"], atol=1e-6)
        assert file["class_names"].tolist() == names["class_names"]
