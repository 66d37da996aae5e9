"""The program: its arguments, its warnings and errors, and the consoles it prints on."""

import contextlib
import errno
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import finecal
from command_line import NAMES, unsigned
from finecal._cli import arguments as cli
from finecal._cli import commands
from finecal._cli.estimate import METHODS
from finecal._core.logits_file import LogitsFile, read_logits, write_logits
from finecal._estimators.search import SEARCH_OBJECTIVES

pytestmark = pytest.mark.usefixtures("files")


def test_a_warning_is_shown_once(run, capsys):
    logits = torch.eye(6)[[0, 1, 2] * 9] * 4
    write_logits("reindexed.npz", LogitsFile(logits, torch.tensor([0, 1, 2] * 9)))
    Path("seen.txt").write_text("3 4 5")
    with pytest.raises(SystemExit):
        cli.main(["estimate", "--train", "reindexed.npz", "--seen", "seen.txt"])
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


def test_refuses_unknown_methods_and_objectives(capsys):
    for option, choices in (("--method", METHODS), ("--objective", SEARCH_OBJECTIVES)):
        with pytest.raises(SystemExit) as caught:
            cli.main(["estimate", "--train", "train.npz", "--seen", "seen.txt", option, "oracle"])
        assert caught.value.code == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"finecal estimate: error: argument {option}: invalid choice: 'oracle' (choose from ")
        assert all(name in error for name in choices)


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
    for command in ("estimate", "evaluate", "apply", "report", "fold", "demo"):
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "--help"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: finecal {command} ")


def run_python(*arguments, **variables):
    source = os.path.dirname(os.path.dirname(finecal.__file__))
    environment = {**os.environ, "PYTHONPATH": source, **variables}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_as_a_program(tmp_path):
    done = run_python(
        "-m", "finecal", "estimate", "--train", "train.npz", "--seen", "seen.txt", "-o", "gamma.json", "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (tmp_path / "gamma.json").read_text()
    done = run_python("-m", "finecal", "estimate", "--train", "train.npz", "--seen", "unseen.txt", "-o", "other.json")
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
from finecal._cli import commands, main
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


def test_apply_writes_no_file_that_cannot_be_read(refuses, rng):
    np.savez("half.npz", logits=(rng.normal(size=(20, 4)) + 40_000).astype(np.float16))
    np.save("half_mask.npy", np.arange(4) < 2)
    line = "apply half.npz --seen half_mask.npy -o applied.npz --gamma"
    refuses(
        f"{line} 40000",
        "gamma = 40000 makes logits infinite in float16, and finecal could not read them again: convert the logits to "
        "float32 or wider, or write --predictions",
    )
    refuses(
        f"{line} 1e6", "gamma is 1000000.0, which float16 cannot hold; check the estimate, or convert to a wider dtype"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("apply logits.npy {} --labels labels.npy -o labels.npy", "labels.npy would replace the file of --labels"),
        ("apply logits.npy --gamma 1 --seen mask.npy -o mask.npy", "mask.npy would replace the file of --seen"),
        ("apply test.npz {} --class-names c.npz -o c.npz", "c.npz would replace the file of --class-names"),
        ("apply test.npz --gamma g.npz -o g.npz", "g.npz would replace the file of --gamma"),
        ("apply test.npz {} -o link.npz", "link.npz would replace the logits before calibration"),
        ("estimate --train test.npz --seen s.json -o s.json", "s.json would replace the file of --seen"),
        (
            "estimate --held-out held_out.npz {} --unlabelled u.json -o u.json".replace("{}", "--seen seen.txt"),
            "u.json would replace the file of --unlabelled",
        ),
        ("report test.npz {} --class-names c.html -o c.html", "c.html would replace the file of --class-names"),
        (
            "estimate --train train.npz l.json --seen seen.txt -o l.json",
            "l.json would replace the file of --train",
        ),
    ],
)
def test_no_output_replaces_what_is_read(refuses, line, sentence):
    if os.name != "posix" and "link" in line:
        pytest.skip("links of POSIX")
    for name in ("c.npz", "c.html", "g.npz", "l.json", "s.json", "u.json"):
        Path(name).write_text("\n".join(NAMES))
    if os.name == "posix":
        Path("link.npz").symlink_to("test.npz")
    refuses(line.replace("{}", "--gamma 1 --seen seen.txt"), f"-o {sentence}; choose another name")


