"""Which estimators of gamma to trust, and how much, by what labelled seen samples tell of themselves.

``tests/benchmarks`` shows what this is worth on real fine-tuned models.
"""

import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from torch import Tensor

from ..evaluation.scan import LabelledScan, scan_labelled
from ..inputs.arrays import Mask, as_tensor
from ..inputs.warning import naming
from ..logits.reductions import group_log_sum_exps
from .bootstrap import FOLDS, HELD_OUT, TRAINING, Bootstrap
from .estimate import check_two_seen
from .fold_search import FEW_CLASSES, search_folds
from .folds import FoldReading, PseudoFold, listed_folds, read_fold
from .gamma_of_share import GammaOfShare, clipped, equal_share
from .head_drift import DriftGamma
from .mixed_pairs import NoPairs, gap_of_mixed_pairs
from .residuals import gap_of_residuals, left_out
from .seen_share import EstimatedShares, estimated_shares
from .unlabelled import share_quantile

_MOST_ABOVE_RESIDUALS = 3.0
"""The gap of residuals is too low on samples that the model hardly doubts, but not by more than this factor."""
_WEIGHT_OF_HELD_OUT = 2 / 3
_WEIGHT_OF_DRIFT = 0.2
_SMALL, _CLEAR = 1.0, 1.5
"""Units of log-odds. Where fine-tuning left no gap, estimates of one are still up to about one unit high."""
_FAR_APART = 0.1
_ENOUGH_MISTAKES = 0.05
"""Per sample: fewer are no proof that the model has not memorised them, however few it expects, and too few doubts."""


def gap_of_training(scan: LabelledScan, bootstrap: Bootstrap) -> GammaOfShare:
    """Take residuals as far as the samples look like new ones to the model, and mixed pairs as far as it knows them.

    What is too small to be told from none is no gap.
    """
    residuals = gap_of_residuals(scan, bootstrap, least=1.0, stream=TRAINING)
    return _if_clear(_with_pairs(residuals, scan, _freshness(scan), bootstrap, TRAINING), equal_share(scan))


def gap_of_held_out(scan: LabelledScan, bootstrap: Bootstrap) -> GammaOfShare:
    """Take residuals, and mixed pairs, if there are any, as far as the model makes too few mistakes for them."""
    found = gap_of_residuals(scan, bootstrap)
    enough = _enough_mistakes(scan)
    if enough < 1:
        with suppress(NoPairs):
            found = _with_pairs(found, scan, enough, bootstrap, HELD_OUT)
    return _if_clear(found, equal_share(scan))


def _with_pairs(
    residuals: GammaOfShare, scan: LabelledScan, weight: float, bootstrap: Bootstrap, stream: int
) -> GammaOfShare:
    """Give residuals this weight, and mixed pairs the rest.

    Where the model doubts hardly any sample, residuals are too low: they are a lower bound, and a multiple is an upper
    one, for mixed pairs are too high where there is no gap.
    """
    pairs = gap_of_mixed_pairs(scan, bootstrap, stream)
    share = equal_share(scan)

    def blend(low: float, pair: float) -> float:
        return max(low, min(weight * low + (1 - weight) * pair, _MOST_ABOVE_RESIDUALS * low))

    low, pair = residuals.gamma(share), pairs.gamma(share)
    gamma = blend(low, pair)
    weights = {"residual_gap": weight, "mixed_pair_gap": 1 - weight} if weight > 0 else {"mixed_pair_gap": 1.0}
    sentences = [*left_out(residuals.n, len(scan.labels)), *pairs.sentences]
    if gamma == low:
        weights = {"residual_gap": 1.0}
    elif gamma < weight * low + (1 - weight) * pair:
        weights = {"residual_gap": _MOST_ABOVE_RESIDUALS}
        of = "training" if stream == TRAINING else "held-out"
        sentences.append(
            f"mixed_pair_gap ({pair:.4g}) and residual_gap ({low:.4g}) on the {of} samples are far apart: gamma from "
            f"these is {_MOST_ABOVE_RESIDUALS:g} times the lower one, for equally frequent classes; look at it on "
            "a few labelled samples of all classes if you can, with search_gamma"
        )
    return GammaOfShare.at_share(
        share,
        gamma,
        [blend(*both) for both in zip(residuals.gammas(share), pairs.gammas(share), strict=True)],
        temperature=weight * residuals.temperature + (1 - weight) * pairs.temperature,
        n=residuals.n,
        weights=weights,
        sentences=sentences,
        unit=weight * residuals.unit + (1 - weight) * pairs.unit,
    )


