"""Sphinx configuration."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.roles import XRefRole
from sphinx.util.docutils import SphinxRole

import finecal

project = "finecal"
author = "The finecal developers"
copyright = "2026, The finecal developers"
version = release = finecal.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"finecal {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]

autodoc_mock_imports = ["lightning", "ray", "transformers"]
# The docstrings say in words what an argument may be; the annotations are for type checkers.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_param = False
napoleon_use_rtype = False
# In docstrings these are numbers of classes, not substitutions.
rst_epilog = ".. |S| replace:: \\|S\\|\n.. |U| replace:: \\|U\\|\n"


class Backticks(SphinxRole):
    """Single backticks: a link to a name that finecal exports, code otherwise."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name = self.text.removeprefix("finecal.")
        modules = ("distributed.", "plots.", "streaming.")
        if name.partition(".")[0] not in finecal.__all__ and not name.startswith(modules):
            return [nodes.literal(self.rawtext, self.text)], []
        target = f"{self.text} <finecal.{name}>"
        return XRefRole()("py:obj", self.rawtext, target, self.lineno, self.inliner, self.options, self.content)


default_role = "backticks"


def setup(app: Sphinx) -> None:
    app.add_role("backticks", Backticks())
