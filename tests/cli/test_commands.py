import contextlib
import csv
import importlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import finecal
from finecal.cli import arguments as cli
from finecal.cli import commands
from finecal.cli.estimate import METHODS
from finecal.gamma.search import SEARCH_OBJECTIVES
from finecal.logits.file import LogitsFile, read_logits, write_logits

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
MASK = np.array([True, False, True, False, True, False])


@pytest.fixture(autouse=True)
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
    Path("seen.txt").write_text("0\n2\n4\n")
    Path("classes.txt").write_text("\n".join(NAMES))
    return files


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
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(SystemExit) as caught:
            cli.main(line.split())
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        assert err == f"finecal {line.split()[0]}: error: {sentence}\n"
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    return refuses


# --- estimate ---------------------------------------------------------------------------------------------------------


def test_estimates_as_the_functions_do(files, run_json):
    train, held_out, test = ((*files[name], MASK) for name in ("train", "held_out", "test"))
    unlabelled = files["test"][0]
    calls = {
        "train.npz": finecal.estimate_gamma(MASK, train=train[:2]),
        "train.npz --seen-share 0.3 --seed 5": finecal.estimate_gamma(MASK, train=train[:2], seen_share=0.3, seed=5),
        "held_out.npz --held-out": finecal.estimate_gamma(MASK, held_out=held_out[:2]),
        "held_out.npz --held-out --unlabelled test.npz": finecal.estimate_gamma(
            MASK, held_out=held_out[:2], unlabelled=unlabelled
        ),
        "train.npz --unlabelled test.npz --seen-share 0.5": finecal.estimate_gamma(
            MASK, train=train[:2], unlabelled=unlabelled, seen_share=0.5
        ),
        "train.npz --method average_logit_gap": finecal.average_logit_gap(*train),
        "train.npz --method max_logit_gap --bootstrap 9 --seed 2": finecal.max_logit_gap(*train, n_bootstrap=9, seed=2),
        "train.npz --method mixed_pair_gap --seed 1": finecal.mixed_pair_gap(*train, seed=1),
        "held_out.npz --held-out --method residual_gap --seen-share 0.4": finecal.residual_gap(*held_out, 0.4),
        "held_out.npz --held-out --method seen_budget_gamma --max-seen-drop 0.1 --confidence 0.9": (
            finecal.seen_budget_gamma(*held_out, max_seen_drop=0.1, confidence=0.9)
        ),
        "test.npz --method search_gamma --objective harmonic --max-seen-drop 0.2": (
            finecal.search_gamma(*test, objective="harmonic", max_seen_drop=0.2)
        ),
        "test.npz --method search_gamma --objective nll": finecal.search_gamma(*test, objective="nll"),
        "test.npz --method known_share_gamma --seen-share 0.5": finecal.known_share_gamma(unlabelled, MASK, 0.5),
        "held_out.npz --held-out --method mixture_gamma --unlabelled test.npz": (
            finecal.mixture_gamma(held_out[0], unlabelled, MASK)
        ),
    }
    for line, estimate in calls.items():
        record = run_json(f"estimate {line} --seen seen.txt")
        assert record["gamma"] == estimate.gamma, line
        assert record["method"] == estimate.method, line
        assert record["n"] == estimate.n, line
        assert record["expected_acc_seen"] == estimate.expected_acc_seen, line
        assert record["acc_seen_before"] == estimate.acc_seen_before, line
        assert record["interval"] == (None if estimate.interval is None else list(estimate.interval)), line
    called = {line.split("--method ")[1].split()[0] for line in calls if "--method" in line}
    assert called | {"auto"} == set(METHODS)


def cost(estimate):
    return f"{100 * estimate.expected_acc_seen:.1f} % ({100 * estimate.acc_seen_before:.1f} % at gamma = 0)"


