"""How much the largest of several logits changes with one class more or less to compete."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class LargestTwo(NamedTuple):
    """The largest of each row's values, its lead over the next one (0 if there is none), and their number: float64.

    The largest of n values rises by spacing / (n + 1) on average with one more value, and falls by spacing / n with one
    less, if the values have an exponential tail (Rényi's representation).
    """

    largest: Tensor
    spacing: Tensor
    number: Tensor


def largest_two(values: Tensor) -> LargestTwo:
    """Look at `(N, C)` values, of which -inf ones are masked and do not count."""
    top = values.topk(min(2, values.shape[1])).values.double()
    spacing = top[:, 0] - top[:, -1]
    count = (values > -math.inf).sum(1).double()
    return LargestTwo(top[:, 0], torch.where(spacing.isfinite(), spacing, 0), count)
