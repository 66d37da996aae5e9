"""What commands are given: logits, labels, gamma and the seen classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import NAMES, unsigned
from finecal._core.logits_file import LogitsFile, write_logits

GIVE = "give a number, or what finecal estimate -o wrote"
pytestmark = pytest.mark.usefixtures("files")


@pytest.mark.parametrize(
    "line",
    [
        "train.npz --seen mask.npy",
        "train.npz --seen labels",
        "train.npz --seen names.txt",
        "logits.npy labels.npy --seen labels",
        "logits.npy labels.npy --class-names classes.txt --seen names.txt",
    ],
)
def test_input_in_other_forms(run_json, line):
    Path("names.txt").write_text("# seen\nant\nelk\ncat\n")
    found, expected = run_json(f"estimate --train {line}"), run_json("estimate --train train.npz --seen seen.txt")
    if "logits.npy" in line and "--class-names" not in line:
        del expected["class_names"]
    assert unsigned(found) == unsigned(expected)


@pytest.mark.parametrize("method", ["auto", "known_share_gamma --unlabelled test.npz --seen-share 0.5"])
def test_refuses_seen_classes_from_missing_labels(refuses, method):
    refuses(
        f"estimate --train logits.npy --seen labels --method {method}",
        "logits.npy has no labels; save them under the key 'labels', or give --train logits.npy LABELS",
    )


def test_seen_classes_are_those_of_training_samples_before_held_out_ones(files, run_json, refuses):
    logits, labels = files["held_out"]
    write_logits("held_out.npz", LogitsFile(logits[labels < 4], labels[labels < 4]))
    line = "estimate --seen labels --held-out held_out.npz"
    assert run_json(f"{line} --method seen_budget_gamma --max-seen-drop 0.2")["seen_classes"] == [0, 2]
    record = run_json(f"{line} --train train.npz --method seen_budget_gamma --max-seen-drop 0.2")
    assert record["seen_classes"] == [0, 2, 4]
    refuses(
        "estimate --seen labels --labelled test.npz --method search_gamma",
        "--seen labels takes the classes that occur in --train, or else in --held-out; give one of these, or the seen "
        "classes in a file",
    )


def test_labels_from_a_file_win(files, run_json):
    record = run_json("estimate --train train.npz --seen seen.txt")
    wrong = LogitsFile(files["train"][0], torch.ones(90, dtype=torch.int64))
    del record["class_names"]
    write_logits("wrong.npz", wrong)
    assert unsigned(run_json("estimate --train wrong.npz labels.npy --seen seen.txt")) == unsigned(record)
    assert unsigned(run_json("estimate --train wrong.npz train.npz --seen seen.txt")) == unsigned(record)


def test_evaluates_with_gamma_from_a_file(run, run_json):
    run("estimate --train train.npz --seen seen.txt -o gamma.json")
    record = run_json("evaluate test.npz --gamma gamma.json")
    assert record["after"]["gamma"] == json.loads(Path("gamma.json").read_text())["gamma"]
    assert record["after"]["acc_all"] > record["before"]["acc_all"]
    assert run_json("evaluate test.npz --gamma gamma.json --seen mask.npy") == record


def test_gamma_brings_the_names_of_the_classes_along(files, run, refuses):
    run("estimate --train train.npz --seen seen.txt -o gamma.json")
    np.savez("bare.npz", logits=files["test"][0], labels=files["test"][1])
    run("apply bare.npz --gamma gamma.json --predictions -o classes.csv")
    names = {line.split(",")[-1] for line in Path("classes.csv").read_text().splitlines()[1:]}
    assert names <= set(NAMES)
    assert len(names) > 3
    run("report bare.npz --gamma gamma.json -o report.html")
    assert all(name in Path("report.html").read_text() for name in NAMES)
    swapped = (*NAMES[:4], "fox", "elk")
    write_logits("swapped.npz", LogitsFile(*files["test"], swapped))
    refuses(
        "evaluate swapped.npz --gamma gamma.json",
        "the classes of LOGITS are others than those of gamma.json: column 4 is 'fox', and was 'elk' there; estimate "
        "gamma for this model, or give the names in the order of its columns",
    )


@pytest.mark.parametrize("command", ["evaluate test.npz", "apply test.npz -o out.npz", "report test.npz -o r.html"])
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "--gamma 1",
            "--gamma 1 does not tell the seen classes; give --seen too, or as --gamma what finecal estimate -o wrote",
        ),
        (
            "--gamma 1 --seen labels",
            "--seen labels tells the seen classes from the fine-tuning data, which LOGITS are not here; give them in a "
            "file, or --gamma with what finecal estimate -o wrote",
        ),
        ("--gamma nan --seen seen.txt", "gamma is nan; it must be finite"),
        ("--gamma wide.json", "wide.json is for 7 classes, test.npz has 6; estimate gamma for this model"),
        (
            "--gamma other.json --seen seen.txt",
            "--seen seen.txt and other.json disagree, first on class 2; leave --seen out, or estimate gamma for these "
            "classes",
        ),
        ("--gamma no.json", "--gamma no.json is neither a number nor a file that exists; " + GIVE),
        ("--gamma abc --seen seen.txt", "--gamma abc is neither a number nor a file that exists; " + GIVE),
        ("--gamma 3,5 --seen seen.txt", "--gamma 3,5 is neither a number nor a file that exists; " + GIVE),
        ("--gamma= --seen seen.txt", "--gamma is empty; " + GIVE),
        ("--gamma list.json", "list.json has no entry 'gamma'; " + GIVE),
        ("--gamma seen.txt", "seen.txt is no JSON (Extra data: line 2 column 1 (char 2)); " + GIVE),
    ],
)
def test_refuses_gamma_of_other_classes(refuses, command, line, sentence):
    Path("list.json").write_text("[1]")
    Path("wide.json").write_text('{"gamma": 1, "num_classes": 7, "seen_classes": [0, 2, 4]}')
    Path("other.json").write_text('{"gamma": 1, "num_classes": 6, "seen_classes": [0, 3]}')
    refuses(f"{command} {line}", sentence)


@pytest.mark.parametrize("command", ["evaluate test.npz", "apply test.npz -o out.npz"])
def test_requires_gamma(refuses, command):
    refuses(f"{command} --seen seen.txt", "the following arguments are required: --gamma")


def test_refuses_to_evaluate_without_labels(refuses):
    refuses(
        "evaluate logits.npy --gamma 1 --seen seen.txt",
        "logits.npy has no labels; save them under the key 'labels', or give --labels FILE",
    )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "line",
    [
        "estimate --train {} --seen seen.txt",
        "estimate --held-out held_out.npz --seen seen.txt --unlabelled {}",
        "evaluate {} --seen seen.txt --gamma 1",
        "evaluate {} --gamma gamma.json",
        "apply {} --seen seen.txt --gamma 1 -o out.npz",
        "apply {} --seen seen.txt --gamma 1 --predictions -o out.csv",
    ],
)
def test_refuses_to_calibrate_twice(run, refuses, suffix, line):
    run("estimate --train train.npz --seen seen.txt -o gamma.json")
    run(f"apply test.npz --seen seen.txt --gamma 6.77 -o calibrated{suffix}")
    refuses(
        line.format(f"calibrated{suffix}"),
        f"calibrated{suffix} already has gamma = 6.77 added; give the logits before calibration",
    )


def test_gamma_of_zero_adds_nothing(run, run_json):
    run("apply test.npz --seen seen.txt --gamma 0 -o same.npz")
    line = "--seen seen.txt --gamma 1"
    assert run_json(f"evaluate same.npz {line}") == run_json(f"evaluate test.npz {line}")


def test_labels_may_come_from_calibrated_logits(run, run_json):
    run("apply train.npz --seen seen.txt --gamma 1 -o calibrated.npz")
    record = run_json("estimate --train logits.npy calibrated.npz --seen seen.txt")
    expected = run_json("estimate --train train.npz --seen seen.txt")
    del expected["class_names"]
    assert unsigned(record) == unsigned(expected)
