"""Formulas as MathML, which browsers show by themselves: no script, and nothing from the network."""

import re

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

LATEX = LatexToMathML(fancy_error=False)
ENVIRONMENT = re.compile(r"\\begin\{(\w+)\}.*?\\end\{\1\}", re.DOTALL)


def convert(latex: str, node: nodes.Node, *, display: bool) -> str:
    try:
        return LATEX.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        logging.getLogger(__name__).warning("%s in the formula %s", error, latex, location=node)
        return ""


def pieces(latex: str) -> list[str]:
    r"""Return what stands on lines of its own, or may where a line is too short: what \qquad tells apart."""
    lines = [line for line in latex.strip().split("\n\n") if line.strip()]
    if len(lines) == 1 and not re.search(r"&|\\\\", ENVIRONMENT.sub("", latex)):
        return latex.split(r"\qquad")
    return [r"\begin{aligned}" + r" \\ ".join(lines) + r"\end{aligned}"]


def visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext(), node, display=False))
    raise nodes.SkipNode


def visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body += [convert(piece, node, display=True) for piece in pieces(node.astext())]
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
