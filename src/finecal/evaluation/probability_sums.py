"""Scores of each sample's probabilities, and sums of them that can be merged."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..logits.predict import absent_indicator
from ..logits.tiles import tile_rows, tiles
from ..logits.workers import concat_columns, map_row_chunks
from .samples import Scan

_ROUNDED = 1 - 1e-12


class SampleScores(NamedTuple):
    """`(N,)` each: three in float64, three flags."""

    nll: Tensor
    brier: Tensor
    confidence: Tensor
    correct: Tensor
    is_seen: Tensor
    all_masked: Tensor


def no_samples() -> SampleScores:
    number, flag = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.bool)
    return SampleScores(number, number, number, flag, flag, flag)


def no_class_excess(num_classes: int, edges: Tensor) -> Tensor:
    return edges.new_zeros(num_classes, edges.shape[0] - 1)


def equal_width_edges(n_bins: int, device: torch.device) -> Tensor:
    return torch.arange(n_bins + 1, dtype=torch.float64, device=device) / n_bins


def equal_mass_edges(confidence: Tensor, width: Tensor) -> Tensor:
    """Return edges at quantiles that are confidences themselves; those of equal width without samples."""
    n, n_bins = confidence.shape[0], width.shape[0] - 1
    if n == 0:
        return width
    ranks = (torch.arange(1, n_bins, device=width.device) * n + n_bins - 1) // n_bins - 1
    return torch.cat([width[:1], confidence.sort().values[ranks], width[-1:]])


def bin_of(values: Tensor, edges: Tensor) -> Tensor:
    """Return the index of the bin ``(edges[b], edges[b+1]]`` that holds each value in [0, 1]; 0 is in the first."""
    return torch.searchsorted(edges[1:-1].contiguous(), values.contiguous())


def score_samples(scan: Scan, gamma: float, edges: Tensor) -> tuple[SampleScores, Tensor]:
    """Score each sample, and return by how much the probabilities of each class in each bin exceed its labels.

    The `(C, B)` sums stand for the classwise calibration error: it needs no counts.
    """
    x, labels, scalars = scan.logits, scan.labels, scan.scalars
    seen_max, absent_max = scalars.seen_max.double(), scalars.absent_max.double() + gamma
    predicts_absent = scan.margin.double() < gamma
    winner, top = torch.where(predicts_absent, absent_max, seen_max), torch.maximum(seen_max, absent_max)
    all_masked = top == -math.inf
    if bool(all_masked.any()):
        top, winner = top.masked_fill(all_masked, 0), winner.masked_fill(all_masked, 0)

    shift = absent_indicator(scan.mask, torch.float64) * gamma
    no_excess = no_class_excess(x.shape[1], edges)

    def kernel(rows: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        class_excess, parts = no_excess.clone(), []
        blocks = zip(*(torch.split(column.unsqueeze(1), tile_rows(rows)) for column in columns), strict=True)
        for (tile, scratch), block in zip(tiles(rows, torch.float64, writable=True), blocks, strict=True):
            own, highest, won, masked = block
            tile.add_(shift)
            if bool(masked.any()):
                tile.masked_fill_(masked, 0)
            parts.append(_score_tile(tile.sub_(highest), own, won - highest, edges, class_excess, scratch))
        return (*concat_columns(parts), class_excess.unsqueeze(0))

    nll, brier, confidence, class_excess = map_row_chunks(kernel, x, labels, top, winner, all_masked)
    correct = scalars.hit & (scalars.is_seen != predicts_absent)
    return SampleScores(nll, brier, confidence, correct, scalars.is_seen, all_masked), class_excess.sum(0)


def _score_tile(
    tile: Tensor, own: Tensor, winner: Tensor, edges: Tensor, class_excess: Tensor, scratch: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Score the rows of a (writable) tile whose largest logit is 0, and add their probabilities to `class_excess`.

    Probabilities beyond the first bin are few, as a row's sum to 1: they are taken out and added one by one. The others
    are added by a product with the whole tile.
    """
    own_logit = tile.gather(1, own).squeeze(1)
    weight = tile.exp_()
    total = weight.sum(1)
    own_weight = weight.gather(1, own).squeeze(1)
    own_share = own_weight / total
    others = torch.mul(weight, weight, out=scratch).sum(1) - own_weight.square()
    brier = (1 - own_share).square() + others.clamp(min=0) / total.square()

    flat, n_bins = class_excess.view(-1), edges.shape[0] - 1
    row, column = (weight > (edges[1] * _ROUNDED * total).unsqueeze(1)).nonzero().unbind(1)
    share = weight[row, column] / total[row]
    flat.index_add_(0, column * n_bins + bin_of(share, edges), share)
    weight[row, column] = 0
    class_excess[:, 0] += total.reciprocal() @ weight
    flat.index_add_(0, own.squeeze(1) * n_bins + bin_of(own_share, edges), -torch.ones_like(own_share))
    return total.log() - own_logit, brier, winner.squeeze(1).exp() / total


def probability_sums(samples: SampleScores, class_excess: Tensor, edges: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add up what the report is made of; row 0 of each sum is of absent samples, row 1 of seen ones."""
    group = samples.is_seen.long()

    def add(values: Tensor, bins: Tensor, n_bins: int) -> Tensor:
        return values.new_zeros(2 * n_bins).index_add_(0, group * n_bins + bins, values).view(2, n_bins)

    one_bin = torch.zeros_like(group)
    sums = {
        "nll": add(samples.nll, one_bin, 1),
        "brier": add(samples.brier, one_bin, 1),
        "class_excess": class_excess,
        "all_masked": samples.all_masked.sum(),
    }
    for kind, of_kind in edges.items():
        bins, n_bins = bin_of(samples.confidence, of_kind), of_kind.shape[0] - 1
        sums[f"{kind}_count"] = add(torch.ones_like(group), bins, n_bins)
        sums[f"{kind}_correct"] = add(samples.correct.long(), bins, n_bins)
        sums[f"{kind}_confidence"] = add(samples.confidence, bins, n_bins)
    return sums
