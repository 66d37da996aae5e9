"""The command `estimate`."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import finecal
from command_line import MASK, NAMES, unsigned
from finecal._cli import arguments as cli
from finecal._cli.estimate import METHODS
from finecal._core.logits_file import LogitsFile, write_logits
from finecal._estimators.table import ESTIMATORS, Data

pytestmark = pytest.mark.usefixtures("files")


def taking(option):
    """The methods with an option, as messages list them; auto comes first, and estimators may be added."""
    names = [name for name, method in METHODS.items() if option in method.options]
    assert names[:3] == ["auto", "average_logit_gap", "max_logit_gap"]
    return ", ".join(names)


def test_estimates_as_the_functions_do(files, run_json):
    train, held_out, test = ((*files[name], MASK) for name in ("train", "held_out", "test"))
    unlabelled = files["test"][0]
    calls = {
        "--train train.npz": finecal.estimate_gamma(MASK, train=train[:2]),
        "--train train.npz --seen-share 0.3 --seed 5": finecal.estimate_gamma(
            MASK, train=train[:2], seen_share=0.3, seed=5
        ),
        "--held-out held_out.npz": finecal.estimate_gamma(MASK, held_out=held_out[:2]),
        "--held-out held_out.npz --unlabelled test.npz": finecal.estimate_gamma(
            MASK, held_out=held_out[:2], unlabelled=unlabelled
        ),
        "--train train.npz --unlabelled test.npz --seen-share 0.5": finecal.estimate_gamma(
            MASK, train=train[:2], unlabelled=unlabelled, seen_share=0.5
        ),
        "--train train.npz --method average_logit_gap": finecal.estimators.average_logit_gap(*train),
        "--train train.npz --method max_logit_gap --bootstrap 9 --seed 2": finecal.estimators.max_logit_gap(
            *train, n_bootstrap=9, seed=2
        ),
        "--train train.npz --method mixed_pair_gap --seed 1": finecal.estimators.mixed_pair_gap(*train, seed=1),
        "--held-out held_out.npz --method residual_gap --seen-share 0.4": finecal.estimators.residual_gap(
            *held_out, 0.4
        ),
        "--held-out held_out.npz --method seen_budget_gamma --max-seen-drop 0.1 --confidence 0.9": (
            finecal.estimators.seen_budget_gamma(*held_out, max_seen_drop=0.1, confidence=0.9)
        ),
        "--labelled test.npz --method search_gamma --objective harmonic --max-seen-drop 0.2": (
            finecal.search_gamma(*test, objective="harmonic", max_seen_drop=0.2)
        ),
        "--labelled test.npz --method search_gamma --objective nll": finecal.search_gamma(*test, objective="nll"),
        "--unlabelled test.npz --method known_share_gamma --seen-share 0.5": finecal.estimators.known_share_gamma(
            unlabelled, MASK, 0.5
        ),
        "--held-out held_out.npz --method mixture_gamma --unlabelled test.npz": (
            finecal.estimators.mixture_gamma(held_out[0], unlabelled, MASK)
        ),
    }
    for line, estimate in calls.items():
        record = run_json(f"estimate {line} --seen seen.txt")
        assert record["gamma"] == estimate.gamma, line
        assert record["method"] == estimate.method, line
        assert record["n"] == estimate.n, line
        assert record["acc_seen_at_gamma"] == estimate.acc_seen_at_gamma, line
        assert record["acc_seen_at_zero"] == estimate.acc_seen_at_zero, line
        assert record["interval"] == (None if estimate.interval is None else list(estimate.interval)), line
    called = {line.split("--method ")[1].split()[0] for line in calls if "--method" in line}
    assert called | {"auto"} <= set(METHODS)


def test_groups_of_a_file_are_resampled(files, run_json, refuses):
    groups = {name: torch.arange(len(labels)) // 4 for name, (_, labels) in files.items()}
    for name, (logits, labels) in files.items():
        write_logits(f"{name}.npz", LogitsFile(logits, labels, NAMES, groups=groups[name]))
    samples = {name: finecal.Samples(*files[name], groups=groups[name]) for name in files}
    train, held_out, test = (samples[name] for name in ("train", "held_out", "test"))
    by_group = {"n_bootstrap": 20, "seed": 1}
    calls = {
        "--train train.npz": finecal.estimate_gamma(MASK, train=train, **by_group),
        "--held-out held_out.npz --unlabelled test.npz": finecal.estimate_gamma(
            MASK, held_out=held_out, unlabelled=test, **by_group
        ),
        "--train train.npz --method max_logit_gap": finecal.estimators.max_logit_gap(train, MASK, **by_group),
        "--unlabelled test.npz --method known_share_gamma --seen-share 0.5": (
            finecal.estimators.known_share_gamma(test, MASK, 0.5, **by_group)
        ),
        "--held-out held_out.npz --method mixture_gamma --unlabelled test.npz": finecal.estimators.mixture_gamma(
            held_out, test, MASK, **by_group
        ),
        "--held-out held_out.npz --method seen_budget_gamma --max-seen-drop 0.2 --confidence 0.8": (
            finecal.estimators.seen_budget_gamma(held_out, MASK, 0.2, 0.8, **by_group)
        ),
    }
    for line, estimate in calls.items():
        record = run_json(f"estimate {line} --seen seen.txt --bootstrap 20 --seed 1")
        assert (record["gamma"], record["interval"]) == (estimate.gamma, list(estimate.interval)), line
        assert "groups" in record["data"], line
    write_logits("train.npz", LogitsFile(*files["train"], NAMES, groups=torch.zeros(90).long()))
    refuses(
        "estimate --train train.npz --seen seen.txt --method max_logit_gap --bootstrap 20",
        "train.npz: groups are all the same: whole groups are resampled for the interval, and at least two are needed; "
        "pass the number of the picture (or patient, or document) of each sample, or n_bootstrap=0",
    )


@pytest.mark.filterwarnings("ignore:seen_budget_gamma.*samples are too few")
@pytest.mark.parametrize(
    "estimator",
    [each for each in ESTIMATORS if each.data in (Data.SEEN, Data.HELD_OUT)],
    ids=lambda estimator: estimator.name,
)
def test_estimators_of_the_table_are_methods(estimator, run_json):
    with np.load("held_out.npz") as content:
        estimate = estimator.function(content["logits"], content["labels"], MASK)
    record = run_json(f"estimate --held-out held_out.npz --seen seen.txt --method {estimator.name}")
    assert (record["gamma"], record["method"]) == (estimate.gamma, estimate.method)


def cost(estimate):
    return f"{100 * estimate.acc_seen_at_zero:.1f} -> {100 * estimate.acc_seen_at_gamma:.1f} %"


def test_says_what_gamma_costs(files, run):
    def cell(line):
        row = rf"^\| seen accuracy on {line.split()[1]} *\| *(.*?) *\|$"
        (cell,) = re.findall(row, run(f"estimate {line} --seen seen.txt").out, re.MULTILINE)
        return cell

    assert cost(finecal.GammaEstimate(1.0, "", "", 1, 0.836, acc_seen_at_zero=0.87)) == "87.0 -> 83.6 %"
    optimistic = " (training samples, so optimistic)"
    train = files["train"]
    assert cell("--train train.npz") == cost(finecal.estimate_gamma(MASK, train=train)) + optimistic
    assert (
        cell("--train train.npz --method mixed_pair_gap")
        == cost(finecal.estimators.mixed_pair_gap(*train, MASK)) + optimistic
    )
    assert cell("--held-out train.npz") == cost(finecal.estimate_gamma(MASK, held_out=train))
    share = finecal.estimate_gamma(MASK, train=files["train"], unlabelled=files["test"][0], seen_share=0.5)
    assert cell("--train train.npz --unlabelled test.npz --seen-share 0.5") == cost(share) + optimistic
    assert cell("--labelled test.npz --method search_gamma") == cost(finecal.search_gamma(*files["test"], MASK))
    assert (
        "seen accuracy"
        not in run("estimate --unlabelled test.npz --seen seen.txt --method known_share_gamma --seen-share 0.5").out
    )


def test_prints_a_table(files, run):
    out = run("estimate --held-out held_out.npz --seen seen.txt --method max_logit_gap --bootstrap 20").out
    estimate = finecal.estimators.max_logit_gap(*files["held_out"], MASK, n_bootstrap=20)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    pays = f"{100 * estimate.min_absent_share:.1f} %"
    assert cells[0] == ["gamma", f"{estimate.gamma:.6g}"]
    assert cells[2:] == [
        ["method", "max_logit_gap"],
        ["estimated from", "90 labelled held-out samples (seen classes)"],
        ["seen accuracy on held_out.npz", cost(estimate)],
        ["break-even", f"Pays if more than {pays} of the samples are of absent classes"],
        ["95 % sampling interval", f"{estimate.interval[0]:.6g} to {estimate.interval[1]:.6g}"],
        ["classes", "3 seen, 3 absent"],
    ]


def test_says_which_share_of_seen_samples_gamma_is_for(run):
    def row(line):
        out = run(f"estimate {line} --seen seen.txt").out
        return re.findall(r"^\| share of seen samples *\| *(.*?) *\|$", out, re.MULTILINE)

    assert row("--train train.npz") == ["50.0 % (every class equally frequent)"]
    assert row("--train train.npz --seen-share 0.3") == ["30.0 % (given)"]
    (estimated,) = row("--held-out held_out.npz --unlabelled test.npz")
    assert estimated.endswith(" % (estimated from unlabelled samples)")
    assert row("--train train.npz --method max_logit_gap") == []


def test_writes_gamma(files, run):
    captured = run("estimate --train train.npz --seen seen.txt -o gamma.json --json")
    assert Path("gamma.json").read_text() == captured.out
    record = json.loads(captured.out)
    assert record["finecal"] == finecal.__version__
    assert (record["num_classes"], record["seen_classes"]) == (6, [0, 2, 4])
    assert record["data"] == finecal.estimate_gamma(MASK, train=files["train"]).data
    assert (record["seen_share"], record["seen_share_source"]) == (0.5, "every class equally frequent")
    assert run("estimate --train train.npz --seen seen.txt -o gamma.json").out.endswith("|\nwrote gamma.json\n")


WITH_PROTOTYPES = {
    "--held-out held_out.npz --unlabelled all.npz": lambda seen, test: finecal.estimate_gamma(
        MASK, held_out=seen, unlabelled=test
    ),
    "--held-out held_all.npz --unlabelled all.npz": lambda seen, test: finecal.estimate_gamma(
        MASK, held_out=seen, unlabelled=test
    ),
    "--held-out held_out.npz --method mixture_gamma --unlabelled all.npz": lambda seen, test: (
        finecal.estimators.mixture_gamma(seen[0], test, MASK)
    ),
    "--method known_share_gamma --seen-share 0.5 --unlabelled all.npz": lambda seen, test: (
        finecal.estimators.known_share_gamma(test, MASK, 0.5)
    ),
}


@pytest.mark.parametrize("line", WITH_PROTOTYPES)
def test_makes_prototypes_as_the_function_does(files, features, run, run_json, line):
    logits = files["test"][0]
    estimate = WITH_PROTOTYPES[line](files["held_out"], logits)
    check = finecal.Samples.load("held_all.npz") if "held_all" in line else None
    expected = finecal.calibrators.fit_prototypes(
        finecal.Samples(logits, features=features), MASK, estimate, held_out=check
    )
    line = f"estimate {line} --prototypes --seen seen.txt -o prototypes.safetensors"
    record = run_json(line)
    assert (record["gamma"], record["method"]) == (estimate.gamma, estimate.method)
    report = expected.report.to_dict()
    assert (report["acc_seen_within"] is None) == (check is None)
    assert record["warnings"] == [f"fit_prototypes: {sentence}" for sentence in report.pop("warnings")]
    assert record["prototypes"] == report
    found = finecal.load("prototypes.safetensors")
    assert (found.estimate, found.report, found.class_names) == (estimate, expected.report, NAMES)
    assert all(torch.equal(buffer, found.get_buffer(name)) for name, buffer in expected.named_buffers())
    assert run(line).out.endswith(f"|\n{expected.report}\nwrote prototypes.safetensors\n")


def test_features_alone_make_no_prototypes(features, run_json):
    line = "--held-out held_out.npz --seen seen.txt"
    with_features = run_json(f"estimate --unlabelled all.npz {line}")
    assert unsigned(with_features) == unsigned(run_json(f"estimate --unlabelled test.npz {line}"))


def test_warnings_about_prototypes_are_said_once(run, run_json):
    with np.load("test.npz") as content:
        noise = np.random.default_rng(2).normal(size=(120, 8)).astype(np.float32)
        np.savez("noise.npz", logits=content["logits"], features=noise)
    line = "estimate --unlabelled noise.npz --method known_share_gamma --seen-share 0.5 --seen seen.txt --prototypes"
    out, err = run(line)
    (warning,) = err.splitlines()
    assert warning.startswith("warning: fit_prototypes: ")
    assert "warning" not in out
    assert run_json(line)["warnings"] == [warning.removeprefix("warning: ")]


def test_a_calibrator_without_prototypes_is_gamma(files, run, run_json):
    run("estimate --train train.npz --seen seen.txt -o gamma.safetensors")
    found = finecal.load("gamma.safetensors")
    assert isinstance(found, finecal.AdditiveBias)
    assert found.estimate == finecal.estimate_gamma(MASK, train=files["train"])
    assert found.class_names == NAMES
    record = run_json("evaluate test.npz --gamma gamma.safetensors")
    assert record == run_json(f"evaluate test.npz --seen seen.txt --gamma {float(found.gamma)!r}")


def test_warnings_are_lines_and_json(files, capsys, run):
    logits, labels = files["train"]
    balanced = LogitsFile(logits - 8 * torch.from_numpy(MASK), labels)
    torch.save({"logits": balanced.logits, "labels": labels}, "balanced.pt")
    with pytest.warns(finecal.FinecalWarning) as issued:
        finecal.estimators.average_logit_gap(balanced.logits, labels, MASK)
    sentences = [str(warning.message) for warning in issued]
    out, err = run("estimate --train balanced.pt --seen seen.txt --method average_logit_gap --json")
    assert sentences
    assert err.splitlines() == [f"warning: {sentence}" for sentence in sentences]
    assert json.loads(out)["warnings"] == sentences


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "--train train.npz --objective balanced",
            "--objective does not apply to --method auto; leave it out, or choose a method that takes it: search_gamma",
        ),
        (
            "--train train.npz --method search_gamma",
            "--train does not apply to --method search_gamma; leave it out, or choose a method that takes it: "
            + taking("train"),
        ),
        (
            "--held-out held_out.npz --labelled test.npz --method search_gamma",
            "--held-out does not apply to --method search_gamma; leave it out, or choose a method that takes it: "
            + taking("held_out"),
        ),
        (
            "--train train.npz --labelled test.npz",
            "--labelled does not apply to --method auto; leave it out, or choose a method that takes it: search_gamma",
        ),
        (
            "--train train.npz --held-out held_out.npz --method max_logit_gap",
            "--method max_logit_gap takes one of these, and both are given: --train, --held-out",
        ),
        ("--method max_logit_gap", "--method max_logit_gap needs one of these: --train, --held-out"),
        ("", "there are no samples; give --train, --held-out, or --unlabelled with --seen-share"),
        (
            "--train train.npz labels.npy seen.txt",
            "--train takes one file, or two with the logits and the labels; 3 are given",
        ),
        (
            "--train train.npz --method max_logit_gap --unlabelled test.npz",
            "--unlabelled does not apply to --method max_logit_gap; leave it out, or choose a method that takes it: "
            "auto, mixture_gamma, known_share_gamma",
        ),
        (
            "--train train.npz --method average_logit_gap --seen-share 0",
            "--seen-share does not apply to --method average_logit_gap; leave it out, or choose a method that takes "
            "it: auto, mixed_pair_gap, residual_gap, known_share_gamma",
        ),
        (
            "--train train.npz --max-seen-drop 0",
            "--max-seen-drop does not apply to --method auto; leave it out, or choose a method that takes it: "
            "seen_budget_gamma, search_gamma",
        ),
        (
            "--labelled test.npz --method search_gamma --confidence 0.9",
            "--confidence does not apply to --method search_gamma; leave it out, or choose a method that takes it: "
            "seen_budget_gamma",
        ),
        (
            "--train train.npz --method max_logit_gap --seed 0",
            "--seed does not apply to --method max_logit_gap without --bootstrap; leave it out, or choose a method "
            "that takes it: auto, mixed_pair_gap",
        ),
        (
            "--unlabelled test.npz --method known_share_gamma --seen-share 0.5 --train train.npz",
            "--train does not apply to --method known_share_gamma; leave it out, or choose a method that takes it: "
            + taking("train"),
        ),
        (
            "--method seen_budget_gamma",
            "--method seen_budget_gamma needs --held-out: labelled seen samples that the model was not trained on",
        ),
        (
            "--method mixture_gamma --unlabelled test.npz",
            "--method mixture_gamma needs --held-out: seen samples that the model was not trained on",
        ),
        (
            "--method mixture_gamma --held-out held_out.npz",
            "--method mixture_gamma needs --unlabelled: samples of all classes, whose labels are not looked at",
        ),
        (
            "--method search_gamma",
            "--method search_gamma needs --labelled: labelled samples of all classes",
        ),
        (
            "--unlabelled test.npz --method known_share_gamma",
            "--method known_share_gamma needs --seen-share: the share of seen samples among the unlabelled ones",
        ),
        (
            "--unlabelled test.npz --method known_share_gamma --seen-share 50",
            "seen_share is 50.0; it must lie strictly between 0 and 1 (50.0 % is 0.5)",
        ),
        ("--train train.npz --bootstrap -1", "n_bootstrap is -1; it cannot be negative"),
        ("--train train.npz --seed -1", "seed is -1; it cannot be negative"),
        ("--train train.npz --seed x", "argument --seed: invalid int value: 'x'"),
        (
            "--held-out logits.npy",
            "logits.npy has no labels; save them under the key 'labels', or give --held-out logits.npy LABELS",
        ),
        (
            "--train test.npz",
            "test.npz: labels contain absent class {label} (60 of 120 samples); estimate_gamma needs seen-class "
            "samples only: drop them, or use search_gamma",
        ),
        (
            "--train test.npz test_labels.npy --method max_logit_gap",
            "test.npz: labels contain absent class {label} (60 of 120 samples); max_logit_gap needs seen-class "
            "samples only: drop them, or use search_gamma",
        ),
        (
            "--train empty.npz --method max_logit_gap",
            "empty.npz: logits are empty (0 samples); max_logit_gap has nothing to estimate from: pass at "
            "least one sample",
        ),
        (
            "--held-out held_out.npz --unlabelled empty.npz",
            "empty.npz: logits are empty (0 samples); estimate_gamma has nothing to estimate from: pass at "
            "least one sample",
        ),
        (
            "--train train.npz --unlabelled empty.npz --seen-share 0.5",
            "empty.npz: logits are empty (0 samples); estimate_gamma has nothing to estimate from: pass at least one "
            "sample",
        ),
        (
            "--train train.npz --unlabelled test.npz",
            "--unlabelled needs --held-out, labelled samples that the model was not trained on, or --seen-share, the "
            "share of seen samples in it; give one of these, or leave it out",
        ),
        ("--train nothing.npz", "nothing.npz does not exist; check the name"),
        (
            "--held-out held_out.npz --unlabelled other.npy",
            "other.npy has logits of 5 classes, held_out.npz of 6; give logits of the same model",
        ),
        (
            "--train train.npz -o gamma.txt",
            "gamma.txt cannot be written: choose a name that ends with .json or .safetensors",
        ),
        (
            "--train train.npz --prototypes",
            "--prototypes needs --unlabelled: samples of all classes, with features",
        ),
        (
            "--train train.npz --method max_logit_gap --prototypes",
            "--prototypes does not apply to --method max_logit_gap; leave it out, or choose a method that takes it: "
            "auto, mixture_gamma, known_share_gamma",
        ),
        (
            "--held-out held_out.npz --unlabelled all.npz --prototypes -o gamma.json",
            "gamma.json cannot be written: choose a name that ends with .safetensors",
        ),
        (
            "--held-out held_out.npz --unlabelled short.npz --prototypes",
            "short.npz: features have shape (90, 8); expected (120, D), one row of features per sample",
        ),
        (
            "--held-out held_out.npz --unlabelled test.npz --prototypes",
            "test.npz has no features, which --prototypes needs; save what the model's final linear layer takes, under "
            "the key 'features'",
        ),
        (
            "--held-out held_out.npz --unlabelled integer.npz --prototypes",
            "integer.npz: features have dtype int64; pass floating-point features: features.float()",
        ),
        ("--train train.npz -o no/gamma.json", "no/gamma.json cannot be written: there is no folder no; make it first"),
    ],
)
def test_refuses_to_estimate(files, features, refuses, line, sentence):
    np.save("other.npy", files["test"][0][:, :5])
    labels = files["test"][1].numpy()
    np.save("test_labels.npy", labels)
    for name, wrong in {"short": features[:90], "integer": features.long()}.items():
        np.savez(f"{name}.npz", logits=files["test"][0], features=wrong)
    write_logits("empty.npz", LogitsFile(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)))
    refuses(f"estimate {line} --seen seen.txt", sentence.format(label=labels[~MASK[labels]][0]))


def test_ray_has_to_be_installed(refuses, monkeypatch):
    monkeypatch.delitem(sys.modules, "finecal.integrations.ray", raising=False)
    monkeypatch.delattr(importlib.import_module("finecal.integrations"), "ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    refuses(
        "estimate --engine ray --train . --seen seen.txt --method max_logit_gap",
        "--engine ray needs Ray Data (import of ray halted; None in sys.modules): pip install 'finecal[ray]'",
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "--engine ray --train .",
            "--method auto needs all logits at once, which no machine has with --engine ray; choose --method "
            "average_logit_gap or max_logit_gap, which add up over files",
        ),
        (
            "--engine ray --train . --method max_logit_gap --bootstrap 5",
            "--bootstrap needs the samples of all files at once, which no machine has with --engine ray",
        ),
        ("--train train.npz --no-progress", "--no-progress is about the bar of --engine ray; leave it out"),
    ],
)
def test_refuses_what_needs_all_files_at_once(refuses, line, sentence):
    refuses(f"estimate {line} --seen seen.txt", sentence)


def test_one_sided_labels_name_methods(capsys):
    with pytest.raises(SystemExit):
        cli.main(["estimate", "--labelled", "train.npz", "--seen", "seen.txt", "--method", "search_gamma"])
    error = capsys.readouterr().err
    assert error.startswith("finecal estimate: error: train.npz: labels are of seen classes only (90 samples): ")
    assert "use mixed_pair_gap" in error


def test_refuses_to_estimate_without_seen_classes(refuses):
    refuses(
        "estimate --train train.npz",
        "--seen is missing: a file with the seen classes' names or indices, a .npy mask, or 'labels'",
    )


def test_refuses_a_sample_with_singletons(files, refuses):
    logits, labels = files["train"]
    rows = torch.cat([(labels != 4).nonzero().squeeze(1), (labels == 4).nonzero().squeeze(1)[:1]])
    write_logits("few.npz", LogitsFile(logits[rows], labels[rows]))
    refuses(
        "estimate --train few.npz --seen labels",
        "seen classes from 'labels': labels have a single sample of 1 of the 3 classes that occur, so about 1.6 % of "
        "the data (Good-Turing estimate) are of seen classes missing from this sample, which would be taken for "
        "absent: name the seen classes explicitly",
    )
