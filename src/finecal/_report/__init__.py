"""The report, one HTML file on the effect of gamma, with a slider. It needs the extra ``report``.

Import `html_report` and `html_of_report` from the package. Its modules may import packages up to `calibrators`, and
`plots`.

``document.py`` fills the templates with the text, the figures and the tallies, from which ``counts.js`` computes the
counts at each gamma. The figures are SVG, because importing matplotlib takes longer than making the page.
"""

from .document import html_of_report, html_report

__all__ = ["html_of_report", "html_report"]
