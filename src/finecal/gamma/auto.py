"""The best estimate of gamma that the given data allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from ..evaluation.masked import doubts_about_masks
from ..evaluation.scan import LabelledScan, unlabelled_margins
from ..inputs.arrays import Logits, Mask, as_tensor
from ..inputs.checks import check_not_empty
from ..inputs.features import LinearHead, check_head
from ..inputs.numbers import check_share
from ..inputs.warning import naming
from .bootstrap import HELD_OUT, UNLABELLED, Bootstrap, percentile_interval
from .combination import (
    FoldErrors,
    corrected,
    doubts_about_shares,
    fold_errors,
    gamma_at_known_share,
    gamma_of_unlabelled,
    gap_of_both,
    gap_of_held_out,
    gap_of_training,
    with_drift,
)
from .estimate import (
    GammaEstimate,
    check_two_seen,
    doubts_about_seen,
    finish_from_seen,
    with_cost,
    with_warnings,
)
from .folds import PseudoFold
from .gamma_of_share import GammaOfShare, chosen_share, equal_share
from .given import Labelled, LabelledFeatures, scanned
from .head_drift import DriftGamma, gamma_of_drift
from .same_samples import Rows, doubts_about_same_samples, doubts_about_unlabelled
from .unlabelled import doubts_about_mixture, doubts_about_quantile, known_share_gamma, mixture_gamma

_FEW_SAMPLES = 20
_FAR_APART = 3.0
"""Units of log-odds."""
_MEMORISED_FEATURES = (
    "features and heads were not used: on training samples, which the model has memorised, the drift is too low; give "
    "those of held-out samples"
)
_NO_RIVALS = (
    "the training samples were not used: with one seen class no sample has a seen rival, which residuals and mixed "
    "pairs need"
)


def estimate_gamma(
    seen_mask: Mask,
    *,
    train: Labelled | LabelledFeatures | None = None,
    held_out: Labelled | LabelledFeatures | None = None,
    unlabelled: Logits | None = None,
    seen_share: float | None = None,
    head: LinearHead | None = None,
    pretrained_head: LinearHead | None = None,
    folds: Iterable[PseudoFold] | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma as well as the given data allow: give all that you have.

    =============================  =========================================================================
    given                          gamma
    =============================  =========================================================================
    `unlabelled`, `seen_share`     `known_share_gamma`; half that and half as below, if there are labelled samples
    `unlabelled`, `held_out`       nearly the same for an estimated share: see Notes
    `held_out`                     `residual_gap`, and `mixed_pair_gap` as far as the model makes too few mistakes
    `train`                        `residual_gap` as far as the samples look like new ones to the model, and
                                   `mixed_pair_gap` as far as it has memorised them
    `held_out`, `train`            two thirds the gamma of `held_out`, one third that of `train`
    held-out features, both heads  four fifths that, one fifth `head_drift_gamma` on `held_out`
    `folds` as well                half of what `residual_gap` misses in the folds is added
    =============================  =========================================================================

    From labelled seen samples, gamma for equally frequent classes is never below 0; where the gap is too small to be
    told from none, it is 0, with a warning. With labelled samples of all classes use `search_gamma`, which is exact.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    train : (logits, labels) or (logits, labels, features), optional
        Samples that the model was fine-tuned on: `(N, C)` scores before softmax and `(N,)` class indices. Their
        features are not used: on samples that the model has memorised the drift is too low.
    held_out : (logits, labels) or (logits, labels, features), optional
        Samples of the seen classes that it was not trained on; features are `(N, D)`, what the head takes.
    unlabelled : (M, C) logits, optional
        Samples of all classes, in the proportions in which the model will be used.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used; default: estimated from `unlabelled`, else |S| / C,
        but for classes that -inf masks in all samples.
    head, pretrained_head : nn.Linear, or (weight, bias), optional
        The head after and before fine-tuning; of use with the features of `held_out`.
    folds : iterable of PseudoFold, optional
        From models that were fine-tuned on half of the seen classes; see `pseudo_cv`. Where `unlabelled` is used they
        are not.
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval.
    seed : int, default 0
        Of the resamplings, and of the pairs of `mixed_pair_gap`.

    Returns
    -------
    GammaEstimate
        `method` and `data` say what was chosen and from what: "0.67 residual_gap + 0.33 mixed_pair_gap" is a sum with
        these weights, which add up to less than 1 where a small gap was reduced; "3 residual_gap" is three times that,
        where the two are far apart. `expected_acc_seen` is measured on `held_out` if given, else on `train`.

    Raises
    ------
    TypeError, ValueError
        As the estimators; ValueError if the data allow none.

    Warns
    -----
    FinecalWarning
        As the estimators; if `train` and `held_out`, or `held_out` and `unlabelled`, are the same samples; if the gap
        is small or none, or estimators are far apart; if `max_logit_gap` on the same
        labelled samples has the other sign; and if data cannot be used (labelled samples of a single seen class beside
        `seen_share` tell the cost alone).

    Notes
    -----
    **How far training samples look like new ones**, :math:`\rho`: the mistakes that the model makes on them among the
    seen classes, over those that its probabilities lead to expect, at most 1; multiplied by 20 times the share of the
    samples that they are, where that is below 1. Where it has memorised them it makes none. Gamma is
    :math:`\rho \gamma_\text{residual} + (1 - \rho) \gamma_\text{mixed}`, at least :math:`\gamma_\text{residual}` and
    at most three times that: on memorised samples residuals are too low, and mixed pairs are too high where there is no
    gap. Of held-out samples, which are new, :math:`\rho` is 1 if the model mistakes one in twenty for another seen
    class, and falls to 0 with the number of such mistakes: where it doubts hardly any sample, residuals are too low as
    well. Held-out samples of which no two can be mixed, as those of one class, leave residuals alone.

    **No gap.** Where there is none, such estimates are still up to about a unit of log-odds high (T of `residual_gap`,
    1 for mixed pairs), and where there is one, so small a gamma gains little. So what is below one unit is taken for
    0, what is above one and a half for what it is; in between gamma rises steeply.

    **Folds** have labels of both their groups, so that the best balanced gamma of a fold is known, and how far that is
    from what `residual_gap` says of its pseudo-seen samples. Half of the mean over the folds is added to gamma, at most
    half a unit of log-odds. This rests on far less than `pseudo_cv_gamma`, which takes the gamma of a fold for that of
    the model. Gamma for equally frequent classes stays at least 0. Folds are not used if one of them has fewer than 4
    pseudo-absent classes, or fewer than 20 samples of either group.

    **The drift of the head** moves gamma by a fifth of the way, half a unit of log-odds at most, and only where there
    is a gap and the head fits the features.

    **Three estimates of the share** of seen samples: by `mixture_gamma`'s best bin; by EM with a normal density for the
    absent samples; and by how many samples gamma sends to the seen classes, if for equally frequent classes it makes as
    many mistakes in either direction. Their median is used, drawn to |S| / C as by ten samples more. The quantile of
    the unlabelled margins moves gamma by at most half a unit of log-odds: where it is further off, it is the share
    that is wrong.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]], (20, 1))
    >>> labels = np.tile([0, 1], 20)
    >>> estimate = finecal.estimate_gamma([True, True, False, False], train=(logits, labels))
    >>> estimate.gamma, estimate.method, estimate.data
    (5.0, 'mixed_pair_gap(seen_share=0.5)', '40 training labelled seen-class samples')
    """
    bootstrap = Bootstrap.checked(n_bootstrap, seed)
    scans, features = scanned(seen_mask, train, held_out)
    drift = _drift(scans, features, head, pretrained_head, bootstrap)
    errors = FoldErrors([], []) if folds is None else fold_errors(folds, seen_mask)
    given = _Given(seen_mask, scans, drift, errors, bootstrap)
    if unlabelled is not None and seen_share is not None:
        estimate = given.from_known_share(unlabelled, seen_share)
    elif unlabelled is not None and "held_out" in scans:
        estimate = given.from_unlabelled(unlabelled)
    elif scans:
        estimate = given.from_seen(seen_share)
    else:
        raise ValueError(_missing(unlabelled is not None, folds is not None))
    sentences = given.unused(estimate, unlabelled is not None)
    if "train" in features and "held_out" not in features:
        sentences.insert(0, _MEMORISED_FEATURES)
    if scans:
        estimate = with_cost(estimate, given.best)
        sentences += given.doubts(estimate, seen_share)
    return with_warnings(estimate, sentences)