def test_says_what_gamma_costs(files, run):
    def cell(line):
        (row,) = re.findall(r"^\| Acc_S/Y on LOGITS *\| *(.*?) *\|$", run(f"estimate {line} --seen seen.txt").out, re.M)
        return row

    assert cost(finecal.GammaEstimate(1.0, "", "", 1, 0.836, acc_seen_before=0.87)) == "83.6 % (87.0 % at gamma = 0)"
    optimistic = ", optimistic if the model was trained on them"
    train = files["train"]
    assert cell("train.npz") == cost(finecal.estimate_gamma(MASK, train=train)) + optimistic
    assert cell("train.npz --method mixed_pair_gap") == cost(finecal.mixed_pair_gap(*train, MASK)) + optimistic
    assert cell("train.npz --held-out") == cost(finecal.estimate_gamma(MASK, held_out=train))
    share = finecal.estimate_gamma(MASK, train=files["train"], unlabelled=files["test"][0], seen_share=0.5)
    assert cell("train.npz --unlabelled test.npz --seen-share 0.5") == cost(share) + optimistic
    assert cell("test.npz --method search_gamma") == cost(finecal.search_gamma(*files["test"], MASK))
    assert "Acc_S/Y" not in run("estimate test.npz --seen seen.txt --method known_share_gamma --seen-share 0.5").out


def test_prints_a_table(files, run):
    out = run("estimate held_out.npz --seen seen.txt --held-out --method max_logit_gap --bootstrap 20").out
    estimate = finecal.max_logit_gap(*files["held_out"], MASK, n_bootstrap=20)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert cells[0] == ["gamma", f"{estimate.gamma:.6g}"]
    assert cells[2:] == [
        ["method", "max_logit_gap"],
        ["estimated from", "90 held-out labelled seen-class samples"],
        ["Acc_S/Y on LOGITS", cost(estimate)],
        ["95 % bootstrap interval", f"{estimate.interval[0]:.6g} to {estimate.interval[1]:.6g}"],
        ["classes", "3 seen, 3 absent"],
    ]


def test_writes_gamma(files, run):
    captured = run("estimate train.npz --seen seen.txt -o gamma.json --json")
    assert Path("gamma.json").read_text() == captured.out
    record = json.loads(captured.out)
    assert record["finecal"] == finecal.__version__
    assert (record["num_classes"], record["seen_classes"]) == (6, [0, 2, 4])
    assert record["data"] == finecal.estimate_gamma(MASK, train=files["train"]).data
    assert run("estimate train.npz --seen seen.txt -o gamma.json").out.endswith("|\nwrote gamma.json\n")


@pytest.mark.parametrize(
    "line",
    [
        "train.npz --seen mask.npy",
        "train.npz --seen labels",
        "train.npz --seen names.txt",
        "logits.npy --labels labels.npy --seen labels",
        "logits.npy --labels labels.npy --class-names classes.txt --seen names.txt",
    ],
)
def test_input_in_other_forms(run_json, line):
    Path("names.txt").write_text("# seen\nant\nelk\ncat\n")
    found, expected = run_json(f"estimate {line}"), run_json("estimate train.npz --seen seen.txt")
    if "logits.npy" in line and "--class-names" not in line:
        del expected["class_names"]
    assert found == expected


def test_warnings_are_lines_and_json(files, capsys, run):
    logits, labels = files["train"]
    balanced = LogitsFile(logits - 8 * torch.from_numpy(MASK), labels)
    torch.save({"logits": balanced.logits, "labels": labels}, "balanced.pt")
    with pytest.warns(finecal.FinecalWarning) as issued:
        finecal.average_logit_gap(balanced.logits, labels, MASK)
    sentences = [str(warning.message) for warning in issued]
    out, err = run("estimate balanced.pt --seen seen.txt --method average_logit_gap --json")
    assert sentences
    assert err.splitlines() == [f"warning: {sentence}" for sentence in sentences]
    assert json.loads(out)["warnings"] == sentences


