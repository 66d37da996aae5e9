"""The gallery has the examples that it names, and pages name examples that there are."""

import ast
import re
from pathlib import Path

import pytest

from pages import DOCS, ROOT

EXAMPLES = [path for path in (ROOT / "examples").rglob("*.py") if not path.name.startswith("_")]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_a_page(example):
    text = example.read_text(encoding="utf-8")
    title, underline, _, sentence, *_ = ast.get_docstring(ast.parse(text)).splitlines()
    assert underline == "=" * len(title)
    assert sentence
    assert re.search(r"^# %%\n# \S", text, re.MULTILINE)


def test_order_of_the_gallery_names_examples():
    statements = ast.parse((DOCS / "conf.py").read_text(encoding="utf-8")).body
    values = {node.targets[0].id: node.value for node in statements if isinstance(node, ast.Assign)}
    order = ast.literal_eval(values["GALLERY_ORDER"])
    names = {path.stem for path in EXAMPLES if path.parent.name == "examples"}
    assert set(order) <= names
    conf = {"GALLERY_ORDER": order, "Path": Path}  # The whole of conf.py needs Sphinx.
    (position,) = (node for node in statements if getattr(node, "name", "") == "gallery_position")
    exec(compile(ast.Module([position], []), "conf.py", "exec"), conf)
    ordered = sorted([*(f"{name}.py" for name in names), "unknown.py"], key=conf["gallery_position"])
    assert ordered[0] == f"{order[0]}.py"
    assert ordered[-1] == "unknown.py"
    settings = zip(values["sphinx_gallery_conf"].keys, values["sphinx_gallery_conf"].values, strict=True)
    pattern = next(ast.literal_eval(value) for key, value in settings if key.value == "ignore_pattern")
    assert re.search(pattern, "examples/_light_and_dark.py")
    assert not any(re.search(pattern, str(path)) for path in EXAMPLES)


def test_pages_name_examples_that_there_are():
    pages = [ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("how-to/*.md"), *DOCS.glob("theory/*.md")]
    named = {path for page in pages for path in re.findall(r"examples/[\w/]+\.py", page.read_text(encoding="utf-8"))}
    assert "examples/pictures.py" in named
    assert [path for path in named if not (ROOT / path).is_file()] == []
