"""What pages say of the code: links to its names, its estimators and its packages."""

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.roles import XRefRole
from sphinx.util.docutils import SphinxDirective, SphinxRole

import finecal
from finecal._estimators.table import ESTIMATORS

SPACES = ("estimators", "calibrators", "dense", "logits", "probabilities", "weights")
"""Namespaces whose names need none before them."""


_OWN = [name for name in dir(finecal) if name not in finecal.__all__ and not name.startswith("_")]
"""The namespaces."""
ADDRESSES = {
    **{name: f"finecal.{space}.{name}" for space in SPACES for name in getattr(finecal, space).__all__},
    **{name: f"finecal.{name}" for name in finecal.__all__},
}
"""What pages may call by its name alone, and where it is."""


class Backticks(SphinxRole):
    """Single backticks: a link to a name that finecal exports, code otherwise."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, member = self.text.removeprefix("finecal.").partition(".")
        if name in ADDRESSES:
            address = f"{ADDRESSES[name]}.{member}".rstrip(".")
        elif name in _OWN and member:
            address = f"finecal.{name}.{member}"
        else:
            return [nodes.literal(self.rawtext, self.text)], []
        target = f"{self.text} <{address}>"
        return XRefRole()("py:obj", self.rawtext, target, self.lineno, self.inliner, self.options, self.content)


class Estimators(SphinxDirective):
    """The table of estimators, as the code has it."""

    def run(self) -> list[nodes.Node]:
        rows = [(reference_to(each.name), text(each.data.value), text(each.note)) for each in ESTIMATORS]
        return [table(("Estimator", "Needs", "What to know"), rows)]


class Packages(SphinxDirective):
    """The packages of finecal that are named: what the docstring of each says first, and its files."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        return [table(("Package", "What lives there", "Files"), map(self.row, " ".join(self.content).split()))]

    def row(self, package: str) -> tuple[nodes.Element, ...]:
        folder = Path(finecal.__file__).parent / package
        source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
        inside = folder.iterdir() if folder.is_dir() else [source]
        files = sorted(path.name for path in inside if path.suffix and path.name != "__init__.py")
        names = nodes.paragraph()
        for name in files:
            names += [nodes.literal(text=name), nodes.Text(" ")]
        return nodes.paragraph("", "", nodes.literal(text=package)), text(docstring.partition("\n")[0]), names


def text(words: str) -> nodes.paragraph:
    return nodes.paragraph(text=words.replace("`", ""))


def reference_to(name: str) -> nodes.paragraph:
    options = {"refdomain": "py", "reftype": "func", "reftarget": ADDRESSES[name], "refexplicit": False}
    return nodes.paragraph("", "", pending_xref("", nodes.literal(text=name), **options))


def table(header: Sequence[str], rows: Iterable[Sequence[nodes.Element]]) -> nodes.table:
    """Return a table whose first row is its header."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in header), cols=len(header))
    group += nodes.thead("", line(map(text, header)))
    group += nodes.tbody("", *map(line, rows))
    return nodes.table("", group)


def line(cells: Iterable[nodes.Element]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("backticks", Backticks())
    app.add_directive("estimators", Estimators)
    app.add_directive("packages", Packages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