def test_a_warning_is_shown_once(run, capsys):
    logits = torch.eye(6)[[0, 1, 2] * 9] * 4
    write_logits("reindexed.npz", LogitsFile(logits, torch.tensor([0, 1, 2] * 9)))
    Path("seen.txt").write_text("3 4 5")
    with pytest.raises(SystemExit):
        cli.main(["estimate", "reindexed.npz", "--seen", "seen.txt"])
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: labels are exactly 0..2, ")
    assert error.startswith("finecal estimate: error: reindexed.npz: labels are of absent classes ")


def test_other_warnings_go_their_way(monkeypatch, capsys):
    def warn(args, sentences):
        warnings.warn("something else", UserWarning, stacklevel=1)

    monkeypatch.setattr(commands, "demo", warn)
    with pytest.warns(UserWarning, match="something else"):
        cli.main(["demo"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "train.npz --objective balanced",
            "--objective does not apply to --method auto; leave it out, or choose a method that takes it: search_gamma",
        ),
        (
            "train.npz --method search_gamma --held-out",
            "--held-out does not apply to --method search_gamma; leave it out, or choose a method that takes it: auto, "
            "average_logit_gap, max_logit_gap, mixed_pair_gap, residual_gap, seen_budget_gamma, mixture_gamma",
        ),
        (
            "train.npz --method max_logit_gap --unlabelled test.npz",
            "--unlabelled does not apply to --method max_logit_gap; leave it out, or choose a method that takes it: "
            "auto, mixture_gamma",
        ),
        (
            "train.npz --method average_logit_gap --seen-share 0",
            "--seen-share does not apply to --method average_logit_gap; leave it out, or choose a method that takes "
            "it: auto, mixed_pair_gap, residual_gap, known_share_gamma",
        ),
        (
            "train.npz --max-seen-drop 0",
            "--max-seen-drop does not apply to --method auto; leave it out, or choose a method that takes it: "
            "seen_budget_gamma, search_gamma",
        ),
        (
            "test.npz --method search_gamma --confidence 0.9",
            "--confidence does not apply to --method search_gamma; leave it out, or choose a method that takes it: "
            "seen_budget_gamma",
        ),
        (
            "train.npz --method max_logit_gap --seed 0",
            "--seed does not apply to --method max_logit_gap without --bootstrap; leave it out, or choose a method "
            "that takes it: auto, mixed_pair_gap",
        ),
        (
            "test.npz --method known_share_gamma --seen-share 0.5 --labels labels.npy",
            "--labels does not apply to --method known_share_gamma; leave it out, or choose a method that takes it: "
            "auto, average_logit_gap, max_logit_gap, mixed_pair_gap, residual_gap, seen_budget_gamma, search_gamma",
        ),
        (
            "held_out.npz --method seen_budget_gamma",
            "--method seen_budget_gamma needs --held-out: LOGITS must be samples that the model was not trained on",
        ),
        (
            "held_out.npz --method mixture_gamma --unlabelled test.npz",
            "--method mixture_gamma needs --held-out: LOGITS must be samples that the model was not trained on",
        ),
        (
            "held_out.npz --method mixture_gamma --held-out",
            "--method mixture_gamma needs --unlabelled: a file with logits of unlabelled samples of all classes",
        ),
        (
            "test.npz --method known_share_gamma",
            "--method known_share_gamma needs --seen-share: the share of seen samples in LOGITS",
        ),
        (
            "test.npz --method known_share_gamma --seen-share 50",
            "seen_share is 50.0; it must lie strictly between 0 and 1 (50.0 % is 0.5)",
        ),
        ("train.npz --bootstrap -1", "n_bootstrap is -1; it cannot be negative"),
        ("train.npz --seed -1", "seed is -1; it cannot be negative"),
        ("train.npz --seed x", "argument --seed: invalid int value: 'x'"),
        ("logits.npy", "logits.npy has no labels; save them under the key 'labels', or give --labels FILE"),
        (
            "test.npz",
            "test.npz: labels contain absent class {label} (60 of 120 samples); estimate_gamma needs seen-class "
            "samples only: drop them, or use --method search_gamma",
        ),
        (
            "test.npz --labels test_labels.npy --method max_logit_gap",
            "test_labels.npy: labels contain absent class {label} (60 of 120 samples); max_logit_gap needs seen-class "
            "samples only: drop them, or use --method search_gamma",
        ),
        (
            "empty.npz --method max_logit_gap",
            "empty.npz: logits are empty (0 samples); --method max_logit_gap has nothing to estimate from: pass at "
            "least one sample",
        ),
        (
            "held_out.npz --held-out --unlabelled empty.npz",
            "empty.npz: logits are empty (0 samples); estimate_gamma has nothing to estimate from: pass at "
            "least one sample",
        ),
        (
            "train.npz --unlabelled empty.npz --seen-share 0.5",
            "empty.npz: logits are empty (0 samples); known_share_gamma has nothing to estimate from: pass at least "
            "one sample",
        ),
        (
            "train.npz --unlabelled test.npz",
            "--unlabelled needs --held-out, if the model was not trained on LOGITS, or --seen-share, the share of seen "
            "samples in it; give one of these, or leave it out",
        ),
        ("nothing.npz", "nothing.npz does not exist; check the name"),
        (
            "held_out.npz --held-out --unlabelled other.npy",
            "other.npy has logits of 5 classes, LOGITS of 6; give logits of the same model",
        ),
        ("train.npz -o gamma.txt", "gamma.txt cannot be written: choose a name that ends with .json"),
        ("train.npz -o no/gamma.json", "no/gamma.json cannot be written: there is no folder no; make it first"),
    ],
)
def test_refuses_to_estimate(files, refuses, line, sentence):
    np.save("other.npy", files["test"][0][:, :5])
    labels = files["test"][1].numpy()
    np.save("test_labels.npy", labels)
    write_logits("empty.npz", LogitsFile(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)))
    refuses(f"estimate {line} --seen seen.txt", sentence.format(label=labels[~MASK[labels]][0]))