def _if_clear(found: GammaOfShare, share: float) -> GammaOfShare:
    """Take a gap of less than a unit of log-odds for none, and of more than one and a half for what it is.

    `share` is that of equally frequent classes; in between, gamma rises steeply, so that resamples do not jump.
    """
    low, high = _SMALL * found.unit, _CLEAR * found.unit

    def clear(gamma: float) -> float:
        # In this order NaN, a resample without a gap, stays NaN.
        return max(min(gamma, (gamma - low) * high / (high - low)), 0.0)

    before = found.gamma(share)
    after = clear(before)
    if after == before > 0:
        weights, sentences = found.weights, found.sentences
    else:
        part = after / before if after > 0 else 0.0
        weights = {function: part * weight for function, weight in found.weights.items()}
        sentences = [*found.sentences, _unclear(before, after, found.unit)]
    term = found.share_term(share)
    replicates = [clear(gamma) - term for gamma in found.gammas(share)]
    return found._replace(gap=after - term, replicates=replicates, weights=weights, sentences=sentences)


def gap_of_both(train: GammaOfShare, held_out: GammaOfShare, share: float) -> GammaOfShare:
    """Let held-out samples count twice as much as training samples; `share` is that of equally frequent classes."""

    def blend(of_train: float, of_held_out: float) -> float:
        return (1 - _WEIGHT_OF_HELD_OUT) * of_train + _WEIGHT_OF_HELD_OUT * of_held_out

    functions = {**held_out.weights, **train.weights}
    return GammaOfShare.at_share(
        share,
        blend(train.gamma(share), held_out.gamma(share)),
        [blend(*both) for both in zip(train.gammas(share), held_out.gammas(share), strict=True)],
        temperature=held_out.temperature,
        n=train.n + held_out.n,
        weights={name: blend(train.weights.get(name, 0.0), held_out.weights.get(name, 0.0)) for name in functions},
        sentences=[*train.sentences, *held_out.sentences],
        unit=held_out.unit,
    )


def gamma_at_known_share(found: GammaOfShare, unlabelled: Tensor, share: float) -> float:
    """Return gamma half from the labelled samples and half as a quantile, which may be infinite."""
    return (found.gamma(share) + share_quantile(unlabelled, share)) / 2


def with_drift(found: GammaOfShare, drift: DriftGamma, share: float) -> GammaOfShare:
    """Let the drift of the head count a fifth, where there is a gap: without one it is too high.

    It moves gamma by half a unit of log-odds at most, and not at all where there are doubts about it. Samples and twins
    are equally many, so that it is a gap for a share of one half; `share` is that of equally frequent classes.
    """
    if drift.sentences or found.gamma(share) <= 0:
        unused = [f"the drift of the head is not used: {sentence}" for sentence in drift.sentences]
        return found._replace(sentences=[*found.sentences, *unused])

    def moved(gap: float, of_drift: float) -> float:
        return gap + clipped(_WEIGHT_OF_DRIFT * (of_drift - gap), found.unit / 2)

    rest = {name: (1 - _WEIGHT_OF_DRIFT) * weight for name, weight in found.weights.items()}
    return found._replace(
        gap=moved(found.gap, drift.gamma),
        replicates=[moved(*both) for both in zip(found.replicates, drift.replicates, strict=True)],
        weights={**rest, "head_drift_gamma": _WEIGHT_OF_DRIFT},
    )


class MixtureGamma(NamedTuple):
    """What labelled and unlabelled samples say together."""

    gamma: float
    share: float
    """Of seen samples, as it was used."""
    shares: EstimatedShares


def gamma_of_unlabelled(found: GammaOfShare, seen: Tensor, unlabelled: Tensor, expected: float) -> MixtureGamma:
    """Find gamma for an estimated share of seen samples.

    As for a known share, but the quantile moves gamma by half a unit of log-odds at most: where it is further from what
    the labelled samples say, it is the share that is wrong. `seen` are the margins of held-out samples, and `expected`
    the share where every class is equally frequent.
    """
    shares = estimated_shares(seen, unlabelled, found.gamma(expected), expected)
    share = shares.likeliest(expected, min(len(seen), len(unlabelled)))
    labelled = found.gamma(share)
    change = gamma_at_known_share(found, unlabelled, share) - labelled
    return MixtureGamma(labelled + clipped(change, found.unit / 2), share, shares)


