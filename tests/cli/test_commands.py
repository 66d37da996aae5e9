"""The commands `evaluate`, `apply`, `report` and `demo`."""

import csv
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import finecal
from command_line import MASK, NAMES
from finecal._cli import commands
from finecal._core.logits_file import LogitsFile, read_logits, write_logits

pytestmark = pytest.mark.usefixtures("files")

# --- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_evaluates_before_and_after(files, run_json, average):
    record = run_json(f"evaluate test.npz --seen seen.txt --gamma 2.5 --average {average}")
    for when, gamma in (("before", 0.0), ("after", 2.5)):
        assert record[when] == asdict(finecal.evaluate(*files["test"], MASK, gamma, average))
    assert record["average"] == average


def test_evaluate_doubts_labels_that_are_told_apart_as_by_guessing(run, rng):
    np.savez("guessed.npz", logits=rng.normal(size=(400, 20)), labels=rng.integers(20, size=400))
    np.save("first_half.npy", np.arange(20) < 10)
    err = run("evaluate guessed.npz --seen first_half.npy --gamma 1").err
    assert "400 samples are told apart within their own group, where guessing gives 10.0 %" in err


def test_samples_of_seen_classes_show_the_cost_alone(run):
    sentence = "no samples of absent classes: this shows only what gamma costs\n"
    assert run("evaluate train.npz --seen seen.txt --gamma 1").out.endswith(sentence)
    assert sentence not in run("evaluate test.npz --seen seen.txt --gamma 1").out


def test_prints_a_small_table(run):
    write_logits("two.npz", LogitsFile(torch.tensor([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]]), torch.tensor([0, 2])))
    Path("two.txt").write_text("0 1")
    assert run("evaluate two.npz --seen two.txt --gamma 2.75").out.splitlines() == [
        "| accuracy (micro), %          | gamma = 0 | gamma = 2.75 | change |",
        "| ---------------------------- | --------: | -----------: | -----: |",
        "| Acc_Y/Y, all samples         |      50.0 |         50.0 |   +0.0 |",
        "| Acc_S/Y, seen                |     100.0 |          0.0 | -100.0 |",
        "| Acc_U/Y, absent              |       0.0 |        100.0 | +100.0 |",
        "| harmonic mean of these two   |       0.0 |          0.0 |   +0.0 |",
        "| balanced: their mean         |      50.0 |         50.0 |   +0.0 |",
        "| Acc_S/S, seen among seen     |     100.0 |        100.0 |   +0.0 |",
        "| Acc_U/U, absent among absent |     100.0 |        100.0 |   +0.0 |",
        "1 seen and 1 absent samples, AUSUC 0.0000",
    ]


def test_one_sided_data_leave_gaps(run, run_json):
    after = run_json("evaluate train.npz --seen seen.txt --gamma 1")["after"]
    assert [name for name, value in after.items() if value is None] == [
        "acc_absent",
        "acc_absent_within",
        "harmonic_mean",
        "balanced",
        "ausuc",
    ]
    table = run("evaluate train.npz --seen seen.txt --gamma 1").out
    assert re.search(r"\| Acc_U/Y, absent +\| +- \| +- \| +- \|", table)
    assert "\n90 seen and 0 absent samples, AUSUC -\n" in table


# --- apply ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_applies_gamma(files, run_json, suffix):
    logits, labels = files["test"]
    record = run_json(f"apply test.npz --seen seen.txt --gamma 2.5 -o out{suffix}")
    changed = finecal.predict(logits, MASK, 2.5) != finecal.predict(logits, MASK)
    assert record["changed_predictions"] == int(changed.sum()) > 0
    assert (record["output"], record["gamma"], record["n"]) == (f"out{suffix}", 2.5, 120)
    content = read_logits(f"out{suffix}")
    assert torch.equal(content.logits, finecal.calibrate_logits(logits, MASK, 2.5))
    if suffix != ".npy":
        assert torch.equal(content.labels, labels)
        assert content.class_names == NAMES


def test_applies_to_logits_alone(files, run):
    out = run("apply logits.npy --seen seen.txt --gamma -0.5 -o out.npz").out
    assert out.splitlines() == [
        f"gamma = -0.5 changes the prediction for {out.split()[7]} of 90 samples",
        "wrote out.npz",
    ]
    content = read_logits("out.npz")
    assert torch.equal(content.logits, finecal.calibrate_logits(files["train"][0], MASK, -0.5))
    assert content.labels is None