def test_ray_has_to_be_installed(refuses, monkeypatch):
    monkeypatch.delitem(sys.modules, "finecal.integrations.ray", raising=False)
    monkeypatch.delattr(importlib.import_module("finecal.integrations"), "ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    refuses(
        "estimate --engine ray . --seen seen.txt --method max_logit_gap",
        "--engine ray needs Ray Data (import of ray halted; None in sys.modules): pip install 'finecal[ray]'",
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "--engine ray .",
            "--method auto needs all logits at once, which no machine has with --engine ray; choose --method "
            "average_logit_gap or max_logit_gap, which add up over files",
        ),
        (
            "--engine ray . --method max_logit_gap --bootstrap 5",
            "--bootstrap needs the samples of all files at once, which no machine has with --engine ray",
        ),
        ("train.npz --no-progress", "--no-progress is about the bar of --engine ray; leave it out"),
    ],
)
def test_refuses_what_needs_all_files_at_once(refuses, line, sentence):
    refuses(f"estimate {line} --seen seen.txt", sentence)


def test_one_sided_labels_name_methods_of_the_command_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["estimate", "train.npz", "--seen", "seen.txt", "--method", "search_gamma"])
    error = capsys.readouterr().err
    assert error.startswith("finecal estimate: error: train.npz: labels are of seen classes only (90 samples): ")
    assert "use --method mixed_pair_gap" in error


def test_refuses_to_estimate_without_seen_classes(refuses):
    refuses(
        "estimate train.npz",
        "--seen is missing: a file with the seen classes' names or indices, a .npy mask, or 'labels'",
    )


@pytest.mark.parametrize("method", ["auto", "known_share_gamma --seen-share 0.5"])
def test_refuses_seen_classes_from_missing_labels(refuses, method):
    refuses(
        f"estimate logits.npy --seen labels --method {method}",
        "logits.npy has no labels; save them under the key 'labels', or give --labels FILE",
    )


