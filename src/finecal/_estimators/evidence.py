"""What the data show: the gap, what is left of the absent classes, and what to warn of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.arrays import Mask
from .._core.groups import (
    HELD_OUT,
    TRAINING,
    Bootstrap,
    Grouping,
    check_several,
    design_effect,
    design_effect_of_classes,
    groups_of,
)
from .._core.reductions import winners
from .._core.samples import Samples, Scan
from .decision import Decision, SmoothedAccuracy, UnlabelledEvidence
from .estimate import EQUALLY_FREQUENT, GammaEstimate, break_even_in_words, scan_seen
from .fold_search import FEW_CLASSES
from .folds import PseudoFold, list_folds, read_fold
from .mixed_pairs import GapEstimate, NoPairs, estimate_pair_gap, scored_mask
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


_ENTRIES, _LEAST_ROWS = 1 << 22, 1024
"""Most logits that are examined, and fewest rows even then."""
_HEALTHY_RIVALS, _HEALTHY_STREAM, _HEALTHY_FOLDS, _HEALTHY_AGREEMENT = 0.65, 0.8, 0.5, 0.9
"""Ratios from which the absent classes count as undamaged."""
_FEW_SAMPLES = 10
_FEW_IN_FOLD = 20


class AbsentRetention(NamedTuple):
    """Accuracy within the absent classes relative to that within the seen ones, at most 1."""

    value: float
    evidence: str
    """The observation, in words, that lowers it."""


def retention_from_rivals(scan: Scan, pretrained: Tensor | None = None) -> AbsentRetention:
    """Return the effective number of absent winners over that of seen ones, without the labels.

    With pretrained logits, the mean of that and of its ratio to the one before fine-tuning.
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
    """Return the effective number of winners of samples below the gap; None if these are fewer than 10.

    With pretrained logits, the mean of that and of the share of unchanged winners, relative to samples above the gap.
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
    """Retention estimated from the folds, or the reason why it could not be."""

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
    margins = [reading.margins for reading in readings]
    smallest = min(int((of.is_seen == side).sum()) for of in margins for side in (True, False))
    if smallest < _FEW_IN_FOLD:
        few = f"the folds were not used: {smallest} samples of a group are too few to tell what was damaged"
        return FoldRetention(None, len(listed), [few])
    seen, absent = (
        sum(float(of.hit[of.is_seen == side].double().mean()) for of in margins) / len(margins)
        for side in (True, False)
    )
    words = (
        f"in the folds {100 * absent:.0f} % of the pseudo-absent samples are right among their own classes, and "
        f"{100 * seen:.0f} % of the pseudo-seen ones"
    )
    ratio = absent / seen if seen > 0 else 1.0
    return FoldRetention(AbsentRetention(min(1.0, ratio / _HEALTHY_FOLDS), words), len(listed), [])


def _rival_ratio(logits: Tensor, labels: Tensor, mask: Tensor, groups: Grouping | None) -> float:
    rest = logits.scatter(1, labels.unsqueeze(1), -math.inf)
    rivals = winners(rest, mask)
    scored = _unmasked(logits)
    absent = _relative_number(rivals.absent, ~mask & scored, groups)
    return absent / _relative_number(rivals.seen, mask & scored, groups)


def _relative_number(classes: Tensor, group: Tensor, groups: Grouping | None = None) -> float:
    """Return the effective number of winners over that of as many independent random draws from the group."""
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
    """Return the indices of at most 2^22 / C, evenly spaced rows."""
    most = max(_LEAST_ROWS, _ENTRIES // logits.shape[1])
    if n <= most:
        return torch.arange(n, device=logits.device)
    return torch.arange(most, device=logits.device) * n // most


class SeenSamples:
    """Labelled seen samples with cached statistics; ValueError if groups are to be drawn and there is one."""

    def __init__(self, samples: Samples, seen_mask: Mask, caller: str, bootstrap: Bootstrap) -> None:
        self.samples = samples
        self.scan = scan_seen(samples, seen_mask, caller, min_seen=1)
        if bootstrap.n > 0 and self.scan.groups is not None:
            check_several(self.scan.groups)
        self._bootstrap, self._are_new = bootstrap, samples.name == "held_out"

    @cached_property
    def evidence(self) -> GapEvidence:
        """The gap; ValueError if the samples have none."""
        find = evidence_of_held_out if self._are_new else evidence_of_training
        return find(self.scan, self._bootstrap)

    @cached_property
    def effect(self) -> float:
        """Design effect of their groups."""
        return design_effect(self.scan.margin, self.scan.groups)

    @cached_property
    def accuracy(self) -> SmoothedAccuracy:
        """Smoothed `Acc_{S/Y}`."""
        return SmoothedAccuracy(self.scan)

    @cached_property
    def retention(self) -> AbsentRetention:
        """Health of the absent classes, by their winners."""
        return retention_from_rivals(self.scan)


_FAR_APART = 3.0
_HUGE = 12.0
"""Units of log-odds."""
_DAMAGED = 0.5
"""Health below which a warning names it."""
_AT_STAKE = 0.0025
"""Share of all samples: where gamma costs fewer of them, damage is not warned of, as it can do no harm."""
_CLEAR_ENOUGH = 0.5
"""Least `gap_weight` that is not warned of."""
_UNDECIDED = 0.5
"""Standard deviations or units of log-odds from which a warning says that absent classes are preferred."""
_STRANGE = 0.5
"""Share of the unlabelled margins."""
_PAYS_ANYWAY = 0.5
"""Break-even up to which unequal labels are not warned of, relative to the absent samples by their power law."""
_MOST_SEEN = 0.99
"""Largest share of seen samples that is named: 1 is none that can be passed."""
_UNEQUAL = 0.6
"""Effective number of the classes of the labels, relative to that of draws from equally frequent ones."""


def gap_warnings(found: GapEvidence, decision: Decision) -> list[str]:
    """Return a warning if there is no gap, or an unclear or a negative one."""
    if found.gap_weight == 0:
        lead = found.gap / found.unit if math.isnan(found.pair_z_score) else found.pair_z_score
        gamma = f"{decision.gamma:.4g}, for the share of seen samples alone" if decision.gamma else "0"
        if lead < -_UNDECIDED:
            return [
                f"no gap is seen ({_lead_in_words(found)}): where neither group is right the model prefers absent "
                f"classes, but not clearly enough for seen ones to be brought back; so gamma is {gamma}: check it with "
                "search_gamma on a few labelled samples of all classes"
            ]
        return [
            f"no gap is seen ({_lead_in_words(found)}): the model prefers absent classes about as much as seen ones "
            "where neither is right, as a distilled or already balanced model does, or one with gamma in its head; so "
            f"gamma is {gamma}"
        ]
    if found.gap < 0:
        return [
            f"the seen classes lose: absent ones are ahead by {-found.gap:.4g}, {-found.gap / found.unit:.2g} units of "
            "log-odds, as after a loss that leaves out their logits (masked losses), or with gamma in the head; gamma "
            f"is {'negative' if decision.gamma < 0 else '0'}: check it with search_gamma on a few labelled samples of "
            "all classes"
        ]
    sentences = []
    if found.gap_weight < _CLEAR_ENOUGH:
        sentences.append(
            f"the gap is unclear ({_lead_in_words(found)}), and may be none: it counts {100 * found.gap_weight:.0f} %, "
            f"and gamma is {decision.gamma:.4g}"
        )
    if decision.gamma == 0:
        sentences.append(
            f"gamma is 0, although the gap is {found.gap:.4g}: a positive gamma would cost the seen classes "
            "more than the absent ones are expected to gain"
        )
    return sentences


def _lead_in_words(found: GapEvidence) -> str:
    if math.isnan(found.pair_z_score):
        return f"{found.gap:.4g}, {found.gap / found.unit:.2g} units of log-odds"
    return f"mixed pairs prefer seen classes by {found.pair_z_score:.2g} standard deviations of their margins"


def damage_warnings(
    found: GapEvidence, retention: AbsentRetention, estimate: GammaEstimate, healthy: float
) -> list[str]:
    """Return a warning if absent classes seem damaged, or the gap is huge, where gamma costs seen samples.

    `healthy` is the gamma of undamaged absent classes.
    """
    cost = (estimate.acc_seen_at_zero or 0.0) - (estimate.acc_seen_at_gamma or 0.0)
    if estimate.gamma <= 0 or cost * (estimate.seen_share or 0.0) <= _AT_STAKE:
        return []
    if retention.value < _DAMAGED:
        gamma = estimate.gamma
        instead = f" instead of {healthy:.4g}" if abs(healthy - gamma) > 0.005 * abs(healthy) else ""
        return [
            f"fine-tuning seems to have damaged the absent classes: {retention.evidence}; they count "
            f"{100 * retention.value:.0f} %, so gamma is {gamma:.4g}{instead}, and may still do harm: check it with "
            "search_gamma on a few labelled samples of all classes, and leave out columns that belong to no class"
        ]
    if found.gap_weight > 0 and found.gap > _HUGE * max(found.unit, 1.0):
        return [
            f"the gap is {found.gap:.4g}, more than {_HUGE:g} units of log-odds: high learning rates and long training "
            "leave such gaps, and often damage the absent classes, so that gamma brings little back and may do harm; "
            "check it with search_gamma on a few labelled samples of all classes"
        ]
    return []


def evidence_warnings(stream: UnlabelledEvidence) -> list[str]:
    """Return a warning if most unlabelled margins are outliers of the mixture."""
    if stream.outlier_share <= _STRANGE:
        return []
    return [
        f"{100 * stream.outlier_share:.0f} % of the unlabelled margins are like neither those of the labelled seen "
        "samples nor their mirror image at the gap: check that all logits are of the same model, and that gamma is in "
        "none"
    ]


def share_warnings(labelled: float, alone: float, unit: float) -> list[str]:
    """Return a warning if gamma of labelled samples and gamma of the share disagree."""
    # Margin classifiers have no unit, so the difference must also be large relative to gamma.
    if abs(labelled - alone) <= max(_FAR_APART * unit, max(abs(labelled), abs(alone)) / 2):
        return []
    return [
        f"labelled samples ({labelled:.4g}) and the share of unlabelled ones ({alone:.4g}) disagree about gamma: "
        "check the share, and that all logits are of the same model"
    ]


def frequency_warnings(scan: Scan, estimate: GammaEstimate) -> list[str]:
    """Return a warning if gamma is for equally frequent classes, the labels are far from it, and it may not pay."""
    if estimate.seen_share_source != EQUALLY_FREQUENT or estimate.min_absent_share is None:
        return []
    mask = scored_mask(scan)
    relative, law = _relative_number(scan.labels, mask, scan.groups), _power_law_share(scan.labels, mask)
    if relative >= _UNEQUAL or estimate.min_absent_share <= _PAYS_ANYWAY * (1 - law):
        return []
    pays = break_even_in_words(estimate) or ""
    return [
        f"the labels are as unequal as those of {100 * relative:.0f} % of the seen classes, and gamma takes all "
        f"classes for equally frequent, {100 - 100 * (estimate.seen_share or 0):.0f} % of the samples absent ones; "
        f"where classes differ so much these may be rare. {pays}; if the seen classes are the most frequent ones, the "
        f"power law of their labels gives seen_share={min(law, _MOST_SEEN):.2g}. Pass seen_share=, or unlabelled "
        "samples with held-out ones"
    ]


def _power_law_share(labels: Tensor, mask: Tensor) -> float:
    """Return the share of the seen classes if frequencies fall with their rank by one power, through the absent ones.

    The exponent is fitted to the logarithms of the counts, half a sample added, weighted by the counts; it is 0 for one
    seen class. All labels are of seen classes.
    """
    seen = int(mask.sum())
    counts = torch.bincount(labels, minlength=len(mask)).sort(descending=True).values[:seen].double() + 0.5
    ranks = torch.arange(1, len(mask) + 1, dtype=torch.float64, device=counts.device)
    x, y, weight = ranks[:seen].log(), counts.log(), counts / counts.sum()
    x_away, y_away = x - weight @ x, y - weight @ y
    law = ranks ** (float((weight * x_away) @ y_away / ((weight * x_away) @ x_away)) if seen > 1 else 0.0)
    return float(law[:seen].sum() / law.sum())
