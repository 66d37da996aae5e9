"""What changed between two models: correct samples, logit gaps, rows of the head, nearest class means."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..logits.reductions import label_scalars, margin_of
from ..logits.torch_kernels import LabelScalars
from ..results.format import percent, points
from .logit_gaps import GAPS
from .margins import Margins
from .samples import Scan

MATTERS = 0.01
"""Smaller changes of an accuracy are not worth a word, however certain."""
_NOISE = 1.96
"""Standard errors of a change that chance exceeds in 5 % of cases, in either direction."""
_NOISE_AT_BEST = 2.72
"""The same at the highest point of a driftless walk: Rayleigh distributed, 2.5 % on each side of gamma = 0."""


class PairedChange(NamedTuple):
    """Change of an accuracy on the same `n` samples, of which `gained` became correct and `lost` became wrong."""

    gained: int
    lost: int
    n: int

    @property
    def change(self) -> float:
        """Accuracy after minus accuracy before, a fraction; NaN without samples."""
        return (self.gained - self.lost) / self.n if self.n else math.nan

    @property
    def standard_error(self) -> float:
        """Of `change`, if each sample that changed did so either way with equal chance (McNemar)."""
        return math.sqrt(self.gained + self.lost) / self.n if self.n else math.nan

    @property
    def direction(self) -> int:
        """1 for a rise and -1 for a fall of a point or more that McNemar's test (5 %, corrected) finds; else 0."""
        difference = self.gained - self.lost
        if abs(difference) - 1 <= _NOISE * math.sqrt(self.gained + self.lost) or abs(self.change) < MATTERS:
            return 0
        return 1 if difference > 0 else -1

    @property
    def is_gain_at_best(self) -> bool:
        """Whether the change, chosen as the largest over gamma, is a point or more and beyond what luck finds."""
        return self.change >= MATTERS and self.change > _NOISE_AT_BEST * self.standard_error

    def __str__(self) -> str:
        return f"{points(self.change)} ± {percent(self.standard_error)} points"


class LogitGap(NamedTuple):
    """Mean over samples of the groups' largest logits, and by how much the seen ones are larger than the absent."""

    seen_max: float
    absent_max: float
    max_gap: float
    average_gap: float


class GroupGaps(NamedTuple):
    """The logit gap over the samples with a seen, and over those with an absent label."""

    seen: LogitGap
    absent: LogitGap


class RowGroup(NamedTuple):
    """Mean norms of a group's head rows, and mean cosine similarity of the updates of each two of them."""

    pretrained_norm: float
    finetuned_norm: float
    update_cosine: float


class HeadRows(NamedTuple):
    """The head's rows of the seen, and of the absent classes."""

    seen: RowGroup
    absent: RowGroup


def paired_change(before: Tensor, after: Tensor) -> PairedChange:
    """Count the samples that are correct `(N,)` on one side only."""
    return PairedChange(int((after & ~before).sum()), int((before & ~after).sum()), before.shape[0])


def logit_gaps(scan: Scan) -> GroupGaps:
    """Average over the samples of each group in which -inf masks neither group of logits as a whole."""
    is_seen = scan.scalars.is_seen
    # With the groups swapped, the label that is left out is an absent one, and the gap has the other sign.
    gaps_of = GAPS["average_logit_gap"]
    swapped = -gaps_of(replace(scan, mask=~scan.mask))
    averages = torch.where(is_seen, gaps_of(scan), swapped)
    maxima = torch.stack([scan.scalars.seen_rival, scan.scalars.absent_rival], 1).double()

    def over(group: Tensor) -> LogitGap:
        seen_max, absent_max = maxima[group & maxima.isfinite().all(1)].mean(0).tolist()
        average = float(averages[group & averages.isfinite()].mean())
        return LogitGap(seen_max, absent_max, seen_max - absent_max, average)

    return GroupGaps(over(is_seen), over(~is_seen))


def head_rows(before: Tensor, after: Tensor, mask: Tensor) -> HeadRows:
    """Compare the rows of two head weights `(C, D)`; rows that did not move have no direction."""
    update = after - before
    length = update.norm(dim=1)

    def over(group: Tensor) -> RowGroup:
        moved = group & (length > 0)
        count = int(moved.sum())
        # The squared norm of a sum of unit vectors is their number plus the cosines of all ordered pairs.
        square = float((update[moved] / length[moved].unsqueeze(1)).sum(0).square().sum())
        cosine = (square - count) / (count * (count - 1)) if count > 1 else math.nan
        return RowGroup(float(before[group].norm(dim=1).mean()), float(after[group].norm(dim=1).mean()), cosine)

    return HeadRows(over(mask), over(~mask))


_BLOCK_ELEMENTS = 1 << 22


def nearest_mean_margins(
    features: Tensor, labels: Tensor, mask: Tensor, reference: Tensor, reference_labels: Tensor
) -> Margins[Tensor]:
    """Score `(N, D)` features by their cosines with the means of the reference set's classes, in float64.

    A class without reference samples cannot win, and its samples are left out. A feature of norm 0 has cosine 0 with
    all means.
    """
    known = torch.bincount(reference_labels, minlength=mask.shape[0]) > 0
    means = _class_means(reference, reference_labels, mask.shape[0])
    parts = [
        label_scalars((normalize(rows.double()) @ means.T).masked_fill(~known, -math.inf), y, mask)
        for rows, y in _blocks(features, labels, mask.shape[0])
    ]
    scalars = LabelScalars(*(torch.cat(column) for column in zip(*parts, strict=True)))
    margin = margin_of(scalars.seen_max, scalars.absent_max)
    kept = known[labels]
    return Margins(margin[kept], scalars.is_seen[kept], scalars.hit[kept], labels[kept])


def _class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the direction of the mean of each class's normalised features, `(C, D)`; 0 for a class without any."""
    total = torch.zeros((num_classes, features.shape[1]), dtype=torch.float64, device=features.device)
    for rows, y in _blocks(features, labels, num_classes):
        total.index_add_(0, y, normalize(rows.double()))
    return normalize(total)


def _blocks(features: Tensor, labels: Tensor, num_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    height = max(1, _BLOCK_ELEMENTS // max(num_classes, features.shape[1]))
    return zip(torch.split(features, height), torch.split(labels, height), strict=True)
