"""The best estimate of gamma that the given data allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from .._core.arrays import Mask, NumpyArray, check_share
from .._core.groups import (
    Bootstrap,
    check_several,
    design_effect,
    group_warnings,
    in_groups,
    number_in_words,
    percentile_interval,
)
from .._core.plausibility import mask_warnings
from .._core.samples import Samples, SamplesLike, UnlabelledLike, labelled_samples, unlabelled_samples
from .decision import (
    GAP_ERROR,
    AbsentModel,
    Decision,
    SeenAccuracy,
    UnlabelledEvidence,
    absent_gain,
    decide,
    fit_unlabelled,
)
from .estimate import (
    COST_SOURCES,
    EQUALLY_FREQUENT,
    ESTIMATED,
    GIVEN,
    KINDS,
    GammaEstimate,
    seen_warnings,
    with_cost,
    with_warnings,
)
from .evidence import (
    NO_FOLDS,
    AbsentRetention,
    FoldRetention,
    GapEvidence,
    SeenSamples,
    combine_evidence,
    damage_warnings,
    evidence_warnings,
    frequency_warnings,
    gap_warnings,
    retention_from_folds,
    retention_from_rivals,
    retention_from_unlabelled,
    share_warnings,
)
from .folds import PseudoFold
from .mixed_pairs import equal_share
from .share import estimate_share
from .unlabelled import (
    few_sample_warnings,
    known_share_gamma,
    mixture_gamma,
    same_sample_warnings,
    same_unlabelled_warnings,
)

_FEW_SAMPLES = 20
_NODES = 9
"""Values at which the decision is computed; resamplings are interpolated between them."""
_ROUNDING = 1e-9
_NO_RIVALS = "with one seen class no sample has a seen rival, which residuals and mixed pairs need"
_ONE_SEEN_CLASS = (
    "seen_mask has one seen class; estimate_gamma compares the seen classes that a labelled sample does not belong to "
    "and needs two, or unlabelled samples of all classes with held-out ones, or with their share of seen samples: add "
    "these, or use search_gamma on labelled samples of all classes"
)
_OWN = "estimate_gamma"


def estimate_gamma(
    seen_mask: Mask,
    *,
    train: SamplesLike | None = None,
    held_out: SamplesLike | None = None,
    unlabelled: UnlabelledLike | None = None,
    seen_share: float | None = None,
    folds: Iterable[PseudoFold] | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma as well as the given data allow: give all that you have.

    Gamma maximises the expected accuracy:

    .. math:: \arg\max_\gamma \; \pi \, S(\gamma) + (1 - \pi) \, \kappa \, S(2 \gamma_0 - \gamma)

    with S the `Acc_{S/Y}` measured on labelled seen samples; :math:`\gamma_0` the gap, where both
    groups compete on equal terms; :math:`\kappa` the health of the absent classes; :math:`\pi` the share of seen
    samples. :doc:`/theory/estimate-gamma` explains what each kind of data adds.

    It recovers 95 % of what the best gamma gains (the median of 61 fine-tuned models), and 94 % from training samples
    alone. The exact search with labels of all classes, `search_gamma`, recovers 97 %.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    train : Samples, or (logits, labels), optional
        Samples that the model was fine-tuned on: `(N, C)` scores before softmax and `(N,)` class indices.
    held_out : Samples, or (logits, labels), optional
        Samples of the seen classes that it was not trained on; perhaps with `pretrained_logits`.
    unlabelled : Samples, or (M, C) logits, optional
        Samples of all classes, in the proportions in which the model will be used; perhaps with `pretrained_logits`.
        They need `held_out` or `seen_share`; without labelled samples the result is that of `known_share_gamma`.
    seen_share : float in (0, 1), optional
        :math:`\pi`; default: estimated from `unlabelled`, else |S| / C, but for classes that -inf masks in all samples.
    folds : iterable of PseudoFold, optional
        From models that were fine-tuned on half of the seen classes, beside labelled samples; see `pseudo_cv`.
    n_bootstrap, seed : int, default 0
        Resamplings for a 95 % interval (of whole groups where samples have `groups`), and the seed of these and of the
        pairs of `mixed_pair_gap`.

    Returns
    -------
    GammaEstimate
        `weights` are those of the estimators in :math:`\gamma_0`, `seen_share` is :math:`\pi`. `acc_seen_at_gamma` is
        measured on `held_out` if given, else on `train`. `interval` covers sampling and the error of the method.

    Raises
    ------
    TypeError, ValueError
        As the estimators; ValueError if the data allow none.

    Warns
    -----
    FinecalWarning
        As the estimators; if two arguments hold the same samples, there is no gap or a negative one, absent classes
        seem damaged or the gap is so large that they often are, and gamma costs seen samples, labels are so unequal
        that absent classes may be too rare for gamma to pay, `max_logit_gap` has the other sign, data cannot be used,
        or one seen class leaves only `mixture_gamma`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]], (20, 1))
    >>> samples, mask = (logits, np.tile([0, 1], 20)), [True, True, False, False]
    >>> estimate = finecal.estimate_gamma(mask, train=samples)
    >>> round(estimate.gamma, 2), estimate.method
    (5.14, 'estimate_gamma(mixed_pair_gap, seen_share=0.5)')
    """
    bootstrap = Bootstrap.from_arguments(n_bootstrap, seed)
    given = {"train": train, "held_out": held_out}
    samples = {
        name: SeenSamples(labelled_samples(value, name), seen_mask, _OWN, bootstrap)
        for name, value in given.items()
        if value is not None
    }
    retention = NO_FOLDS if folds is None else retention_from_folds(folds, seen_mask)
    stream = None if unlabelled is None else unlabelled_samples(unlabelled, "unlabelled")
    for of in (*(found.samples for found in samples.values()), stream):
        if of is not None:
            of.check_pretrained()  # whether they turn out to be needed or not
    return AutoEstimator(seen_mask, samples, retention, bootstrap).estimate(stream, seen_share)


