"""Which estimators of gamma to trust, and how much, by what labelled seen samples tell of themselves.

``tests/benchmarks`` shows what this is worth on real fine-tuned models.
"""

from torch import Tensor

from .logits import group_log_sum_exps
from .margin import LabelledScan
from .mixed_pairs import gap_of_mixed_pairs
from .residuals import gap_of_residuals, left_out
from .seen_gap import TRAINING, SeenGap, equal_share
from .shares import EstimatedShares, estimated_shares
from .unlabelled import finite_quantile

_MOST_ABOVE_RESIDUALS = 3.0
"""The gap of residuals is too low on samples that the model has memorised, but not by more than this factor."""
_WEIGHT_OF_HELD_OUT = 2 / 3
_FAR_APART = 0.1
_ENOUGH_MISTAKES = 0.05
"""Per sample: fewer are no proof that the model has not memorised them, however few it expects."""


def gap_of_training(scan: LabelledScan, n_bootstrap: int, seed: int) -> SeenGap:
    """Take residuals as far as the samples look like new ones to the model, and mixed pairs as far as it knows them.

    Residuals are too low on samples that it has memorised: they are a lower bound, and a multiple is an upper one.
    """
    residuals = gap_of_residuals(scan, None, n_bootstrap, seed, least=1.0, stream=TRAINING)
    pairs = gap_of_mixed_pairs(scan, n_bootstrap, seed)
    fresh = _freshness(scan)
    share = equal_share(scan.mask)
    low, mean = residuals.gamma(share), fresh * residuals.gamma(share) + (1 - fresh) * pairs.gamma(share)
    most = _MOST_ABOVE_RESIDUALS * low
    weights = {"residual_gap": fresh, "mixed_pair_gap": 1 - fresh}
    sentences = [*left_out(residuals.n, len(scan.labels)), *pairs.sentences]
    if low <= 0:
        weights = {"residual_gap": 0.0}
        sentences += no_gap(low)
    elif mean <= low:
        weights = {"residual_gap": 1.0}
    elif mean > most:
        weights = {"residual_gap": _MOST_ABOVE_RESIDUALS}
        sentences.append(
            f"mixed_pair_gap ({pairs.gamma(share):.4g}) and residual_gap ({low:.4g}) on the training samples are far "
            f"apart: gamma is {_MOST_ABOVE_RESIDUALS:g} times the lower one, for equally frequent classes"
        )

    def blend(residual: float, pair: float) -> float:
        residual += residuals.share_term(share)
        mean = fresh * residual + (1 - fresh) * (pair + pairs.share_term(share))
        return max(0.0, residual, min(mean, _MOST_ABOVE_RESIDUALS * residual))

    temperature = fresh * residuals.temperature + (1 - fresh) * pairs.temperature
    replicates = [blend(*both) for both in zip(residuals.replicates, pairs.replicates, strict=True)]
    weights = {function: weight for function, weight in weights.items() if weight > 0 or len(weights) == 1}
    found = SeenGap(0.0, temperature, [], residuals.n, weights, sentences)
    term = found.share_term(share)
    gamma = blend(residuals.gap, pairs.gap)
    return found._replace(gap=gamma - term, replicates=[replicate - term for replicate in replicates])


def gap_of_held_out(scan: LabelledScan, n_bootstrap: int, seed: int) -> SeenGap:
    """Take residuals, unless they show no gap."""
    found = gap_of_residuals(scan, None, n_bootstrap, seed)
    least = -found.share_term(equal_share(scan.mask))
    if found.gap > least:
        return found._replace(replicates=[max(replicate, least) for replicate in found.replicates])
    return found._replace(
        gap=least,
        replicates=[max(replicate, least) for replicate in found.replicates],
        weights={"residual_gap": 0.0},
        sentences=[*found.sentences, *no_gap(found.gap - least)],
    )


def gap_of_both(train: SeenGap, held_out: SeenGap, share: float) -> SeenGap:
    """Let held-out samples count twice as much as training samples; `share` is that of equally frequent classes."""
    parts = ((1 - _WEIGHT_OF_HELD_OUT, train), (_WEIGHT_OF_HELD_OUT, held_out))
    term = held_out.share_term(share)
    gamma = sum(weight * part.gamma(share) for weight, part in parts)
    replicates = [
        sum(weight * (gap + part.share_term(share)) for (weight, part), gap in zip(parts, gaps, strict=True)) - term
        for gaps in zip(train.replicates, held_out.replicates, strict=True)
    ]
    weights: dict[str, float] = {}
    for weight, part in reversed(parts):
        for function, inner in part.weights.items():
            weights[function] = weights.get(function, 0.0) + weight * inner
    sentences = [*train.sentences, *held_out.sentences]
    return SeenGap(gamma - term, held_out.temperature, replicates, train.n + held_out.n, weights, sentences)


def gamma_of_unlabelled(
    found: SeenGap, seen: Tensor, unlabelled: Tensor, expected: float
) -> tuple[float, EstimatedShares]:
    """Return gamma half from the labelled samples and half as a quantile, both for the estimated share of seen samples.

    `seen` are the margins of held-out samples, and `expected` the share where every class is equally frequent.
    """
    shares = estimated_shares(seen, unlabelled, found.gamma(expected), expected)
    return (found.gamma(shares.median) + finite_quantile(unlabelled, shares.median)) / 2, shares


def doubts_about_shares(shares: EstimatedShares) -> list[str]:
    """Return a warning where the median has nothing near it."""
    low, _, high = sorted(shares)
    if min(shares.median - low, high - shares.median) <= _FAR_APART:
        return []
    return [
        f"three estimates of the share of seen samples are far apart: {shares.best_bin:.2f} by best bin estimation, "
        f"{shares.normal:.2f} by a normal mixture, {shares.confusion:.2f} by confusion; give seen_share if you know it"
    ]


def no_gap(gamma: float) -> list[str]:
    """Say why gamma is 0."""
    return [
        f"no gap is seen (gamma would be {gamma:.4g}): where the model doubts its own samples it prefers absent "
        "classes as much as seen ones, as a distilled or already balanced model does; so gamma from them is 0 for "
        "equally frequent classes"
    ]


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
    return ratio * min(1.0, mistakes / len(scan.labels) / _ENOUGH_MISTAKES)
