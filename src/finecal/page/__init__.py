"""The report: one HTML file that shows what gamma does, with a slider that moves it. It needs the extra ``report``.

Import `html_report` and `html_of_report` from the package. Its modules may import packages up to `calibrators`, and
`plots`.

``document.py`` fills ``page.html``, ``page.css`` and the scripts with what the other modules make of the samples: the
words, the figures, and the data from which ``counts.js`` counts anew at each gamma.
"""

from .document import html_of_report, html_report

__all__ = ["html_of_report", "html_report"]