def test_gamma_that_was_edited_says_so(run, refuses):
    run("estimate --train train.npz --seen seen.txt -o gamma.json")
    text = Path("gamma.json").read_text()
    again = "estimate gamma again, or if you changed it on purpose, delete its entry 'sha256'"
    Path("gamma.json").write_text(text.replace('"gamma": 3', '"gamma": 4'))
    refuses(
        "evaluate test.npz --gamma gamma.json",
        f"gamma.json does not match its checksum, so it was damaged or edited; {again}",
    )
    record = unsigned(json.loads(text))
    Path("gamma.json").write_text(json.dumps({**record, "gamma": 2}))
    assert "gamma = 2 " in run("evaluate test.npz --gamma gamma.json").out
    Path("gamma.json").write_text(json.dumps(dict(reversed(json.loads(text).items()))))
    run("evaluate test.npz --gamma gamma.json")


@pytest.mark.parametrize("number", ["-1e-3", "-.5", "-1E5", "-2", "-0.5", "-1.e2", "-1.5e+1", "-1_0"])
def test_negative_numbers_are_no_options(run_json, number):
    record = run_json(f"evaluate test.npz --seen seen.txt --gamma {number}")
    assert record["after"]["gamma"] == float(number)
    assert run_json(f"evaluate test.npz --seen seen.txt --gamma={number}") == record


def test_negative_numbers_that_cannot_be(refuses):
    refuses("evaluate test.npz --seen seen.txt --gamma -inf", "gamma is -inf; it must be finite")
    refuses("evaluate test.npz --seen seen.txt --gamma -NaN", "gamma is nan; it must be finite")
    refuses(
        "estimate --train train.npz --seen seen.txt --seen-share -1e-3",
        "seen_share is -0.001; it must lie strictly between 0 and 1",
    )
    refuses("evaluate test.npz --seen seen.txt --gamma -e3", "argument --gamma: expected one argument")


def test_class_names_that_start_like_comments(refuses, run_json):
    names = ["#metoo", *NAMES[1:5], "#1"]
    logits = read_logits("train.npz")
    write_logits("hash.npz", LogitsFile(logits.logits, logits.labels, names))
    Path("names.txt").write_text("# seen\n#metoo\ncat\nelk\n")
    record, by_index = (
        run_json("estimate --train hash.npz --seen names.txt"),
        run_json("estimate --train hash.npz --seen seen.txt"),
    )
    assert record["seen_classes"] == by_index["seen_classes"] == [0, 2, 4]
    Path("names.txt").write_text("#meto\ncat\nelk\n")
    refuses(
        "estimate --train hash.npz --seen names.txt",
        "names.txt: seen_names contain '#meto' (1 unknown of 3 names); did you mean '#metoo'?",
    )
    Path("names.txt").write_text("# all\n" + "\n".join(names))
    refuses(
        "estimate --train train.npz --seen seen.txt --class-names names.txt",
        "names.txt: there are 4 class names for logits of 6 classes; give one per column, in order (lines that start "
        "with # are comments, as '# all': keep such names with the logits)",
    )


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with SIGINT ignored
from finecal._cli import main
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGINT)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_is_one_line_and_leaves_nothing():
    before = sorted(os.listdir())
    done = run_python("-c", INTERRUPTED, *["apply", "test.npz", "--seen", "seen.txt", "--gamma", "1", "-o", "out.npz"])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "finecal apply: interrupted\n")
    assert sorted(os.listdir()) == before


CALL = "test.npz --seen seen.txt --gamma 1"
PRINTING = [
    (f"apply {CALL} -o out.npz", False),
    (f"apply {CALL} -o out.npz", True),
    (f"evaluate {CALL} --json", False),
    ("compare --held-out held_out.npz --seen seen.txt", True),
    ("fold --help", False),
]


