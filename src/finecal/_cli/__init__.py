"""The command line ``finecal``, with its commands from ``estimate`` to ``demo``.

Import `main` from the package. Its modules may import every other package, and no other package may import this one.
"""

from .arguments import main

__all__ = ["main"]
