"""Mergeable states: what the functions compute from all logits at once, from batches, shards and machines.

A state is complete once constructed. ``update(logits, labels)`` or ``update(samples)`` adds a batch, ``merge(other)``
adds another state, and ``compute()`` gives the result as tensors, as often as wanted; ``update`` and ``merge`` change
the state in place and return it. Batches may be of any size, come in any order and be merged in any grouping: counts
agree bit for bit, sums to 1e-12 (those of `PrototypeSums`, whose products are formed in float32, to 1e-5). Nothing of
size (N, C) is kept. Sums are kept on the device of the state, which is that of its `seen_mask` until ``to(device)``.

States of labelled samples also take dense logits, such as `(B, C, H, W)` with labels `(B, H, W)` for a state with
``dim=1``: every position counts as a sample, but for those labelled `ignore_index`.
"""

from ._bins import BestGamma, BinnedCurve, MarginBins, MarginRows
from ._iou import BinnedIoUCurve, IoUBins, IoUSums
from ._prototypes import PrototypeParts, PrototypeSums
from ._state import ClassMoments, ClassSums
from ._sums import AccuracySums, GapEstimates, GapSums, ProbabilitySums

__all__ = [
    "AccuracySums",
    "BestGamma",
    "BinnedCurve",
    "BinnedIoUCurve",
    "ClassMoments",
    "ClassSums",
    "GapEstimates",
    "GapSums",
    "IoUBins",
    "IoUSums",
    "MarginBins",
    "MarginRows",
    "ProbabilitySums",
    "PrototypeParts",
    "PrototypeSums",
]
