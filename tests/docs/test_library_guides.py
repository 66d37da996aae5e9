"""The guides to a training script and to the command line, from their first line to their last."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import finecal
from finecal._cli.arguments import main
from pages import ROOT, blocks


def page_text(page):
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_training_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = "docs/how-to/training-script.md"
    names, printed = {}, []
    for block in blocks(page, "python"):
        exec(block, names)
        printed.append(capsys.readouterr().out)
    shown = [text for text in printed if text]
    expected_texts = blocks(page, "text")
    _, damage, seeds = expected_texts

    # Words to the letter; accuracies differ with the processor.
    for expected, found in zip(expected_texts, shown, strict=True):
        words = re.sub(r"[\d.]+", "#", expected).split()
        found_words = re.sub(r"[\d.]+", "#", found).split()
        assert (found_words[: len(words)] if expected is damage else found_words) == words
    for expected, found in zip(seeds.splitlines(), shown[2].splitlines(), strict=True):
        assert numbers(found) == pytest.approx(numbers(expected), abs=6.0)

    _, seen_mask, estimate, curve, diagnosis = names["runs"][0]
    assert diagnosis.finetuned == curve.at(0.0)
    assert diagnosis.oracle == curve.at(curve.best())
    assert diagnosis.pretrained.acc_absent > diagnosis.finetuned.acc_absent + 0.1
    assert curve.at(estimate).acc_absent > curve.at(0.0).acc_absent + 0.3
    assert curve.at(estimate).acc_all > curve.at(0.0).acc_all + 0.1
    restored, calibrated, folded = (names[name] for name in ("restored", "calibrated", "folded"))
    assert float(restored[1].gamma) == pytest.approx(estimate.gamma)
    assert restored[0] is not calibrated[0] is names["model"]
    assert not restored.training
    inputs, labels = names["test"].tensors
    with torch.no_grad():
        logits = restored(inputs)
        assert torch.equal(logits, calibrated.eval()(inputs))
        torch.testing.assert_close(logits, folded.eval()(inputs))
        twice = finecal.evaluate(logits, labels, seen_mask, estimate)
    assert twice.acc_absent == pytest.approx(twice.acc_absent_within, abs=0.02)
    assert twice.acc_seen < curve.at(estimate).acc_seen - 0.1
    assert finecal.evaluate(logits, labels, seen_mask).acc_absent == curve.at(estimate).acc_absent

    cost = [100 * (estimate.acc_seen_at_zero - estimate.acc_seen_at_gamma)]
    cost += [100 * (curve.at(0.0).acc_seen - curve.at(estimate).acc_seen)]
    (said,) = re.findall(r"Above, it is (.*?), and (.*?) in the test", page_text(page))
    assert [numbers(text)[0] for text in said] == pytest.approx(cost, abs=3.0)

    (in_short,) = blocks(page, "{code-block} python")
    seen = labels % 2 == 0
    names["train_loader"] = [(inputs[seen], labels[seen])]
    exec(in_short, names)
    assert float(names["model"][1].gamma) == pytest.approx(names["estimate"].gamma)


def test_labels_that_were_numbered_anew():
    """What the page says of them: an error with named classes, silence with a mask of the labels, and the way back."""
    logits = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    numbered = torch.arange(60) % 5
    logits[torch.arange(60), numbered] += 8.0  # as the model has learned it
    named = finecal.seen_mask_from_indices([0, 2, 4, 6, 8], 10)
    with (
        pytest.warns(finecal.FinecalWarning, match="they look re-indexed"),
        pytest.raises(ValueError, match="labels contain absent class 1"),
    ):
        finecal.estimate_gamma(named, train=(logits, numbered))
    silent = finecal.estimators.mixed_pair_gap(logits, numbered, finecal.seen_mask_from_labels(numbered, 10))
    assert silent.warnings == ()

    (line,) = set(re.findall(r"`(torch\.tensor\(.*?\)\[labels\])`", page_text("docs/how-to/training-script.md")))
    mapped = eval(line, {"torch": torch, "SEEN_CLASSES": [8, 0, 2, 4, 6], "labels": numbered})
    assert torch.equal(mapped, 2 * numbered)


def test_command_line(names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names["class_names"] = list("abcde")
    names["held_out_loader"] = [(names["held_out_inputs"], names["held_out_labels"])]
    names["unlabelled_loader"] = [names["valid_inputs"]]
    Path("seen.txt").write_text("0 1 2")
    writing, wrapping, with_features, loading = blocks("docs/how-to/command-line.md", "python")
    gamma_alone, with_prototypes, _ = blocks("docs/how-to/command-line.md", "bash")
    for write, commands, wrap, applied in (
        (writing, gamma_alone, wrapping, "calibrated.npz"),
        (with_features, with_prototypes, loading, "with_prototypes.npz"),
    ):
        exec(write, names)
        for command in commands.replace("\\\n", "").splitlines():
            assert main(shlex.split(command.removeprefix("finecal "))) == 0
        assert "Acc_U/Y, absent" in capsys.readouterr().out
        exec(wrap, names)
        with np.load(applied) as file, torch.no_grad():
            np.testing.assert_allclose(names["calibrated"](names["test_inputs"]), file["logits"], atol=1e-5)
            assert file["class_names"].tolist() == names["class_names"]
    assert names["prototypes"].weight.any()
