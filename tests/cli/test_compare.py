"""The command `compare`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import finecal
from command_line import MASK, NAMES
from finecal.logits.file import LogitsFile, write_logits

pytestmark = pytest.mark.usefixtures("files")
ALL = (
    "held_out.npz --held-out --train train.npz --unlabelled test.npz --seen-share 0.5 --labelled other.npz "
    "--test test.npz --pretrained before.npy --bootstrap 5 --seed 3"
)


@pytest.fixture
def more(files):
    """Other samples of all classes, and the test samples before fine-tuning."""
    logits, labels = files["test"]
    other = logits[:60] + 0.25, labels[:60]
    write_logits("other.npz", LogitsFile(*other))
    before = logits - 3 * torch.from_numpy(MASK)
    write_logits("before.npy", LogitsFile(before))
    return {"labelled": other, "pretrained_logits": before}


def compared(**given):
    return finecal.compare_estimators(MASK, **given)


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_compares_as_the_function_does(files, run, run_json, name):
    comparison = compared(**{name: files[name]})
    line = f"compare {name}.npz --seen seen.txt{' --held-out' * (name == 'held_out')}"
    assert run(line).out == f"{comparison}\n"
    record = run_json(line)
    assert record.pop("finecal") == finecal.__version__
    assert record.pop("warnings") == []
    assert record == json.loads(json.dumps(comparison.to_dict()))


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_takes_all_that_the_function_takes(files, more, run):
    given = {name: files[name] for name in ("train", "held_out", "test")}
    comparison = compared(**given, **more, unlabelled=files["test"][0], seen_share=0.5, n_bootstrap=5, seed=3)
    captured = run(f"compare {ALL} --seen seen.txt")
    assert captured.out == f"{comparison}\n"
    methods = [row.method for row in comparison.rows]
    assert {"search_gamma", "mixture_gamma", "known_share_gamma", "oracle"} <= set(methods)
    assert comparison.pretrained is not None
    assert comparison.rows[0].estimate.interval is not None


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_groups_of_files_are_resampled(files, run):
    groups = {name: torch.arange(len(labels)) // 4 for name, (_, labels) in files.items()}
    for name, (logits, labels) in files.items():
        write_logits(f"{name}.npz", LogitsFile(logits, labels, NAMES, groups=groups[name]))
    expected = compared(
        train=files["train"],
        held_out=files["held_out"],
        unlabelled=files["test"][0],
        test=files["test"],
        train_groups=groups["train"],
        held_out_groups=groups["held_out"],
        unlabelled_groups=groups["test"],
        test_groups=groups["test"],
        n_bootstrap=20,
        seed=1,
    )
    line = "held_out.npz --held-out --train train.npz --unlabelled test.npz --test test.npz"
    assert run(f"compare {line} --seen seen.txt --bootstrap 20 --seed 1").out == f"{expected}\n"


def test_adds_prototypes(files, features, run_json):
    test = (*files["test"], features)
    held_out = (*files["held_out"], np.load("held_out_features.npy"))
    line = (
        "compare held_out.npz --held-out --seen seen.txt --unlabelled all.npz --features all.npz --test test.npz "
        "--test-features features.npy"
    )
    for given, options in ((held_out[:2], ""), (held_out, " --held-out-features held_out_features.npy")):
        expected = compared(held_out=given, unlabelled=(files["test"][0], features), test=test)
        rows = run_json(line + options)["rows"]
        assert [row["method"] for row in rows] == [row.method for row in expected.rows]
        (row,) = [row for row in rows if row["prototypes"] is not None]
        (twin,) = [row for row in expected.rows if row.prototypes is not None]
        assert row["report"]["acc_all"] == twin.report.acc_all
        assert row["estimate"]["expected_acc_seen"] == twin.estimate.expected_acc_seen


def test_seen_classes_and_names_come_from_where_they_are(files, run):
    expected = run("compare train.npz --seen seen.txt").out
    Path("names.txt").write_text("ant\ncat\nelk\n")
    for seen in ("labels", "names.txt", "mask.npy"):
        assert run(f"compare train.npz --seen {seen}").out == expected
    assert run("compare logits.npy --labels labels.npy --class-names classes.txt --seen names.txt").out == expected


def test_writes_what_it_prints(files, run):
    line = "compare train.npz --seen seen.txt --test test.npz"
    comparison = compared(train=files["train"], test=files["test"])
    out = run(f"{line} -o table.md").out
    assert out == f"{comparison}\nwrote table.md\n"
    assert Path("table.md").read_text() == comparison.to_markdown() + "\n"
    printed = run(f"{line} --json -o table.json").out
    assert Path("table.json").read_text() == printed
    assert json.loads(printed)["uncalibrated"]["n_absent"] == 60


def test_writes_a_row_per_estimator(files, run):
    pandas = pytest.importorskip("pandas")
    run("compare train.npz --seen seen.txt --test test.npz -o table.csv")
    table = compared(train=files["train"], test=files["test"]).to_pandas()
    assert table["seen_share"].tolist()[2:4] == [0.5, 0.5]
    read = pandas.read_csv("table.csv")
    assert read["method"].tolist() == table["method"].tolist()
    np.testing.assert_allclose(read["gamma"], table["gamma"], rtol=1e-12)
    np.testing.assert_allclose(read["recovered"], table["recovered"], rtol=1e-12)


def test_warns_as_the_function_does(files, capsys, run):
    captured = run("compare train.npz --held-out --train train.npz --seen seen.txt --json")
    (sentence,) = json.loads(captured.out)["warnings"]
    assert captured.err == f"warning: {sentence}\n"
    with pytest.warns(finecal.FinecalWarning) as record:
        compared(train=files["train"], held_out=files["train"])
    assert [str(warning.message) for warning in record] == [sentence]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "train.npz",
            "--seen is missing: a file with the seen classes' names or indices, a .npy mask, or 'labels'",
        ),
        (
            "logits.npy --seen seen.txt",
            "logits.npy has no labels; save them under the key 'labels', or give --labels FILE",
        ),
        (
            "train.npz --seen seen.txt --test logits.npy",
            "logits.npy has no labels; save them under the key 'labels'",
        ),
        (
            "held_out.npz --seen seen.txt --train train.npz",
            "--train needs --held-out: the samples of LOGITS are then held-out ones; training samples alone go in "
            "their place",
        ),
        (
            "train.npz --seen seen.txt --unlabelled test.npz",
            "--unlabelled needs --held-out, if the model was not trained on LOGITS, or --seen-share, the share of seen "
            "samples in it; give one of these, or leave it out",
        ),
        (
            "train.npz --seen seen.txt --pretrained test.npz",
            "--pretrained needs --test: the samples that the model scored before fine-tuning",
        ),
        (
            "train.npz --seen seen.txt --features test.npz",
            "--features needs --unlabelled and --test and --test-features: prototypes are made of the first and scored "
            "on the others",
        ),
        (
            "train.npz --seen seen.txt --test test.npz --test-features test.npz",
            "--test-features needs --features: those of the unlabelled samples, of which prototypes are made",
        ),
        (
            "train.npz --seen seen.txt --held-out-features test.npz",
            "--held-out-features needs --held-out and --features: prototypes are checked on held-out samples",
        ),
        (
            "test.npz --seen seen.txt",
            "test.npz: labels contain absent class 3 (60 of 120 samples); compare_estimators needs seen-class samples "
            "only: drop them, or give them as --labelled, beside LOGITS",
        ),
        (
            "train.npz --seen seen.txt --test held_out.npz",
            "held_out.npz: labels are of seen classes only (90 samples): the best gamma needs samples of both "
            "groups; from seen-class samples alone use mixed_pair_gap or max_logit_gap",
        ),
        (
            "train.npz --seen seen.txt --test narrow.npz",
            "narrow.npz has logits of 5 classes, LOGITS of 6; give logits of the same model",
        ),
        (
            "train.npz --seen seen.txt --test swapped.npz",
            "the classes of swapped.npz are others than those of LOGITS: column 4 is 'fox', and 'elk' there; give "
            "logits of the same model",
        ),
        ("train.npz --seen seen.txt --test no.npz", "no.npz does not exist; check the name"),
        (
            "train.npz --seen seen.txt --test shifted.npz",
            "shifted.npz already has gamma = 2 added; give the logits before calibration",
        ),
        (
            "train.npz --seen seen.txt --seen-share 2",
            "seen_share is 2.0; it must lie strictly between 0 and 1 (2.0 % is 0.02)",
        ),
        (
            "train.npz --seen seen.txt -o table.html",
            "table.html cannot be written: choose a name that ends with .json or .md or .csv",
        ),
        (
            "train.npz --seen seen.txt --test t.json -o t.json",
            "-o t.json would replace the file of --test; choose another name",
        ),
    ],
)
def test_refuses_wrong_input(files, refuses, line, sentence):
    logits, labels = files["test"]
    write_logits("narrow.npz", LogitsFile(logits[:, :5], labels % 5))
    write_logits("swapped.npz", LogitsFile(logits, labels, (*NAMES[:4], "fox", "elk")))
    write_logits("shifted.npz", LogitsFile(logits, labels, NAMES, 2.0))
    Path("t.json").write_text("{}")
    refuses(f"compare {line}", sentence)
