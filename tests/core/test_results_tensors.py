"""Copies of safetensors files with a few changes."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finecal._core.results import copy_with_tensors, read_tensors


def file_of_all_dtypes(path):
    tensors = {
        "weight": torch.arange(6.0).reshape(2, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


@pytest.mark.skipif(os.name != "posix", reason="on Windows a mapped file stays as it is")
def test_replaces_some_and_keeps_the_bytes_of_the_others(tmp_path):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    tensors = file_of_all_dtypes(old)
    changed = {"half": torch.tensor([9.0, 8.0], dtype=torch.float16), "weight": torch.ones(3, 2).T}
    copy_with_tensors(old, new, changed)
    loaded = load_file(new)
    assert loaded.keys() == tensors.keys()
    for name, tensor in loaded.items():
        expected = changed.get(name, tensors[name])
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    assert len(old.read_bytes()) == len(new.read_bytes())
    copy_with_tensors(old, new, {})
    assert old.read_bytes() == new.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="on Windows a mapped file stays as it is")
def test_metadata_are_added(tmp_path):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    tensors = file_of_all_dtypes(old)
    for size in range(9):  # whatever the length, tensors begin at a multiple of 8 bytes
        copy_with_tensors(old, new, {"count": torch.tensor(size)}, {"note": "é" * size})
        found, metadata = read_tensors(new)
        assert metadata == {"format": "pt", "note": "é" * size}
        assert found["count"] == size
        assert torch.equal(found["brain"], tensors["brain"])
        assert int.from_bytes(new.read_bytes()[:8], "little") % 8 == 0
    save_file({"a": torch.ones(2)}, old)
    copy_with_tensors(old, new, {}, {"note": "first"})
    with safe_open(new, "pt") as file:
        assert file.metadata() == {"note": "first"}
