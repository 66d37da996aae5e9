"""Fixtures: every device there is, every dtype, and random problems full of ties."""

import os
import sys

# Before torch is imported: while one of its threads waits, a core is free for the tests of another process.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

import finecal._core.warning
from profiles import load_profile

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def pytest_configure():
    load_profile()
    finecal._core.warning.WIDTH = sys.maxsize  # tests look for sentences, wherever a line would end


def pytest_runtest_setup():
    """No test depends on the random numbers that others have drawn, in whichever process and order they ran."""
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def without_figures(monkeypatch):
    """Pages without their figures, which are slow to draw, for tests of something else."""
    monkeypatch.setattr("finecal._report.document.draw_figures", lambda *args: [])


@pytest.fixture(autouse=True)
def _compile_anew():
    """Torch stops compiling a function that the tests before have compiled too often, for other modules."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
        torch.set_flush_denormal(False)  # which kernels compiled by torch 2.4 switch on for the whole thread
