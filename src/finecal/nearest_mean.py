"""The nearest class mean classifier: what the features alone can tell apart, without a head."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .logits import LabelScalars, label_scalars, margin_of
from .margin import Margins

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
