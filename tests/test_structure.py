"""The order of the packages, which `docs/design.md` shows: imports point down, and no file hides one."""

import ast
import re
from pathlib import Path

import pytest

import finecal

ORDER = [
    "_core",
    "_estimators",
    "_evaluation",
    "probabilities",
    "streaming",
    "_calibrators",
    "_models",
    "distributed",
    "sequences",
    "plots",
    "_report",
    "sklearn",
    "integrations",
    "_demo",
    "_cli",
]
"""Lowest first: a package, or a module that stands beside them, imports itself and those before it."""
NAMESPACES = ["calibrators", "dense", "estimators", "logits", "weights"]
"""Files that only list what is public of the packages; no other file imports them."""
ROOT = Path(finecal.__file__).parent
TOP = {"__init__.py", "__main__.py", "_version.py", "py.typed"}
HIDDEN = {("_core/report.py", "_core.curve")}
"""`Margins.curve()`, the step from a type to the next one. `Result.plot()` and `.to_html()` import by name."""
OPTIONAL = {
    ("_cli/estimate.py", "integrations.ray"),
    ("_cli/fold.py", "integrations._saved_onnx"),
    ("_cli/saved.py", "integrations._saved_transformers"),
}
"""Modules that need what may not be installed: they are imported where they are used."""
TESTS = Path(__file__).parent
NO_MODULE = {
    "estimators/test_groups.py": "what holds for all estimators with groups",
    "integrations/test_arrays_guide.py": "a page of the documentation on libraries that give arrays",
    "integrations/test_boolean_arguments.py": "the flags of all integrations",
    "integrations/test_calibrated_model.py": "the model of `_models` around those of other libraries",
    "integrations/test_clip_recipe.py": "a recipe of the documentation with open_clip",
    "integrations/test_collection.py": "collecting, as in `_models`, from models and loaders of other libraries",
    "integrations/test_data_parallel.py": "models of several processes, which need what the integrations need",
    "integrations/test_fold_command.py": "the command line with models that other libraries have saved",
    "integrations/test_folding.py": "folding, as in `_models`, into heads of other libraries",
    "integrations/test_interpolation.py": "weights, as in `_models`, between models of other libraries",
    "integrations/test_language_models.py": "next tokens and label tokens of models of transformers",
    "integrations/test_library_guides.py": "pages of the documentation on other libraries",
    "integrations/test_list_of_classes.py": "scripts of other libraries, and the lines that a page adds to them",
    "integrations/test_method_names.py": "every method of models of other libraries, called through their wrapper",
    "integrations/test_mistakes.py": "mistakes that the documentation warns of, with other libraries",
    "integrations/test_restore.py": "restoring heads, as in `_models`, of models of other libraries",
    "integrations/test_restore_command.py": "the command line with models that other libraries have saved",
    "integrations/test_several_processes.py": "models and loaders of other libraries in several processes",
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


EDGES = [(module, *found) for module, path in FILES.items() if module != "__init__" for found in imported(path)]


def test_what_is_at_the_top():
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert files - TOP | {f"{name}.py" for name in folders} == {f"{name}.py" for name in (*ORDER, *NAMESPACES)}
    assert files > TOP


def test_the_face_is_small():
    assert len(finecal.__all__) <= 30
    public = {name for name in dir(finecal) if not name.startswith("_")}
    assert public - set(finecal.__all__) == {name for name in (*ORDER, *NAMESPACES) if not name.startswith("_")}


def test_packages_import_lower_ones_only():
    upwards = []
    for module, target, _ in EDGES:
        package, other = module.partition(".")[0], target.partition(".")[0]
        if package in ORDER and other not in ("", "_version"):
            assert other in ORDER, f"{module} imports {target}, which only lists names"
            if ORDER.index(other) > ORDER.index(package):
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
        if module not in ("__init__", "__main__")
    }
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    assert left == {}


@pytest.mark.parametrize("package", [*ORDER, *NAMESPACES])
def test_packages_say_what_lives_there(package):
    assert ast.get_docstring(ast.parse(FILES[package].read_text(encoding="utf-8")))


@pytest.mark.parametrize("package", [path.name for path in ROOT.iterdir() if path.name.lstrip("_").isalpha()])
def test_private_modules_have_an_underscore(package):
    """In a public package what is no namespace of its own is private; a private package needs no further underscore."""
    if (ROOT / package).is_dir() and not package.startswith("_") and package != "integrations":
        names = [path.name for path in (ROOT / package).glob("*.py")]
        assert all(name.startswith("_") for name in names)


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
    """A file of tests has the name of its module, and perhaps of what it tests of that."""
    found, other = [], []
    for path in TESTS.rglob("test_*.py"):
        folder = path.parent.name
        modules = [file.stem.lstrip("_") for name in (folder, f"_{folder}") for file in (ROOT / name).glob("*.py")]
        if folder in ("benchmarks", "docs") or path.parent == TESTS:
            continue
        other += [] if modules else [path]
        if not any(re.match(rf"test_{module}(_|\.)", path.name) for module in modules):
            found.append(f"{folder}/{path.name}")
    assert other == []
    assert set(found) == NO_MODULE.keys()


def test_tests_share_modules_that_are_no_tests():
    """The path of a file of tests in a package is found only where others have put it on the path."""
    for path in TESTS.rglob("*.py"):
        assert not re.findall(
            r"^(?:from|import) \w+\.test_\w+",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        ), path
