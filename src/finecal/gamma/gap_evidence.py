"""How far the seen logits have outgrown the absent ones, and how clearly labelled seen samples show it."""

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
"""Share of mistakes among the seen classes from which on a model is as unsure as it is about new samples."""
_UNCLEAR, _CLEAR = 1.2, 1.6
"""Standard deviations of mixed pairs by which they prefer the seen classes: up to where there is no gap, from where on
there is one."""
_TRAINING_COUNTS_AS = 50
"""Held-out samples that all training samples together count for."""


class GapEvidence(NamedTuple):
    """What labelled seen samples say of the gap."""

    gap: float
    """The gamma at which seen and absent classes compete on equal terms."""
    unit: float
    """Logits per unit of log-odds, fitted on the samples: T."""
    gap_weight: float
    """1 where there certainly is a gap, 0 where it cannot be told from none."""
    unfamiliarity: float
    """1 if the samples look like new ones to the model, 0 if it has memorised them."""
    pair_z_score: float
    """Mean of the mixed pairs' margins in their standard deviations; NaN without pairs."""
    replicates: list[float]
    """The gap of each resampling, NaN where it has none."""
    n: int
    weights: Mapping[str, float]
    """The functions that the gap is the weighted mean of."""
    sentences: Sequence[str] = ()
    """What there is to warn of."""
    effect: float = 1.0
    """How many samples count for one independent one; more than 1 for samples of groups."""


def evidence_of_training(scan: Scan, bootstrap: Bootstrap) -> GapEvidence:
    """Look at samples that the model was trained on; an error if no two of them can be mixed."""
    residuals = estimate_residual_gap(scan, bootstrap, substream=TRAINING)
    return _evidence(scan, residuals, estimate_pair_gap(scan, bootstrap, TRAINING))


def evidence_of_held_out(scan: Scan, bootstrap: Bootstrap) -> GapEvidence:
    """Look at samples that the model was not trained on; of a single class residuals tell alone."""
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
    """Let held-out samples count by their number; the scale and the cost are theirs alone."""
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
    """Take residuals as far as the samples look like new ones to the model, and mixed pairs as far as it knows them.

    Residuals err low on samples that the model knows, so that they are a lower bound.
    """
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
