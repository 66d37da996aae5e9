"""The report: one HTML file that shows what gamma does, and lets the reader move it. Needs the extra ``report``.

``document.py`` fills ``page.html``, ``page.css`` and the scripts with what the other modules make of the samples: the
words, the figures, and the data from which ``counts.js`` counts anew at each gamma.
"""

from .document import html_of_report, html_report

__all__ = ["html_of_report", "html_report"]
