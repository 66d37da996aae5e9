"""Numbers in words: percentages, points and what changed, "-" where a number is not defined."""

import math

UNDEFINED = "-"
"""For NaN: an accuracy without samples, say. Every console prints it."""


def percent(fraction: float, decimals: int = 1) -> str:
    """Return 0.5 as "50.0", without the sign."""
    return UNDEFINED if math.isnan(fraction) else f"{100 * fraction:.{decimals}f}"


def points(after: float, before: float = 0.0) -> str:
    """Return a difference of fractions in points, with its sign: "+1.5"."""
    return UNDEFINED if math.isnan(after - before) else f"{100 * (after - before):+.1f}"


def from_to(before: float, after: float) -> str:
    """Return "12.5 -> 50.0 %"."""
    return f"{percent(before)} -> {percent(after)} %"


def decimal(value: float, decimals: int) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.{decimals}f}"
