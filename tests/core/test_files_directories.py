"""Directories and large files that are made whole or not at all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import finecal
from finecal._core.files import check_new, new_directory, new_file
from sentences import says


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_directory_is_there_at_the_end_only():
    with new_directory(Path("new")) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("a")
        assert not Path("new").exists()
        assert folder.parent == Path()
    assert Path("new/inner/a.txt").read_text() == "a"
    assert os.listdir() == ["new"]


def test_a_file_is_there_at_the_end_only():
    with new_file(Path("new.bin")) as path:
        path.write_bytes(b"a")
        assert not Path("new.bin").exists()
    assert Path("new.bin").read_bytes() == b"a"
    assert os.listdir() == ["new.bin"]


@pytest.mark.parametrize("make", [new_directory, new_file])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_there_is_nothing(make, error):
    def write(path):
        (path / "a.txt" if make is new_directory else path).write_text("a")
        raise error

    with pytest.raises(error), make(Path("new")) as path:
        write(path)
    assert os.listdir() == []


@pytest.mark.parametrize("make", [new_directory, new_file])
def test_what_appears_meanwhile_stays(make):
    with says("new exists already, and is not replaced; choose another name", FileExistsError), make(Path("new")):
        Path("new").mkdir()
    assert os.listdir() == ["new"]
    assert os.listdir("new") == []


def test_refuses_what_is_there_and_what_cannot_be():
    Path("file").write_text("")
    Path("folder").mkdir()
    names = ["file", "folder"]
    if os.name == "posix":
        Path("link").symlink_to("nowhere")
        names.append("link")
    for name in names:
        with says(f"{name} exists already, and is not replaced; choose another name", FileExistsError):
            check_new(Path(name))
    with says("no/new cannot be made: there is no folder no; make it first", FileNotFoundError):
        check_new(Path("no/new"))


KILLED = """
import os, sys
from pathlib import Path
from finecal._core.files import new_directory
with new_directory(Path("new")) as folder:
    (folder / "a.txt").write_text("a")
    os._exit(9)
"""


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_what_a_killed_process_leaves_is_removed_by_the_next():
    source = os.path.dirname(os.path.dirname(finecal.__file__))
    done = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": source})
    assert done.returncode == 9
    (leftover,) = os.listdir()
    assert re.fullmatch(r"\.finecal-[0-9a-f]{16}-[0-9a-f]{16}\.tmp", leftover)
    with new_directory(Path("other")):
        pass
    assert leftover in os.listdir()  # another target's
    with new_directory(Path("new")):
        assert leftover not in os.listdir()
    assert sorted(os.listdir()) == ["new", "other"]


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_what_another_writes_now_is_left_alone():
    def fail(second):
        assert first.is_dir()
        assert second != first
        raise ValueError("late")

    with new_directory(Path("new")) as first:
        with pytest.raises(ValueError, match="late"), new_directory(Path("new")) as second:
            fail(second)
        (first / "a.txt").write_text("a")
    assert os.listdir("new") == ["a.txt"]
