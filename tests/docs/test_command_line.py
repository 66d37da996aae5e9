"""The commands that the documentation shows run, and it names every command; `--help` describes the options."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import finecal
from finecal._cli.arguments import main
from pages import DOCS, blocks


def test_commands_run(samples, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inputs, labels = samples
    Path("finecal-demo").mkdir()
    with torch.no_grad():
        logits = model(inputs)
    for name, rows in {"train": labels < 3, "held_out": labels < 3, "test": labels >= 0}.items():
        saved = finecal.Samples(logits[rows], labels[rows], features=inputs[rows], pretrained_logits=logits[rows])
        saved.save(f"finecal-demo/{name}.npz", class_names=list("abcde"))
    Path("finecal-demo/seen.txt").write_text("a\nb\nc\n", encoding="utf-8")

    shown = blocks("README.md", "bash") + blocks("docs/how-to/command-line.md", "console")
    commands = re.findall(r"^(?:\$ )?finecal ((?!demo).*)$", "".join(shown).replace("\\\n", ""), re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out


def test_page_names_each_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    text = (DOCS / "how-to" / "command-line.md").read_text(encoding="utf-8")
    assert len(commands) > 7
    assert [command for command in commands if f"finecal {command}" not in text] == []