class _Given(NamedTuple):
    """What the data are once they are checked, and gamma from parts of them."""

    seen_mask: Mask
    scans: Mapping[str, LabelledScan]
    """Of the labelled samples, by the names of the arguments."""
    drift: DriftGamma | None
    errors: FoldErrors
    bootstrap: Bootstrap

    @property
    def best(self) -> LabelledScan:
        """The labelled samples that tell what gamma costs."""
        return self.scans.get("held_out") or self.scans["train"]

    def gap(self) -> tuple[GammaOfShare, str]:
        """Return the gap of all labelled samples, and which they are in words."""
        found, words = self._gap_of_logits()
        if self.drift is not None:
            found = with_drift(found, self.drift, equal_share(self.best))
        return found, words

    def _gap_of_logits(self) -> tuple[GammaOfShare, str]:
        held_out = None
        if "held_out" in self.scans:
            with naming("held_out"):
                held_out = gap_of_held_out(self.scans["held_out"], self.bootstrap)
        if "train" not in self.scans and held_out is not None:
            return held_out, f"{held_out.n} held-out"
        try:
            with naming("train"):
                train = gap_of_training(self.scans["train"], self.bootstrap)
        except ValueError as error:
            if held_out is None:
                raise
            return held_out._replace(sentences=[*held_out.sentences, f"not used: {error}"]), f"{held_out.n} held-out"
        if held_out is None:
            return train, f"{train.n} training"
        both = gap_of_both(train, held_out, equal_share(self.scans["train"]))
        return both, f"{train.n} training and {held_out.n} held-out"

    def from_seen(self, seen_share: float | None) -> GammaEstimate:
        """Estimate gamma from the labelled seen samples."""
        scan = self.best
        check_two_seen(scan.mask, "estimate_gamma")
        share = chosen_share(scan, seen_share)
        found, words = self.gap()
        found = corrected(found, equal_share(scan), self.errors, self.bootstrap)
        gamma, method = found.gamma(share), found.method(share)
        estimate = finish_from_seen(scan, gamma, method, found.gammas(share), found.sentences, found.n)
        count = len(self.errors.errors)
        refits = f", and {count} fold{'s' if count > 1 else ''}" if "fold_error" in found.weights else ""
        return replace(estimate, data=f"{words} labelled seen-class samples{refits}")

    def from_known_share(self, unlabelled: Logits, seen_share: float) -> GammaEstimate:
        """Estimate gamma from unlabelled samples of which this share is seen, and from the labelled ones, if any."""
        share = check_share(seen_share, "seen_share")
        with naming("unlabelled"):
            margin = unlabelled_margins(unlabelled, self.seen_mask)
            alone = known_share_gamma(unlabelled, self.seen_mask, share, **self._options())
        if not self.scans or int(self.best.mask.sum()) == 1:  # No seen rivals: no residuals, nor mixed pairs.
            return alone
        try:
            found, words = self.gap()
        except ValueError as error:
            return with_warnings(alone, [f"not used: {error}"])
        pairs = zip(found.replicates, self.bootstrap.resampled(margin, stream=UNLABELLED), strict=True)
        replicates = [gamma_at_known_share(found._replace(gap=value), others, share) for value, others in pairs]
        estimate = GammaEstimate(
            gamma_at_known_share(found, margin, share),
            f"estimate_gamma(unlabelled, {found.method(share)})",
            f"{len(margin)} unlabelled samples and {words} labelled seen-class samples",
            len(margin) + found.n,
            interval=percentile_interval(replicates),
        )
        apart = _far_apart(found.gamma(share), alone.gamma, found.unit)
        return with_warnings(estimate, [*found.sentences, *doubts_about_quantile(margin, estimate.gamma), *apart])

    def from_unlabelled(self, unlabelled: Logits) -> GammaEstimate:
        """Estimate gamma from unlabelled samples, and their share of seen ones with held-out samples."""
        held_out = self.scans["held_out"]
        with naming("unlabelled"):
            margin = unlabelled_margins(unlabelled, self.seen_mask)
            check_not_empty(len(margin), "estimate_gamma", "logits")
        if int(held_out.mask.sum()) == 1:
            estimate = mixture_gamma(held_out.logits, unlabelled, self.seen_mask, **self._options())
            return with_warnings(estimate, [_NO_RIVALS] if "train" in self.scans else [])
        found, words = self.gap()
        expected = equal_share(held_out)
        with naming("unlabelled"):
            gamma, share, shares = gamma_of_unlabelled(found, held_out.margin, margin, expected)
        seen_draws = self.bootstrap.resampled(held_out.margin, stream=HELD_OUT)
        unlabelled_draws = self.bootstrap.resampled(margin, stream=UNLABELLED)
        replicates = [
            gamma_of_unlabelled(found._replace(gap=value), seen, others, expected).gamma
            for value, seen, others in zip(found.replicates, seen_draws, unlabelled_draws, strict=True)
        ]
        estimate = GammaEstimate(
            gamma,
            f"estimate_gamma(unlabelled, {found.method(share)})",
            f"{len(margin)} unlabelled samples, {100 * share:.0f} % of them seen as estimated with {words} "
            "labelled seen-class samples",
            len(margin) + found.n,
            interval=percentile_interval(replicates),
        )
        rows = Rows(held_out.logits, held_out.margin), Rows(as_tensor(unlabelled, "logits"), margin)
        same = doubts_about_unlabelled(*rows, ("held_out", "unlabelled"))
        about_share = doubts_about_mixture(held_out.margin, margin, shares.median, gamma)
        doubts = [*doubts_about_masks(rows[1].logits, "unlabelled"), *same, *doubts_about_shares(shares), *about_share]
        return with_warnings(estimate, [*found.sentences, *doubts])

    def unused(self, estimate: GammaEstimate, has_unlabelled: bool) -> list[str]:
        """Return a warning for each of the data that `estimate` made no use of."""
        sentences = []
        if has_unlabelled and "unlabelled" not in estimate.data:
            sentences.append(
                "the unlabelled samples were not used: estimating their share of seen samples needs held-out samples, "
                "held_out="
            )
        if self.errors.errors and "fold_error" not in estimate.method:
            sentences.append(
                "the folds were not used: they correct the gap of labelled seen samples, without unlabelled ones, and "
                "only where there is one"
            )
        return sentences

    def doubts(self, estimate: GammaEstimate, seen_share: float | None) -> list[str]:
        """Return warnings where the labelled samples are few, unknown to the model, or say the opposite."""
        scan, sentences = self.best, self._same_samples()
        if len(scan.labels) < _FEW_SAMPLES:
            sentences.append(
                f"gamma rests on only {len(scan.labels)} labelled samples, or the cost is measured on them"
            )
        sentences += [s for s in doubts_about_seen(scan, estimate) if s not in estimate.warnings]
        sentences += [f"{name}: {s}" for name, other in self.scans.items() if other is not scan for s in other.doubts()]
        gaps = scan.scalars.seen_rival.double() - scan.scalars.absent_rival.double()
        gap = float(gaps[gaps.isfinite()].mean())
        if seen_share is None and gap * estimate.gamma < 0:
            sentences.append(
                f"max_logit_gap is {gap:.4g} on the same labelled samples, of the other sign than gamma = "
                f"{estimate.gamma:.4g}: the model may be distilled or already balanced, and gamma may do harm"
            )
        return sentences

    def _same_samples(self) -> list[str]:
        if len(self.scans) < 2:
            return []
        train, held_out = (Rows(scan.logits, scan.margin) for scan in (self.scans["train"], self.scans["held_out"]))
        remedy = "the cost on samples that the model was trained on is too low: give others as held_out, or train alone"
        return doubts_about_same_samples(train, held_out, ("train", "held_out"), remedy)

    def _options(self) -> dict[str, int]:
        return {"n_bootstrap": self.bootstrap.n, "seed": self.bootstrap.seed}


