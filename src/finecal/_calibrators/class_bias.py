"""One bias per class, as a module."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._core.arrays import ArrayLike, check_dim
from .._core.calibrate import per_class_view
from .._core.checks import check_class_values
from .._core.kernels import wide_dtype
from .._core.results import Block, Caution, Result, Table, percent
from .additive_bias import Calibrator, check_columns


class ClassBias(Calibrator):
    r"""Add one bias per class; `forward` is that of `AdditiveBias`.

    .. math:: \tilde z_c = z_c + b_c

    Parameters
    ----------
    bias : (C,) float
        In units of the logits; finite.
    dim : int, default -1
        Dimension of the classes in the logits: 1 for `(B, C, H, W)`.

    Attributes
    ----------
    bias : (C,) float32 buffer
        Casts of the module (``.half()``) move it but never round it.
    method, report, dim : str or None, ClassBiasReport or None, int
        The fitting function, its report, and the argument. Not part of the `state_dict`; `finecal.save` writes them.

    Raises
    ------
    TypeError, ValueError
        As `AdditiveBias` for `dim` and in `forward`; also if `bias` is not of real numbers, not `(C,)`, or not finite
        in float32.

    Examples
    --------
    >>> import torch, finecal
    >>> calibrator = finecal.calibrators.ClassBias([0.0, -0.5, 1.5])
    >>> calibrator(torch.tensor([[4.0, 1.0, 3.0]]))
    tensor([[4.0000, 0.5000, 4.5000]])
    """

    bias: Tensor
    report: ClassBiasReport | None = None
    _values = "bias"

    def __init__(self, bias: ArrayLike, *, dim: int = -1) -> None:
        super().__init__()
        self.dim: int = check_dim(dim)
        self.register_buffer("bias", check_class_values(bias, "bias"))

    def forward(self, logits: Tensor) -> Tensor:
        check_columns(logits, self.bias, "bias", self.dim)
        self._look(logits)
        bias = per_class_view(self.bias, logits.ndim, self.dim)
        return (logits.to(wide_dtype(logits.dtype)) + bias).to(logits.dtype)

    def _shown(self) -> str:
        low, high = (float(value) for value in torch.aminmax(self.bias))
        return f"from {low:.6g} to {high:.6g}"


@dataclass(frozen=True)
class ClassBiasReport(Result):
    """Cross-validated gain of `fit_class_bias`; the `report` of the module that it returns. Prints as a table.

    Accuracies are fractions in [0, 1]; each sample is judged by biases, and by a gamma, that were fitted without it (in
    units of the T of all samples).

    Attributes
    ----------
    objective : str
        "overall" or "balanced".
    shrinkage : float
        That of the biases returned; infinite where they are gamma alone.
    gamma : float
        The best single gamma on all samples given, towards which the biases are shrunk.
    acc_all, balanced : float
        `Acc_{Y/Y}`, and the mean of `Acc_{S/Y}` and `Acc_{U/Y}`, with the biases.
    acc_all_gamma, balanced_gamma : float
        The same with gamma alone.
    n : int
        Samples that it was fitted on: those given, less any whose label is masked by -inf.
    folds : int
        Folds of the cross-validation; 0, and NaN accuracies, where there were too few samples for one.
    warnings : tuple of str
        Each was also issued as a `FinecalWarning`.
    """

    objective: str
    shrinkage: float
    gamma: float
    acc_all: float
    balanced: float
    acc_all_gamma: float
    balanced_gamma: float
    n: int
    folds: int
    warnings: tuple[str, ...] = ()

    def _blocks(self) -> list[Block]:
        table = Table(
            ["cross-validated, %", f"gamma = {self.gamma:.4g}", "class bias"],
            [
                ["overall", percent(self.acc_all_gamma), percent(self.acc_all)],
                ["balanced", percent(self.balanced_gamma), percent(self.balanced)],
            ],
        )
        what = "gamma alone" if math.isinf(self.shrinkage) else f"shrinkage {self.shrinkage:g} towards gamma"
        head = f"{what}, for {self.objective} accuracy; {self.n} labelled samples, {self.folds} folds"
        return [[head, table, *(Caution(f"warning: {sentence}") for sentence in self.warnings)]]
