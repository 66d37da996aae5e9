"""The gap of labelled seen samples, from residuals and mixed pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..evaluation.samples import Scan
from .bootstrap import HELD_OUT, TRAINING, Bootstrap
from .design_effect import design_effect
from .gamma_of_share import GapEstimate
from .mixed_pairs import NoPairs, estimate_pair_gap
from .residuals import estimate_residual_gap, left_out_warnings

_LIKE_NEW = 0.2
"""Error rate on the seen classes from which training samples are treated like held-out ones."""
_UNCLEAR, _CLEAR = 1.2, 1.6
"""Mean mixed-pair margin in standard deviations: gap_weight is 0 up to the first and 1 from the second."""
_TRAINING_COUNTS_AS = 50
"""Number of held-out samples that all training samples together count for."""


class GapEvidence(NamedTuple):
    """The gap of labelled seen samples, with its reliability."""

    gap: float
    """The gamma at which seen and absent classes compete on equal terms."""
    unit: float
    """Logits per unit of log-odds, fitted on the samples: T."""
    gap_weight: float
    """Factor of gamma in [0, 1]: 0 if no gap is detected, 1 if it is clear."""
    unfamiliarity: float
    """1 if the model is as unsure about the samples as about new ones, 0 if it has memorised them."""
    pair_z_score: float
    """Mean mixed-pair margin divided by its standard deviation; NaN if there are no pairs."""
    replicates: list[float]
    """The gap of each resampling, NaN where it has none."""
    n: int
    weights: Mapping[str, float]
    """Weight of each estimator in the gap."""
    sentences: Sequence[str] = ()
    """Warnings."""
    effect: float = 1.0
    """Design effect of grouped samples: the number of samples that count for one independent one."""


def evidence_of_training(scan: Scan, bootstrap: Bootstrap) -> GapEvidence:
    """Return the gap of training samples; `NoPairs` if no two of them can be mixed."""
    residuals = estimate_residual_gap(scan, bootstrap, substream=TRAINING)
    return _evidence(scan, residuals, estimate_pair_gap(scan, bootstrap, TRAINING))


def evidence_of_held_out(scan: Scan, bootstrap: Bootstrap) -> GapEvidence:
    """Return the gap of held-out samples, from residuals alone if no two can be mixed."""
    residuals = estimate_residual_gap(scan, bootstrap, substream=HELD_OUT)
    with suppress(NoPairs):
        return _evidence(scan, residuals, estimate_pair_gap(scan, bootstrap, HELD_OUT))
    return GapEvidence(
        residuals.gap,
        residuals.unit,
        _clip(residuals.gap / residuals.unit - 1),
        1.0,
        math.nan,
        residuals.replicates,
        residuals.n,
        {residuals.function: 1.0},
        residuals.sentences,
        design_effect(scan.margin, scan.groups),
    )


def combine_evidence(train: GapEvidence, held_out: GapEvidence) -> GapEvidence:
    """Weight N independent held-out samples by N / (N + 50), training samples by the rest; the unit is the former's."""
    worth = held_out.n / held_out.effect
    weight = worth / (worth + _TRAINING_COUNTS_AS)

    def blend(of_train: float, of_held_out: float) -> float:
        return (1 - weight) * of_train + weight * of_held_out

    functions = {**held_out.weights, **train.weights}
    return GapEvidence(
        blend(train.gap, held_out.gap),
        held_out.unit,
        blend(train.gap_weight, held_out.gap_weight),
        1.0,
        held_out.pair_z_score,
        [blend(*both) for both in zip(train.replicates, held_out.replicates, strict=True)],
        train.n + held_out.n,
        {name: blend(train.weights.get(name, 0.0), held_out.weights.get(name, 0.0)) for name in functions},
        [*train.sentences, *held_out.sentences],
    )


def _evidence(scan: Scan, residuals: GapEstimate, pairs: GapEstimate) -> GapEvidence:
    """Weight residuals by the unfamiliarity of the samples, mixed pairs by the rest; residuals are a lower bound."""
    unfamiliarity = min(1.0, float((~scan.scalars.hit).double().mean()) / _LIKE_NEW)
    unit = residuals.unit
    seen_lose = residuals.gap < -unit and pairs.gap < -unit
    bound = min if seen_lose else max

    def blend(residual: float, pair: float) -> float:
        if math.isnan(pair) and unfamiliarity < 1:
            return math.nan
        return bound(residual, unfamiliarity * residual + (1 - unfamiliarity) * pair)

    gap = blend(residuals.gap, pairs.gap)
    weights = {"residual_gap": unfamiliarity, "mixed_pair_gap": 1 - unfamiliarity}
    if gap == residuals.gap:
        weights = {"residual_gap": 1.0}
    pair_z_score = pairs.gap / pairs.spread if pairs.spread > 0 else math.copysign(math.inf, pairs.gap)
    gap_weight = _clip((pair_z_score - _UNCLEAR) / (_CLEAR - _UNCLEAR)) if gap > 0 else 0.0
    return GapEvidence(
        gap,
        unit,
        1.0 if seen_lose else gap_weight,
        unfamiliarity,
        pair_z_score,
        [blend(*both) for both in zip(residuals.replicates, pairs.replicates, strict=True)],
        residuals.n,
        {name: weight for name, weight in weights.items() if weight > 0},
        [*left_out_warnings(residuals.n, len(scan.labels)), *pairs.sentences],
        design_effect(scan.margin, scan.groups),
    )


def _clip(part: float) -> float:
    return min(1.0, max(0.0, part))
