"""Sphinx configuration."""

import ast
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.roles import XRefRole
from sphinx.util.docutils import SphinxDirective, SphinxRole

import finecal
from finecal.gamma.estimators import ESTIMATORS

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
html_css_files = ["tables.css", "gallery.css"]
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


filters_of_examples = ExitStack()


def warnings_are_errors(gallery_conf: dict[str, object], path: str, when: str) -> None:
    """Each example of the gallery runs as by `python -W error`; what Sphinx does after it does not."""
    if when == "before":
        filters_of_examples.enter_context(warnings.catch_warnings(action="error"))
        # plt.show() is for who runs the example at a display.
        warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
    else:
        filters_of_examples.close()


# From first steps to special topics; an example that is not named here comes after these. They also run in this order,
# two at a time, so the longest ones should not come last.
GALLERY_ORDER = (
    "the_problem",
    "digits",
    "digits_data",
    "wrap_model",
    "prototypes",
    "pictures",
    "report",
    "sklearn_partial_fit",
    "class_incremental",
    "zero_shot",
    "base_to_new",
    "production",
    "ablation",
    "when_estimators_fail",
    "why_logits_drift",
    "weight_interpolation",
)


def gallery_position(file: str) -> tuple[int, str]:
    name = Path(file).stem
    return GALLERY_ORDER.index(name) if name in GALLERY_ORDER else len(GALLERY_ORDER), name


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    # Those of integrations need heavy packages: they are shown here, and run elsewhere.
    "filename_pattern": r"examples/\w+\.py$",
    "ignore_pattern": r"(^|/)_\w+\.py$",  # modules that examples import
    "within_subsection_order": gallery_position,
    "default_thumb_file": str(Path(__file__).parent / "_static" / "not_run.svg"),
    "image_srcset": ["2x"],
    "capture_repr": ("_repr_html_",),
    "abort_on_example_error": True,
    "parallel": 2,
    "reset_modules": ("matplotlib", warnings_are_errors),
    "reset_modules_order": "both",
    "doc_module": ("finecal",),
    "reference_url": {"finecal": None},
    "copyfile_regex": "",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
}


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


def setup(app: Sphinx) -> None:
    app.add_role("backticks", Backticks())
    app.add_directive("estimators", Estimators)
    app.add_directive("packages", Packages)
