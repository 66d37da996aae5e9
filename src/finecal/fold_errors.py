"""How far `residual_gap` errs in folds of pseudo cross-validation: there the best gamma is known."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ._arrays import ArrayLike, as_tensor
from ._checks import naming_argument
from .gamma import check_two_seen, resamples
from .margin import scan_labelled
from .pseudo_folds import FoldReading, PseudoFold, listed_folds, read_fold
from .pseudo_validation import FEW_CLASSES, search_folds
from .residuals import gap_of_residuals
from .seen_gap import FOLDS, SeenGap, clipped

_FEW_SAMPLES = 20
_TRUSTED = 0.5
"""Of the mean error: the classes of a fold are fewer than those of the model, and its samples few."""


class FoldErrors(NamedTuple):
    """The best gamma of each fold, less the gap of the residuals of its pseudo-seen samples."""

    errors: list[float]
    sentences: list[str]
    """Why there are none."""


def fold_errors(folds: Iterable[PseudoFold], seen_mask: ArrayLike) -> FoldErrors:
    """Compare the estimate with the search in every fold, unless a fold has too few classes to tell."""
    folds = listed_folds(folds)
    readings = [read_fold(fold, seen_mask, False, number) for number, fold in enumerate(folds)]
    fewest = min(reading.num_absent for reading in readings)
    if fewest < FEW_CLASSES:
        few = f"the folds were not used: {fewest} pseudo-absent classes are too few to stand in for the absent ones"
        return FoldErrors([], [few])
    numbers = [
        int(group.sum()) for reading in readings for group in (reading.samples.is_seen, ~reading.samples.is_seen)
    ]
    if min(numbers) < _FEW_SAMPLES:
        few = f"the folds were not used: {min(numbers)} samples of a group are too few to tell a gamma"
        return FoldErrors([], [few])
    try:
        pairs = enumerate(zip(folds, readings, strict=True))
        return FoldErrors([_error(number, fold, reading, seen_mask) for number, (fold, reading) in pairs], [])
    except ValueError as error:
        return FoldErrors([], [f"the folds were not used: {error}"])


def _error(number: int, fold: PseudoFold, reading: FoldReading, seen_mask: ArrayLike) -> float:
    """Both sides are for equally many samples of either group, on the columns of S."""
    logits, labels = as_tensor(fold.logits, "logits").detach(), as_tensor(fold.labels, "labels")
    seen = as_tensor(seen_mask, "seen_mask").to(logits.device)
    pseudo = as_tensor(fold.pseudo_seen_mask, "pseudo_seen_mask").to(logits.device)
    columns, rows = seen.nonzero().squeeze(1), reading.samples.is_seen.to(logits.device)
    own = (seen.cumsum(0) - 1)[labels.to(logits.device).long()]
    scan = scan_labelled(logits[rows][:, columns], own[rows], pseudo[columns])
    with naming_argument(f"fold {number}"):
        check_two_seen(scan.mask, "residual_gap")
        return search_folds([reading], "balanced") - gap_of_residuals(scan).gap


def corrected(found: SeenGap, share: float, given: FoldErrors, n_bootstrap: int, seed: int) -> SeenGap:
    """Add half the mean error of the folds, at most half a unit of log-odds, where there is a gap.

    Without a gap the folds, which were fine-tuned on half of the classes, are of another kind than the model. `share`
    is that of equally frequent classes.
    """
    if not given.errors or found.gamma(share) <= 0:
        return found._replace(sentences=[*found.sentences, *given.sentences])
    least = -found.share_term(share)  # Gamma for equally frequent classes stays above 0.

    def moved(gap: float, errors: Sequence[float]) -> float:
        # In this order NaN, a resample without a gap, stays NaN.
        return max(gap + clipped(_TRUSTED * statistics.fmean(errors), found.unit / 2), least)

    draws = resamples(len(given.errors), n_bootstrap, seed, stream=FOLDS)
    drawn = [[given.errors[i] for i in index.tolist()] for index in draws]
    gap, mean = moved(found.gap, given.errors), statistics.fmean(given.errors)
    return found._replace(
        gap=gap,
        replicates=[moved(*both) for both in zip(found.replicates, drawn, strict=True)],
        weights={**found.weights, "fold_error": (gap - found.gap) / mean if mean else _TRUSTED},
    )
