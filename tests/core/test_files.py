"""Files that are written whole or not at all."""

import os

import pytest
import torch

from finecal._core.files import check_destination, write_atomically
from finecal._core.logits_file import LogitsFile, write_logits, write_predictions
from sentences import says


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_midway_leaves_everything_as_it_was(tmp_path, monkeypatch, step, existing):
    path = tmp_path / "a.bin"
    if existing:
        path.write_bytes(b"old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert os.listdir(tmp_path) == (["a.bin"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.bin").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with says("a.bin cannot be written: No space left on device; nothing was changed", OSError):
        write_atomically("a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and links")
def test_permissions_and_links_stay(tmp_path):
    private, link = tmp_path / "private", tmp_path / "link"
    private.write_bytes(b"old")
    private.chmod(0o600)
    link.symlink_to(private)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert private.read_bytes() == b"new"
    assert private.stat().st_mode & 0o777 == 0o600
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "fresh", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o640


def test_refuses_destinations(tmp_path):
    with says("no/a.npz cannot be written: there is no folder no; make it first", FileNotFoundError):
        write_atomically("no/a.npz", b"")
    with says(f"{tmp_path} cannot be written: it is a directory; choose another name", FileExistsError):
        write_atomically(tmp_path, b"")
    with says("a.txt cannot be written: choose a name that ends with .csv or .npy"):
        write_predictions("a.txt", torch.tensor([0]))
    with says("a cannot be written: choose a name that ends with .npz or .npy or .safetensors"):
        write_logits("a", LogitsFile(torch.zeros(1, 2)))
    if os.path.exists(os.devnull):
        with says(f"{os.devnull} cannot be written: it is no regular file; choose another name", FileExistsError):
            check_destination(os.devnull)