def test_labels_from_a_file_win(files, run_json):
    record = run_json("estimate train.npz --seen seen.txt")
    wrong = LogitsFile(files["train"][0], torch.ones(90, dtype=torch.int64))
    del record["class_names"]
    write_logits("wrong.npz", wrong)
    assert run_json("estimate wrong.npz --labels labels.npy --seen seen.txt") == record
    assert run_json("estimate wrong.npz --labels train.npz --seen seen.txt") == record


def test_refuses_unknown_methods_and_objectives(capsys):
    for option, choices in (("--method", METHODS), ("--objective", SEARCH_OBJECTIVES)):
        with pytest.raises(SystemExit) as caught:
            cli.main(["estimate", "train.npz", "--seen", "seen.txt", option, "oracle"])
        assert caught.value.code == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"finecal estimate: error: argument {option}: invalid choice: 'oracle' (choose from ")
        assert all(name in error for name in choices)


def test_refuses_a_sample_with_singletons(files, refuses):
    logits, labels = files["train"]
    rows = torch.cat([(labels != 4).nonzero().squeeze(1), (labels == 4).nonzero().squeeze(1)[:1]])
    write_logits("few.npz", LogitsFile(logits[rows], labels[rows]))
    refuses(
        "estimate few.npz --seen labels",
        "seen classes from 'labels': labels have a single sample of 1 of the 3 classes that occur, so about 1.6 % of "
        "the data (Good-Turing estimate) are of seen classes missing from this sample, which would be taken for "
        "absent: name the seen classes explicitly",
    )


# --- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_evaluates_before_and_after(files, run_json, average):
    record = run_json(f"evaluate test.npz --seen seen.txt --gamma 2.5 --average {average}")
    for when, gamma in (("before", 0.0), ("after", 2.5)):
        assert record[when] == asdict(finecal.evaluate(*files["test"], MASK, gamma, average))
    assert record["average"] == average


def test_evaluates_with_gamma_from_a_file(run, run_json):
    run("estimate train.npz --seen seen.txt -o gamma.json")
    record = run_json("evaluate test.npz --gamma gamma.json")
    assert record["after"]["gamma"] == json.loads(Path("gamma.json").read_text())["gamma"]
    assert record["after"]["acc_all"] > record["before"]["acc_all"]
    assert run_json("evaluate test.npz --gamma gamma.json --seen mask.npy") == record


def test_evaluate_doubts_labels_that_are_told_apart_as_by_guessing(run, rng):
    np.savez("guessed.npz", logits=rng.normal(size=(400, 20)), labels=rng.integers(20, size=400))
    np.save("first_half.npy", np.arange(20) < 10)
    err = run("evaluate guessed.npz --seen first_half.npy --gamma 1").err
    assert "400 samples are told apart within their own group, where guessing gives 10.0%" in err


def test_gamma_brings_the_names_of_the_classes_along(files, run, refuses):
    run("estimate train.npz --seen seen.txt -o gamma.json")
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


@pytest.mark.parametrize("command", ["evaluate test.npz", "apply test.npz -o out.npz"])
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
        ("--gamma no.json", "no.json does not exist; check the name"),
        ("--seen seen.txt", "the following arguments are required: --gamma"),
    ],
)
def test_refuses_gamma_of_other_classes(refuses, command, line, sentence):
    Path("wide.json").write_text('{"gamma": 1, "num_classes": 7, "seen_classes": [0, 2, 4]}')
    Path("other.json").write_text('{"gamma": 1, "num_classes": 6, "seen_classes": [0, 3]}')
    refuses(f"{command} {line}", sentence)


