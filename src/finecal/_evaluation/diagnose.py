"""What fine-tuning damaged and what gamma can bring back: the paper's analysis, from the scores of both models."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from .._core.arrays import Mask
from .._core.checks import LinearHead, check_head, check_same_device, head_warnings, named_classes
from .._core.plausibility import group_hits, guessing_evidence
from .._core.report import Margins
from .._core.samples import Samples, Scan, samples_with
from .._core.warning import warn
from .diagnosis import Diagnosis, HeadRows, head_rows, logit_gaps, nearest_mean_margins, paired_change


def diagnose(
    samples: Samples,
    seen_mask: Mask,
    *,
    reference: Samples | None = None,
    head: LinearHead | None = None,
    pretrained_head: LinearHead | None = None,
    prototypes: nn.Module | None = None,
) -> Diagnosis:
    r"""Measure what fine-tuning damaged, and how much of it gamma can recover, from labelled samples of all classes.

    The same samples are scored by the model before and after fine-tuning. `Acc_{U/U}`, which no gamma changes, measures
    damage; the oracle gamma, the exact optimum on these labels, bounds what calibration can recover. See
    :doc:`/how-to/results`.

    Parameters
    ----------
    samples : Samples
        Test or validation samples with `labels` of seen and of absent classes, and `pretrained_logits`; optionally
        `features` and `pretrained_features`, the inputs of each model's head. Their groups are not used.
    seen_mask : (C,) bool
        True for the seen classes.
    reference : Samples, optional
        Labelled samples of all classes (the paper: training data) with `features`, `pretrained_features` or both, for
        the class means below. Classes without any are left out of the NCM accuracies. The logits are not used.
    head, pretrained_head : nn.Linear or (weight, bias), optional
        Each model's last layer: weight `(C, D)`, bias `(C,)` or None.
    prototypes : Prototypes, optional
        Fitted to unlabelled samples, which may be these; the samples need `features`. Their gain beyond gamma is
        measured.

    Returns
    -------
    Diagnosis
        Its `advice` names the step that helps. Its `verdict` is one of

        * "calibration helps": the oracle gamma gains at least one point of `Acc_{Y/Y}` and more than 2.72 of McNemar's
          standard errors (without a gap, 2.5 % of cases on either side of 0: the maximum of a walk is Rayleigh
          distributed), and more samples than were damaged.
        * "damaged": `Acc_{U/U}` fell by at least one point, and McNemar's test (same samples; continuity correction)
          rejects no change at the 5 % level; and gamma gains no more samples than this cost, or nothing beyond luck.
        * "no gap": neither.

        `damaged` and `calibration_helps` hold each of the two alone.

    Raises
    ------
    TypeError, ValueError
        As `Samples.margins`; TypeError if `samples` or `reference` lack what they need; ValueError if labels are of one
        group only, shapes do not match, features have neither a reference nor heads, or only one head is given.

    Warns
    -----
    FinecalWarning
        If -inf masks the label of a sample, there is only one absent class (`Acc_{U/U}` is 1 then), reference samples
        of some classes are missing, or a head does not reproduce the logits from its features.

    Notes
    -----
    The tests assume independent samples. A nearest class mean (NCM) separates damaged features from a damaged head:

    .. math:: \hat y = \arg\max_c \cos(f, \mu_c), \qquad
              \mu_c = \operatorname{normalise}\left\langle \frac{f}{\lVert f \rVert} \right\rangle_{y = c}

    `O(NC + N log N)` for the logits, `O((NC + R) D)` for NCM. Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS
    2024, sections 3 to 5. McNemar, Psychometrika 1947; Edwards, Psychometrika 1948; the endpoint of a walk at its
    maximum: Durrett, Iglehart and Miller, Annals of Probability 1977.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> labels, seen_mask = np.arange(300) % 4, np.array([True, True, False, False])
    >>> before = 5 * np.eye(4)[labels]
    >>> logits = before + 9 * seen_mask
    >>> samples = finecal.Samples(logits, labels, pretrained_logits=before)
    >>> diagnosis = finecal.diagnose(samples, seen_mask)
    >>> diagnosis.verdict, diagnosis.finetuned.acc_all, diagnosis.oracle.acc_all
    ('calibration helps', 0.5, 1.0)
    """
    scan = samples_with(samples, "samples", "labels", "pretrained_logits").scan(seen_mask)
    samples.check_not_empty("diagnose")
    if reference is not None:
        _check_reference(reference, scan)
    assert samples.pretrained_tensor is not None
    before = Scan.of(samples.pretrained_tensor, scan.labels, scan.mask)
    models = (
        _Model.of("pretrained_", before, samples, reference, pretrained_head),
        _Model.of("", scan, samples, reference, head),
    )
    _check_partners(models, reference is not None, prototypes is not None)
    pretrained_curve, curve = (model.scan.margins.curve() for model in models)
    gamma = curve.best()
    prototyped = None if prototypes is None else _with_prototypes(models[1], prototypes)
    with_prototypes = prototypes_change = None
    if prototyped is not None:
        prototypes_curve = prototyped.margins.curve()
        with_prototypes = prototypes_curve.at(prototypes_curve.best())
        prototypes_change = paired_change(_correct(scan, gamma), _correct(prototyped, with_prototypes.gamma))
    pretrained_ncm, finetuned_ncm = (_nearest_mean(model) for model in models)
    rows, about_heads = _compared_heads(models)
    sentences = [*_doubts_about_within(models), *about_heads]
    if found := guessing_evidence(group_hits(before.scalars.is_seen, before.scalars.hit, scan.mask)):
        sentences.append(
            f"pretrained_logits: {found}: check that they are of the same samples, in the same order, and that the "
            "model knew these classes before fine-tuning"
        )
    if reference is not None:
        sentences += _doubts_about_reference(reference.labels_tensor, scan)
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
    """What is given of one of the two models; `prefix` is that of the names of its fields and arguments."""

    prefix: str
    scan: Scan
    features: Tensor | None
    reference: Tensor | None
    """Features of the reference samples."""
    reference_labels: Tensor | None
    head: LinearHead | None

    @classmethod
    def of(cls, prefix: str, scan: Scan, samples: Samples, reference: Samples | None, head: LinearHead | None) -> Self:
        """Take what belongs to the model with this prefix."""
        inputs, reference_inputs = (
            None if given is None else given.pretrained_features_tensor if prefix else given.features_tensor
            for given in (samples, reference)
        )
        return cls(prefix, scan, inputs, reference_inputs, None if reference is None else reference.labels_tensor, head)


def _check_reference(reference: Samples, scan: Scan) -> None:
    """Check what is used of the reference samples."""
    samples_with(reference, "reference", "labels")
    if reference.num_classes != scan.logits.shape[1]:
        raise ValueError(
            f"reference has {reference.num_classes} classes, samples {scan.logits.shape[1]}; pass reference samples of "
            "the same classes"
        )
    check_same_device(reference.logits_tensor, scan.logits.device, "reference")


def _check_partners(models: tuple[_Model, _Model], has_reference: bool, has_prototypes: bool) -> None:
    """Require what each optional argument is compared with: nothing that is given goes unused in silence."""
    lacking = [model.prefix for model in models if model.head is None]
    if len(lacking) == 1:
        raise ValueError(f"{lacking[0]}head is missing; the two heads are compared: pass both, or none")
    if has_prototypes and models[1].features is None:
        raise ValueError(
            "prototypes need features, the inputs of the fine-tuned model's head; pass Samples(..., features=...)"
        )
    for prefix, _, features, reference, _, head in models:
        if reference is not None and features is None:
            raise ValueError(
                f"reference has {prefix}features, but samples have none to compare with them; pass both, or none"
            )
        if features is not None and reference is None and head is None and not (has_prototypes and not prefix):
            raise ValueError(
                f"samples have {prefix}features, but there are neither reference samples with {prefix}features, whose "
                "class means would classify them, nor the heads; pass either, or leave them out"
            )
    if has_reference and all(model.reference is None for model in models):
        raise ValueError(
            "reference has neither features nor pretrained_features, of which there would be class means; pass "
            "reference=Samples(logits, labels, features=...)"
        )


def _with_prototypes(model: _Model, prototypes: nn.Module) -> Scan:
    """Scan the logits with prototypes, which have gamma in them."""
    if not isinstance(prototypes, nn.Module):
        raise TypeError(f"prototypes is a {type(prototypes).__name__}; pass what fit_prototypes returned")
    with torch.no_grad():
        logits = prototypes(model.scan.logits, model.features)
    return Samples(logits, model.scan.labels).scan(model.scan.mask)


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
    missing = torch.bincount(reference_labels, minlength=scan.mask.shape[0]) == 0
    for group, members in (("seen", scan.mask), ("absent", ~scan.mask)):
        if bool(missing[members].all()):
            raise ValueError(
                f"reference has labels of no {group} class; class means need labelled samples of all classes: pass a "
                "reference set of both groups, or leave it out"
            )
    if not bool(missing.any()):
        return []
    return [
        f"reference lacks {int(missing.sum())} of {missing.shape[0]} classes ({named_classes(missing)}), which "
        f"have no mean: {int(missing[scan.labels].sum())} of {scan.labels.shape[0]} samples are left out of the NCM "
        "accuracies"
    ]


def _correct(scan: Scan, gamma: float) -> Tensor:
    return scan.scalars.hit & ((scan.margin.double() >= gamma) == scan.scalars.is_seen)


def _nearest_mean(model: _Model) -> Margins[Tensor] | None:
    if model.features is None or model.reference is None or model.reference_labels is None:
        return None
    if model.features.shape[1] != model.reference.shape[1]:
        raise ValueError(
            f"reference: {model.prefix}features have {model.reference.shape[1]} columns, those of samples "
            f"{model.features.shape[1]}; pass features of the same layer of the same model"
        )
    scan = model.scan
    return nearest_mean_margins(model.features, scan.labels, scan.mask, model.reference, model.reference_labels)


def _compared_heads(models: tuple[_Model, _Model]) -> tuple[HeadRows | None, list[str]]:
    """Compare the heads, and doubt each that does not give the logits from the features, where these are given."""
    if models[0].head is None:
        return None, []
    weights, sentences = [], []
    for model in models:
        x = model.scan.logits
        weight, bias = check_head(model.head, x.shape[1], x.device, f"{model.prefix}head")
        if model.features is not None:
            sentences += head_warnings(x, model.features, weight, bias, model.prefix)
        weights.append(weight.to(torch.promote_types(weight.dtype, torch.float32)))
    if weights[0].shape != weights[1].shape:
        raise ValueError(
            f"pretrained_head takes {weights[0].shape[1]} features, head {weights[1].shape[1]}; pass the same layer "
            "before and after fine-tuning"
        )
    return head_rows(weights[0], weights[1], models[0].scan.mask), sentences
