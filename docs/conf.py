"""Sphinx configuration."""

import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

import finecal

HERE = Path(__file__).parent
sys.path.append(str(HERE / "_ext"))

project = "finecal"
author = "The finecal developers"
copyright = "2026, The finecal developers"
version = release = finecal.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx_reredirects",
    "code_names",
    "descriptions",
    "mathml",
    "narrow",
    "summaries",
]
suppress_warnings = ["config.cache"]  # the gallery's settings hold a function
exclude_patterns = [
    "_build",
    "gallery/**/*.ipynb",
    "gallery/**/*.py",
    "gallery/**/*.json",
    "gallery/**/*.md5",
]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Pages that have joined others, whose addresses go on.
redirects = {
    "citing": "how-to/paper-code.html#how-to-cite",
    "how-to/base-to-new": "clip.html#learned-prompts-base-to-new",
    "how-to/diagnosis": "results.html#can-calibration-help",
    "how-to/fold": "saving.html#a-saved-model-without-code",
    "how-to/imagenet-variants": "list-of-classes.html#the-1000-way-head-of-imagenet",
    "how-to/peft": "hugging-face.html#peft",
    "how-to/pictures": "results.html#as-a-picture",
    "how-to/ray": "distributed.html#ray",
    "how-to/report": "results.html#as-a-page-for-the-browser",
    "how-to/torchmetrics": "lightning.html#torchmetrics",
    "how-to/zero-shot": "clip.html#generalized-zero-shot-learning",
    "theory/index": "estimators.html",
    "theory/limits": "logits-drift.html#it-changes-no-order-within-a-group",
}

html_theme = "furo"
html_title = f"finecal {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = [
    "theme.css",
    "tables.css",
    "narrow.css",
    "formulas.css",
    "gallery.css",
]
html_js_files = ["scrolling.js"]
html_favicon = "_static/favicon.svg"
html_theme_options = {
    "light_logo": "logo_light.svg",
    "dark_logo": "logo_dark.svg",
}
html_math_renderer = "mathml"
html_search_scorer = str(HERE / "search_scorer.js")
# That of the theme underlines what is imported, like a link.
pygments_dark_style = "a11y-dark"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "

autodoc_mock_imports = [
    "lightning",
    "onnx",
    "onnxruntime",
    "ray",
    "torchvision",
    "transformers",
    "ultralytics",
]
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
default_role = "backticks"


filters_of_examples = ExitStack()


def warnings_are_errors(
    gallery_conf: dict[str, object], path: str, when: str
) -> None:
    """Each example of the gallery runs as by `python -W error`; what Sphinx does after it does not."""
    if when == "before":
        filters_of_examples.enter_context(
            warnings.catch_warnings(action="error")
        )
        # plt.show() is for who runs the example at a display.
        warnings.filterwarnings(
            "ignore", message="FigureCanvasAgg is non-interactive"
        )
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
    "restored_head",
    "pictures",
    "report",
    "sklearn_partial_fit",
    "class_incremental",
    "segmentation",
    "ocr",
    "detection",
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
    ordered = name in GALLERY_ORDER
    return (GALLERY_ORDER.index(name) if ordered else len(GALLERY_ORDER)), name


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    # Those of integrations need heavy packages: they are shown here, and run elsewhere.
    "filename_pattern": r"examples/\w+\.py$",
    "ignore_pattern": r"(^|/)_\w+\.py$",  # modules that examples import
    "within_subsection_order": gallery_position,
    "default_thumb_file": str(HERE / "_static" / "not_run.svg"),
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
