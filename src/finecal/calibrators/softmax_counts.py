"""Passes over logits for what many softmaxes of the same rows, with different biases, expect of each class.

The exponentials are taken once: a bias is a factor of a column, so that the sums of the rows, and then those of the
classes, are two matrix products for all softmaxes.
"""

import torch
from torch import Tensor

from ..logits.tiles import tile_rows
from ..logits.workers import map_row_chunks

_SPREAD = {torch.float32: 40.0, torch.float64: 300.0}
"""How far factors of columns may lie apart, as logarithms, until sums or their squares lose terms that matter."""
_NEGLIGIBLE = -500.0
"""The logarithm of a probability that is 0; stands in for -inf, whose product with 0 would be NaN."""


def expected_counts(
    logits: Tensor, scale: float, biases: Tensor, groups: Tensor, weights: Tensor, dtype: torch.dtype
) -> Tensor:
    r"""Return :math:`\sum_n w_{f g_n} \, p_{nc}` with p the softmax of ``scale * z + bias``, `(F, L, C)`.

    Biases are `(F, L, C)`, of L softmaxes with each of F weightings; `groups` `(N,)` says which column of the
    `(F, G)` weights is that of a sample. Exponentials and products are in `dtype`, biases and results in float64.
    """
    counts, _ = _sums(logits, scale, biases, groups, weights, dtype, 1)
    return counts


def counts_and_squares(
    logits: Tensor, scale: float, biases: Tensor, groups: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    r"""Return `expected_counts`, and the same of the squares :math:`p_{nc}^2`."""
    return _sums(logits, scale, biases, groups, weights, dtype, 2)


def _sums(
    logits: Tensor, scale: float, biases: Tensor, groups: Tensor, weights: Tensor, dtype: torch.dtype, order: int
) -> tuple[Tensor, Tensor]:
    rows = biases.flatten(0, 1)
    center = (rows.amax(0) + rows.amin(0)) / 2
    below = rows - center
    below = below - below.amax(1, keepdim=True)
    spread = -float(below.min())
    if spread > _SPREAD[dtype]:
        if spread <= _SPREAD[torch.float64]:
            return _sums(logits, scale, biases, groups, weights, torch.float64, order)
        return _one_by_one(logits, scale, biases, groups, weights, dtype, order)
    factors = below.exp().to(dtype)
    center, table = center.to(dtype), weights.to(dtype)
    height = max(1, tile_rows(logits) * logits.shape[1] // max(factors.shape))

    def kernel(some: Tensor, their_groups: Tensor) -> tuple[Tensor, ...]:
        totals = [torch.zeros_like(rows) for _ in range(order)]
        scratch = some.new_empty((min(height, len(some)), some.shape[1]), dtype=dtype)
        for block, group in zip(torch.split(some, height), torch.split(their_groups, height), strict=True):
            weight = _below_top(block, scale, center, scratch[: len(block)]).exp_()
            sums = (factors @ weight.T).view(*biases.shape[:2], -1)
            share = table[:, group].unsqueeze(1) / sums
            totals[0] += share.flatten(0, 1) @ weight
            if order == 2:
                totals[1] += (share / sums).flatten(0, 1) @ weight.square_()
        return tuple(total.unsqueeze(0) for total in totals)

    totals = map_row_chunks(kernel, logits, groups)
    factors = below.exp()
    first, last = (
        (total.sum(0) * factors**power).view(*biases.shape[:2], -1)
        for power, total in zip((1, order), (totals[0], totals[-1]), strict=True)
    )
    return first, last


def _one_by_one(
    logits: Tensor, scale: float, biases: Tensor, groups: Tensor, weights: Tensor, dtype: torch.dtype, order: int
) -> tuple[Tensor, Tensor]:
    """Take the exponentials anew for each softmax, whose own biases are then in the middle."""
    count, some, _ = biases.shape
    found = [
        _sums(logits, scale, biases[f : f + 1, i : i + 1], groups, weights[f : f + 1], dtype, order)
        for f in range(count)
        for i in range(some)
    ]
    first, last = (torch.cat(parts).reshape(biases.shape) for parts in zip(*found, strict=True))
    return first, last


def shortfall_and_variance(logits: Tensor, scale: float, bias: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return by how much scores fall short of the largest of their row, and their variance within it.

    The scores are ``scale * z + bias``, both means are over the classes, under the softmax, and over the rows.
    """
    bias, height = bias.to(dtype), tile_rows(logits)

    def kernel(some: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros(2, dtype=torch.float64, device=some.device)
        scratch, products = some.new_empty((2, min(height, len(some)), some.shape[1]), dtype=dtype)
        for block in torch.split(some, height):
            scores = _below_top(block, scale, bias, scratch[: len(block)]).clamp_(min=_NEGLIGIBLE)
            product = torch.exp(scores, out=products[: len(block)])
            sums = product.sum(1)
            mean = product.mul_(scores).sum(1) / sums
            square = product.mul_(scores).sum(1) / sums
            total[0] -= mean.double().sum()
            total[1] += (square - mean.square()).double().sum()
        return (total.unsqueeze(0),)

    (totals,) = map_row_chunks(kernel, logits)
    shortfall, variance = (totals.sum(0) / logits.shape[0]).tolist()
    return shortfall, variance


def _below_top(block: Tensor, scale: float, bias: Tensor, out: Tensor) -> Tensor:
    """Write ``scale * z + bias``, less the largest of each row."""
    given = block if block.dtype == out.dtype else out.copy_(block)
    torch.add(bias, given, alpha=scale, out=out)
    return out.sub_(out.amax(1, keepdim=True))
