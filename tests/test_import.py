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


def test_import_loads_nothing_heavy():
    code = f"import finecal, sys; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_import_puts_no_hook_on_the_modules_of_the_process():
    hooks = "torch.nn.modules.module._global_module_registration_hooks"
    code = f"import finecal, torch; print(len({hooks}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0"


@pytest.mark.parametrize("name", finecal.__all__)
def test_public_names_are_documented(name):
    assert public(name).__doc__
