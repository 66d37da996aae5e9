"""The way up, for `plot` and `to_html` of a result: what draws results stands above them.

The only file that reaches for a later package, and only when it is asked to.
"""

from importlib import import_module
from types import ModuleType


def plots() -> ModuleType:
    """Return `finecal.plots`."""
    return import_module("...plots", __name__)


def page() -> ModuleType:
    """Return `finecal.page`."""
    return import_module("...page", __name__)
