"""Whether the absent classes can still be told from each other: what fine-tuning has left of their logits.

A damaged block of absent classes collapses onto a few of them, which then win for whatever sample. How many do is the
exponential of the winners' entropy, over that of as many random draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation.samples import Samples, Scan
from ..inputs.arrays import Mask
from ..inputs.groups import Grouping, groups_of
from ..logits.torch_kernels import winners
from .design_effect import design_effect_of_classes
from .fold_search import FEW_CLASSES
from .folds import FoldReading, PseudoFold, list_folds, read_fold

_ENTRIES, _LEAST_ROWS = 1 << 22, 1024
"""Of the logits that are looked at: so many numbers, but no fewer rows."""
_HEALTHY_RIVALS, _HEALTHY_STREAM, _HEALTHY_FOLDS, _HEALTHY_AGREEMENT = 0.65, 0.8, 0.5, 0.9
"""From where on each of the ratios is that of absent classes as good as seen ones."""
_FEW_SAMPLES = 10
_FEW_IN_FOLD = 20


class AbsentRetention(NamedTuple):
    """How good the absent classes are within their group, as a share of the seen ones; at most 1."""

    value: float
    evidence: str
    """In words, where it is below 1."""


def retention_from_rivals(scan: Scan, pretrained: Tensor | None = None) -> AbsentRetention:
    """Compare the winners among the absent classes with those among the seen ones, the label left out.

    With the logits of the model before fine-tuning, the mean of that and of the same relative to what it was before.
    """
    rows = _some_rows(len(scan.labels), scan.logits)
    groups = groups_of(scan.groups, rows)
    ratio = _rival_ratio(scan.logits[rows], scan.labels[rows], scan.mask, groups)
    value = min(1.0, ratio / _HEALTHY_RIVALS)
    words = "seen samples without their label have few winners among the absent classes"
    if pretrained is not None:
        before = min(1.0, _rival_ratio(pretrained[rows], scan.labels[rows], scan.mask, groups))
        value = (value + min(1.0, ratio / before / _HEALTHY_RIVALS)) / 2
        words += ", fewer than before fine-tuning"
    return AbsentRetention(value, words)


def retention_from_unlabelled(unlabelled: Samples, mask: Tensor, gap: float) -> AbsentRetention | None:
    """Look at the winners of the unlabelled samples that prefer absent classes at the gap; None if they are few.

    With the logits of the model before fine-tuning, see also how often its winner is the same, against the same among
    the samples that prefer seen classes.
    """
    logits, pretrained = unlabelled.logits_tensor, unlabelled.pretrained_tensor
    mask, margin = mask.to(logits.device), unlabelled.margin(mask)
    rows = _some_rows(len(logits), logits)
    x, absent = logits[rows], margin[rows].double() < gap
    if int(absent.sum()) < _FEW_SAMPLES:
        return None
    of_stream = winners(x, mask)
    of_absent = groups_of(groups_of(unlabelled.grouping, rows), absent)
    value = min(1.0, _relative_number(of_stream.absent[absent], ~mask & _unmasked(x), of_absent) / _HEALTHY_STREAM)
    words = "unlabelled samples have few winners among the absent classes"
    if pretrained is not None and int((~absent).sum()) >= _FEW_SAMPLES:
        before = winners(pretrained[rows], mask)
        kept_absent = float((of_stream.absent == before.absent)[absent].double().mean())
        kept_seen = float((of_stream.seen == before.seen)[~absent].double().mean())
        agreement = min(1.0, kept_absent / kept_seen / _HEALTHY_AGREEMENT) if kept_seen > 0 else 1.0
        value = (value + agreement) / 2
        words += f", and {100 * kept_absent:.0f} % keep the one that they had before fine-tuning"
    return AbsentRetention(value, words)


class FoldRetention(NamedTuple):
    """What the folds say, or why they say nothing."""

    retention: AbsentRetention | None
    number: int
    sentences: list[str]


NO_FOLDS = FoldRetention(None, 0, [])


def retention_from_folds(folds: Iterable[PseudoFold], seen_mask: Mask) -> FoldRetention:
    """Compare the accuracies within the pseudo-absent and within the pseudo-seen classes."""
    listed = list_folds(folds)
    readings = [read_fold(fold, seen_mask, False, number) for number, fold in enumerate(listed)]
    fewest = min(reading.num_absent for reading in readings)
    if fewest < FEW_CLASSES:
        few = f"the folds were not used: {fewest} pseudo-absent classes are too few to stand in for the absent ones"
        return FoldRetention(None, len(listed), [few])
    smallest = min(int(group.sum()) for reading in readings for group in _groups(reading))
    if smallest < _FEW_IN_FOLD:
        few = f"the folds were not used: {smallest} samples of a group are too few to tell what was damaged"
        return FoldRetention(None, len(listed), [few])
    seen, absent = (_mean([_accuracy(reading, group) for reading in readings]) for group in (True, False))
    words = (
        f"in the folds {100 * absent:.0f} % of the pseudo-absent samples are right among their own classes, and "
        f"{100 * seen:.0f} % of the pseudo-seen ones"
    )
    ratio = absent / seen if seen > 0 else 1.0
    return FoldRetention(AbsentRetention(min(1.0, ratio / _HEALTHY_FOLDS), words), len(listed), [])


# --- how many classes win ---------------------------------------------------------------------------------------------


def _rival_ratio(logits: Tensor, labels: Tensor, mask: Tensor, groups: Grouping | None) -> float:
    rest = logits.scatter(1, labels.unsqueeze(1), -math.inf)
    rivals = winners(rest, mask)
    scored = _unmasked(logits)
    absent = _relative_number(rivals.absent, ~mask & scored, groups)
    return absent / _relative_number(rivals.seen, mask & scored, groups)


def _relative_number(classes: Tensor, group: Tensor, groups: Grouping | None = None) -> float:
    """Return the effective number of winners over that of as many random draws from the classes of the group.

    Winners of samples that belong together are alike, and count for as many draws as are independent.
    """
    draws = max(1, round(len(classes) / design_effect_of_classes(classes, groups)))
    counts = torch.bincount(classes)
    part = counts[counts > 0].double() / len(classes)
    entropy = float(-(part * part.log()).sum())
    return math.exp(entropy - _entropy_of_draws(draws, max(1, int(group.sum()))))


def _entropy_of_draws(n: int, k: int) -> float:
    """Return the expected entropy of the shares that k classes have in n draws: their numbers are binomial."""
    if k == 1 or n == 1:
        return 0.0
    mean = n / k
    most = min(n, math.ceil(mean + 12 * math.sqrt(mean) + 30))
    count = torch.arange(1, most + 1, dtype=torch.float64, device="cpu")
    total = torch.tensor(float(n), dtype=torch.float64, device="cpu")
    ways = torch.lgamma(total + 1) - torch.lgamma(count + 1) - torch.lgamma(total - count + 1)
    probability = (ways - count * math.log(k) + (total - count) * math.log1p(-1 / k)).exp()
    share = count / n
    return float(-k * (probability * share * share.log()).sum())


def _unmasked(logits: Tensor) -> Tensor:
    """Return which classes -inf does not mask in all rows."""
    return logits.amax(0) > -math.inf


def _some_rows(n: int, logits: Tensor) -> Tensor:
    """Return the indices of evenly spaced rows, as many as are worth looking at."""
    most = max(_LEAST_ROWS, _ENTRIES // logits.shape[1])
    if n <= most:
        return torch.arange(n, device=logits.device)
    return torch.arange(most, device=logits.device) * n // most


def _groups(reading: FoldReading) -> tuple[Tensor, Tensor]:
    return reading.margins.is_seen, ~reading.margins.is_seen


def _accuracy(reading: FoldReading, is_seen: bool) -> float:
    return float(reading.margins.hit[reading.margins.is_seen == is_seen].double().mean())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
