"""Mapped files that are cut after a command has opened them, which the system answers with SIGBUS."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import finecal
from finecal._cli import cut_files

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="signals of POSIX")

CUT = """
import os, sys
from finecal._cli import main
from finecal._core import logits_file

def cutting(read):
    def read_and_cut(path, *others):
        found = read(path, *others)
        os.truncate(path, 4096)
        return found
    return read_and_cut

logits_file.map_npy = cutting(logits_file.map_npy)
logits_file.read_tensors = cutting(logits_file.read_tensors)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_a_file_that_is_cut_while_it_is_read_is_named(tmp_path, rng, suffix):
    logits = rng.normal(size=(40_000, 6)).astype(np.float32)
    path = tmp_path / f"logits.{suffix}"
    np.save(path, logits) if suffix == "npy" else save_file({"logits": torch.from_numpy(logits)}, path)
    np.savez(tmp_path / "labels.npz", labels=np.zeros(40_000, dtype=int))
    (tmp_path / "seen.txt").write_text("0 1 2")
    source = os.path.dirname(os.path.dirname(finecal.__file__))
    line = f"evaluate {path.name} --labels labels.npz --seen seen.txt --gamma 1"
    done = subprocess.run(
        [sys.executable, "-c", CUT, *line.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
        timeout=120,
    )
    error = f"finecal evaluate: error: {path.name} was cut while it was read; replace such files as a whole\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", error)


def test_the_handler_of_others_comes_back():
    def current():
        with open("/proc/self/status", encoding="ascii") as file:
            (line,) = [line for line in file if line.startswith("SigCgt")]
        return int(line.split()[1], 16) >> (signal.SIGBUS - 1) & 1

    if not os.path.exists("/proc/self/status"):
        pytest.skip("Linux tells which signals are handled")
    before = current()
    with cut_files.explain_cut_files({}, "finecal"):
        assert current() == 1
    assert current() == before
