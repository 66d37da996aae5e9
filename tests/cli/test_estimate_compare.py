"""The command `compare`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import finecal
from command_line import MASK, NAMES
from finecal._core.logits_file import LogitsFile, write_logits

pytestmark = pytest.mark.usefixtures("files")
ALL = (
    "--held-out held_out.npz --train train.npz --unlabelled test.npz --seen-share 0.5 --labelled other.npz "
    "--test before.npz --bootstrap 5 --seed 3"
)


@pytest.fixture
def more(files):
    """Other samples of all classes, and the test samples with their logits before fine-tuning."""
    logits, labels = files["test"]
    other = logits[:60] + 0.25, labels[:60]
    write_logits("other.npz", LogitsFile(*other))
    test = finecal.Samples(logits, labels, pretrained_logits=logits - 3 * torch.from_numpy(MASK))
    test.save("before.npz")
    return {"labelled": other, "test": test}


def compared(**given):
    return finecal.compare_estimators(MASK, **given)


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_compares_as_the_function_does(files, run, run_json, name):
    comparison = compared(**{name: files[name]})
    line = f"compare --{name.replace('_', '-')} {name}.npz --seen seen.txt"
    assert run(line).out == f"{comparison}\n"
    record = run_json(line)
    assert record.pop("finecal") == finecal.__version__
    assert record.pop("warnings") == []
    assert record == json.loads(json.dumps(comparison.to_dict()))


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_takes_all_that_the_function_takes(files, more, run):
    given = {name: files[name] for name in ("train", "held_out")}
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
        train=finecal.Samples.load("train.npz"),
        held_out=finecal.Samples.load("held_out.npz"),
        unlabelled=finecal.Samples(files["test"][0], groups=groups["test"]),
        test=finecal.Samples(*files["test"], groups=groups["test"]),
        n_bootstrap=20,
        seed=1,
    )
    line = "--held-out held_out.npz --train train.npz --unlabelled test.npz --test test.npz"
    assert run(f"compare {line} --seen seen.txt --bootstrap 20 --seed 1").out == f"{expected}\n"


def test_adds_prototypes(files, features, run_json):
    test = finecal.Samples(*files["test"], features=features)
    for name in ("held_out", "held_all"):
        expected = compared(held_out=finecal.Samples.load(f"{name}.npz"), unlabelled=test, test=test)
        line = f"compare --held-out {name}.npz --seen seen.txt --unlabelled all.npz --test all.npz"
        rows = run_json(line)["rows"]
        assert [row["method"] for row in rows] == [row.method for row in expected.rows]
        (row,) = [row for row in rows if row["prototypes"] is not None]
        (twin,) = [row for row in expected.rows if row.prototypes is not None]
        assert row["report"]["acc_all"] == twin.report.acc_all
        assert row["estimate"]["acc_seen_at_gamma"] == twin.estimate.acc_seen_at_gamma


def test_seen_classes_and_names_come_from_where_they_are(files, run):
    expected = run("compare --train train.npz --seen seen.txt").out
    Path("names.txt").write_text("ant\ncat\nelk\n")
    for seen in ("labels", "names.txt", "mask.npy"):
        assert run(f"compare --train train.npz --seen {seen}").out == expected
    assert run("compare --train logits.npy labels.npy --class-names classes.txt --seen names.txt").out == expected


def test_writes_what_it_prints(files, run):
    line = "compare --train train.npz --seen seen.txt --test test.npz"
    comparison = compared(train=files["train"], test=files["test"])
    out = run(f"{line} -o table.md").out
    assert out == f"{comparison}\nwrote table.md\n"
    assert Path("table.md").read_text() == comparison.to_markdown() + "\n"
    printed = run(f"{line} --json -o table.json").out
    assert Path("table.json").read_text() == printed
    assert json.loads(printed)["uncalibrated"]["n_absent"] == 60


def test_writes_a_row_per_estimator(files, run):
    pandas = pytest.importorskip("pandas")
    run("compare --train train.npz --seen seen.txt --test test.npz -o table.csv")
    table = compared(train=files["train"], test=files["test"]).to_pandas()
    assert table["seen_share"].tolist()[2:4] == [0.5, 0.5]
    read = pandas.read_csv("table.csv")
    assert read["method"].tolist() == table["method"].tolist()
    np.testing.assert_allclose(read["gamma"], table["gamma"], rtol=1e-12)
    np.testing.assert_allclose(read["recovered"], table["recovered"], rtol=1e-12)


def test_warns_as_the_function_does(files, capsys, run):
    captured = run("compare --held-out train.npz --train train.npz --seen seen.txt --json")
    (sentence,) = json.loads(captured.out)["warnings"]
    assert " ".join(captured.err.split()) == f"warning: {sentence}"
    with pytest.warns(finecal.FinecalWarning) as record:
        compared(train=files["train"], held_out=files["train"])
    (twin,) = (warning.message.args[0] for warning in record)
    assert sentence == twin.replace("of held_out have", "of train.npz have").replace("of train:", "of train.npz:")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "train.npz",
            "--seen is missing: a file with the seen classes' names or indices, a .npy mask, or 'labels'",
        ),
        (
            "logits.npy --seen seen.txt",
            "logits.npy has no labels; save them under the key 'labels', or give --train logits.npy LABELS",
        ),
        (
            "train.npz --seen seen.txt --test logits.npy",
            "logits.npy has no labels; save them under the key 'labels', or give --test logits.npy LABELS",
        ),
        (
            "train.npz --seen seen.txt --unlabelled test.npz",
            "--unlabelled needs --held-out, labelled samples that the model was not trained on, or --seen-share, the "
            "share of seen samples in it; give one of these, or leave it out",
        ),
        (
            "test.npz --seen seen.txt",
            "test.npz: labels contain absent class 3 (60 of 120 samples); compare_estimators needs seen-class samples "
            "only: drop them, or use search_gamma",
        ),
        (
            "train.npz --seen seen.txt --test held_out.npz",
            "held_out.npz: labels are of seen classes only (90 samples): the best gamma needs samples of both "
            "groups; from seen-class samples alone use mixed_pair_gap or max_logit_gap",
        ),
        (
            "train.npz --seen seen.txt --test narrow.npz",
            "narrow.npz has logits of 5 classes, train.npz of 6; give logits of the same model",
        ),
        (
            "train.npz --seen seen.txt --test swapped.npz",
            "the classes of swapped.npz are others than those of train.npz: column 4 is 'fox', and 'elk' there; give "
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
    refuses(f"compare --train {line}", sentence)


def test_needs_samples_to_estimate_from(refuses):
    refuses(
        "compare --test test.npz --seen seen.txt",
        "there are no samples to estimate gamma from; give --train, --held-out, --labelled, or --unlabelled with "
        "--seen-share",
    )


def test_features_of_one_file_are_no_matter(features, run, capsys):
    assert run("compare --train train.npz --test all.npz --seen seen.txt") == run(
        "compare --train train.npz --test test.npz --seen seen.txt"
    )
