"""Gamma together with prototypes of the classes in the space of the features, as a module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import SupportsFloat

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..gamma.estimate import GammaEstimate
from ..inputs.arrays import ArrayLike, Mask, as_tensor, check_dense, dtype_name, shape_of
from ..inputs.checks import as_bool_mask, check_mask_values, check_module_device, named_classes
from ..inputs.devices import without_autocast
from ..inputs.numbers import check_dim
from ..inputs.warning import warn
from ..logits.dense import per_class_view
from ..logits.predict import absent_indicator
from ..logits.tiles import wide_dtype
from ..results.display import Block, Caution
from ..results.format import percent
from ..results.result import Result
from ..streaming.prototypes import PrototypeSums
from .additive_bias import gamma_buffer
from .base import Calibrator, check_columns

_FEW_PER_CLASS = 2.0
_LITTLE_EXPLAINED = 0.35
"""Models of the benchmark below it gain half a point or less, but for two of nine."""
_OF_THE_AVERAGE = 0.1
_MANY_MISSING = 0.4
_WHICH = "pass the floating-point tensor that the final linear layer takes"


class Prototypes(Calibrator):
    r"""Add gamma to the logits of the absent classes, and to all what a sample's features tell by prototypes.

    .. math:: \tilde z_c = z_c + \gamma \, [c \in U] + a_c^\top (f - \bar f)

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate
        In units of the logits.
    weight : (C, D) float
        What a unit of each feature adds to the logits: a row per class.
    center : (D,) float
        Features to which nothing is added: their mean.
    dim : int, default -1
        Where the classes are in the logits, and the features in the tensor of features: 1 for `(B, C, H, W)` and
        `(B, D, H, W)`.

    Attributes
    ----------
    seen_mask : (C,) bool buffer
    gamma : 0-d float32 buffer
    weight : (C, D) float32 buffer
    center : (D,) float32 buffer
        Casts of the module (``.half()``) move the buffers but never round them.
    method : str or None
        The function that fitted it. Not part of the `state_dict`, which holds tensors only.
    estimate : GammaEstimate or None
        The `gamma` given, if it was an estimate. Not part of the `state_dict`; `finecal.save` writes it.
    report : PrototypesReport or None
        What it was made from. Not part of the `state_dict`; `finecal.save` writes it.
    dim : int
        Not part of the `state_dict`; `finecal.save` writes it.

    Raises
    ------
    TypeError
        If `seen_mask` is not boolean, `gamma` not a number, `dim` not an integer, or `weight` or `center` is not
        floating-point; in `forward`, if logits or features are no floating-point tensors.
    ValueError
        If `seen_mask` has no seen or no absent class, the shapes do not fit together, or a value is not finite in
        float32; in `forward`, if the logits have no dimension `dim`, or the number of classes or features differs.

    See Also
    --------
    fit_prototypes : makes one from unlabelled samples.
    fold_into_head : puts it into the weight and the bias of the model's head, at no cost.

    Notes
    -----
    `forward` takes logits `(..., C)` and the features `(..., D)` that the final linear layer takes, or both along
    `dim`, as those of a final 1 x 1 convolution are. It returns the shape, dtype and memory format of the logits; the
    sum is formed in float32 or wider. Since it is linear in the features, it is what another weight and bias of that
    layer give. It compiles with ``fullgraph=True``, exports, and never synchronises a GPU.

    Examples
    --------
    >>> import torch, finecal
    >>> prototypes = finecal.Prototypes(
    ...     [True, True, False], 1.5, torch.eye(3), torch.zeros(3)
    ... )
    >>> prototypes
    Prototypes(gamma=1.5, features=3, seen=2, absent=1)
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
        self.dim = check_dim(dim)
        mask = check_mask_values(as_bool_mask(seen_mask, abstract=True)).clone()
        self.estimate = gamma if isinstance(gamma, GammaEstimate) else None
        rows, middle = _finite(weight, "weight"), _finite(center, "center")
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
        """Make one, without issuing its warnings."""
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
        """Say which function made it, and issue the warnings of its report."""
        self.method = method
        for sentence in () if self.report is None else self.report.warnings:
            warn(f"{method}: {sentence}")

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        check_columns(logits, self.seen_mask, dim=self.dim)
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
    """What `fit_prototypes` made prototypes from; the `report` of the module that it returned. Prints as sentences.

    Attributes
    ----------
    n : int
        Unlabelled samples.
    class_counts : tuple of float
        How many of them each class is thought to have.
    trust : float in [0, 1)
        w: how far the prototypes count, by the number of samples that an absent class is thought to have. 0 where the
        model is left alone.
    scale : float
        s, by which similarities become logits.
    explained : float
        How well the prototypes of one half of the samples tell the soft assignments of the other half, as far as these
        tell anything: 1 for as well as can be, 0 for no better than by chance.
    changed : float
        Share of the samples that are predicted to be of another class than by gamma alone.
    acc_seen_within_before, acc_seen_within : float or None
        `Acc_{S/S}` on the held-out samples given, by gamma alone and with prototypes, as fractions.
    warnings : tuple of str
        Each was also issued as a `FinecalWarning`.

    Examples
    --------
    See `fit_prototypes`.
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


def _finite(values: ArrayLike, name: str) -> Tensor:
    """Floating point, finite; as a float32 tensor of its own."""
    tensor = as_tensor(values, name, abstract=True)
    if not tensor.is_floating_point() or tensor.itemsize == 1:
        raise TypeError(f"{name} has dtype {dtype_name(tensor)}; pass floating-point numbers")
    single = tensor.detach().to(torch.float32, copy=True)
    if not single.is_meta and not bool(single.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite in float32; pass finite ones")
    return single


def _warnings(mask: Tensor, counts: Tensor, explained: float, is_left_alone: bool) -> list[str]:
    """Return warnings about samples that can tell little."""
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