def _missing(has_unlabelled: bool, has_folds: bool) -> str:
    """Say what there has to be, where there is nothing to estimate gamma from."""
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


def _far_apart(labelled: float, alone: float, unit: float) -> list[str]:
    """Return a warning if labelled samples say something else than the share of unlabelled ones."""
    # Scores of margin classifiers have no unit, so that the difference has to be large beside gamma, too.
    if abs(labelled - alone) <= max(_FAR_APART * unit, max(abs(labelled), abs(alone)) / 2):
        return []
    return [
        f"labelled samples ({labelled:.4g}) and the share of unlabelled ones ({alone:.4g}) disagree about gamma: "
        "check the share, and that all logits are of the same model"
    ]


def _drift(
    scans: Mapping[str, LabelledScan],
    features: Mapping[str, Tensor],
    head: LinearHead | None,
    pretrained_head: LinearHead | None,
    bootstrap: Bootstrap,
) -> DriftGamma | None:
    """Return what the drift of the head says of held-out samples, None without their features."""
    if head is None or pretrained_head is None:
        if features or head is not None or pretrained_head is not None:
            raise ValueError(
                "features, head= and pretrained_head= belong together: pass held_out=(logits, labels, features), and "
                "the layer that gives the logits after and before fine-tuning"
            )
        return None
    if not features:
        raise ValueError("head= and pretrained_head= need features: pass held_out=(logits, labels, features)")
    logits = next(iter(scans.values())).logits
    for name, layer in (("head", head), ("pretrained_head", pretrained_head)):
        check_head(layer, logits.shape[1], logits.device, name)
    if "held_out" not in features or int(scans["held_out"].mask.sum()) == 1:
        return None
    with naming("held_out"):
        return gamma_of_drift(
            scans["held_out"], features["held_out"], head, pretrained_head, bootstrap, stream=HELD_OUT
        )