def run_into(descriptor, line, unbuffered):
    """Run a command that prints into a descriptor; closes it."""
    source = os.path.dirname(os.path.dirname(finecal.__file__))
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    command = [sys.executable, "-W", "ignore", "-m", "finecal", *line.split()]
    done = subprocess.run(command, stdout=descriptor, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(descriptor)
    return done


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize(("line", "unbuffered"), PRINTING)
def test_a_closed_pipe_ends_a_command_in_silence(line, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = run_into(writer, line, unbuffered)
    assert (done.returncode, done.stderr) == (141, "")
    assert not line.startswith("apply") or read_logits("out.npz").gamma == 1


def test_a_closed_pipe_is_known_on_windows_too(monkeypatch):
    closed, no_file = OSError(errno.EINVAL, "Invalid argument"), OSError(errno.EINVAL, "Invalid argument", "a?.npz")
    assert cli._is_closed_pipe(BrokenPipeError())
    assert not cli._is_closed_pipe(closed)
    monkeypatch.setattr(os, "name", "nt")
    assert cli._is_closed_pipe(closed)
    assert not cli._is_closed_pipe(no_file)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_behind_the_output_is_one_line():
    done = run_into(os.open("/dev/full", os.O_WRONLY), f"evaluate {CALL}", unbuffered=False)
    assert (done.returncode, done.stderr) == (2, "finecal evaluate: error: [Errno 28] No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="names of files of POSIX")
def test_no_escape_of_a_name_reaches_the_terminal(run, capsys):
    name = "\x1b[31m\nred.npz"
    shown = r"\x1b[31m\nred.npz"
    for line in (["evaluate", name, "--gamma", "1"], ["apply", "test.npz", "--gamma", "1", "-o", "o.npz", name]):
        with pytest.raises(SystemExit):
            cli.main(line)
        err = capsys.readouterr().err
        assert shown in err
        assert err.count("\n") == 1
    assert cli.main(["apply", "test.npz", "--gamma", "1", "--seen", "seen.txt", "-o", name]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {shown}\n")


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes of POSIX")
def test_what_is_no_regular_file(refuses):
    rest = "is no regular file, but a device, a pipe or a socket; give a file in its place"
    for name, target in (("zero.npz", "/dev/zero"), ("zero.json", "/dev/zero"), ("loop.npz", "loop.npz")):
        Path(name).symlink_to(target)
    os.mkfifo("fifo.npz")
    call = "--gamma 1 --seen seen.txt"
    refuses(f"evaluate zero.npz {call}", f"zero.npz {rest}")
    refuses(f"evaluate fifo.npz {call}", f"fifo.npz {rest}")
    refuses("evaluate test.npz --gamma zero.json --seen seen.txt", f"zero.json {rest}")
    refuses("evaluate test.npz --gamma 1 --seen /dev/zero", f"/dev/zero {rest}")
    refuses("evaluate test.npz --gamma 1 --seen fifo.npz", f"fifo.npz {rest}")
    refuses(f"evaluate test.npz {call} --class-names /dev/zero", f"/dev/zero {rest}")
    loop = "is a link that leads to itself"
    refuses(f"evaluate loop.npz {call}", f"loop.npz {loop}; give the file that it was meant for")
    refuses(f"apply test.npz {call} -o loop.npz", f"loop.npz cannot be written: it {loop}; remove it")


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="names of POSIX")
def test_what_the_shell_pipes_is_read(run):
    line = "evaluate test.npz --gamma 1 --json --seen"
    source = os.path.dirname(os.path.dirname(finecal.__file__))
    piped = subprocess.run(
        [sys.executable, "-m", "finecal", *line.split(), "/dev/stdin"],
        input=Path("seen.txt").read_text(),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        check=True,
    )
    assert piped.stdout == run(f"{line} seen.txt").out


def test_half_a_character_names_the_file(refuses):
    logits, labels = (torch.from_numpy(array) for array in (np.eye(6, dtype=np.float32) * 3, np.arange(6)))
    write_logits("half.safetensors", LogitsFile(logits, labels, [*NAMES[:5], "\ud800"]))
    call = "--gamma 1 --seen seen.txt"
    sentence = r"cannot be written: '\ud800' in its text is half a character, which no file can hold; mend the names"
    refuses(f"apply half.safetensors {call} --predictions -o out.csv", f"out.csv {sentence} of the classes")
    refuses(f"report half.safetensors {call} -o out.html", f"out.html {sentence} of the classes")


def test_no_end_of_resamplings(refuses):
    refuses(
        "estimate --train train.npz --seen seen.txt --bootstrap 1000000000000",
        "n_bootstrap is 1000000000000; pass at most 1000000: 1000 give an interval",
    )


def test_the_demo_checks_its_seed_first(refuses):
    refuses("demo --seed -1", "seed is -1; it cannot be negative")
