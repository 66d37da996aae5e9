"""Pages for narrow screens: cells of tables know the name of their column, and long names can be broken."""

import re
from typing import Any

from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx.application import Sphinx

# What cells that are no longer laid out as cells would not tell a screen reader.
ROLES = {
    "table": "table",
    "thead": "rowgroup",
    "tbody": "rowgroup",
    "tr": "row",
    "th": "columnheader",
    "td": "cell",
}


def label(table: Tag) -> None:
    """Mark a table that can be stacked, a row below the other, and label its cells."""
    names = [" ".join(cell.get_text().split()) for cell in table.select("thead > tr > th")]
    rows = [row.find_all(["td", "th"], recursive=False) for row in table.select("tbody > tr")]
    if any(len(row) != len(names or rows[0]) for row in rows):
        return  # cells that span others
    table["class"] = [*table.get_attribute_list("class"), "stacked"]
    for row in rows:
        for name, cell in zip(names, row, strict=False):  # without a header there are no names
            cell["data-label"] = name
    for part in (table, *table.find_all(ROLES)):
        part["role"] = "rowheader" if part.name == "th" and part.find_parent("tbody") else ROLES[part.name]


def break_name(name: Tag, page: BeautifulSoup) -> None:
    """Let a name break between its words: after a dot, an underscore or a bracket, and before a capital."""
    for text in name.find_all(string=True):
        first, *others = re.split(r"(?<=[._(/=])(?=\w)|(?<=[a-z])(?=[A-Z])", text)
        text.replace_with(
            first,
            *(part for other in others for part in (page.new_tag("wbr"), other)),
        )


def prepare(
    app: Sphinx,
    page: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    body = BeautifulSoup(context.get("body", ""), "html.parser")
    for table in body.find_all("table"):
        label(table)
    for name in body.select("table code, .sig-name, .sig-prename"):
        break_name(name, body)
    if body.contents:
        context["body"] = str(body)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