def test_refuses_to_evaluate_without_labels(refuses):
    refuses(
        "evaluate logits.npy --gamma 1 --seen seen.txt",
        "logits.npy has no labels; save them under the key 'labels', or give --labels FILE",
    )


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


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "line",
    [
        "estimate {} --seen seen.txt",
        "estimate held_out.npz --held-out --seen seen.txt --unlabelled {}",
        "evaluate {} --seen seen.txt --gamma 1",
        "evaluate {} --gamma gamma.json",
        "apply {} --seen seen.txt --gamma 1 -o out.npz",
        "apply {} --seen seen.txt --gamma 1 --predictions -o out.csv",
    ],
)
def test_refuses_to_calibrate_twice(run, refuses, suffix, line):
    run("estimate train.npz --seen seen.txt -o gamma.json")
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
    record = run_json("estimate logits.npy --labels calibrated.npz --seen seen.txt")
    expected = run_json("estimate train.npz --seen seen.txt")
    del expected["class_names"]
    assert record == expected


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


# --- report -----------------------------------------------------------------------------------------------------------


def test_report_is_the_page_of_html_report(files, run):
    logits, labels = files["test"]
    line = "report test.npz --seen seen.txt --gamma 2.5 --average macro --title Animals -o r.html"
    assert run(line).out == "wrote r.html\n"
    page = finecal.html_report(logits, labels, MASK, 2.5, class_names=NAMES, average="macro", title="Animals")
    assert Path("r.html").read_bytes() == page.encode()
    run("report test.npz --seen seen.txt -o r.html")
    page = finecal.html_report(logits, labels, MASK, None, class_names=NAMES, title="test.npz")
    assert Path("r.html").read_bytes() == page.encode()


def test_report_tells_how_gamma_was_estimated(files, run):
    run("estimate train.npz --seen seen.txt --method max_logit_gap --bootstrap 9 -o gamma.json")
    run("report test.npz --gamma gamma.json -o r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    low, high = finecal.max_logit_gap(*files["train"], MASK, n_bootstrap=9).interval
    assert "Gamma was estimated by max_logit_gap from 90 labelled seen-class samples." in page
    assert f"Its 95 % bootstrap interval is {low:.6g} to {high:.6g}." in page


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


# --- the program ------------------------------------------------------------------------------------------------------


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


def test_internal_errors_show_a_traceback(monkeypatch):
    def fail(*args):
        raise TypeError("a bug")

    monkeypatch.setattr(commands, "predict", fail)
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["apply", "test.npz", "--seen", "seen.txt", "--gamma", "1", "-o", "out.npz"])


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"finecal {finecal.__version__}\n"
    for command in ("estimate", "evaluate", "apply", "report", "demo"):
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "--help"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: finecal {command} ")


def run_python(*arguments, **variables):
    source = os.path.dirname(os.path.dirname(finecal.__file__))
    environment = {**os.environ, "PYTHONPATH": source, **variables}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_as_a_program(tmp_path):
    done = run_python("-m", "finecal", "estimate", "train.npz", "--seen", "seen.txt", "-o", "gamma.json", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (tmp_path / "gamma.json").read_text()
    done = run_python("-m", "finecal", "estimate", "train.npz", "--seen", "unseen.txt", "-o", "other.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "finecal estimate: error: unseen.txt does not exist; check the name\n"
    assert not (tmp_path / "other.json").exists()


def test_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python -m finecal"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("finecal", run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "finecal: error: the following arguments are required: COMMAND\n"


def test_a_console_without_the_characters_of_the_demo():
    code = """
from finecal.cli import commands, main
commands.run_demo = lambda out, seed: "- Čad: a → b ✓"
main(["demo"])
main("apply test.npz --seen seen.txt --gamma 1 --json -o ✓.npz".split())
"""
    done = run_python("-c", code, PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, "")
    report, _, record = done.stdout.partition("\n")
    assert report == "- ?ad: a ? b ?"
    assert json.loads(record)["output"] == "✓.npz"


def test_a_replaced_stdout():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["evaluate", "test.npz", "--seen", "seen.txt", "--gamma", "1"]) == 0
    assert out.getvalue().startswith("| accuracy (micro), % ")
