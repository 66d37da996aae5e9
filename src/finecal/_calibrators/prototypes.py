"""Fitting prototypes to unlabelled samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import SupportsFloat

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._core.arrays import ArrayLike, Mask, as_tensor, check_dense, check_dim, dtype_name, shape_of, without_autocast
from .._core.calibrate import absent_indicator, per_class_view
from .._core.checks import as_bool_mask, check_mask_values, check_module_device, named_classes
from .._core.kernels import wide_dtype
from .._core.results import Block, Caution, Result, percent
from .._core.samples import Samples, samples_with
from .._core.warning import warn
from .._estimators.estimate import GammaEstimate, scan_seen
from ..streaming._prototypes import PrototypeSums
from .additive_bias import Calibrator, check_columns, gamma_buffer

_FEW_PER_CLASS = 2.0
_LITTLE_EXPLAINED = 0.35
"""Models of the benchmark below it gain half a point or less, but for two of nine."""
_OF_THE_AVERAGE = 0.1
_MANY_MISSING = 0.4
_WHICH = "pass the floating-point tensor that the final linear layer takes"


class Prototypes(Calibrator):
    r"""Add gamma to the logits of the absent classes, and to all logits a linear function of the sample's features.

    .. math:: \tilde z_c = z_c + \gamma \, [c \in U] + a_c^\top (f - \bar f)

    Parameters
    ----------
    seen_mask, gamma
        As in `AdditiveBias`.
    weight : (C, D) float
        :math:`a`: logits per unit of each feature, a row per class.
    center : (D,) float
        :math:`\bar f`, the mean of the features.
    dim : int, default -1
        Dimension of the classes in the logits, and of the features in theirs: 1 for `(B, C, H, W)` and `(B, D, H, W)`.

    Attributes
    ----------
    seen_mask : (C,) bool buffer
    gamma, weight, center : float32 buffers
        Casts of the module (``.half()``) move the buffers but never round them.
    method, estimate, report, dim : str or None, GammaEstimate or None, PrototypesReport or None, int
        The function that fitted it, the `gamma` given if it was an estimate, the report of the fit, and the argument.
        Not part of the `state_dict`; `finecal.save` writes them.

    Raises
    ------
    TypeError, ValueError
        As `AdditiveBias`; also if `weight` or `center` is not floating-point or not finite in float32, or shapes do not
        fit together; in `forward`, if the features are no floating-point tensor, or their number differs.

    Notes
    -----
    `forward` takes logits `(..., C)` and features `(..., D)`, the input of the final linear layer, or both along `dim`.
    `finecal.fold_into_head` puts the result into the head of the model.

    Examples
    --------
    >>> import torch, finecal
    >>> mask, weight, center = [True, True, False], torch.eye(3), torch.zeros(3)
    >>> prototypes = finecal.calibrators.Prototypes(mask, 1.5, weight, center)
    >>> prototypes(torch.tensor([[4.0, 1.0, 3.0]]), torch.tensor([[0.0, 0.0, 2.0]]))
    tensor([[4.0000, 1.0000, 6.5000]])
    """

    seen_mask: Tensor
    gamma: Tensor
    weight: Tensor
    center: Tensor
    estimate: GammaEstimate | None = None
    report: PrototypesReport | None = None
    _values = "prototypes"

    def __init__(
        self, seen_mask: Mask, gamma: SupportsFloat, weight: ArrayLike, center: ArrayLike, *, dim: int = -1
    ) -> None:
        super().__init__()
        self.dim: int = check_dim(dim)
        mask = check_mask_values(as_bool_mask(seen_mask, abstract=True)).clone()
        self.estimate = gamma if isinstance(gamma, GammaEstimate) else None
        rows, middle = finite(weight, "weight"), finite(center, "center")
        if rows.ndim != 2 or rows.shape[0] != mask.shape[0] or middle.shape != rows.shape[1:]:
            raise ValueError(
                f"weight has shape {shape_of(rows)} and center {shape_of(middle)}; expected ({mask.shape[0]}, D) and "
                "(D,): a row for each class of seen_mask, and a number for each feature"
            )
        for name, part in (("weight", rows), ("center", middle)):
            if part.is_meta and not mask.is_meta:
                raise ValueError(f"{name} is on the meta device and has no values, but seen_mask is on {mask.device}")
        self.register_buffer("seen_mask", mask)
        self.register_buffer("gamma", gamma_buffer(gamma, mask.device))
        self.register_buffer("weight", rows.to(mask.device))
        self.register_buffer("center", middle.to(mask.device))

    @classmethod
    def from_sums(cls, sums: PrototypeSums) -> Prototypes:
        """Make one of what a `finecal.streaming.PrototypeSums` has collected, with the warnings of `fit_prototypes`.

        ValueError without samples.
        """
        if not isinstance(sums, PrototypeSums):
            raise TypeError(f"sums is a {type(sums).__name__}; pass a finecal.streaming.PrototypeSums")
        prototypes = cls._of(sums, sums.gamma)
        prototypes._issue("PrototypeSums")
        return prototypes

    @classmethod
    def _of(cls, sums: PrototypeSums, gamma: SupportsFloat) -> Prototypes:
        """Make one, without its warnings."""
        parts = sums.compute()
        prototypes = cls(sums.seen_mask, gamma, parts.weight, parts.center)
        counts = parts.class_counts
        is_left_alone = not bool(parts.weight.any())
        prototypes.report = PrototypesReport(
            n=parts.samples,
            class_counts=tuple(counts.tolist()),
            trust=0.0 if is_left_alone else parts.trust,
            scale=parts.scale,
            explained=parts.explained,
            changed=parts.changed,
            warnings=tuple(_warnings(sums.seen_mask, counts, parts.explained, is_left_alone)),
        )
        return prototypes

    def _issue(self, method: str) -> None:
        """Set `method` and issue the warnings of the report."""
        self.method: str = method
        for sentence in () if self.report is None else self.report.warnings:
            warn(f"{method}: {sentence}")

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        check_columns(logits, self.seen_mask, dim=self.dim)
        self._look(logits)
        if not isinstance(features, Tensor):
            raise TypeError(f"features are a {type(features).__name__}; {_WHICH}")
        check_dense(features, "features")
        if not features.is_floating_point() or features.itemsize == 1:
            raise TypeError(f"features have dtype {dtype_name(features)}; {_WHICH}")
        expected = list(logits.shape)
        expected[self.dim] = self.center.shape[0]
        if features.shape != tuple(expected):
            raise ValueError(
                f"features have shape {shape_of(features)} for logits of shape {shape_of(logits)}; expected "
                f"{tuple(expected)}: what the final linear layer takes for these samples"
            )
        check_module_device(self.center.device, features.device, "features")
        wide = wide_dtype(logits.dtype)
        shift = self.gamma.to(wide) * absent_indicator(self.seen_mask, wide)
        rows = features.transpose(self.dim, -1)
        with without_autocast(logits.device):
            told = linear(rows.to(wide) - self.center.to(wide), self.weight.to(wide)).transpose(self.dim, -1)
        return (logits.to(wide) + per_class_view(shift, logits.ndim, self.dim) + told).to(logits.dtype)

    def _shown(self) -> str:
        return f"gamma={float(self.gamma):.6g}, features={self.center.shape[0]}"


@dataclass(frozen=True)
class PrototypesReport(Result):
    """Evidence for the prototypes of `fit_prototypes`; the `report` of the module that it returns. Prints as sentences.

    Attributes
    ----------
    n : int
        Unlabelled samples.
    class_counts : tuple of float
        Estimated samples of each class.
    trust : float in [0, 1)
        w, the weight of the prototypes; 0 if the model is left alone.
    scale : float
        s, by which similarities become logits.
    explained : float
        Agreement of the prototypes of one half of the samples with the soft assignments of the other half: 1 for the
        best possible, 0 for chance.
    changed : float
        Share of the samples whose predicted class differs from that by gamma alone.
    acc_seen_within_before, acc_seen_within : float or None
        `Acc_{S/S}` on the held-out samples given, by gamma alone and with prototypes, as fractions.
    warnings : tuple of str
        Each was also issued as a `FinecalWarning`.
    """

    n: int
    class_counts: tuple[float, ...]
    trust: float
    scale: float
    explained: float
    changed: float
    acc_seen_within_before: float | None = None
    acc_seen_within: float | None = None
    warnings: tuple[str, ...] = ()

    def _blocks(self) -> list[Block]:
        lines = [
            f"prototypes of {len(self.class_counts)} classes from {self.n} unlabelled samples: weight "
            f"{self.trust:.2f}, scale {self.scale:.4g}",
            f"{percent(self.changed)} % of the samples change their class",
        ]
        if self.acc_seen_within is not None and self.acc_seen_within_before is not None:
            before, after = percent(self.acc_seen_within_before), percent(self.acc_seen_within)
            lines.append(f"Acc_S/S of the held-out samples: {after} % ({before} % by gamma alone)")
        return [[*lines, *(Caution(f"warning: {sentence}") for sentence in self.warnings)]]


def finite(values: ArrayLike, name: str, dtype: torch.dtype = torch.float32, *, abstract: bool = True) -> Tensor:
    """Floating point, finite; as a tensor of its own of that type. `abstract` as in `as_tensor`."""
    tensor = as_tensor(values, name, abstract=abstract)
    if not tensor.is_floating_point() or tensor.itemsize == 1:
        raise TypeError(f"{name} has dtype {dtype_name(tensor)}; pass floating-point numbers")
    own = tensor.detach().to(dtype, copy=True)
    if not own.is_meta and not bool(own.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite in {dtype_name(own)}; pass finite ones")
    return own


def _warnings(mask: Tensor, counts: Tensor, explained: float, is_left_alone: bool) -> list[str]:
    """Return warnings about samples from which little is to be gained."""
    if is_left_alone:
        return [
            "prototypes of one half of the samples tell nothing of the other half, so the model is left alone: gamma "
            "is all that is added; pass more samples"
        ]
    absent = ~mask
    average = float(counts[absent].mean())
    doubts = []
    if average < _FEW_PER_CLASS:
        doubts.append(
            f"the average absent class is thought to have {average:.1f} samples, too few to gain much; pass more "
            "unlabelled samples"
        )
    missing = absent & (counts < _OF_THE_AVERAGE * average)
    if int(missing.sum()) > _MANY_MISSING * int(absent.sum()):
        doubts.append(
            f"{int(missing.sum())} of {int(absent.sum())} absent classes seem not to occur in the samples "
            f"({named_classes(missing)}), so there is little to gain for them"
        )
    if explained < _LITTLE_EXPLAINED:
        doubts.append(
            f"prototypes of one half of the samples tell {percent(explained)} % of the assignments of the other half: "
            "the features hardly cluster by class, and little can be gained"
        )
    return doubts


_ONE_SIDED = 1.64
"""Standard deviations of a normal distribution that 5 % exceed."""


def fit_prototypes(
    samples: Samples, seen_mask: Mask, gamma: SupportsFloat, *, held_out: Samples | None = None
) -> Prototypes:
    r"""Make prototypes of all classes from unlabelled samples of what the model meets.

    The calibrated model assigns samples to classes, each class gets the mean direction of its samples, and a sample's
    similarity to it is added to the logits:

    .. math::

        P &= \mathrm{softmax}(z + \gamma u), \quad x = \Sigma^{-1/2} (f - \bar f), \quad
        m_c = \mathrm{unit}\Big(\sum_n P_{nc} x_n + d_c\Big), \\
        \tilde z_c &= z_c + \gamma u_c + w s \, m_c^\top x, \quad
        w = \left\langle \frac{n_c}{n_c + 3} \right\rangle_{c \in U}, \quad n_c = \sum_n P_{nc}

    with u = 1 on absent classes, the covariance within classes Σ (with a tenth of the identity), x scaled to a mean
    squared length of 1, and :math:`d_c` the direction in which the logit of c grows, as one made-up sample. At the
    scale s the prototypes of one half of the samples best predict the assignments of the other half to absent classes,
    in likelihood; s is at most the scale at which similarities lie as far apart as the logits.

    Parameters
    ----------
    samples : Samples
        Unlabelled, with `features`, the input of the final linear layer, in the proportions of the intended use.
        Labels are ignored.
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate
        From any estimator; it stays as it is.
    held_out : Samples, optional
        With `labels` and `features`: samples of seen classes that the model was not trained on. If `Acc_{S/S}` on them
        falls significantly (McNemar's test, one-sided, 5 %, for independent samples), the model is left alone.

    Returns
    -------
    Prototypes
        With a `report`. Its `weight` is 0 if nothing can be gained.

    Raises
    ------
    TypeError, ValueError
        As `known_share_gamma` for the logits; TypeError also if `samples` or `held_out` lack what they need; ValueError
        without samples, or if `held_out` has samples of absent classes.

    Warns
    -----
    FinecalWarning
        If the model is left alone; if an absent class has fewer than two samples on average, two fifths of the absent
        classes or more do not seem to occur, or the features hardly cluster.

    Notes
    -----
    `O(N D (C + D))`: one pass, in float32; the order of the samples does not matter. For a loss other than
    cross-entropy divide the logits by `fit_temperature` first. `finecal.streaming.PrototypeSums` takes batches.
    :doc:`/theory/beyond` has the gain, and the relation to T3A (Iwasawa and Matsuo, NeurIPS 2021).

    Examples
    --------
    >>> import torch, finecal
    >>> generator = torch.Generator().manual_seed(1)
    >>> centers = 2.5 * torch.randn(6, 16, generator=generator)
    >>> noise = 2 * torch.randn(600, 16, generator=generator)
    >>> features, seen_mask = centers.repeat(100, 1) + noise, torch.arange(6) < 3
    >>> head = centers + 2.5 * torch.randn(6, 16, generator=generator)
    >>> samples = finecal.Samples(features @ head.T / 8 + 5 * seen_mask, features=features)
    >>> prototypes = finecal.calibrators.fit_prototypes(samples, seen_mask, gamma=5.0)
    >>> print(prototypes.report)
    prototypes of 6 classes from 600 unlabelled samples: weight 0.95, scale 9.082
    6.2 % of the samples change their class
    """
    rows = samples_with(samples, "samples", "features").features_tensor
    assert rows is not None
    samples.check_not_empty("fit_prototypes")
    sums = PrototypeSums(as_tensor(seen_mask, "seen_mask").to(rows.device), gamma, rows.shape[1])
    prototypes = Prototypes._of(sums.update(samples), gamma)
    if held_out is not None:
        _check_on(held_out, prototypes)
    prototypes._issue("fit_prototypes")
    return prototypes


def _check_on(held_out: Samples, prototypes: Prototypes) -> None:
    """Compare `Acc_{S/S}` by gamma alone and with prototypes, and take these out again where it falls."""
    samples = samples_with(held_out, "held_out", "labels", "features").named("held_out")
    mask = samples.check_mask(prototypes.seen_mask)
    scan = scan_seen(samples, mask, "fit_prototypes", min_seen=1)
    with samples.naming_errors():
        after = (
            prototypes(scan.logits.float(), samples.features_tensor).masked_fill(~scan.mask, -math.inf).argmax(1)
            == scan.labels
        )
    before = scan.scalars.hit
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    report = prototypes.report
    assert report is not None
    report = replace(
        report,
        acc_seen_within_before=float(before.double().mean()),
        acc_seen_within=float(after.double().mean()),
    )
    if lost - won > _ONE_SIDED * math.sqrt(lost + won):
        prototypes.weight.zero_()
        sentence = (
            f"with prototypes {lost} of {len(before)} held-out samples are lost within the seen classes, {won} won, so "
            "the model is left alone: gamma is all that is added"
        )
        report = replace(report, trust=0.0, changed=0.0, warnings=(*report.warnings, sentence))
    prototypes.report = report
