"""Folds of pseudo cross-validation: halves of the seen classes, and what a fold says, as scalars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._core.arrays import Mask, NumpyArray, as_type_of, check_count, check_seed, format_count
from .._core.checks import (
    as_bool_mask,
    check_mask_values,
    check_num_columns,
    check_only_seen,
    check_scores,
    named_classes,
    warn_if_reindexed,
)
from .._core.curve import TradeoffCurve
from .._core.groups import Grouping, check_several
from .._core.kernels import group_log_sum_exps
from .._core.objectives import MACRO_TOLERANCE, OBJECTIVES, accuracy_per_unit, interval_of
from .._core.plausibility import warn_of_labels
from .._core.reductions import label_scalars, margin_of
from .._core.report import Margins, accuracies_within, resample
from .._core.samples import Samples, SamplesLike, labelled_samples
from .._core.warning import warn

_MOST_SPLITS = 10_000
_RESAMPLE_EXPONENT = 0.75


@dataclass(frozen=True, eq=False, init=False)
class PseudoFold:
    """One fold of pseudo cross-validation: held-out samples scored by a model fine-tuned on the pseudo-seen classes.

    Parameters
    ----------
    samples : Samples, or (logits, labels)
        Held-out samples of the seen classes: `(N, C)` scores over all classes, of which columns outside S are ignored,
        and `(N,)` class indices, of pseudo-seen classes and of the others, which are pseudo-absent.
        ``constrained=True`` needs their `pretrained_logits`; an interval resamples whole `groups`.
    pseudo_seen_mask : (C,) bool
        True for the classes that the model was fine-tuned on, from `pseudo_cv_splits`.

    Raises
    ------
    TypeError, ValueError
        As `Samples`; TypeError also if the samples have no labels. Estimators check values and mask.

    Examples
    --------
    >>> import finecal
    >>> samples = [[4.0, 1.0, 0.0], [3.0, 2.5, 0.0]], [0, 1]
    >>> finecal.estimators.PseudoFold(samples, [True, False, False]).samples
    Samples(2 x 3 logits, labels)
    """

    samples: Samples
    pseudo_seen_mask: Mask

    # Not generated, so that the argument may be a pair and the field is Samples all the same.
    def __init__(self, samples: SamplesLike, pseudo_seen_mask: Mask) -> None:
        object.__setattr__(self, "samples", labelled_samples(samples, "samples"))
        object.__setattr__(self, "pseudo_seen_mask", pseudo_seen_mask)


@overload
def pseudo_cv_splits(seen_mask: Tensor, n_splits: int = 3, seed: int = 0) -> Tensor: ...
@overload
def pseudo_cv_splits(seen_mask: NumpyArray | Sequence[Any], n_splits: int = 3, seed: int = 0) -> NDArray[np.bool_]: ...
def pseudo_cv_splits(seen_mask: Mask, n_splits: int = 3, seed: int = 0) -> Tensor | NumpyArray:
    r"""Draw random halves of the seen classes: each the pseudo-seen classes of one fold.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes; at least two.
    n_splits : int, default 3
        K, the number of folds. The first three of five are those of three.
    seed : int, default 0
        Seed of the draw, which is the same on every device.

    Returns
    -------
    (K, C) bool of the type and device of `seen_mask`
        Each row marks ceil(\\|S\\| / 2) seen classes. The rows are distinct, as long as there are enough of these.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, `n_splits` or `seed` no integer; if fewer than two classes are seen, or
        `n_splits` is 0.

    Warns
    -----
    FinecalWarning
        If there are fewer than `n_splits` distinct halves (2 of two classes, 3 of three), which then come in turn.

    Notes
    -----
    Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024, section 5.

    Examples
    --------
    >>> import finecal
    >>> finecal.estimators.pseudo_cv_splits([True, True, True, True, False], n_splits=2)
    array([[ True,  True, False, False, False],
           [ True, False,  True, False, False]])
    """
    mask = as_bool_mask(seen_mask)
    indices = check_mask_values(mask).nonzero().squeeze(1).cpu()
    seen, wanted = indices.shape[0], check_count(n_splits, "n_splits")
    if seen < 2:
        raise ValueError(
            "seen_mask has one seen class; pseudo cross-validation splits the seen classes and needs two: use "
            "search_gamma or known_share_gamma"
        )
    if wanted > _MOST_SPLITS:
        raise ValueError(
            f"n_splits is {format_count(wanted)}; pass at most {_MOST_SPLITS}: a model is fine-tuned for each"
        )
    if wanted == 0:
        raise ValueError("n_splits is 0; pass at least one split")
    half = (seen + 1) // 2
    distinct = math.comb(seen, half)
    if wanted > distinct:
        warn(
            f"pseudo_cv_splits: {seen} seen classes have only {distinct} distinct halves, which come in turn in the "
            f"{wanted} splits; n_splits={distinct} saves the repetitions"
        )
    generator = torch.Generator("cpu").manual_seed(check_seed(seed))
    halves: dict[tuple[int, ...], None] = {}
    while len(halves) < min(wanted, distinct):
        drawn = torch.randperm(seen, generator=generator, device="cpu")[:half]
        halves[tuple(indices[drawn.sort().values].tolist())] = None
    splits = torch.zeros((wanted, mask.shape[0]), dtype=torch.bool, device="cpu")
    ordered = list(halves)
    for row in range(wanted):
        splits[row, list(ordered[row % distinct])] = True
    result: Tensor | NumpyArray = as_type_of(seen_mask)(splits.to(mask.device))
    return result


@dataclass(frozen=True, eq=False)
class FoldReading:
    """What the search needs of a checked fold, on the CPU: pseudo-seen is seen, and the columns are those of S."""

    margins: Margins[Tensor]
    """With labels under ``average="macro"``, which needs them; without under "micro"."""
    log_odds: Tensor
    """Of the seen group, float64; NaN where gamma cannot change the likelihood, or none is finite."""
    required: Tensor | None
    """Whether the pre-trained model is right about each sample; None where that binds nothing."""
    num_absent: int
    average: str
    groups: Grouping | None = None

    @property
    def units(self) -> int:
        """How many samples, or groups of them, there are to resample."""
        return len(self.margins) if self.groups is None else self.groups.number

    @cached_property
    def curve(self) -> TradeoffCurve[Tensor]:
        return self.margins.curve(self.average)

    @cached_property
    def weight(self) -> Tensor:
        """What each sample counts for in a mean over all: those with log-odds only; they sum to 1."""
        weight = (~self.log_odds.isnan()).double()
        if self.margins.label is not None:
            counts = torch.bincount(self.margins.label, weight)
            weight = weight / counts[self.margins.label].clamp(min=1)
        return weight / weight.sum()

    @cached_property
    def lower(self) -> float:
        """Every gamma above it meets the constraint: `Acc_{U/Y}` only grows with gamma. +inf if none does."""
        if self.required is None:
            return -math.inf
        absent = ~self.margins.is_seen
        if self.margins.label is None:
            below = self.curve.absent_correct < self.required[absent].sum()
        else:
            needed = accuracies_within(replace(self.margins, hit=self.required), "macro")[1]
            below = self.curve.acc_absent < needed - MACRO_TOLERANCE
        point = int(below.sum())
        return interval_of(self.curve.breakpoints, point)[0] if point < len(below) else math.inf

    def values(self, gamma: Tensor, objective: str) -> Tensor:
        """Return the objective at each of the given gammas."""
        if objective == "nll":
            towards_own = torch.where(self.margins.is_seen, 1.0, -1.0) * (self.log_odds - gamma.unsqueeze(1))
            return (torch.nn.functional.logsigmoid(towards_own) * self.weight).nansum(1)
        curve = self.curve
        values = OBJECTIVES[objective](curve)
        values = values * accuracy_per_unit(objective, curve.n_seen, curve.n_absent, curve.average)
        return values[torch.searchsorted(self.curve.breakpoints, gamma)]

    def resample(self, generator: torch.Generator) -> Self:
        """Draw m < n samples of either side, or whole groups of samples, with replacement."""
        if self.groups is not None:
            return self._resample_groups(self.groups, generator)
        kept = len(self.margins) ** (_RESAMPLE_EXPONENT - 1)
        groups = [self.margins.is_seen.nonzero().squeeze(1), (~self.margins.is_seen).nonzero().squeeze(1)]
        sizes = [(len(group), (math.ceil(len(group) * kept),)) for group in groups]
        draws = [torch.randint(n, size, generator=generator, device="cpu") for n, size in sizes]
        return self._at(torch.cat([group[draw] for group, draw in zip(groups, draws, strict=True)]))

    def _resample_groups(self, groups: Grouping, generator: torch.Generator) -> Self:
        check_several(groups)
        size = math.ceil(groups.number**_RESAMPLE_EXPONENT)
        drawn = groups.draw(size, generator, self._sides)
        again = torch.arange(size, device="cpu").repeat_interleave(groups.sizes[drawn])
        return replace(self._at(groups.members(drawn)), groups=replace(groups, index=again, number=size))

    @cached_property
    def _sides(self) -> Tensor:
        assert self.groups is not None
        return self.groups.sides(self.margins.is_seen)

    def _at(self, index: Tensor) -> Self:
        margins = resample(self.margins, index)
        if self.margins.label is not None:
            margins = replace(margins, label=self.margins.label[index])
        required = None if self.required is None else self.required[index]
        return replace(self, margins=margins, log_odds=self.log_odds[index], required=required)


def list_folds(folds: Iterable[PseudoFold]) -> list[PseudoFold]:
    """Return the folds as a list; there is at least one."""
    if not isinstance(folds, Iterable) or isinstance(folds, (Tensor, str, bytes)):
        raise TypeError(f"folds is one {type(folds).__name__}; pass a sequence of PseudoFold")
    listed = list(folds)
    if not listed:
        raise ValueError("folds are empty; pass one PseudoFold for each row of pseudo_cv_splits(seen_mask)")
    return listed


def read_fold(fold: PseudoFold, seen_mask: Mask, constrained: bool, number: int, average: str = "micro") -> FoldReading:
    """Check one fold, and reduce it to scalars on the columns of S."""
    if not isinstance(fold, PseudoFold):
        raise TypeError(f"folds[{number}] is a {type(fold).__name__}; pass a PseudoFold")
    samples = fold.samples.named(f"fold {number}")
    samples.check_not_empty("pseudo cross-validation")
    pretrained = samples.pretrained_tensor
    with samples.naming_errors():
        if constrained and pretrained is None:
            raise ValueError(
                "constrained=True compares with the pre-trained model: pass its logits of the same samples, "
                "Samples(logits, labels, pretrained_logits=...)"
            )
    seen = samples.check_mask(seen_mask)
    with samples.naming_errors():
        return _read(samples, fold.pseudo_seen_mask, seen, pretrained if constrained else None, average)


def _read(
    samples: Samples, pseudo_seen_mask: Mask, seen: Tensor, pretrained: Tensor | None, average: str
) -> FoldReading:
    x, y = samples.logits_tensor, samples.labels_tensor
    check_scores(x, x.amax(1))
    warn_if_reindexed(y, seen)
    check_only_seen(y, seen, "pseudo cross-validation")
    pseudo = check_pseudo_seen_mask(pseudo_seen_mask, seen)
    if (count := int(pseudo[y].sum())) in (0, len(y)):
        raise ValueError(
            f"labels are of {'pseudo-seen' if count else 'pseudo-absent'} classes only ({len(y)} samples); pass "
            "held-out samples of all seen classes"
        )
    columns, own, group = seen.nonzero().squeeze(1), (seen.cumsum(0) - 1)[y], pseudo[seen]
    required = None
    if pretrained is not None:
        before = label_scalars(pretrained[:, columns], own, group)
        required = (before.hit & ((margin_of(before.seen_max, before.absent_max) >= 0) == before.is_seen)).cpu()
    scores = x[:, columns]
    scalars = label_scalars(scores, own, group)
    warn_of_labels(scores, own, group, scalars.hits)
    margin = margin_of(scalars.seen_max, scalars.absent_max)
    label = own.cpu() if average == "macro" else None
    seen_sum, absent_sum = group_log_sum_exps(scores, group)
    log_odds = seen_sum - absent_sum
    log_odds = torch.where(log_odds.isfinite() & (scalars.own > -math.inf), log_odds, math.nan)
    return FoldReading(
        Margins(margin.cpu(), scalars.is_seen.cpu(), scalars.hit.cpu(), label),
        log_odds.cpu(),
        required,
        int((~group).sum()),
        average,
        samples.grouping,
    )


def check_pseudo_seen_mask(pseudo_seen_mask: object, seen: Tensor) -> Tensor:
    """A proper, non-empty part of the seen classes; moved to the device of their mask."""
    mask = as_bool_mask(pseudo_seen_mask, "pseudo_seen_mask")
    check_num_columns(seen.shape[0], mask.shape[0], "pseudo_seen_mask")
    mask = mask.to(seen.device)
    if bool((mask & ~seen).any()):
        raise ValueError(
            f"pseudo_seen_mask is True for {named_classes(mask & ~seen)}, outside seen_mask; pass a row of "
            "pseudo_cv_splits(seen_mask)"
        )
    count, total = int(mask.sum()), int(seen.sum())
    if count in (0, total):
        raise ValueError(
            f"pseudo_seen_mask has {count} of the {total} seen classes; it needs some, but not all of them: pass a row "
            "of pseudo_cv_splits(seen_mask)"
        )
    return mask