class AutoEstimator(NamedTuple):
    """`estimate_gamma` on checked data."""

    seen_mask: Mask
    samples: Mapping[str, SeenSamples]
    """Labelled samples by argument."""
    folds: FoldRetention
    bootstrap: Bootstrap

    def estimate(self, unlabelled: Samples | None, seen_share: float | None) -> GammaEstimate:
        """Return the estimate from these data, with its warnings."""
        usable = unlabelled is not None and (seen_share is not None or "held_out" in self.samples)
        if not self.samples and not usable:
            raise ValueError(_missing_data(unlabelled is not None, self.folds.number > 0))
        estimate = self._estimate(unlabelled if usable else None, seen_share)
        sentences = self._unused_warnings(estimate, unlabelled is not None)
        if self.samples:
            if estimate.acc_seen_at_gamma is None:
                estimate = self._with_cost(estimate)
            sentences += self._sample_warnings(estimate)
            sentences += frequency_warnings(self.best.scan, estimate)
        return with_warnings(estimate, sentences)

    def _estimate(self, unlabelled: Samples | None, seen_share: float | None) -> GammaEstimate:
        """Return the estimate without the warnings about its samples."""
        given_share = None if seen_share is None else check_share(seen_share, "seen_share")
        alone = None
        if unlabelled is not None:
            unlabelled.margin(self.seen_mask)
            unlabelled.check_not_empty(_OWN)
            if self.bootstrap.n > 0 and unlabelled.grouping is not None:
                check_several(unlabelled.grouping)
            if given_share is not None:
                alone = known_share_gamma(unlabelled, self.seen_mask, given_share, **self._options())
                if not self.samples:
                    return alone
        if int(self.best.scan.mask.sum()) == 1:
            return self._from_margins(unlabelled, alone)
        try:
            found, sources = self._gap()
        except ValueError as reason:
            if alone is None:
                raise
            return with_warnings(alone, [f"not used: {reason}"])

        usual = equal_share(self.best.scan)
        share = usual if given_share is None else given_share
        gap, error, shares = found.gap, GAP_ERROR * abs(found.gap), [share] * self.bootstrap.n
        stream = None
        if unlabelled is not None:
            margins, groups = unlabelled.margin(self.seen_mask), (self.best.scan.groups, unlabelled.grouping)
            if given_share is None:
                share, shares = estimate_share(found, self.best.scan.margin, margins, usual, self.bootstrap, *groups)
            stream = fit_unlabelled(self.best.scan.margin, margins, gap, found.unit, share, *groups)
            gap, error = stream.gap, stream.error
            sources["unlabelled"] = len(unlabelled)
        retention = self._retention(gap, unlabelled)
        absent = AbsentModel(gap, error, share, retention.value)
        decide_for = partial(_decide, self.best.accuracy, found, usual)
        decision = decide_for(absent)

        estimate = GammaEstimate(
            decision.gamma,
            f"{_OWN}({_sum_of(found.weights)}, seen_share={share:.4g})",
            self._data(sources, unlabelled, None if given_share is not None else share),
            sum(sources.values()),
            interval=_interval(decide_for, found, absent, shares, decision.gamma),
            seen_share=share,
            seen_share_source=GIVEN if given_share is not None else EQUALLY_FREQUENT if stream is None else ESTIMATED,
            weights=dict(found.weights),
            sources=sources | ({"folds": self.folds.number} if self.folds.retention is not None else {}),
        )
        estimate = self._with_cost(estimate, absent_gain(self.best.accuracy, found.unit, absent, decision.gamma))
        sentences = [*found.sentences]
        if unlabelled is not None and stream is not None:
            sentences += self._unlabelled_warnings(unlabelled, stream, given_share)
        sentences += gap_warnings(found, decision)
        if decision.gamma > 0:
            healthy = decide_for(absent._replace(retention=1.0))
            sentences += damage_warnings(found, retention, estimate, healthy.gamma)
        if alone is not None:
            sentences += share_warnings(decision.gamma, alone.gamma, found.unit)
        return with_warnings(estimate, sentences)

    @property
    def best(self) -> SeenSamples:
        """The labelled samples that show what gamma costs."""
        return self.samples.get("held_out") or self.samples["train"]

    def _with_cost(self, estimate: GammaEstimate, gain: float | None = None) -> GammaEstimate:
        return with_cost(estimate, self.best.scan, COST_SOURCES[self.best.samples.name], gain)

    def _gap(self) -> tuple[GapEvidence, dict[str, int]]:
        """Return the gap of all labelled samples, and their number by argument."""
        held_out = None
        if "held_out" in self.samples:
            with self.samples["held_out"].samples.naming_errors():
                held_out = self.samples["held_out"].evidence
            if "train" not in self.samples:
                return held_out, {"held_out": held_out.n}
        try:
            with self.samples["train"].samples.naming_errors():
                train = self.samples["train"].evidence
        except ValueError as error:
            if held_out is None:
                raise
            not_used = held_out._replace(sentences=[*held_out.sentences, f"not used: {error}"])
            return not_used, {"held_out": held_out.n}
        if held_out is None:
            return train, {"train": train.n}
        return combine_evidence(train, held_out), {"train": train.n, "held_out": held_out.n}

    def _retention(self, gap: float, unlabelled: Samples | None) -> AbsentRetention:
        """Return the health from folds, else unlabelled, else labelled samples."""
        retention = self.folds.retention
        if retention is None and unlabelled is not None:
            retention = retention_from_unlabelled(unlabelled, self.best.scan.mask, gap)
        if retention is not None:
            return retention
        before = self.samples["held_out"].samples.pretrained_tensor if "held_out" in self.samples else None
        return self.best.retention if before is None else retention_from_rivals(self.best.scan, before)

    def _from_margins(self, unlabelled: Samples | None, alone: GammaEstimate | None) -> GammaEstimate:
        """Estimate gamma with one seen class, for which labelled samples have no gap."""
        if unlabelled is None:
            raise ValueError(_ONE_SEEN_CLASS)
        if alone is not None:
            what = "with one seen class the labelled ones only tell what gamma costs"
            return replace(alone, data=f"{alone.data}; {what}")
        estimate = mixture_gamma(self.best.samples, unlabelled, self.seen_mask, **self._options())
        used = "mixture_gamma, from the margins of the held-out and the unlabelled samples"
        left_out = "; the training samples were not used" if "train" in self.samples else ""
        return with_warnings(estimate, [f"{_NO_RIVALS}: gamma is that of {used}{left_out}"])

    def _data(self, sources: Mapping[str, int], unlabelled: Samples | None, estimated: float | None) -> str:
        """Describe the data; `estimated` is the share of seen samples, None if it was given."""
        labelled = " and ".join(f"{n} labelled {KINDS[name]}" for name, n in sources.items() if name in KINDS)
        stream = ""
        if unlabelled is not None:
            share = " and" if estimated is None else f", {100 * estimated:.0f} % of them seen as estimated with"
            stream = f"{len(unlabelled)} unlabelled samples{in_groups(unlabelled.grouping)}{share} "
        refits = ""
        if self.folds.retention is not None:
            refits = f", and {self.folds.number} fold{'s' if self.folds.number > 1 else ''}"
        return f"{stream}{labelled} samples (seen classes){self._in_groups()}{refits}"

    def _in_groups(self) -> str:
        """Describe the groups of the labelled samples."""
        if len(self.samples) == 1:
            return in_groups(self.best.scan.groups)
        parts = [
            f"the {KINDS[name]} ones{in_groups(of.scan.groups)}"
            for name, of in self.samples.items()
            if of.scan.groups is not None
        ]
        return f", {' and '.join(parts)}" if parts else ""

    def _unused_warnings(self, estimate: GammaEstimate, has_unlabelled: bool) -> list[str]:
        """Return a warning for each argument that `estimate` does not use."""
        sentences = list(self.folds.sentences)
        if has_unlabelled and "unlabelled" not in estimate.sources:
            sentences.append(
                "the unlabelled samples were not used: estimating their share of seen samples needs held-out samples, "
                "held_out="
            )
        if self.folds.retention is not None and estimate.function != _OWN:
            sentences.append("the folds were not used: they need labelled samples of two seen classes beside them")
        return sentences

    def _sample_warnings(self, estimate: GammaEstimate) -> list[str]:
        """Return warnings if labelled samples are few, look wrong, or have a gap of the other sign."""
        scan, sentences = self.best.scan, []
        if len(self.samples) == 2:
            train, held_out = (self.samples[name].samples for name in ("train", "held_out"))
            remedy = (
                "the cost on samples that the model was trained on is too low: give others as held_out, or train alone"
            )
            sentences += same_sample_warnings(train, held_out, self.seen_mask, remedy)
        if len(scan.labels) / self.best.effect < _FEW_SAMPLES:
            number = number_in_words(len(scan.labels), self.best.effect, "labelled")
            sentences.append(f"only {number} were given for gamma or its cost, so they are rough")
        if self.bootstrap.n:
            sentences += group_warnings(*(of.scan.groups for of in self.samples.values()))
        sentences += [s for s in seen_warnings(scan, estimate) if s not in estimate.warnings]
        sentences += [
            of.samples.called(s) for of in self.samples.values() if of.scan is not scan for s in of.scan.doubts()
        ]
        gaps = scan.scalars.seen_rival.double() - scan.scalars.absent_rival.double()
        gap = float(gaps[gaps.isfinite()].mean())
        if estimate.seen_share_source == EQUALLY_FREQUENT and gap * estimate.gamma < 0:  # else by the share, perhaps
            sentences.append(
                f"max_logit_gap is {gap:.4g} on the same labelled samples, of the other sign than gamma = "
                f"{estimate.gamma:.4g}: the model may be distilled or already balanced, and gamma may do harm; check "
                "it with search_gamma on a few labelled samples of all classes"
            )
        return sentences

    def _unlabelled_warnings(self, unlabelled: Samples, stream: UnlabelledEvidence, share: float | None) -> list[str]:
        sentences = [*mask_warnings(unlabelled.logits_tensor, unlabelled.origin), *evidence_warnings(stream)]
        if share is not None:
            return sentences
        margin, groups = unlabelled.margin(self.seen_mask), unlabelled.grouping
        same = same_unlabelled_warnings(self.best.samples, unlabelled, self.seen_mask)
        effects = self.best.effect, design_effect(margin, groups)
        few = group_warnings(groups) if self.bootstrap.n else []
        return [*sentences, *same, *few_sample_warnings(self.best.scan.margin, margin, effects), *few]

    def _options(self) -> dict[str, int]:
        return {"n_bootstrap": self.bootstrap.n, "seed": self.bootstrap.seed}


