"""The order of the packages, which `docs/design.md` shows: imports point down, and no file hides one."""

import ast
import re
from pathlib import Path

import pytest

import finecal

ORDER = [
    "inputs",
    "results",
    "logits",
    "evaluation",
    "gamma",
    "streaming",
    "calibrators",
    "models",
    "distributed",
    "plots",
    "page",
    "sklearn",
    "integrations",
    "demo",
    "cli",
]
"""Lowest first: a package imports itself and those before it."""
ROOT = Path(finecal.__file__).parent
TOP = {"__init__.py", "__main__.py", "_version.py", "py.typed"}
HIDDEN = {("evaluation/margins.py", "evaluation.curve")}
"""`Margins.curve()`, the step from a type to the next one in its folder. `results/lazy.py` imports by name."""
OPTIONAL = {
    ("integrations/ray.py", "integrations._parquet"),
    ("cli/estimate.py", "integrations.ray"),
    ("cli/fold.py", "integrations._saved_transformers"),
}
"""Modules that need what may not be installed: they are imported where they are used."""
TESTS = Path(__file__).parent
NO_MODULE = {
    "cli/test_data_labels.py": "what `data` makes of labels, beside what it reads",
    "cli/test_estimate_compare.py": "the command `compare`, beside `estimate` in one module",
    "cli/test_sources_seen.py": "the seen classes from files, beside the samples of `sources`",
    "gamma/test_auto_odd_data.py": "what `auto` makes of odd data, beside what it decides",
    "gamma/test_groups.py": "what holds for all estimators with groups",
    "integrations/test_base_to_new_recipe.py": "a recipe of the documentation with open_clip",
    "integrations/test_calibrated_model.py": "the model of `models` around those of other libraries",
    "integrations/test_clip_recipe.py": "a recipe of the documentation with open_clip",
    "integrations/test_collection.py": "collecting, as in `models`, from models and loaders of other libraries",
    "integrations/test_data_parallel.py": "models of several processes, which need what the integrations need",
    "integrations/test_fold_command.py": "the command line with models that other libraries have saved",
    "integrations/test_folding.py": "folding, as in `models`, into heads of other libraries",
    "integrations/test_interpolation.py": "weights, as in `models`, between models of other libraries",
    "integrations/test_library_guides.py": "pages of the documentation on other libraries",
    "integrations/test_list_of_classes.py": "scripts of other libraries, and the lines that a page adds to them",
    "integrations/test_mistakes.py": "mistakes that the documentation warns of, with other libraries",
    "models/test_calibrated_dense_model.py": "the model of `models` around those with dense outputs",
    "models/test_folding_dense.py": "folding into heads of dense models and of detectors, beside that of classifiers",
    "plots/test_plots.py": "what holds for every picture, beside one file for each",
    "sklearn/test_estimator_checks.py": "scikit-learn's own checks, of all its estimators here",
}
"""Files of tests that are not of one module, and what they are of."""


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path):
    """Yield each module of finecal that a file imports, and whether in a function or under TYPE_CHECKING."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                name = f"{source}.{alias.name}".strip(".")
                yield (name if name in FILES else source), id(node) not in top
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                assert name.split(".")[0] != "finecal", f"{path}: import {name} relatively"


EDGES = [(module, *found) for module, path in FILES.items() for found in imported(path)]


def test_only_the_api_is_at_the_top():
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == TOP
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ORDER)


def test_packages_import_lower_ones_only():
    upwards = []
    for module, target, _ in EDGES:
        package, other = module.partition(".")[0], target.partition(".")[0]
        if package in ORDER and other not in ("", "_version") and ORDER.index(other) > ORDER.index(package):
            upwards.append(f"{module} imports {target}, of the later package {other}")
    assert upwards == []


def test_nothing_is_imported_in_hiding():
    hidden = {(str(FILES[module].relative_to(ROOT)), target) for module, target, is_hidden in EDGES if is_hidden}
    assert hidden == HIDDEN | OPTIONAL


def test_no_circle_of_files():
    """Take away files that import none of those left, until none or a circle is left; `Margins.curve` aside."""
    left = {
        module: {
            target
            for source, target, _ in EDGES
            if source == module and target != module and (str(path.relative_to(ROOT)), target) not in HIDDEN
        }
        for module, path in FILES.items()
        if module not in ("", "__main__")
    }
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    assert left == {}


@pytest.mark.parametrize("package", ORDER)
def test_packages_say_what_lives_there(package):
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    assert "import" in text.lower()


def test_no_module_hides_a_public_function():
    assert {path.stem for path in ROOT.iterdir()} & set(finecal.__all__) == set()


def test_private_names_stay_in_their_file():
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and node.module != "_version":
                names = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not names or all(f"{module.rpartition('.')[0]}.{name}" in FILES for name in names), (
                    module,
                    names,
                )


def test_tests_are_named_after_modules():
    named = {
        f"{package}/test_{path.stem.lstrip('_')}.py" for package in ORDER for path in (ROOT / package).glob("*.py")
    }
    found = {f"{package}/{path.name}" for package in ORDER for path in (TESTS / package).glob("test_*.py")}
    assert found - named == NO_MODULE.keys()
    assert {path.parent.name for path in TESTS.glob("*/test_*.py")} == {*ORDER, "benchmarks", "docs"}


def test_tests_share_modules_that_are_no_tests():
    """The path of a file of tests in a package is found only where others have put it on the path."""
    for path in TESTS.rglob("*.py"):
        assert not re.findall(r"^(?:from|import) \w+\.test_\w+", path.read_text(encoding="utf-8"), re.MULTILINE), path
