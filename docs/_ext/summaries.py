"""One line for each name that a page of the reference describes."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Summaries(SphinxDirective):
    """The names on the given page of the same folder, or on this page, with the first sentence of their docstrings."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        source = Path(self.env.doc2path(self.env.docname))
        if self.arguments:
            source = source.with_stem(self.arguments[0])
            self.env.note_dependency(source)
        text = source.read_text(encoding="utf-8")
        names = re.findall(
            r"^\.\. auto(?:function|class|exception):: finecal\.([\w.]+)$",
            text,
            re.MULTILINE,
        )
        module = self.env.ref_context.get("py:module")
        self.env.ref_context["py:module"] = "finecal"
        lines = [
            ".. autosummary::",
            "   :nosignatures:",
            "",
            *(f"   {name}" for name in names),
        ]
        summaries = self.parse_text_to_nodes("\n".join(lines))
        self.env.ref_context["py:module"] = module
        return summaries


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("summaries", Summaries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
