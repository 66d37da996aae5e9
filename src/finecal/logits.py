"""Work on rows of logits: margins, classes that are left out, and compiled kernels."""

from ._core.calibrate import KeptClasses, drop_classes
from ._core.compiled import compile_kernels
from ._core.report import Margins

__all__ = ["KeptClasses", "Margins", "compile_kernels", "drop_classes"]