def test_writes_predictions(files, run):
    classes = finecal.predict(files["test"][0], MASK, 2.5)
    run("apply test.npz --seen seen.txt --gamma 2.5 --predictions -o out.npy")
    np.testing.assert_array_equal(np.load("out.npy", allow_pickle=False), classes)
    run("apply test.npz --seen seen.txt --gamma 2.5 --predictions -o out.csv")
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["class"]) for row in rows] == classes.tolist()
    assert [int(row["sample"]) for row in rows] == list(range(120))
    assert [row["name"] for row in rows] == [NAMES[index] for index in classes]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("-o test.npz", "-o test.npz would replace the logits before calibration; choose another name"),
        ("-o out.csv", "out.csv cannot be written: choose a name that ends with .npz or .npy or .safetensors"),
        ("-o out.pt", "out.pt cannot be written: choose a name that ends with .npz or .npy or .safetensors"),
        ("-o out.npz --predictions", "out.npz cannot be written: choose a name that ends with .csv or .npy"),
        ("-o folder.npy", "folder.npy cannot be written: it is a directory; choose another name"),
        ("", "the following arguments are required: -o"),
    ],
)
def test_refuses_to_apply(refuses, line, sentence):
    Path("folder.npy").mkdir()
    refuses(f"apply test.npz --seen seen.txt --gamma 1 {line}", sentence)


# --- prototypes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def prototypes(files, features):
    prototypes = finecal.calibrators.fit_prototypes(finecal.Samples(files["test"][0], features=features), MASK, 3.0)
    assert prototypes.weight.any()
    finecal.save(prototypes, "prototypes.safetensors")
    return prototypes


WITH_PROTOTYPES = "--gamma prototypes.safetensors"


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_evaluates_with_prototypes(files, features, prototypes, run, run_json, average):
    logits, labels = files["test"]
    line = f"evaluate all.npz {WITH_PROTOTYPES} --average {average}"
    record = run_json(line)
    after = finecal.evaluate(prototypes(logits, features), labels, MASK, average=average)
    assert record["before"] == asdict(finecal.evaluate(logits, labels, MASK, average=average))
    assert record["by_gamma_alone"] == asdict(finecal.evaluate(logits, labels, MASK, 3.0, average))
    assert record["after"] == {**asdict(after), "gamma": 3.0}
    assert after.acc_all > record["by_gamma_alone"]["acc_all"]
    first, *_, last = run(line).out.splitlines()
    titles = [f"accuracy ({average}), %", "gamma = 0", "gamma = 3", "with prototypes", "change"]
    assert [cell.strip() for cell in first.strip("|").split("|")] == titles
    assert last.endswith(f"AUSUC {after.ausuc:.4f} ({record['before']['ausuc']:.4f} by gamma alone)")


def test_applies_prototypes(files, features, prototypes, run, run_json, refuses):
    logits, labels = files["test"]
    expected = prototypes(logits, features)
    changed = int((expected.argmax(1) != logits.argmax(1)).sum())
    record = run_json("apply all.npz --gamma prototypes.safetensors -o out.npz")
    assert (record["gamma"], record["n"], record["changed_predictions"]) == (3.0, 120, changed)
    content = read_logits("out.npz")
    assert torch.equal(content.logits, expected)
    assert torch.equal(content.labels, labels)
    assert content.class_names == NAMES
    out = run(f"apply all.npz {WITH_PROTOTYPES} --predictions -o out.npy").out
    assert out.startswith(f"gamma = 3 and prototypes change the prediction for {changed} of 120 samples\n")
    np.testing.assert_array_equal(np.load("out.npy"), expected.argmax(1))
    refuses(
        f"evaluate out.npz {WITH_PROTOTYPES}",
        "out.npz already has gamma = 3 added; give the logits before calibration",
    )


@pytest.mark.parametrize("command", ["evaluate {}", "apply {} -o out.npz", "report {} -o r.html"])
@pytest.mark.parametrize(
    ("file", "line", "sentence"),
    [
        (
            "test.npz",
            "--gamma prototypes.safetensors",
            "prototypes.safetensors holds prototypes, which need features: save what the model's final linear layer "
            "takes in test.npz, under the key 'features'",
        ),
        (
            "narrow.npz",
            "--gamma prototypes.safetensors",
            "narrow.npz has 7 features per sample, prototypes.safetensors is for 8; save what the same layer of the "
            "same model takes",
        ),
        (
            "short.npz",
            "--gamma prototypes.safetensors",
            "short.npz: features have shape (90, 8); expected (120, D), one row of features per sample",
        ),
        (
            "integer.npz",
            "--gamma prototypes.safetensors",
            "integer.npz: features have dtype int64; pass floating-point features: features.float()",
        ),
        (
            "all.npz",
            "--gamma prototypes.safetensors --seen other.txt",
            "--seen other.txt and prototypes.safetensors disagree, first on class 1; leave --seen out, or estimate "
            "gamma for these classes",
        ),
        (
            "all.npz",
            "--gamma temperature.safetensors --seen seen.txt",
            "temperature.safetensors holds a Temperature; give an AdditiveBias or Prototypes, as finecal estimate -o "
            "writes them",
        ),
        (
            "all.npz",
            "--gamma logits.safetensors",
            "logits.safetensors is a safetensors file, but of no calibrator (it holds 'logits'); give one that "
            "finecal.save wrote",
        ),
        (
            "all.npz",
            "--gamma no.safetensors",
            "--gamma no.safetensors is neither a number nor a file that exists; give a number, or what finecal "
            "estimate -o wrote",
        ),
    ],
)
def test_refuses_prototypes_without_their_features(files, features, prototypes, refuses, command, file, line, sentence):
    logits, labels = files["test"]
    wrong = {"narrow": features[:, :7], "short": features[:90], "integer": features.long()}
    for name, of_file in wrong.items():
        np.savez(f"{name}.npz", logits=logits, labels=labels, features=of_file)
    Path("other.txt").write_text("0 1")
    finecal.save(finecal.Temperature(2.0), "temperature.safetensors")
    write_logits("logits.safetensors", LogitsFile(logits))
    refuses(f"{command.format(file)} {line}", sentence)