def _decide(accuracy: SeenAccuracy, found: GapEvidence, usual: float, absent: AbsentModel) -> Decision:
    """Scale the decision by how clearly a gap is present; without one, follow a share that is not the usual one."""
    log_odds = math.log(usual / (1 - usual) * (1 - absent.share) / absent.share)
    if abs(log_odds) < _ROUNDING:
        log_odds = 0.0
    without_gap = (1 - found.gap_weight) * found.unit * log_odds
    if found.gap_weight == 0:
        return Decision(without_gap, 0.0)
    gamma, gain = decide(accuracy, found.unit, found.unfamiliarity, absent)
    return Decision(found.gap_weight * gamma + without_gap, gain)


def _interval(
    decide_for: Callable[[AbsentModel], Decision],
    found: GapEvidence,
    absent: AbsentModel,
    shares: Sequence[float],
    gamma: float,
) -> tuple[float, float] | None:
    """Return a 95 % interval of two independent errors: of sampling, and of the method.

    Over models, the gap has a standard deviation of a tenth of it, and of half a unit if there is none.
    """

    def decided(changed: AbsentModel) -> float:
        return decide_for(changed).gamma

    of_gap = _interpolate(
        [gap - found.gap for gap in found.replicates], lambda by: decided(absent._replace(gap=absent.gap + by))
    )
    of_share = _interpolate(shares, lambda share: decided(absent._replace(share=share)))
    sampled = percentile_interval((of_gap + of_share - gamma).tolist())
    if sampled is None:
        return None
    error = GAP_ERROR * abs(absent.gap) if gamma and found.gap_weight else found.unit
    low, high = (math.hypot(max(0.0, side), error) for side in (gamma - sampled[0], sampled[1] - gamma))
    return gamma - low, gamma + high


