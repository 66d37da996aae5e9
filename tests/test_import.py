import subprocess
import sys

import pytest

import finecal
from public_names import public

HEAVY = [
    "sklearn",
    "scipy",
    "matplotlib",
    "safetensors",
    "transformers",
    "pycountry",
    "pandas",
    "jinja2",
    "ray",
    "pyarrow",
    "triton",
    "torch._inductor",
]


@pytest.fixture(scope="module")
def after_import():
    """Return what a new process finds when it has imported finecal: heavy modules, and the number of global hooks."""
    code = f"""
import finecal, sys
heavy = [m for m in {HEAVY} if m in sys.modules]
import torch
print(heavy, len(torch.nn.modules.module._global_module_registration_hooks), sep="\\n")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def test_import_loads_nothing_heavy(after_import):
    assert after_import[0] == "[]"


def test_import_puts_no_hook_on_the_modules_of_the_process(after_import):
    assert after_import[1] == "0"


@pytest.mark.parametrize("name", finecal.__all__)
def test_public_names_are_documented(name):
    assert public(name).__doc__
