"""Whether labels belong to the logits: hits within the groups that are mere guesses, and labels moved by one class."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs.warning import warn
from ..logits.torch_kernels import LabelHits, winners
from ..results.format import percent

_LEVEL = 0.05
_TWICE, _AGREEMENT = 2.0, 0.15
"""A useful model is right twice as often as a guess or, where there are few classes, beyond chance in this share."""
_USEFUL = 0.1
"""Least share of hits of a useful model, where hits are not significantly more than guesses."""
_MOST_COUNTED = 10_000
_LOOKED_AT = 4096
_STANDARD_ERRORS = 3.0


class GroupHits(NamedTuple):
    """How many samples have a label of one group, and how many of them are hits."""

    samples: int
    hits: int
    classes: int


def group_hits(is_seen: Tensor, hit: Tensor, mask: Tensor) -> list[GroupHits]:
    """Count the samples and the hits of the seen and of the absent group."""
    groups = zip((is_seen, ~is_seen), group_sizes(mask), strict=True)
    return [GroupHits(int(of.count_nonzero()), int((hit & of).count_nonzero()), size) for of, size in groups]


def group_sizes(mask: Tensor) -> tuple[int, int]:
    """Return the number of seen and of absent classes."""
    seen = int(mask.count_nonzero())
    return seen, len(mask) - seen


def guessing_evidence(groups: Iterable[GroupHits]) -> str:
    """Describe hits that are hardly more frequent than guesses within the groups; "" if they are not so.

    A group of one class tells nothing. Let g be the share of hits that guesses give. A model of any use has at least
    2 g, or g + 0.15 (1 - g) where that is less: with 5 classes 32 %, with 2 classes 57.5 %. There is doubt if so few
    hits would have a probability of at most 5 % under such a share; where they are not more than guesses either, also
    under a share of 10 %, so that few samples of many classes are enough.
    """
    told = [group for group in groups if group.classes > 1 and group.samples > 0]
    n, hits = sum(group.samples for group in told), sum(group.hits for group in told)
    if n == 0:
        return ""
    guessed = sum(group.samples / group.classes for group in told) / n
    useful = sum(group.samples * _least_useful(1 / group.classes) for group in told) / n
    if hits >= n * max(useful, _USEFUL):
        return ""  # No fewer than the median: SciPy need not be loaded.
    if _at_most(n - hits, n, 1 - guessed) > _LEVEL:
        useful = max(useful, _USEFUL)
    if _at_most(hits, n, useful) > _LEVEL:
        return ""
    told_apart = f"only {percent(hits / n)} % of {n} samples are told apart within their own group"
    return f"{told_apart}, where guessing gives {percent(guessed)} %"


def hit_warning(groups: Iterable[GroupHits]) -> str:
    """Return the warning about hits that are hardly more frequent than guesses; "" if there is none."""
    if not (found := guessing_evidence(groups)):
        return ""
    return (
        f"labels do not seem to fit these logits: {found}. Check that they index all columns, in this order (labels "
        "that a loader has re-indexed to 0..|S|-1, of other samples, or a head that was made anew, look like this)"
    )


def warn_of_hits(groups: Iterable[GroupHits]) -> None:
    """Issue the `hit_warning`, if any."""
    if doubt := hit_warning(groups):
        warn(doubt)


def label_warning(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> str:
    """Return a warning if labels seem to belong to other samples or columns; "" if there is none."""
    return hit_warning(group_hits(mask[labels], hits.hit, mask)) or _order_warning(logits, labels, mask, hits)


def warn_of_labels(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> None:
    """Issue the `label_warning`, if any."""
    if doubt := label_warning(logits, labels, mask, hits):
        warn(doubt)


def _order_warning(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> str:
    """Detect an off-by-one in the labels: more of them are hits if each is replaced by its neighbour.

    Nothing where most labels are hits: classes that are alike are often neighbours.
    """
    n = len(labels)
    if n == 0 or 2 * int(hits.hit.count_nonzero()) >= n:
        return ""
    step = -(-n // _LOOKED_AT)
    rows, y = logits[::step], labels[::step]
    seen_max, absent_max, was_hit = (column[::step] for column in hits)
    best = None
    for neighbour in _neighbours(mask):
        moved = neighbour[y]
        is_largest = rows.gather(1, moved.unsqueeze(1)).squeeze(1) == torch.where(mask[moved], seen_max, absent_max)
        # The first largest is among the largest: a look at one logit of each row nearly always settles it.
        if not _has_more_hits(is_largest, was_hit):
            continue
        best = best or winners(rows, mask)
        is_hit = torch.where(mask[moved], best.seen, best.absent) == moved
        if _has_more_hits(is_hit, was_hit):
            before, after = float(was_hit.double().mean()), float(is_hit.double().mean())
            return (
                f"labels look moved by one class: {percent(before)} % of {len(y)} samples are told apart within "
                f"their own group, and {percent(after)} % if label {int(y[0])} is taken for {int(moved[0])}, and so "
                "on: check that labels index the columns of these logits, in this order, from 0"
            )
    return ""


def _has_more_hits(hit: Tensor, before: Tensor) -> bool:
    """Whether significantly more samples are hits than before: McNemar's test, of those that are hits once only."""
    gained, lost = int((hit & ~before).count_nonzero()), int((before & ~hit).count_nonzero())
    return gained - lost > _STANDARD_ERRORS * math.sqrt(gained + lost)


def _neighbours(mask: Tensor) -> list[Tensor]:
    """Return for each class the one before and the one after it, among all and within its group: `(C,)` each."""
    every = torch.arange(len(mask), device=mask.device)
    found = []
    for step in (-1, 1):
        within = every.clone()
        for group in (mask, ~mask):
            within[group] = every[group].roll(-step)
        found += [every.roll(-step), within]
    return found


def _least_useful(guess: float) -> float:
    return min(_TWICE * guess, guess + _AGREEMENT * (1 - guess))


def _at_most(count: int, n: int, share: float) -> float:
    """Return the probability that at most `count` of n samples are chosen, if each is with this probability.

    Beyond 10,000 samples it is that of 10,000 with the same share, which is larger.
    """
    from scipy.special import bdtr

    if n > _MOST_COUNTED:
        count, n = -(-count * _MOST_COUNTED // n), _MOST_COUNTED
    return float(bdtr(count, n, share))