def _interpolate(values: Sequence[float], function: Callable[[float], float]) -> NumpyArray:
    """Evaluate the function at a few nodes and interpolate linearly; NaN stays NaN."""
    every = np.asarray(values, dtype=np.float64)
    finite = every[np.isfinite(every)]
    if len(finite) == 0:
        return every
    nodes = np.unique(np.linspace(finite.min(), finite.max(), _NODES))
    return np.where(np.isfinite(every), np.interp(every, nodes, [function(float(node)) for node in nodes]), np.nan)


def _sum_of(weights: Mapping[str, float]) -> str:
    """Write out the weighted mean of functions."""
    if list(weights.values()) == [1.0]:
        return next(iter(weights))
    return " + ".join(f"{weight:.2g} {function}" for function, weight in weights.items())


def _missing_data(has_unlabelled: bool, has_folds: bool) -> str:
    """Name the data that are missing for an estimate."""
    if has_unlabelled:
        return (
            "unlabelled samples alone do not tell gamma: add seen_share=, their share of seen-class samples, or "
            "held_out=(logits, labels)"
        )
    alone = "; with folds= alone use pseudo_cv_gamma" if has_folds else ""
    return (
        "no data to estimate gamma from: pass train=(logits, labels), held_out=(logits, labels), or unlabelled= with "
        f"held_out= or seen_share={alone}"
    )
