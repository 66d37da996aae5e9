"""The weights of models: between before and after fine-tuning, and normalised in the head."""

from ._models.interpolate import interpolate_weights, normalize_head
from ._models.interpolation_search import (
    InterpolationSearch,
    InterpolationStep,
    search_interpolation,
)

__all__ = [
    "InterpolationSearch",
    "InterpolationStep",
    "interpolate_weights",
    "normalize_head",
    "search_interpolation",
]
