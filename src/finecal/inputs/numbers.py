"""Checks of single numbers and choices: shares, counts, seeds, temperatures."""

import math
from collections.abc import Sequence
from typing import Any, SupportsFloat

import torch
from torch import Tensor


def as_float(value: SupportsFloat) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_num_classes(num_classes: object) -> int:
    if isinstance(num_classes, bool) or not hasattr(num_classes, "__index__") or getattr(num_classes, "ndim", 0) != 0:
        raise TypeError(f"num_classes is a {type(num_classes).__name__}; pass the number of columns of the logits")
    count = int(num_classes.__index__())
    if count < 2:
        raise ValueError(f"num_classes is {count}; at least one seen and one absent class are needed")
    return count


def check_share(value: Any, name: str) -> float:
    """A fraction strictly between 0 and 1."""
    number = check_number(value, name)
    if not 0 < number < 1:
        percent = f" ({number} % is {number / 100})" if 1 < number < 100 else ""
        raise ValueError(f"{name} is {number}; it must lie strictly between 0 and 1{percent}")
    return number


def check_max_seen_drop(value: Any) -> float:
    number = check_number(value, "max_seen_drop")
    if not 0 <= number <= 1:
        raise ValueError(f"max_seen_drop is {number}; it is a fraction in [0, 1]: 0.02 allows a loss of two points")
    return number


def check_number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, SupportsFloat) or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} is a {type(value).__name__}; pass a number")
    number = as_float(value)
    if math.isnan(number):
        raise ValueError(f"{name} is NaN; pass a number")
    return number


def check_finite(value: Any, name: str) -> float:
    number = check_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; it must be finite")
    return number


def check_temperature(value: Any, name: str) -> float:
    """Positive and finite in float32; returned as float32 rounds it."""
    number = check_number(value.detach() if isinstance(value, Tensor) else value, name)
    single = float(torch.tensor(number, dtype=torch.float32, device="cpu"))
    if not torch.finfo(torch.float32).tiny <= single < math.inf:
        raise ValueError(f"{name} is {number}; it must be positive and finite in float32")
    return single


def check_bounds(bounds: Any) -> tuple[float, float]:
    """Two temperatures, the smaller one first."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise TypeError(f"bounds are {bounds!r}; pass the smallest and the largest temperature")
    low, high = (check_temperature(bound, "a bound") for bound in bounds)
    if low >= high:
        raise ValueError(f"bounds are ({low:.6g}, {high:.6g}); the first must be below the second")
    return low, high


def check_choice(value: object, choices: tuple[str, ...], name: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")
    return value


def check_seed(seed: object) -> int:
    value = check_count(seed, "seed")
    if value >= 1 << 63:
        raise ValueError(f"seed is {value}; it must be below 2**63")
    return value


def check_count(value: object, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} is a {type(value).__name__}; pass an integer")
    count = int(value.__index__())
    if count < 0:
        raise ValueError(f"{name} is {count}; it cannot be negative")
    return count


def check_bins(n_bins: object, least: int = 1) -> int:
    count = check_count(n_bins, "n_bins")
    if count < least:
        raise ValueError(f"n_bins is {count}; pass at least {least}")
    return count
