"""The command line: ``finecal estimate``, ``evaluate``, ``apply``, ``report`` and ``demo``.

Import `main` from the package. Its modules may import every other package, and no other package may import this one.
"""

from .arguments import main

__all__ = ["main"]
