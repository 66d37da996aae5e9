"""Whether logits, labels and gamma look right: labels that are guesses or moved, masks by large numbers, rounding."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .arrays import dtype_name
from .checks import named_classes
from .kernels import LabelHits, wide_dtype
from .reductions import winners
from .results import percent
from .warning import warn

_LEVEL = 0.05
_TWICE, _AGREEMENT = 2.0, 0.15
"""A useful model is right twice as often as a guess or, where there are few classes, beyond chance in this share."""
_USEFUL = 0.1
"""Least share of hits of a useful model, where hits are not significantly more than guesses."""
_MOST_COUNTED = 10_000
_SHIFTED_ROWS = 4096
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
    """Describe hits that are hardly more frequent than guesses within the groups; "" if they are more frequent.

    Let g be the share of hits by guessing. There is doubt if so few hits have a probability of at most 5 % under a
    share of min(2 g, g + 0.15 (1 - g)), or of 10 % where hits are not more than guesses. One class gives no doubt.
    """
    told = [group for group in groups if group.classes > 1 and group.samples > 0]
    n, hits = sum(group.samples for group in told), sum(group.hits for group in told)
    if n == 0:
        return ""
    guessed = sum(group.samples / group.classes for group in told) / n
    guesses = [(group.samples, 1 / group.classes) for group in told]
    useful = sum(size * min(_TWICE * guess, guess + _AGREEMENT * (1 - guess)) for size, guess in guesses) / n
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
    """Detect an off-by-one in the labels: replacing each by its neighbour gives more hits, and few labels are hits."""
    n = len(labels)
    if n == 0 or 2 * int(hits.hit.count_nonzero()) >= n:
        return ""
    step = -(-n // _SHIFTED_ROWS)
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


def _at_most(count: int, n: int, share: float) -> float:
    """Return the binomial probability of at most `count` of n; beyond n = 10,000 that of 10,000, an upper bound."""
    from scipy.special import bdtr

    if n > _MOST_COUNTED:
        count, n = -(-count * _MOST_COUNTED // n), _MOST_COUNTED
    return float(bdtr(count, n, share))


_MASK_LOGITS = 1 << 15
"""Logits, of rows from all over the data."""
_LOWEST = -50.0
"""Logits above this are no mask, which is told by one look at the smallest."""
_FAR = 10.0
"""Times the spread of the other logits, that a mask lies below them."""


def mask_warnings(logits: Tensor, name: str = "logits") -> list[str]:
    """Return a warning if logits lie together, equal or not, far below all others: gamma would depend on that mask."""
    n, classes = logits.shape
    height = max(1, min(n, _MASK_LOGITS // classes))
    rows = logits[:: -(-n // height)] if n else logits
    finite = rows.isfinite()
    if not bool((finite & (rows < _LOWEST)).any()):
        return []
    ordered = rows[finite].double().sort().values
    gaps = ordered.diff()
    if not bool(gaps.any()):
        return []
    last = int(gaps.argmax())
    (lowest, end), (low, high) = (ordered[[0, last]].tolist(), ordered[[last + 1, -1]].tolist())
    gap = low - end
    together = (high - low) * _FAR < gap and (end - lowest) * _FAR < gap and end < _LOWEST and high > low
    if not together or 2 * (last + 1) < len(rows):
        return []
    masked = finite & (rows.double() <= end)
    always = masked.all(0)
    where = named_classes(always) if bool(always.any()) else f"{int(masked.any(0).count_nonzero())} classes"
    cut = low - min((low - end) / 2, 10.0 ** math.ceil(math.log10(max(1.0, abs(low)))))  # with few digits
    how = "in every row" if bool(always.any()) else "in some rows each"
    return [
        f"{name} look masked by a large number, which gamma would have to make up for. They are about {lowest:.4g} for "
        f"{where} {how}, and all others lie from {low:.4g} to {high:.4g}: mask by -inf, which is left out: "
        f"{name}[{name} < {cut:.4g}] = -inf"
    ]


_ROUNDED_ROWS = 1024


def rounding_warnings(logits: Tensor, gamma: float) -> list[str]:
    """Return a warning if gamma overflows in the dtype of the checked logits, or is lost in rounding beside them."""
    n = len(logits)
    top = logits[:: max(1, n // _ROUNDED_ROWS)].to(wide_dtype(logits.dtype)).amax(1).abs()
    top = top[top.isfinite()]
    if gamma == 0 or len(top) == 0:
        return []
    dtype, limits = dtype_name(logits), torch.finfo(logits.dtype)
    if float(top.max()) + abs(gamma) > limits.max:
        return [
            f"gamma = {gamma:.4g} overflows in {dtype}, which ends at {limits.max:.4g}: calibrate_logits would give "
            "inf; convert the logits with .double() first, or check the estimate"
        ]
    size = float(top.median())
    step = limits.eps * 2.0 ** math.floor(math.log2(size)) if size > 0 else 0.0
    if abs(gamma) >= step:
        return []
    return [
        f"gamma = {gamma:.4g} is lost in {dtype}: neighbouring numbers of the size of these logits ({size:.4g}) are "
        f"{step:.3g} apart. Added to them, gamma is lost or rounded to more than it is, while predict and evaluate "
        "count it in full: subtract from each row of logits its maximum, or convert them to a wider dtype"
    ]


def input_warnings(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> list[str]:
    """Return warnings about labels that seem to be of other samples or columns, and masks by large numbers."""
    doubt = label_warning(logits, labels, mask, hits)
    return [*([doubt] if doubt else []), *mask_warnings(logits)]


def warn_of_input(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> None:
    """Issue the `input_warnings`."""
    for sentence in input_warnings(logits, labels, mask, hits):
        warn(sentence)