def test_features_without_prototypes_are_no_matter(features, run_json):
    line = "--gamma 3 --seen seen.txt"
    assert run_json(f"evaluate all.npz {line}") == run_json(f"evaluate test.npz {line}")


def test_reports_prototypes(files, features, prototypes, run):
    logits, labels = files["test"]
    run(f"report all.npz {WITH_PROTOTYPES} --title Animals -o r.html")
    pair = prototypes, features
    page = finecal.html_report(logits, labels, MASK, 3.0, class_names=NAMES, title="Animals", prototypes=pair)
    assert Path("r.html").read_bytes() == page.encode()


# --- report -----------------------------------------------------------------------------------------------------------


def test_report_is_the_page_of_html_report(files, run):
    logits, labels = files["test"]
    line = "report test.npz --seen seen.txt --gamma 2.5 --average macro --title Animals -o r.html"
    assert run(line).out == "wrote r.html\n"
    page = finecal.html_report(logits, labels, MASK, 2.5, class_names=NAMES, average="macro", title="Animals")
    assert Path("r.html").read_bytes() == page.encode()
    run("report test.npz --seen seen.txt -o r.html")
    title = "How gamma changes accuracy on test.npz"
    page = finecal.html_report(logits, labels, MASK, None, class_names=NAMES, title=title)
    assert Path("r.html").read_bytes() == page.encode()


def test_report_tells_how_gamma_was_estimated(files, run):
    run("estimate --train train.npz --seen seen.txt --method max_logit_gap --bootstrap 9 -o gamma.json")
    run("report test.npz --gamma gamma.json -o r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    low, high = finecal.estimators.max_logit_gap(*files["train"], MASK, n_bootstrap=9).interval
    assert "Gamma was estimated by max_logit_gap from 90 labelled training samples (seen classes)." in page
    assert f"Its 95 % sampling interval is {low:.4g} to {high:.4g}." in page


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "test.npz -o r.html",
            "--seen is missing: a file with the seen classes' names or indices, or a .npy mask; or give --gamma with "
            "what finecal estimate -o wrote",
        ),
        (
            "test.npz --seen labels -o r.html",
            "--seen labels tells the seen classes from the fine-tuning data, which LOGITS are not here; give them in a "
            "file, or --gamma with what finecal estimate -o wrote",
        ),
        (
            "test.npz --gamma 1 -o r.html",
            "--gamma 1 does not tell the seen classes; give --seen too, or as --gamma what finecal estimate -o wrote",
        ),
        ("test.npz --seen seen.txt -o r.pdf", "r.pdf cannot be written: choose a name that ends with .html"),
        ("test.npz --seen seen.txt -o no/r.html", "no/r.html cannot be written: there is no folder no; make it first"),
        (
            "logits.npy --seen seen.txt -o r.html",
            "logits.npy has no labels; save them under the key 'labels', or give --labels FILE",
        ),
        (
            "train.npz --seen seen.txt -o r.html",
            "train.npz: labels are of seen classes only (90 samples): the best gamma needs samples of both groups; "
            "from seen-class samples alone use mixed_pair_gap or max_logit_gap",
        ),
    ],
)
def test_refuses_to_report(refuses, line, sentence):
    Path("r.html").write_text("an old report")
    refuses(f"report {line}", sentence)


def test_report_without_its_extra(monkeypatch, refuses):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    refuses(
        "report test.npz --seen seen.txt -o r.html", "the report is made with jinja2: pip install 'finecal[report]'"
    )


def test_report_is_written_whole_or_not_at_all(monkeypatch, refuses):
    Path("r.html").write_text("an old report")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    refuses(
        "report test.npz --seen seen.txt -o r.html",
        "r.html cannot be written: No space left on device; nothing was changed",
    )


# --- demo -------------------------------------------------------------------------------------------------------------


def test_demo(monkeypatch, run):
    calls = []

    def run_demo(out, seed):
        calls.append((out, seed))
        return "the report"

    monkeypatch.setattr(commands, "run_demo", run_demo)
    assert run("demo").out == "the report\n"
    assert run("demo --out folder --seed 3").out == "the report\n"
    assert calls == [(None, 0), (Path("folder"), 3)]


def test_demo_without_its_extra(monkeypatch, refuses):
    def run_demo(out, seed):
        raise ImportError("the demo needs tqdm: pip install 'finecal[demo]'")

    monkeypatch.setattr(commands, "run_demo", run_demo)
    refuses("demo", "the demo needs tqdm: pip install 'finecal[demo]'")
