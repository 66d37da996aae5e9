"""Files to read, and what runs a command."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import MASK, NAMES
from finecal._cli import arguments as cli
from finecal._core.logits_file import LogitsFile, write_logits


@pytest.fixture
def files(tmp_path, monkeypatch, rng):
    """A folder with train, held-out and test samples of a model that boosts its seen classes by 3."""
    monkeypatch.chdir(tmp_path)

    def sample(classes, size):
        labels = rng.permutation(np.resize(classes, size))
        logits = rng.normal(size=(size, 6)) + 2 * np.eye(6)[labels] + 3 * MASK
        return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(labels)

    files = {name: sample([0, 2, 4], 90) for name in ("train", "held_out")} | {"test": sample(range(6), 120)}
    for name, (logits, labels) in files.items():
        write_logits(f"{name}.npz", LogitsFile(logits, labels, NAMES))
    write_logits("logits.npy", LogitsFile(files["train"][0]))
    np.save("labels.npy", files["train"][1])
    np.save("mask.npy", MASK)
    Path("seen.txt").write_text("0\n2\n4\n", newline="\n")
    Path("classes.txt").write_text("\n".join(NAMES))
    return files


@pytest.fixture
def features(files):
    """Those of the test samples, in a file with their logits, as those of the held-out samples are."""
    generator = np.random.default_rng(1)

    def draw(logits, labels):
        near = logits.numpy() - 3 * MASK + 2 * np.eye(6)[labels]
        return (near @ np.eye(6, 8) + generator.normal(size=(len(labels), 8)) / 2).astype(np.float32)

    logits, labels = files["test"]
    features = draw(logits, labels)
    np.savez("all.npz", logits=logits, labels=labels, class_names=NAMES, features=features)
    held_out = dict(zip(("logits", "labels"), files["held_out"], strict=True))
    np.savez("held_all.npz", **held_out, class_names=NAMES, features=draw(*files["held_out"]))
    return torch.from_numpy(features)


@pytest.fixture
def run(capsys):
    def run(line):
        assert cli.main(line.split()) == 0
        return capsys.readouterr()

    return run


@pytest.fixture
def run_json(run):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return lambda line: json.loads(run(f"{line} --json").out, parse_constant=refuse)


@pytest.fixture
def refuses(capsys, tmp_path):
    """Run a call with bad input: one sentence on stderr, exit status 2, nothing printed, nothing written."""

    def refuses(line, sentence):
        before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(SystemExit) as caught:
            cli.main(line.split())
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        assert err.replace(os.sep, "/") == f"finecal {line.split()[0]}: error: {sentence}\n"
        assert before == {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}

    return refuses
