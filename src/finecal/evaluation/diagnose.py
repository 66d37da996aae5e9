"""What fine-tuning damaged and what gamma can bring back: the paper's analysis, from the scores of both models."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..inputs.arrays import ArrayLike, Features, Labels, Logits, Mask, as_tensor
from ..inputs.checks import as_logits, check_labels, check_not_empty, check_same_device, check_scores, named_classes
from ..inputs.features import LinearHead, check_features, check_head, doubts_about_head
from ..inputs.warning import warn
from ..logits.reductions import label_scalars, margin_of
from .diagnosis import Diagnosis
from .guessing import group_hits, guessing
from .margins import Margins
from .model_changes import HeadRows, head_rows, logit_gaps, nearest_mean_margins, paired_change
from .samples import Scan, scan_labelled


def diagnose(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    *,
    pretrained_logits: Logits,
    features: Features | None = None,
    pretrained_features: Features | None = None,
    reference_features: Features | None = None,
    pretrained_reference_features: Features | None = None,
    reference_labels: Labels | None = None,
    head: LinearHead | None = None,
    pretrained_head: LinearHead | None = None,
    prototypes: nn.Module | None = None,
) -> Diagnosis:
    r"""Tell what fine-tuning damaged, and how much of it gamma can bring back, from labelled samples of all classes.

    The same samples are scored by the model before and after fine-tuning. `Acc_{U/U}`, which no gamma changes, says
    whether absent classes are still told apart; the oracle gamma, the exact optimum on these very labels, says how much
    calibration can recover at most.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax, of the fine-tuned model; -inf masks a class.
    labels : (N,) int
        Class indices in ``[0, C)``, of seen and of absent classes: test or validation samples.
    seen_mask : (C,) bool
        True for the seen classes.
    pretrained_logits : (N, C)
        Scores of the same samples by the model before fine-tuning, over the same classes.
    features, pretrained_features : (N, D), optional
        The inputs of each model's head for the same samples, in any floating-point dtype.
    reference_features, pretrained_reference_features : (R, D), optional
        Features of labelled samples of all classes (the paper: training data) whose class means classify `features` and
        `pretrained_features`; each through its own model.
    reference_labels : (R,) int, optional
        Of the reference samples. A class without any cannot be predicted, and its samples are left out of the NCM
        accuracies.
    head, pretrained_head : nn.Linear or (weight, bias), optional
        Each model's last layer: weight `(C, D)`, bias `(C,)` or None.
    prototypes : Prototypes, optional
        Fitted to unlabelled samples, which may be these; needs `features`. What they gain beyond gamma is measured.

    Returns
    -------
    Diagnosis
        Its `verdict` is one of

        * "calibration helps": the oracle gamma gains at least one point of `Acc_{Y/Y}` and more than 2.72 of McNemar's
          standard errors, and more samples than were damaged. The gain is the highest point of a walk over the margins;
          where there is no gap, it is, in standard errors, Rayleigh distributed, and exceeds 2.72 in 2.5 % of cases on
          either side of gamma = 0. (Two standard errors, as for a gamma fixed beforehand, would call 27 % of them a
          gap.)
        * "damaged": `Acc_{U/U}` fell by at least one point, and McNemar's test (same samples; continuity correction)
          rejects no change at the 5 % level; and gamma gains no more samples than this cost, or nothing beyond luck.
        * "no gap": neither.

        Its `damaged` and `calibration_helps` say each of the two alone: where both hold, the verdict is the larger.

        Its `advice` says which step helps: gamma alone, prototypes, weights between before and after, or none.

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError if labels are of one group only, shapes do not match, or an argument lacks the one that
        it is compared with: features need their reference features and labels, or heads; a head needs the other head.

    Warns
    -----
    FinecalWarning
        If -inf masks the label of a sample, or there is only one absent class, so that `Acc_{U/U}` tells nothing; if
        reference samples of some classes are missing, or a head does not reproduce the logits from its features.

    Notes
    -----
    The tests take samples for independent: where they are positions of few pictures, say, differences that are due to
    these pictures may pass for more than luck.

    A nearest class mean (NCM) classifier uses no head, so that it tells damaged features from a damaged head:

    .. math:: \hat y = \arg\max_c \cos(f, \mu_c), \qquad
              \mu_c = \operatorname{normalise}\left\langle \frac{f}{\lVert f \rVert} \right\rangle_{y = c}

    What `advice` quotes of other models was measured by ``tests/benchmarks/interpolation.py`` and ``prototypes.py``.

    `O(NC + N log N)` for the logits, `O((NC + R) D)` for NCM; nothing of size (N, C) is allocated. Accuracies hold in
    the proportions of classes of the given samples. Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024,
    sections 3 to 5. McNemar, Psychometrika 1947; Edwards, Psychometrika 1948; the endpoint of a walk at its maximum:
    Durrett, Iglehart and Miller, Annals of Probability 1977.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> labels = np.arange(300) % 4
    >>> pretrained_logits = 5 * np.eye(4)[labels]
    >>> seen_mask = np.array([True, True, False, False])
    >>> logits = pretrained_logits + 9 * seen_mask
    >>> diagnosis = finecal.diagnose(
    ...     logits, labels, seen_mask, pretrained_logits=pretrained_logits
    ... )
    >>> diagnosis.verdict, diagnosis.finetuned.acc_all, diagnosis.oracle.acc_all
    ('calibration helps', 0.5, 1.0)
    >>> print(diagnosis.sentences[0])  # doctest: +NORMALIZE_WHITESPACE
    Calibration will help: the oracle gamma = 9 gives accuracy on all classes (Acc_Y/Y) 50.0 -> 100.0 % (+50.0 ± 4.1
    points), on absent ones (Acc_U/Y) 0.0 -> 100.0 %, on seen ones (Acc_S/Y) 100.0 -> 100.0 %.
    """
    scan = scan_labelled(logits, labels, seen_mask)
    check_not_empty(scan.labels.shape[0], "diagnose")
    before = _scan_pretrained(pretrained_logits, scan)
    models = (
        _Model(before, "pretrained_", pretrained_features, pretrained_reference_features, pretrained_head),
        _Model(scan, "", features, reference_features, head),
    )
    _check_partners(models, reference_labels, prototypes is not None)
    pretrained_curve, curve = (model.scan.margins.curve() for model in models)
    gamma = curve.best()
    prototyped = None if prototypes is None else _with_prototypes(models[1], prototypes)
    with_prototypes = prototypes_change = None
    if prototyped is not None:
        prototypes_curve = prototyped.samples.curve()
        with_prototypes = prototypes_curve.at(prototypes_curve.best())
        prototypes_change = paired_change(_correct(scan, gamma), _correct(prototyped, with_prototypes.gamma))
    pretrained_ncm, finetuned_ncm = (_nearest_mean(model, reference_labels) for model in models)
    rows, about_heads = _compared_heads(models)
    sentences = [*_doubts_about_within(models), *about_heads]
    if found := guessing(group_hits(before.scalars.is_seen, before.scalars.hit, scan.mask)):
        sentences.append(
            f"pretrained_logits: {found}: check that they are of the same samples, in the same order, and that the "
            "model knew these classes before fine-tuning"
        )
    if reference_labels is not None:
        sentences += _doubts_about_reference(as_tensor(reference_labels, "reference_labels"), scan)
    for sentence in sentences:
        warn(f"diagnose: {sentence}")

    seen, was_hit, hit = scan.scalars.is_seen, before.scalars.hit, scan.scalars.hit
    ncm_absent_change = None
    if pretrained_ncm is not None and finetuned_ncm is not None:
        ncm_absent_change = paired_change(*(ncm.hit[~ncm.is_seen] for ncm in (pretrained_ncm, finetuned_ncm)))
    return Diagnosis(
        pretrained=pretrained_curve.at(0.0),
        finetuned=curve.at(0.0),
        oracle=curve.at(gamma),
        gain=paired_change(_correct(scan, 0.0), _correct(scan, gamma)),
        seen_change=paired_change(was_hit[seen], hit[seen]),
        absent_change=paired_change(was_hit[~seen], hit[~seen]),
        pretrained_gaps=logit_gaps(before),
        finetuned_gaps=logit_gaps(scan),
        pretrained_ncm=None if pretrained_ncm is None else pretrained_ncm.curve().at(0.0),
        finetuned_ncm=None if finetuned_ncm is None else finetuned_ncm.curve().at(0.0),
        ncm_absent_change=ncm_absent_change,
        head_rows=rows,
        with_prototypes=with_prototypes,
        prototypes_change=prototypes_change,
        warnings=tuple(sentences),
    )


class _Model(NamedTuple):
    """What is given of one of the two models; `prefix` is that of the names of its arguments."""

    scan: Scan
    prefix: str
    features: Features | None
    reference: ArrayLike | None
    head: LinearHead | None

    def checked_features(self) -> Tensor:
        x = self.scan.logits
        return check_features(self.features, x.shape[0], x.device, f"{self.prefix}features")


def _scan_pretrained(pretrained_logits: Logits, scan: Scan) -> Scan:
    name = "pretrained_logits"
    x = as_logits(pretrained_logits, name).detach()
    if x.shape != scan.logits.shape:
        raise ValueError(
            f"{name} have shape {tuple(x.shape)}, logits {tuple(scan.logits.shape)}; pass the scores of the same "
            "samples, over the same classes, by the model before fine-tuning"
        )
    check_same_device(x, scan.logits.device, name)
    scalars = label_scalars(x, scan.labels, scan.mask)
    check_scores(x, torch.maximum(scalars.seen_max, scalars.absent_max), name)
    return Scan(x, scan.labels, scan.mask, scalars, margin_of(scalars.seen_max, scalars.absent_max))


def _check_partners(models: tuple[_Model, _Model], reference_labels: Labels | None, has_prototypes: bool) -> None:
    """Require what each optional argument is compared with: nothing that is given goes unused in silence."""
    lacking = [model.prefix for model in models if model.head is None]
    if len(lacking) == 1:
        raise ValueError(f"{lacking[0]}head is missing; the two heads are compared: pass both, or none")
    if has_prototypes and models[1].features is None:
        raise ValueError("prototypes need features, the inputs of the fine-tuned model's head; pass features=")
    for _, prefix, features, reference, head in models:
        if reference is not None and (features is None or reference_labels is None):
            raise ValueError(
                f"{prefix}reference_features need {prefix}features and reference_labels; pass all three, or none"
            )
        if features is not None and reference is None and head is None and not (has_prototypes and not prefix):
            raise ValueError(
                f"{prefix}features are given without {prefix}reference_features and reference_labels, whose class "
                "means would classify them, and without the heads; pass either, or leave them out"
            )
    if reference_labels is not None and all(model.reference is None for model in models):
        raise ValueError("reference_labels are given without reference_features or pretrained_reference_features")


def _with_prototypes(model: _Model, prototypes: nn.Module) -> Scan:
    """Scan the logits with prototypes, which have gamma in them."""
    if not isinstance(prototypes, nn.Module):
        raise TypeError(f"prototypes is a {type(prototypes).__name__}; pass what fit_prototypes returned")
    with torch.no_grad():
        logits = prototypes(model.scan.logits, model.checked_features())
    return scan_labelled(logits, model.scan.labels, model.scan.mask)


def _doubts_about_within(models: tuple[_Model, _Model]) -> list[str]:
    """Return warnings where accuracy within the groups says nothing of damage."""
    sentences = []
    for model in models:
        n, masked = model.scan.labels.shape[0], int((model.scan.scalars.own == -math.inf).sum())
        if masked:
            sentences.append(
                f"{model.prefix}logits are -inf on the label in {masked} of {n} samples: these count as wrong, which "
                "is no damage; unmask these classes, or leave the samples out"
            )
    if int((~models[0].scan.mask).sum()) == 1:
        sentences.append(
            "there is only one absent class, so none to confuse it with: Acc_U/U is 100 % whatever fine-tuning did, "
            "and does not show damage; compare AUSUC before and after"
        )
    return sentences


def _doubts_about_reference(reference_labels: Tensor, scan: Scan) -> list[str]:
    missing = torch.bincount(reference_labels.to(torch.int64), minlength=scan.mask.shape[0]) == 0
    for group, members in (("seen", scan.mask), ("absent", ~scan.mask)):
        if bool(missing[members].all()):
            raise ValueError(
                f"reference_labels hold no {group} class; class means need labelled samples of all classes: pass a "
                "reference set of both groups, or leave it out"
            )
    if not bool(missing.any()):
        return []
    return [
        f"reference_labels lack {int(missing.sum())} of {missing.shape[0]} classes ({named_classes(missing)}), which "
        f"have no mean: {int(missing[scan.labels].sum())} of {scan.labels.shape[0]} samples are left out of the NCM "
        "accuracies"
    ]


def _correct(scan: Scan, gamma: float) -> Tensor:
    return scan.scalars.hit & ((scan.margin.double() >= gamma) == scan.scalars.is_seen)


def _nearest_mean(model: _Model, reference_labels: Labels | None) -> Margins[Tensor] | None:
    if model.reference is None:
        return None
    x, name = model.scan.logits, f"{model.prefix}reference_features"
    reference = check_features(model.reference, None, x.device, name)
    y = check_labels(reference_labels, reference.shape[0], x.shape[1], x.device, "reference_labels", name)
    features = model.checked_features()
    if features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"{name} have {reference.shape[1]} columns, {model.prefix}features {features.shape[1]}; pass features of "
            "the same layer of the same model"
        )
    return nearest_mean_margins(features, model.scan.labels, model.scan.mask, reference, y)


def _compared_heads(models: tuple[_Model, _Model]) -> tuple[HeadRows | None, list[str]]:
    """Compare the heads, and doubt each that does not give the logits from the features, where these are given."""
    if models[0].head is None:
        return None, []
    weights, sentences = [], []
    for model in models:
        x = model.scan.logits
        weight, bias = check_head(model.head, x.shape[1], x.device, f"{model.prefix}head")
        if model.features is not None:
            sentences += doubts_about_head(x, model.checked_features(), weight, bias, model.prefix)
        weights.append(weight.to(torch.promote_types(weight.dtype, torch.float32)))
    if weights[0].shape != weights[1].shape:
        raise ValueError(
            f"pretrained_head takes {weights[0].shape[1]} features, head {weights[1].shape[1]}; pass the same layer "
            "before and after fine-tuning"
        )
    return head_rows(weights[0], weights[1], models[0].scan.mask), sentences
