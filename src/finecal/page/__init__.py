"""The report: one HTML file that shows what gamma does, with a slider that moves it. It needs the extra ``report``.

Import `html_report` and `html_of_report` from the package. Its modules may import packages up to `calibrators`, and
`plots`.

``document.py`` fills ``page.html``, ``figure.html``, ``page.css`` and the scripts with what the other modules make of
the samples: the text, the figures, and the tallies from which ``counts.js`` counts anew at each gamma. The figures are
SVG of the page itself: to import matplotlib takes longer than to make the page.
"""

from .document import html_of_report, html_report

__all__ = ["html_of_report", "html_report"]
