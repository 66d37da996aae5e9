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
from finecal.gamma.estimators import ESTIMATORS


class Backticks(SphinxRole):
    """Single backticks: a link to a name that finecal exports, code otherwise."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name = self.text.removeprefix("finecal.")
        modules = ("distributed.", "plots.", "streaming.")
        if name.partition(".")[0] not in finecal.__all__ and not name.startswith(modules):
            return [nodes.literal(self.rawtext, self.text)], []
        target = f"{self.text} <finecal.{name}>"
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
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        files = sorted(path.name for path in folder.iterdir() if path.suffix and path.name != "__init__.py")
        names = nodes.paragraph()
        for name in files:
            names += [nodes.literal(text=name), nodes.Text(" ")]
        return nodes.paragraph("", "", nodes.literal(text=package)), text(docstring.partition("\n")[0]), names


def text(words: str) -> nodes.paragraph:
    return nodes.paragraph(text=words.replace("`", ""))


def reference_to(name: str) -> nodes.paragraph:
    options = {"refdomain": "py", "reftype": "func", "reftarget": f"finecal.{name}", "refexplicit": False}
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
