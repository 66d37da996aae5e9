"""The weights of models: between before and after fine-tuning, in normalised heads, and in heads that were replaced."""

from ._calibrators.restored_head import RestoredHead, fit_restored_head
from ._models.interpolate import interpolate_weights, normalize_head
from ._models.interpolation_search import (
    InterpolationSearch,
    InterpolationStep,
    search_interpolation,
)
from ._models.side_by_side import SideBySide, run_side_by_side

__all__ = [
    "InterpolationSearch",
    "InterpolationStep",
    "RestoredHead",
    "SideBySide",
    "fit_restored_head",
    "interpolate_weights",
    "normalize_head",
    "run_side_by_side",
    "search_interpolation",
]
