"""The command line: ``finecal estimate``, ``evaluate``, ``apply``, ``report`` and ``demo``.

Import `main`; all other packages of finecal may be imported here, and none imports this one.
"""

from .arguments import main

__all__ = ["main"]
