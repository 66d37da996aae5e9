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
    fresh, share = _freshness(scan), equal_share(scan.mask)

    def blend(low: float, pair: float) -> float:
        return max(0.0, low, min(fresh * low + (1 - fresh) * pair, _MOST_ABOVE_RESIDUALS * low))

    low, pair = residuals.gamma(share), pairs.gamma(share)
    gamma = blend(low, pair)
    weights = {"residual_gap": fresh, "mixed_pair_gap": 1 - fresh} if fresh > 0 else {"mixed_pair_gap": 1.0}
    sentences = [*left_out(residuals.n, len(scan.labels)), *pairs.sentences]
    if low <= 0:
        weights = {"residual_gap": 0.0}
        sentences += _no_gap(low)
    elif gamma == low:
        weights = {"residual_gap": 1.0}
    elif gamma < fresh * low + (1 - fresh) * pair:
        weights = {"residual_gap": _MOST_ABOVE_RESIDUALS}
        sentences.append(
            f"mixed_pair_gap ({pair:.4g}) and residual_gap ({low:.4g}) on the training samples are far apart: gamma is "
            f"{_MOST_ABOVE_RESIDUALS:g} times the lower one, for equally frequent classes"
        )
    return SeenGap.at_share(
        share,
        gamma,
        [blend(*both) for both in zip(residuals.gammas(share), pairs.gammas(share), strict=True)],
        temperature=fresh * residuals.temperature + (1 - fresh) * pairs.temperature,
        n=residuals.n,
        weights=weights,
        sentences=sentences,
    )


def gap_of_held_out(scan: LabelledScan, n_bootstrap: int, seed: int) -> SeenGap:
    """Take residuals, unless they show no gap."""
    found = gap_of_residuals(scan, None, n_bootstrap, seed)
    least = -found.share_term(equal_share(scan.mask))
    floored = found._replace(
        gap=max(found.gap, least), replicates=[max(replicate, least) for replicate in found.replicates]
    )
    if found.gap > least:
        return floored
    return floored._replace(weights={"residual_gap": 0.0}, sentences=[*found.sentences, *_no_gap(found.gap - least)])


def gap_of_both(train: SeenGap, held_out: SeenGap, share: float) -> SeenGap:
    """Let held-out samples count twice as much as training samples; `share` is that of equally frequent classes."""

    def blend(of_train: float, of_held_out: float) -> float:
        return (1 - _WEIGHT_OF_HELD_OUT) * of_train + _WEIGHT_OF_HELD_OUT * of_held_out

    functions = {**held_out.weights, **train.weights}
    return SeenGap.at_share(
        share,
        blend(train.gamma(share), held_out.gamma(share)),
        [blend(*both) for both in zip(train.gammas(share), held_out.gammas(share), strict=True)],
        temperature=held_out.temperature,
        n=train.n + held_out.n,
        weights={name: blend(train.weights.get(name, 0.0), held_out.weights.get(name, 0.0)) for name in functions},
        sentences=[*train.sentences, *held_out.sentences],
    )


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


def _no_gap(gamma: float) -> list[str]:
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
