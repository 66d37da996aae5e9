"""Logits in many files, on a local Ray with two workers: the same as in one process."""

import gc
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
import torch

import finecal
from command_line import unsigned
from finecal._cli import arguments as cli
from finecal._core.logits_file import LogitsFile, write_logits
from finecal.integrations.ray import Scorer, fill, read_logits, read_parquet
from finecal.streaming import AccuracySums, ClassSums, GapSums, MarginBins, MarginRows, ProbabilitySums
from pages import blocks

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:::ray\."),
    # Ray leaves files, sockets and processes to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning"),
]

CLASSES = 6
MASK = np.array([True, False, True, True, False, False])
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
# Of the 40 files: uneven, one empty, one of several batches.
SIZES = [0, 2500, 1, *np.random.default_rng(1).integers(1, 60, 37)]
KINDS = {
    "gaps": lambda: GapSums(MASK),
    "classes": lambda: ClassSums(MASK),
    "probabilities": lambda: ProbabilitySums(MASK, 0.5, 7, [0.0, 0.3, 0.7, 1.0]),
    "accuracies": lambda: AccuracySums(MASK, 1.5),
    "margins": lambda: MarginRows(MASK, keep_labels=True),
    "bins": lambda: MarginBins(MASK),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    folder = tempfile.mkdtemp(prefix="ray-")  # a short path, for sockets are in it
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 << 20,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    gc.collect()  # while these warnings are filtered
    shutil.rmtree(folder, ignore_errors=True)


def samples(n, seed=0):
    """Return logits whose seen ones are too large, some -inf, and labels of seen classes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.flatnonzero(MASK), n)
    logits = (rng.normal(size=(n, CLASSES)) + 3 * MASK + 2 * np.eye(CLASSES)[labels]).astype(np.float32)
    logits[rng.random(n) < 0.1, 1] = -np.inf
    return logits, labels


def write_parquet(path, logits, labels, kind="fixed", names=("logits", "labels")):
    values = pa.array(logits.reshape(-1))
    if kind == "list":
        column = pa.ListArray.from_arrays(np.arange(len(labels) + 1, dtype=np.int32) * logits.shape[1], values)
    else:
        column = pa.FixedSizeListArray.from_arrays(values, logits.shape[1])
    if kind == "tensor":
        column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(values.type, [logits.shape[1]]), column)
    pq.write_table(pa.table([column, pa.array(labels)], names=names), path)


@pytest.fixture(scope="module")
def whole():
    return samples(sum(SIZES))


@pytest.fixture
def folder(tmp_path, whole):
    """40 Parquet files, with logits as lists, fixed-size lists and tensors."""
    folder = tmp_path / "logits"
    folder.mkdir()
    ends = np.cumsum(SIZES)
    for index, (size, end) in enumerate(zip(SIZES, ends, strict=True)):
        part = (array[end - size : end] for array in whole)
        write_parquet(folder / f"{index:02}.parquet", *part, kind=("list", "fixed", "tensor")[index % 3])
    (folder / "README.txt").write_text("left alone")
    (folder / "_part.parquet").write_text("left alone")
    return folder


def assert_same(state, other):
    """Integers bit for bit, floats to 1e-12, rows in any order."""
    found, expected = state.state_dict(), other.state_dict()
    assert list(found) == list(expected)
    if isinstance(state, MarginRows):
        for record in (found, expected):
            rows = ("margin", "flags", "label")
            order = np.lexsort([record[name].numpy() for name in rows])
            record |= {name: record[name][order] for name in rows}
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(found[name], value)


# --- folders ----------------------------------------------------------------------------------------------------------


@every_kind
def test_a_folder_is_the_whole(make, folder, whole, capfd):
    state = make()
    assert fill(state, folder) is state
    assert_same(state, make().update(*whole))
    out, err = capfd.readouterr()
    assert out == ""
    assert "fill: 100%" in err
    assert "40/40" in err


def test_samples_are_added(folder, whole, capfd):
    more = samples(50, seed=2)
    state = fill(GapSums(MASK).update(*more), str(folder), progress=False)
    assert_same(state, GapSums(MASK).update(*more).update(*whole))
    out, err = capfd.readouterr()
    assert out == ""
    assert "fill" not in err


def test_files_of_all_kinds(tmp_path):
    parts = [samples(n, seed=n) for n in (30, 40, 50, 0)]
    np.savez(tmp_path / "a.npz", logits=parts[0][0], labels=parts[0][1])
    write_logits(tmp_path / "b.npz", LogitsFile(*map(torch.from_numpy, parts[1]), NAMES))
    half = torch.from_numpy(parts[2][0]).bfloat16()
    write_logits(tmp_path / "c.safetensors", LogitsFile(half, torch.from_numpy(parts[2][1])))
    np.savez(tmp_path / "d.npz", logits=parts[3][0], labels=parts[3][1])
    ray.data.from_numpy(parts[0][0]).map_batches(
        lambda batch: {"logits": batch["data"], "labels": np.full(len(batch["data"]), 2)}
    ).write_parquet(str(tmp_path))
    expected = MarginRows(MASK)
    for logits, labels in [*parts[:2], (half, parts[2][1]), (parts[0][0], np.full(30, 2))]:
        expected.update(logits, labels)
    for source in (tmp_path, read_logits(tmp_path).select_columns(["logits", "labels"])):
        state = fill(MarginRows(MASK), source, progress=False)
        assert state.compute().margin.sort().values.tolist() == expected.compute().margin.sort().values.tolist()


def broken_files():
    """Return pairs of what makes a file `x`, and what is said of it."""
    logits, labels = samples(20)
    objects = np.array([{"a": 1}, None])
    return {
        "truncated": (
            lambda path: path.with_suffix(".parquet").write_bytes(b"PAR1" + bytes(50)),
            "is truncated or no .parquet file; write it again",
        ),
        "damaged within": (lambda path: damage(path.with_suffix(".parquet")), "is truncated or no .parquet file"),
        "a pickle": (
            lambda path: np.savez(path.with_suffix(".npz"), logits=objects, labels=objects),
            "holds Python objects or is no .npz file at all, and finecal never unpickles",
        ),
        "other classes": (
            lambda path: write_parquet(path.with_suffix(".parquet"), logits[:, :4], labels),
            "seen_mask has 6 entries for logits of 4 classes",
        ),
        "ragged": (
            lambda path: pq.write_table(
                pa.table({"logits": [[1.0, 2.0], [3.0]], "labels": [0, 1]}), path.with_suffix(".parquet")
            ),
            "rows have logits of 2 and of 1 classes",
        ),
        "missing": (
            lambda path: pq.write_table(
                pa.table({"logits": [[1.0] * 6, None], "labels": [0, 0]}), path.with_suffix(".parquet")
            ),
            "column 'logits' is missing in 1 of 2 rows",
        ),
        "missing label": (
            lambda path: pq.write_table(
                pa.table({"logits": [[1.0] * 6] * 2, "labels": [0, None]}), path.with_suffix(".parquet")
            ),
            "column 'labels' has 1 missing values",
        ),
        "numbers": (
            lambda path: pq.write_table(
                pa.table({"logits": [1.0, 2.0], "labels": [0, 0]}), path.with_suffix(".parquet")
            ),
            "column 'logits' is of type double; it needs a list of numbers per row",
        ),
        "no column": (
            lambda path: write_parquet(path.with_suffix(".parquet"), logits, labels, names=("logits", "y")),
            "has no column 'labels' ('logits', 'y')",
        ),
        "integer logits": (
            lambda path: write_parquet(path.with_suffix(".parquet"), np.ones((20, 6), int), labels),
            "logits has dtype int64",
        ),
        "absent label": (
            lambda path: write_parquet(path.with_suffix(".parquet"), logits, np.ones_like(labels)),
            "labels are of absent classes in all 20 samples",
        ),
        "no labels": (lambda path: np.savez(path.with_suffix(".npz"), logits=logits), "has no labels"),
        "too few labels": (
            lambda path: np.savez(path.with_suffix(".npz"), logits=logits, labels=labels[:5]),
            "labels have shape (5,) for 20 rows",
        ),
        "calibrated": (
            lambda path: write_logits(
                path.with_suffix(".npz"), LogitsFile(torch.from_numpy(logits), torch.from_numpy(labels), None, 2.0)
            ),
            "already has gamma = 2 added",
        ),
    }


def damage(path):
    write_parquet(path, *samples(4000))
    data = bytearray(path.read_bytes())
    data[200:-2000] = os.urandom(len(data) - 2200)
    path.write_bytes(data)


@pytest.mark.parametrize(("make", "message"), broken_files().values(), ids=broken_files())
def test_a_broken_file_is_named(tmp_path, capfd, make, message):
    for name in ("a", "z"):
        write_parquet(tmp_path / f"{name}.parquet", *samples(5))
    make(tmp_path / "x")
    state = GapSums(MASK).update(*samples(3))
    before = state.state_dict()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fill(state, tmp_path, progress=False)
    assert re.match(re.escape(str(tmp_path / "x")) + r"\.(parquet|npz)", str(caught.value))
    assert "\n" not in str(caught.value)
    assert state.state_dict() == before
    assert "Traceback" not in capfd.readouterr().err


def test_a_broken_file_among_many_is_named(folder):
    (folder / "17.parquet").write_bytes((folder / "17.parquet").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"17\.parquet is truncated"):
        fill(GapSums(MASK), folder, progress=False)


def test_folders_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        fill(GapSums(MASK), tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no file that ends with .parquet or .npz or .safetensors"):
        read_logits(tmp_path)
    (tmp_path / "a.npz").touch()
    with pytest.raises(NotADirectoryError, match="a.npz is no folder"):
        fill(GapSums(MASK), str(tmp_path / "a.npz"))


def test_arguments_are_checked(folder):
    with pytest.raises(TypeError, match="state is a AUSUC; pass one of finecal.streaming"):
        fill(type("AUSUC", (), {})(), folder)
    with pytest.raises(TypeError, match="source is a list; pass a ray.data.Dataset, or the path of a folder"):
        fill(GapSums(MASK), [folder])


# --- datasets ---------------------------------------------------------------------------------------------------------


@every_kind
def test_a_dataset_is_the_whole(make, whole, capfd):
    logits, labels = whole
    dataset = ray.data.from_arrow(pa.table({"z": list(logits), "y": labels})).repartition(5)
    state = fill(make(), dataset, logits="z", labels="y", batch_size=800)
    assert_same(state, make().update(*whole))
    assert capfd.readouterr().out == ""


def test_ray_reads_parquet_as_well(tmp_path):
    logits, labels = samples(100)
    for part in range(3):
        write_parquet(tmp_path / f"{part}.parquet", logits[part::3], labels[part::3], kind="list")
    dataset = ray.data.read_parquet(str(tmp_path))
    assert_same(fill(GapSums(MASK), dataset, progress=False), GapSums(MASK).update(logits, labels))


def test_a_file_in_a_block_of_many_is_named(tmp_path):
    for name in "abcd":
        logits, labels = samples(20)
        write_parquet(tmp_path / f"{name}.parquet", logits, np.ones_like(labels) if name == "c" else labels)
    dataset = ray.data.read_parquet(str(tmp_path), include_paths=True, override_num_blocks=1)
    with pytest.raises(ValueError, match=r"^\S+c\.parquet: labels are of absent classes in all 20 samples"):
        fill(GapSums(MASK), dataset, progress=False)


def test_samples_can_be_chosen_first(tmp_path):
    logits, labels = samples(300)
    labels = np.where(np.arange(300) % 3 == 0, 1, labels)
    for part in range(3):
        write_parquet(tmp_path / f"{part}.parquet", logits[part::3], labels[part::3], names=("z", "y"))
    mask = MASK
    seen = read_logits(tmp_path, logits="z", labels="y").filter(lambda row: bool(mask[row["y"]]))
    expected = GapSums(MASK).update(logits[MASK[labels]], labels[MASK[labels]])
    assert_same(fill(GapSums(MASK), seen, logits="z", labels="y", progress=False), expected)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"^\S+x\.parquet is truncated or no \.parquet file; write it again$"):
        fill(MarginRows(MASK), read_logits(tmp_path, logits="z", labels="y"), logits="z", labels="y", progress=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"logits": [[1.0] * 6], "y": [0]}, "the rows have no column 'labels', but 'logits', 'y'"),
        (
            {"logits": [[1.0] * 6, [1.0] * 5], "labels": [0, 0]},
            "logits of rows have different shapes, such as (5,) and (6,)",
        ),
        ({"logits": [[1.0] * 5], "labels": [0]}, "seen_mask has 6 entries for logits of 5 classes"),
        ({"logits": [[np.nan] * 6], "labels": [0]}, "logits contain NaN"),
    ],
)
def test_rows_are_checked(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fill(GapSums(MASK), ray.data.from_arrow(pa.table(rows)), progress=False)


def test_a_dataset_without_rows():
    state = fill(GapSums(MASK), ray.data.from_arrow(pa.table({"logits": [], "labels": []})), progress=False)
    with pytest.raises(ValueError, match="GapSums has nothing to estimate from"):
        state.compute()


def test_errors_of_other_steps_stay_what_they_are():
    def fails(batch):
        raise KeyError("weights")

    dataset = ray.data.range(3).map_batches(fails)
    with pytest.raises(ray.exceptions.RayTaskError, match="weights"):
        fill(GapSums(MASK), dataset, progress=False)


def test_a_scorer_by_itself():
    scorer = Scorer(lambda: torch.nn.Linear(8, CLASSES), inputs="x", logits="z", device="cpu")
    assert not scorer.model.training
    with pytest.raises(ValueError, match="no column 'x', but 'inputs'"):
        scorer({"inputs": np.zeros((2, 8))})
    inputs = np.zeros((2, 8), np.float32)
    inputs.flags.writeable = False
    assert scorer({"x": inputs, "labels": np.arange(2)}).keys() == {"labels", "z"}
    scorer.model = torch.nn.Sequential(torch.nn.Linear(8, CLASSES), Rounded())
    assert scorer({"x": inputs})["z"].dtype == np.float32


class Rounded(torch.nn.Module):
    def forward(self, logits):
        return logits.bfloat16()


# --- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(folder, whole, monkeypatch):
    """The folder, and beside it the same data in one file."""
    monkeypatch.chdir(folder.parent)
    write_logits("whole.npz", LogitsFile(*map(torch.from_numpy, whole), NAMES))
    Path("seen.txt").write_text("0\n2\n3\n")
    Path("names.txt").write_text("ant\ncat\ndog\n")
    Path("classes.txt").write_text("\n".join(NAMES))
    np.save("mask.npy", MASK)


@pytest.fixture
def run(capfd):
    def run(line):
        assert cli.main(line.split()) == 0
        return capfd.readouterr()

    return run


@pytest.mark.parametrize("method", ["average_logit_gap", "max_logit_gap"])
def test_command_estimates_the_same(files, run, method):
    found = json.loads(run(f"estimate --engine ray --train logits --seen seen.txt --method {method} --json").out)
    expected = json.loads(run(f"estimate --train whole.npz --seen seen.txt --method {method} --json").out)
    assert found["gamma"] == pytest.approx(expected["gamma"], rel=1e-12)
    for name in ("method", "data", "n", "acc_seen_at_zero", "seen_classes", "num_classes", "warnings"):
        assert found[name] == expected[name], name


def test_command_prints_a_table_and_a_bar(files, run):
    line = "estimate --engine ray --held-out logits --seen mask.npy --method max_logit_gap -o gamma.json"
    out, err = run(line)
    assert out.startswith("| gamma ")
    assert f"{sum(SIZES)} labelled held-out samples (seen classes)" in out
    assert out.endswith("|\nwrote gamma.json\n")
    assert "40/40" in err
    assert run(f"{line} --no-progress") == (out, "")
    assert json.loads(run("evaluate whole.npz --gamma gamma.json --json").out)["after"]["gamma"] > 0


def test_command_knows_names(files, run):
    line = "--seen names.txt --method max_logit_gap --no-progress --json"
    by_index = json.loads(run("estimate --engine ray --train logits --seen seen.txt --method max_logit_gap --json").out)
    by_name = json.loads(run(f"estimate --engine ray --train logits --class-names classes.txt {line}").out)
    assert by_name.pop("class_names") == Path("classes.txt").read_text().split()
    assert unsigned(by_name) == unsigned(by_index)
    Path("one").mkdir()
    shutil.copy("whole.npz", "one")
    in_file = json.loads(run(f"estimate --engine ray --train one {line}").out)
    assert in_file["gamma"] == pytest.approx(by_index["gamma"], rel=1e-12)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "logits --seen seen.txt",
            "--method auto needs all logits at once, which no machine has with --engine ray; choose --method "
            "average_logit_gap or max_logit_gap, which add up over files",
        ),
        ("logits --seen labels --method max_logit_gap", "--seen labels needs the samples of all files at once"),
        ("logits --seen seen.txt --method max_logit_gap --bootstrap 5", "--bootstrap needs the samples of all files"),
        ("logits a.npy --seen seen.txt --method max_logit_gap", "--train takes one folder with --engine ray, of files"),
        ("logits --seen seen.txt --method max_logit_gap --objective nll", "--objective does not apply to --method max"),
        ("nothing --seen seen.txt --method max_logit_gap", "nothing does not exist; check the name"),
        ("whole.npz --seen seen.txt --method max_logit_gap", "whole.npz is no folder"),
        ("empty --seen seen.txt --method max_logit_gap", "empty has no sample in any of its files"),
        ("broken --seen seen.txt --method max_logit_gap", "a.parquet is truncated or no .parquet file; write it again"),
        ("other --seen seen.txt --method max_logit_gap", "b.npz: seen_mask has 6 entries for logits of 7 classes"),
    ],
)
def test_command_refuses(files, capfd, line, sentence):
    for name in ("empty", "broken", "other"):
        Path(name).mkdir()
    write_parquet("empty/a.parquet", np.zeros((0, 6), np.float32), np.zeros(0, int), kind="list")
    Path("broken/a.parquet").write_bytes(b"PAR1")
    np.savez("other/a.npz", logits=2 * np.eye(6), labels=np.zeros(6, int))
    np.savez("other/b.npz", logits=2 * np.eye(7), labels=np.zeros(7, int))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["estimate", "--engine", "ray", "--train", *line.split(), "--no-progress"])
    out, err = capfd.readouterr()
    assert out == ""
    (error,) = err.splitlines()
    assert error.startswith("finecal estimate: error: ")
    assert sentence in error


def test_command_starts_ray_and_says_nothing_about_it(files, tmp_path):
    """In a process of its own, with warnings from finecal's code as errors."""
    folder = tempfile.mkdtemp(prefix="ray-")
    line = "estimate --engine ray --train logits --seen seen.txt --method max_logit_gap --no-progress --json"
    environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment.pop("RAY_ADDRESS", None)
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error:::finecal", "-m", "finecal", *line.split()],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["n"] == sum(SIZES)


# --- documentation ----------------------------------------------------------------------------------------------------


def test_python_of_the_page_runs(folder, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, CLASSES), torch.nn.Dropout(0.9)).eval()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    def load_model():
        loaded = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Dropout(0.9))
        loaded.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        return loaded

    written = samples(20, seed=1)
    test_folder = tmp_path / "test"
    test_folder.mkdir()
    test = samples(50, seed=2)[0], np.arange(50) % CLASSES
    test[0][:, 1] = 0.0  # labels of all classes: none of their logits is -inf
    np.savez(test_folder / "part.npz", logits=test[0], labels=test[1])
    inputs, labels = torch.randn(300, 8), samples(300)[1]
    dataset = ray.data.from_arrow(pa.table({"inputs": list(inputs.numpy()), "labels": labels}))
    names = {"train_folder": str(folder), "test_folder": str(test_folder), "job": 0, "seen_mask": MASK, "model": model}
    names |= {"logits": written[0], "labels": written[1], "load_model": load_model, "dataset": dataset}
    writing, calibrating, serving, scoring, checking = blocks("docs/how-to/distributed.md", "python")[6:]
    exec(writing, names)
    exec(calibrating, names)
    both = (np.concatenate(parts) for parts in zip(whole, written, strict=True))
    estimate = finecal.estimators.max_logit_gap(*both, MASK)
    assert (names["estimate"].n, names["estimate"].gamma) == (estimate.n, pytest.approx(estimate.gamma, rel=1e-12))
    assert names["report"].acc_all == finecal.evaluate(*test, MASK, estimate).acc_all

    exec(serving, names)
    with torch.no_grad():
        served = finecal.calibrate_logits(model(inputs), torch.from_numpy(MASK), estimate)
        torch.testing.assert_close(names["calibrated"](inputs), served)
    # The actors would take both workers, and leave none for the states.
    exec(scoring.replace("num_gpus=1", "num_cpus=1").replace("size=2", "size=1"), names)
    with torch.inference_mode():
        expected = MarginRows(MASK).update(model(inputs), labels)
    found, margins = (rows.compute().margin.sort().values for rows in (names["rows"], expected))
    torch.testing.assert_close(found, margins, rtol=0, atol=1e-5)
    assert names["report"].gamma == names["estimate"].gamma

    capsys.readouterr()
    exec(checking, names)
    assert capsys.readouterr().out == f"{finecal.estimators.max_logit_gap(*written, MASK)}\n"


def test_a_flipped_bit_in_a_page_is_refused(tmp_path):
    rows, labels = samples(50)
    table = pa.table({"logits": list(np.asarray(rows)), "labels": np.asarray(labels)})
    pq.write_table(table, tmp_path / "a.parquet", write_page_checksum=True, compression="none", use_dictionary=False)
    data = (tmp_path / "a.parquet").read_bytes()
    position = data.index(np.asarray(rows)[7].tobytes())
    damaged = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    (tmp_path / "a.parquet").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.parquet is truncated or no \.parquet file; write it again$"):
        list(read_parquet(tmp_path / "a.parquet", "logits", "labels"))
