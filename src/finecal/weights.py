"""The weights of models: between before and after fine-tuning, in normalised heads, and in heads that were replaced."""

from ._calibrators.restored_head import RestoredHead, fit_restored_head
from ._models.interpolate import interpolate_weights, normalize_head
from ._models.interpolation_search import (
    InterpolationSearch,
    InterpolationStep,
    search_interpolation,
)

__all__ = [
    "InterpolationSearch",
    "InterpolationStep",
    "RestoredHead",
    "fit_restored_head",
    "interpolate_weights",
    "normalize_head",
    "search_interpolation",
]