def doubts_about_shares(shares: EstimatedShares) -> list[str]:
    """Return a warning where the median has nothing near it."""
    low, _, high = sorted(shares)
    if min(shares.median - low, high - shares.median) <= _FAR_APART:
        return []
    return [
        f"three estimates of the share of seen samples are far apart: {shares.best_bin:.2f} by best bin estimation, "
        f"{shares.normal:.2f} by a normal mixture, {shares.confusion:.2f} by confusion; give seen_share if you know it"
    ]


def _unclear(before: float, after: float, unit: float) -> str:
    """Say why gamma is 0, or smaller than what was found."""
    if after > 0:
        return (
            f"the gap is small (gamma would be {before:.4g}; one unit of log-odds is {unit:.3g}), and may be none: "
            f"gamma is reduced to {after:.4g} for equally frequent classes"
        )
    return (
        f"no gap is seen (gamma would be {before:.4g}, less than one unit of log-odds, {unit:.3g}): where the model "
        "doubts its own samples it prefers absent classes about as much as seen ones, as a distilled or already "
        "balanced model does, or one with gamma in its head (so do logits without their scale, such as cosine "
        "similarities); so gamma from them is 0 "
        "for equally frequent classes"
    )


def _freshness(scan: LabelledScan) -> float:
    """Return how far the samples look like new ones: mistakes among the seen classes, over those the model expects.

    1 if its probabilities are as good on them as they claim, 0 if it makes no mistakes, as on what it has memorised.
    """
    log_sum, _ = group_log_sum_exps(scan.logits, scan.mask)
    certainty = (scan.scalars.seen_max.double() - log_sum).exp()
    expected = float((1 - certainty).nansum())
    mistakes = float((~scan.scalars.hit).sum())
    if mistakes == 0:
        return 0.0
    ratio = min(1.0, mistakes / expected) if expected > 0 else 1.0
    return ratio * _enough_mistakes(scan)


def _enough_mistakes(scan: LabelledScan) -> float:
    """Return how far the model makes mistakes enough among the seen classes: 1 from one in twenty samples on."""
    return min(1.0, float((~scan.scalars.hit).double().mean()) / _ENOUGH_MISTAKES)


_FEW_SAMPLES = 20
_TRUSTED = 0.5
"""Of the mean error: the classes of a fold are fewer than those of the model, and its samples few."""


class FoldErrors(NamedTuple):
    """The best gamma of each fold, less the gap of the residuals of its pseudo-seen samples."""

    errors: list[float]
    sentences: list[str]
    """Why there are none."""


def fold_errors(folds: Iterable[PseudoFold], seen_mask: Mask) -> FoldErrors:
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


def _error(number: int, fold: PseudoFold, reading: FoldReading, seen_mask: Mask) -> float:
    """Both sides are for equally many samples of either group, on the columns of S."""
    logits, labels = as_tensor(fold.logits, "logits").detach(), as_tensor(fold.labels, "labels")
    seen = as_tensor(seen_mask, "seen_mask").to(logits.device)
    pseudo = as_tensor(fold.pseudo_seen_mask, "pseudo_seen_mask").to(logits.device)
    columns, rows = seen.nonzero().squeeze(1), reading.samples.is_seen.to(logits.device)
    own = (seen.cumsum(0) - 1)[labels.to(logits.device).long()]
    scan = scan_labelled(logits[rows][:, columns], own[rows], pseudo[columns])
    with naming(f"fold {number}"):
        check_two_seen(scan.mask, "residual_gap")
        return search_folds([reading], "balanced") - gap_of_residuals(scan, Bootstrap()).gap


def corrected(found: GammaOfShare, share: float, given: FoldErrors, bootstrap: Bootstrap) -> GammaOfShare:
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

    draws = bootstrap.indices(len(given.errors), stream=FOLDS)
    drawn = [[given.errors[i] for i in index.tolist()] for index in draws]
    gap, mean = moved(found.gap, given.errors), statistics.fmean(given.errors)
    return found._replace(
        gap=gap,
        replicates=[moved(*both) for both in zip(found.replicates, drawn, strict=True)],
        weights={**found.weights, "fold_error": (gap - found.gap) / mean if mean else _TRUSTED},
    )
