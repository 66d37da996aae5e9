"""A head of all classes, from features and the logits of the model before fine-tuning."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.arrays import ArrayLike, as_tensor, check_flag, check_seed, dtype_name, shape_of
from .._core.checks import as_logits, check_scores
from .._core.results import Block, Result, percent
from .._core.samples import Samples
from .._estimators.estimate import (
    EQUALLY_FREQUENT,
    GIVEN,
    TRAINING,
    GammaEstimate,
    finish_from_seen,
    scan_seen,
    with_warnings,
)
from .._estimators.mixed_pairs import share_or_default
from .._estimators.unlabelled import known_share_gamma
from .head_map import (
    DrawnRows,
    Expected,
    HeadMap,
    HeadRows,
    MapSums,
    expected_accuracy,
    fit_head_map_from_sums,
    restored_gap,
    restored_head,
)
from .prototypes import PrototypesReport, finite, fit_prototypes

_FEW_CLASSES = 5
_LITTLE_AGREEMENT = 0.5


@dataclass(frozen=True)
class RestoredHead(Result):
    """A linear head of all classes, gamma included: logits are ``features @ weight.T + bias``.

    Attributes
    ----------
    weight, bias : (C', D) and (C',) float64 tensors
        The C classes of the old head in their order, then those that it does not have.
    seen_mask : (C',) bool tensor
        True for the classes of the new head.
    classes : (K,) int64 tensor
        Where each class of the new head is in this one.
    estimate : GammaEstimate
        Gamma, which is in `bias`.
    explained : (C,) float64 tensor
        Share of the variance of each old logit that the features explain on samples that the map was not fitted to.
    penalty : float
        Of the ridge regression, in units of the mean variance of the features; 0 without one, for both models.
    scale : float
        By which the mapped logits of absent classes were multiplied.
    old_share : float in [0, 1)
        Share of the mapped logits in those of fine-tuned classes; 0 without labels.
    agreement : float
        Share of the samples for which the restored head and the old one rank the same absent class highest.
    expected : Expected or None
        Accuracies on samples of all classes that the labelled ones let expect: of the restored model, the pre-trained
        one and the fine-tuned one. None without labels.
    prototypes : PrototypesReport or None
        Of the prototypes in `weight` and `bias`, if there are any.
    """

    weight: Tensor
    bias: Tensor
    seen_mask: Tensor
    classes: Tensor
    estimate: GammaEstimate
    explained: Tensor
    penalty: float
    scale: float
    old_share: float = 0.0
    agreement: float = 1.0
    expected: Expected | None = None
    prototypes: PrototypesReport | None = None

    def _blocks(self) -> list[Block]:
        absent = self.explained[~self.seen_mask[: len(self.explained)]]
        seen = int(self.seen_mask.sum())
        lines = [
            f"head of {len(self.seen_mask)} classes restored: {seen} fine-tuned, {len(absent)} from the old head",
        ]
        if self.penalty:
            lines.append(
                f"the features explain {percent(float(absent.mean()))} % of the old logits of the latter "
                f"(ridge penalty {self.penalty:.2g}); the highest of them is the same for {percent(self.agreement)} % "
                "of the samples"
            )
        if self.old_share:
            lines.append(f"the old head has a share of {percent(self.old_share)} % in the logits of fine-tuned classes")
        if self.expected is not None:
            restored, pretrained, fine_tuned = map(percent, self.expected)
            lines.append(
                f"expected accuracy on samples of all classes: {restored} % (pre-trained model {pretrained} %, "
                f"fine-tuned {fine_tuned} %), from seen classes taken for absent ones in turn"
                f"{' (training samples, so optimistic)' if self.estimate.cost_source == TRAINING else ''}"
            )
        blocks: list[Block] = [lines, [str(self.estimate)]]
        return blocks if self.prototypes is None else [*blocks, [str(self.prototypes)]]


def check_new_to_old(new_to_old: ArrayLike, new: int, old: int) -> Tensor:
    """Return the old class of each new one as int64 on the CPU; -1 for none."""
    classes = as_tensor(new_to_old, "new_to_old").cpu()
    if classes.is_floating_point() or classes.dtype == torch.bool or classes.is_complex():
        raise TypeError(f"new_to_old has dtype {dtype_name(classes)}; pass integer indices of old classes, -1 for none")
    if classes.shape != (new,):
        raise ValueError(
            f"new_to_old has shape {shape_of(classes)}, but the new head has {new} rows; pass the old class of each"
        )
    classes = classes.long()
    if bool(((classes < -1) | (classes >= old)).any()):
        raise ValueError(
            f"new_to_old has {int(classes.min())} to {int(classes.max())}; pass indices of the {old} old classes, -1 "
            "for a class that the old head does not have"
        )
    known = classes[classes >= 0]
    if len(set(known.tolist())) < len(known):
        raise ValueError("new_to_old names an old class twice; each row of the new head is a class of its own")
    if not len(known):
        raise ValueError(
            "new_to_old is -1 throughout: the heads share no class, by which the scale of their logits is compared"
        )
    if len(known) == old:
        raise ValueError("new_to_old names all old classes, so that none is absent, and there is nothing to restore")
    return classes


def fit_restored_head(
    samples: Samples,
    weight: ArrayLike,
    bias: ArrayLike | None,
    *,
    new_to_old: ArrayLike,
    old_weight: ArrayLike | None = None,
    is_held_out: bool = False,
    unlabelled: Samples | None = None,
    with_prototypes: bool = False,
    seen_share: float | None = None,
    seed: int = 0,
) -> RestoredHead:
    r"""Restore the rows that a new head of the fine-tuned classes lacks, by ridge regression on its features.

    .. math::

        (A, a) &= \arg\min \sum_n \| z^\text{old}_n - A f_n - a \|^2 + \lambda \| A - W^\text{old} \|^2 \\
        \tilde w_c &= (1 - \beta) \, w_c + \beta \, k_S A_c \quad (c \in S), \qquad
        \tilde w_c = k_U A_c + \tfrac12 \langle \tilde w_s - k_U A_s \rangle_{s \in S} \quad (c \in U)

    and the same for the bias, plus :math:`\gamma`. The penalty :math:`\lambda` is chosen by generalised
    cross-validation, :math:`\beta` by the likelihood of the labels; :math:`k_U` is how much further the largest logit
    of S rises above the mean than the largest mapped one, :math:`k_S` the same of the new head's logits. Rows of
    classes that the old head does not have stay those of the new one.

    Parameters
    ----------
    samples : Samples
        Of fine-tuned classes: `features` `(N, D)`, what the new head takes; `pretrained_logits` `(N, C)` of the old
        head; `labels` in the numbering of the new one, ``[0, K)``. Without labels they are taken for samples of all
        classes.
    weight, bias : (K, D) and (K,) float, or None
        Of the new head.
    new_to_old : (K,) int
        The old class of each new one; -1 for one that the old head does not have.
    old_weight : (C, D) float, optional
        Of the old head, if both models have the same architecture; default: zero in the formula.
    is_held_out : bool, default False
        Whether the model was not trained on `samples`. Held-out ones are better: the new head knows the labels of its
        training samples too well to tell :math:`\beta`.
    unlabelled : Samples, optional
        With features and pretrained logits as `samples`, of all classes in the proportions in which the model will be
        used; labels are ignored.
    with_prototypes : bool, default False
        Whether to add prototypes of `unlabelled`: see `fit_prototypes`.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used; default: every class equally frequent.
    seed : int, default 0
        Seed of the pairs of `mixed_pair_gap`, and of the samples that gamma is told from where there are very many.

    Returns
    -------
    RestoredHead

    Raises
    ------
    TypeError, ValueError
        If something is missing from the samples, shapes do not go together, `new_to_old` has an old class twice, none,
        or all of them.

    Warns
    -----
    FinecalWarning
        If the restored model is expected to be hardly better, or worse, than the pre-trained or the fine-tuned one, or
        ranks another absent class highest than the old head for more than half of the samples; as `mixed_pair_gap`.

    Notes
    -----
    Gamma is that of mixed pairs on leave-one-out logits: each sample's old logits as mapped by a fit to all the others,
    which the leverages give in closed form. It takes no larger share of the samples for absent ones than the
    pre-trained model does. The map is fitted to all samples; the rest is told from 16,384 of them, or 4 D if that is
    more, drawn at random. `O(N D^2 + D^3)` time, and `O(D (D + C))` memory beside the samples.

    Examples
    --------
    >>> import torch, finecal
    >>> _ = torch.manual_seed(0)
    >>> old, features = torch.randn(10, 8), 5 * torch.randn(600, 8)
    >>> features = features[(features @ old.T).argmax(1) < 5]
    >>> logits = features @ old.T
    >>> samples = finecal.Samples(
    ...     3 * logits[:, :5],
    ...     logits.argmax(1),
    ...     features=features,
    ...     pretrained_logits=logits,
    ... )
    >>> restored = finecal.weights.fit_restored_head(
    ...     samples, 3 * old[:5], None, new_to_old=range(5)
    ... )
    >>> torch.allclose(restored.weight.float(), 3 * old, atol=0.1)
    True
    """
    check_flag(is_held_out, "is_held_out")
    if check_flag(with_prototypes, "with_prototypes") and unlabelled is None:
        raise ValueError("prototypes are made of unlabelled samples; pass them as unlabelled=")
    own, stream = DrawnRows(check_seed(seed)), None
    add_samples(own, samples, "samples")
    if unlabelled is not None:
        stream = DrawnRows(seed, sys.maxsize if with_prototypes else 0)
        add_samples(stream, unlabelled, "unlabelled", with_labels=False)
    return fit_from_rows(
        own,
        stream,
        weight,
        bias,
        new_to_old=new_to_old,
        old_weight=old_weight,
        is_held_out=is_held_out,
        with_prototypes=with_prototypes,
        seen_share=seen_share,
        seed=seed,
    )


def add_samples(rows: DrawnRows, samples: Samples, name: str, *, with_labels: bool = True) -> None:
    """Add what the fit needs of samples: features, old logits and labels, if there are any."""
    given = _Given.of(samples, name)
    rows.add(*given, *([samples.labels_tensor] if with_labels and samples.labels is not None else []))


def fit_from_rows(
    drawn: DrawnRows,
    stream: DrawnRows | None,
    weight: ArrayLike,
    bias: ArrayLike | None,
    *,
    new_to_old: ArrayLike,
    old_weight: ArrayLike | None,
    is_held_out: bool,
    with_prototypes: bool,
    seen_share: float | None,
    seed: int,
) -> RestoredHead:
    """Do the same with sums of all samples, and some of these: all unlabelled ones if they are for prototypes."""
    sums, own, labels = drawn.sums, _Given(*drawn.columns[:2]), next(iter(drawn.columns[2:]), None)
    assert sums is not None
    more = None if stream is None else stream.sums
    new_rows, level = _check_new_head(weight, bias, own)
    old_classes = check_new_to_old(new_to_old, len(new_rows), own.old_logits.shape[1]).to(new_rows.device)
    old_rows = _check_old_weight(old_weight, own)
    head_map = of_kept = fit_head_map_from_sums(_joined(sums, more), old_rows)
    if labels is not None and len(labels) < sums.samples:  # classes can be left out of a fit to the kept samples alone
        of_kept = fit_head_map_from_sums(_joined(MapSums.of(*own), more), old_rows)
    rows = restored_head(head_map, new_rows, level, old_classes, *own, labels)
    whole = _Given(*stream.columns[:2]) if with_prototypes and stream is not None else None
    return _finished(rows, own, labels, whole, is_held_out, seen_share, seed, of_kept, has_stream=stream is not None)


def _joined(sums: MapSums, more: MapSums | None) -> MapSums:
    if more is None:
        return sums
    ours, theirs = (tuple(part.cross.shape) for part in (sums, more))
    if ours != theirs:
        raise ValueError(
            f"samples have {ours[0]} features and {ours[1]} old classes, but unlabelled {theirs[0]} and {theirs[1]}; "
            "pass those of the same models"
        )
    return sums.merge(more)


def fit_both_heads(
    samples: Samples,
    *,
    new_to_old: ArrayLike,
    is_held_out: bool = False,
    seen_share: float | None = None,
    seed: int = 0,
) -> RestoredHead:
    """Do the same with the pre-trained model's logits themselves, which needs no map, but both models.

    The head takes the logits of the new model and behind them those of the old one, `(N, K + C)`.
    """
    check_flag(is_held_out, "is_held_out")
    samples.check_not_empty("run_side_by_side")
    logits, old = (
        _finite_scores(samples.logits, "logits"),
        _finite_scores(samples.pretrained_logits, "logits of pretrained"),
    )
    new, classes = logits.shape[1], old.shape[1]
    own = _Given(torch.cat([logits, old.to(logits)], 1), old)
    old_classes = check_new_to_old(new_to_old, new, classes).to(old.device)
    identity = torch.eye(new + classes, dtype=torch.float64, device=old.device)
    nothing = identity.new_zeros(new + classes)
    exact = HeadMap(
        identity[new:], nothing[new:], 0.0, 1 + nothing[new:], len(logits), nothing, nothing[:, None][:, :0]
    )
    labels = None if samples.labels is None else samples.labels_tensor
    rows = restored_head(exact, identity[:new], None, old_classes, *own, labels)
    return _finished(rows, own, labels, None, is_held_out, seen_share, seed, exact, has_stream=False)


def _finished(
    rows: HeadRows,
    own: _Given,
    labels: Tensor | None,
    stream: _Given | None,
    is_held_out: bool,
    seen_share: float | None,
    seed: int,
    of_kept: HeadMap,
    *,
    has_stream: bool,
) -> RestoredHead:
    """Put gamma into the rows, and say what is to be expected of them; `labels` are those of the new head.

    `stream` is what prototypes are made of, `of_kept` the map fitted to no other samples of the classes than `own`.
    """
    mask, head_map = rows.seen_mask, rows.head_map
    logits = rows.leave_one_out(*own)
    absent = (~mask).nonzero()[:, 0]
    agreement = float((logits[:, absent].argmax(1) == own.old_logits[:, absent].argmax(1)).double().mean())
    if labels is None:
        share = int(mask.sum()) / len(mask) if seen_share is None else seen_share
        estimate, expected = known_share_gamma(logits, mask, share), None
    else:
        known = rows.classes[labels]
        of_own = Samples(logits, known).named("held_out" if is_held_out else "train")
        estimate = _estimated(of_own, rows, own, seen_share, seed)
        trial = rows._replace(head_map=of_kept)
        expected = expected_accuracy(trial, logits, *own, known, estimate.gamma, estimate.seen_share)
        estimate = with_warnings(estimate, _doubts(expected, agreement, rows, has_stream, is_held_out))
    weight, bias = rows.weight, torch.where(mask, rows.bias, rows.bias + estimate.gamma)
    report = None
    if stream is not None:
        scored = Samples(rows.leave_one_out(*stream), features=stream.features)
        prototypes = fit_prototypes(scored, mask, estimate)
        added, report = prototypes.weight.double(), prototypes.report
        weight, bias = weight + added, bias - added @ prototypes.center.double()
    return RestoredHead(
        weight,
        bias,
        mask,
        rows.classes,
        estimate,
        head_map.explained,
        head_map.penalty,
        rows.scale,
        rows.old_share,
        agreement,
        expected,
        report,
    )


class _Given(NamedTuple):
    """Features `(N, D)` and old logits `(N, C)` of the same samples."""

    features: Tensor
    old_logits: Tensor

    @classmethod
    def of(cls, samples: object, name: str) -> _Given:
        if not isinstance(samples, Samples):
            raise TypeError(f"{name} is a {type(samples).__name__}; pass a finecal.Samples")
        features, old = samples.features_tensor, samples.pretrained_logits
        for field, value in (("features", features), ("pretrained_logits", old)):
            if value is None:
                raise TypeError(f"{name} has no {field}; pass Samples(..., features=, pretrained_logits=)")
        assert features is not None
        samples.check_not_empty("fit_restored_head")
        return cls(features, _finite_scores(old, f"pretrained_logits of {name}"))


def _finite_scores(scores: object, name: str) -> Tensor:
    logits = as_logits(scores, name)
    check_scores(logits, logits.amax(1), name)
    if bool((logits == -math.inf).any()):
        raise ValueError(f"{name} hold -inf; pass logits in which no class is masked")
    return logits


def _numbers(values: ArrayLike, name: str, given: _Given) -> Tensor:
    return finite(values, name, torch.float64, abstract=False).to(given.features.device)


def _check_new_head(weight: ArrayLike, bias: ArrayLike | None, given: _Given) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the new head as float64, on the device of the features."""
    rows = _numbers(weight, "weight", given)
    if rows.ndim != 2 or rows.shape[1] != given.features.shape[1]:
        raise ValueError(
            f"weight has shape {shape_of(rows)}, but features have {given.features.shape[1]} columns; pass the weight "
            "(K, D) of the new head, and as features what it takes"
        )
    level = rows.new_zeros(len(rows)) if bias is None else _numbers(bias, "bias", given)
    if level.shape != rows.shape[:1]:
        raise ValueError(f"bias has shape {shape_of(level)}, weight {shape_of(rows)}; pass one number per row")
    return rows, level


def _check_old_weight(old_weight: ArrayLike | None, given: _Given) -> Tensor | None:
    if old_weight is None:
        return None
    rows = _numbers(old_weight, "old_weight", given)
    expected = (given.old_logits.shape[1], given.features.shape[1])
    if rows.shape != expected:
        raise ValueError(
            f"old_weight has shape {shape_of(rows)}, but there are {expected[0]} old classes and {expected[1]} "
            "features; pass the weight (C, D) of the old head, or leave it out"
        )
    return rows


def _estimated(samples: Samples, rows: HeadRows, given: _Given, seen_share: float | None, seed: int) -> GammaEstimate:
    """Estimate gamma from leave-one-out logits; unlike after fine-tuning, there need not be a gap."""
    scan = scan_seen(samples, rows.seen_mask, "fit_restored_head")
    found = restored_gap(scan.logits, scan.labels, rows.seen_mask, given.old_logits, rows.shared, seed)
    share = share_or_default(scan, seen_share)
    estimate = finish_from_seen(scan, found.gamma(share), found.method(share), [], found.sentences, n=found.n)
    return replace(estimate, seen_share=share, seen_share_source=EQUALLY_FREQUENT if seen_share is None else GIVEN)


def _doubts(expected: Expected, agreement: float, rows: HeadRows, has_stream: bool, is_held_out: bool) -> list[str]:
    """Return warnings about a head that may be worse than what there was before."""
    sentences = []
    helps = [] if is_held_out else ["labelled samples that the model was not trained on (is_held_out=True)"]
    helps += [] if has_stream else ["unlabelled samples of all classes"]
    helps += ["both models side by side (finecal.weights.run_side_by_side)"] if rows.head_map.penalty else []
    more = "What helps: " + ", or ".join([*helps, "fine-tuning again with all rows of the head"])
    if expected.is_doubtful(is_held_out):
        sentences.append(
            f"the restored model is expected to be right on {percent(expected.restored)} % of all samples, the "
            f"pre-trained one on {percent(expected.pretrained)} %, the fine-tuned one on "
            f"{percent(expected.fine_tuned)} %: it may be worse than they are. {more}"
        )
    elif agreement < _LITTLE_AGREEMENT:
        sentences.append(
            f"the restored head ranks the same absent class highest as the old one for {percent(agreement)} % of the "
            f"samples: the features have lost much of what it knew. {more}"
        )
    if len(rows.shared) < _FEW_CLASSES:
        sentences.append(
            f"the heads share {len(rows.shared)} classes, too few to tell what has become of the others: measure the "
            "restored model on labelled samples of all classes before it is used"
        )
    return sentences
