"""Sphinx configuration."""

import warnings

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
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
suppress_warnings = ["config.cache"]  # the gallery's settings hold a function
exclude_patterns = ["_build", "gallery/**/*.ipynb", "gallery/**/*.py", "gallery/**/*.json", "gallery/**/*.md5"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"finecal {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "

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


def warnings_are_errors(gallery_conf: dict[str, object], path: str) -> None:
    """Before each example of the gallery, which then runs as by `python -W error`."""
    warnings.simplefilter("error")


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    # Those of integrations need heavy packages: they are shown here, and run elsewhere.
    "filename_pattern": r"examples/\w+\.py$",
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib", warnings_are_errors),
    "doc_module": ("finecal",),
    "reference_url": {"finecal": None},
    "copyfile_regex": "",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
}


def setup(app: Sphinx) -> None:
    app.add_role("backticks", Backticks())
