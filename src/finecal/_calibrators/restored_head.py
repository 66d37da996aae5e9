"""A head of all classes, from features and the logits of the model before fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.arrays import ArrayLike, as_tensor, check_flag, dtype_name, shape_of
from .._core.checks import as_logits, check_scores
from .._core.groups import Bootstrap
from .._core.results import Block, Result, percent
from .._core.samples import Samples
from .._core.warning import warn
from .._estimators.auto import estimate_gamma
from .._estimators.estimate import EQUALLY_FREQUENT, GIVEN, GammaEstimate, finish_from_seen, scan_seen
from .._estimators.mixed_pairs import estimate_pair_gap, share_or_default
from .._estimators.unlabelled import known_share_gamma
from .head_map import fit_head_map, scale_of_map
from .prototypes import PrototypesReport, fit_prototypes

_LITTLE_EXPLAINED = 0.3


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
        Of the ridge regression, in units of the mean variance of the features.
    scale : float
        By which the mapped logits were multiplied.
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
    prototypes: PrototypesReport | None = None

    def _blocks(self) -> list[Block]:
        absent = self.explained[~self.seen_mask[: len(self.explained)]]
        seen = int(self.seen_mask.sum())
        lines: Block = [
            f"head of {len(self.seen_mask)} classes restored: {seen} fine-tuned, {len(absent)} from the old head",
            f"the features explain {percent(float(absent.mean()))} % of the old logits of the latter (ridge penalty "
            f"{self.penalty:.2g})",
        ]
        blocks = [lines, [str(self.estimate)]]
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
    is_held_out: bool = False,
    unlabelled: Samples | None = None,
    with_prototypes: bool = False,
    seen_share: float | None = None,
    seed: int = 0,
) -> RestoredHead:
    r"""Restore the rows that a new head of the fine-tuned classes lacks, by ridge regression on its features.

    .. math::

        (A, a) = \arg\min \sum_n \| z^\text{old}_n - A f_n - a \|^2 + \lambda \| A \|^2, \qquad
        \tilde w_c = k A_c, \quad \tilde b_c = k a_c + \gamma \quad (c \in U)

    with the penalty :math:`\lambda` by generalised cross-validation, and k the ratio of the spreads (standard deviation
    of logits centred by row) of new and mapped logits over the classes that both heads have. Rows of seen classes
    are those of the new head.

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
    is_held_out : bool, default False
        Whether the model was not trained on `samples`.
    unlabelled : Samples, optional
        With features and pretrained logits as `samples`, of all classes in the proportions in which the model will be
        used; labels are ignored.
    with_prototypes : bool, default False
        Whether to add prototypes of `unlabelled`: see `fit_prototypes`.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used.
    seed : int, default 0

    Returns
    -------
    RestoredHead

    Raises
    ------
    TypeError, ValueError
        If something is missing from the samples, shapes do not go together, or `new_to_old` has no -1 or class left
        over that would be restored.

    Warns
    -----
    FinecalWarning
        As the estimator of gamma; if the features explain little of the old logits.

    Notes
    -----
    Gamma is estimated from leave-one-out logits: each sample's old logits as mapped by a fit to all the others,
    which the leverages give in closed form. `O(N D^2 + D^3)` time.

    Examples
    --------
    >>> import torch, finecal
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> old, features = torch.randn(6, 8), torch.randn(300, 8)
    >>> labels = (features @ old[:3].T).argmax(1)
    >>> samples = finecal.Samples(
    ...     features @ old[:3].T,
    ...     labels,
    ...     features=features,
    ...     pretrained_logits=features @ old.T,
    ... )
    >>> restored = finecal.weights.fit_restored_head(
    ...     samples, old[:3], None, new_to_old=[0, 1, 2]
    ... )
    >>> torch.allclose(restored.weight.float(), old, atol=1e-2)
    True
    """
    check_flag(is_held_out, "is_held_out")
    if check_flag(with_prototypes, "with_prototypes") and unlabelled is None:
        raise ValueError("prototypes are made of unlabelled samples; pass them as unlabelled=")
    own = _Given.of(samples, "samples")
    stream = None if unlabelled is None else _Given.of(unlabelled, "unlabelled")
    head = _NewHead.of(weight, bias, new_to_old, own)
    head_map = fit_head_map(*(own if stream is None else own.joined(stream)))
    scale = scale_of_map(head_map(own.features), head.logits(own.features), head.new_to_old)

    def scored(given: _Given, labels: Tensor | None = None) -> Samples:
        mapped = head_map.leave_one_out(given.features, given.old_logits)
        logits = head.whole(scale * mapped, head.logits(given.features))
        return Samples(logits, labels, features=given.features)

    labels = None if samples.labels is None else head.classes[samples.labels_tensor]
    of_own, of_stream = scored(own, labels), None if stream is None else scored(stream)
    estimate = _estimate(head.seen_mask, of_own, of_stream, is_held_out, seen_share, seed)
    explained = head_map.explained
    estimate = _with_doubts(estimate, explained[~head.seen_mask[: len(explained)]], stream is not None)
    rows = head.whole(scale * head_map.weight.T, head.weight.T).T
    level = head.whole(scale * head_map.bias[None], head.bias[None])[0]
    report = None
    if with_prototypes and of_stream is not None:
        prototypes = fit_prototypes(of_stream, head.seen_mask, estimate)
        added, report = prototypes.weight.double(), prototypes.report
        rows, level = rows + added, level - added @ prototypes.center.double()
    level = torch.where(head.seen_mask, level, level + float(estimate))
    return RestoredHead(rows, level, head.seen_mask, head.classes, estimate, explained, head_map.penalty, scale, report)


class _Given(NamedTuple):
    """Features `(N, D)` and old logits `(N, C)` of the same samples, as float64."""

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
        logits = as_logits(old, "pretrained_logits")
        check_scores(logits, logits.amax(1), f"pretrained_logits of {name}")
        if bool((logits == -math.inf).any()):
            raise ValueError(f"pretrained_logits of {name} hold -inf; pass logits in which no class is masked")
        return cls(features.double(), logits.double())

    def joined(self, other: _Given) -> _Given:
        if [part.shape[1] for part in self] != [part.shape[1] for part in other]:
            raise ValueError(
                f"samples have {self.features.shape[1]} features and {self.old_logits.shape[1]} old classes, but "
                f"unlabelled {other.features.shape[1]} and {other.old_logits.shape[1]}; pass those of the same models"
            )
        return _Given(*map(torch.cat, zip(self, other, strict=True)))


@dataclass(frozen=True)
class _NewHead:
    """The new head `(K, D)`, and where its classes are in the restored one."""

    weight: Tensor
    bias: Tensor
    new_to_old: Tensor
    classes: Tensor
    seen_mask: Tensor

    @classmethod
    def of(cls, weight: ArrayLike, bias: ArrayLike | None, new_to_old: ArrayLike, given: _Given) -> _NewHead:
        device, old = given.features.device, given.old_logits.shape[1]
        rows = as_tensor(weight, "weight").detach().to(device, torch.float64)
        if rows.ndim != 2 or rows.shape[1] != given.features.shape[1]:
            raise ValueError(
                f"weight has shape {shape_of(rows)}, but features have {given.features.shape[1]} columns; pass the "
                "weight (K, D) of the new head, and as features what it takes"
            )
        level = torch.zeros(len(rows)) if bias is None else as_tensor(bias, "bias").detach()
        if level.shape != rows.shape[:1]:
            raise ValueError(f"bias has shape {shape_of(level)}, weight {shape_of(rows)}; pass one number per row")
        known = check_new_to_old(new_to_old, len(rows), old).to(device)
        added = known < 0
        classes = torch.where(added, old - 1 + added.cumsum(0), known)
        mask = torch.zeros(old + int(added.sum()), dtype=torch.bool, device=device)
        mask[classes] = True
        return cls(rows, level.to(device, torch.float64), known, classes, mask)

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias

    def whole(self, mapped: Tensor, new: Tensor) -> Tensor:
        """Return columns for all classes, from those of the old classes `(M, C)` and of the new ones `(M, K)`."""
        out = mapped.new_zeros(len(mapped), len(self.seen_mask))
        out[:, : mapped.shape[1]] = mapped
        out[:, self.classes] = new
        return out


def _estimate(
    mask: Tensor, own: Samples, stream: Samples | None, is_held_out: bool, seen_share: float | None, seed: int
) -> GammaEstimate:
    """Estimate gamma from leave-one-out logits."""
    if own.labels is None:
        share = int(mask.sum()) / len(mask) if seen_share is None else seen_share
        return known_share_gamma(own if stream is None else stream, mask, share)
    if stream is None or not is_held_out:  # margins of training samples do not tell the share of seen ones in a stream
        return _by_pairs(own.named("held_out" if is_held_out else "train"), mask, seen_share, seed)
    return estimate_gamma(mask, held_out=own, unlabelled=stream, seen_share=seen_share, seed=seed)


def _by_pairs(samples: Samples, mask: Tensor, seen_share: float | None, seed: int) -> GammaEstimate:
    """Estimate gamma by mixed pairs; unlike after fine-tuning, there need not be a gap."""
    scan = scan_seen(samples, mask, "fit_restored_head")
    found = estimate_pair_gap(scan, Bootstrap.from_arguments(0, seed))
    share = share_or_default(scan, seen_share)
    estimate = finish_from_seen(scan, found.gamma(share), found.method(share), [], found.sentences, n=found.n)
    return replace(estimate, seen_share=share, seen_share_source=EQUALLY_FREQUENT if seen_share is None else GIVEN)


def _with_doubts(estimate: GammaEstimate, explained: Tensor, has_stream: bool) -> GammaEstimate:
    """Warn where the features explain little of the old logits of absent classes."""
    if float(explained.mean()) >= _LITTLE_EXPLAINED:
        return estimate
    more = "" if has_stream else "unlabelled samples of all classes (unlabelled=), "
    sentence = (
        f"the features explain {percent(float(explained.mean()))} % of the old logits of the absent classes, so that "
        f"the restored model may be worse than the pre-trained one; what helps: {more}more samples, or to "
        "fine-tune again with all rows of the head"
    )
    warn(f"fit_restored_head: {sentence}")
    return replace(estimate, warnings=(*estimate.warnings, sentence))
