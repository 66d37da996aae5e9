"""What a search engine shows of a page: how it begins, or what finecal is."""

import html
import textwrap
from importlib.metadata import metadata
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def description(doctree: nodes.document | None) -> str:
    """Return the first paragraph of the text, cut at a word; not one of a note, a list or a table."""
    paragraphs = doctree.findall(nodes.paragraph) if doctree else ()
    beginnings = (each.astext() for each in paragraphs if isinstance(each.parent, nodes.section))
    return textwrap.shorten(next(beginnings, metadata("finecal")["Summary"]), 200, placeholder=" …")


def describe(
    app: Sphinx,
    page: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    words = html.escape(description(doctree))
    context["metatags"] = f'{context.get("metatags", "")}\n<meta name="description" content="{words}">'


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
