"""Normalised logits: one mean and one spread per class."""

from __future__ import annotations

import torch
from torch import Tensor

from .._core.arrays import ArrayLike, Labels, Logits, Mask, check_dim
from .._core.calibrate import per_class_view
from .._core.checks import check_class_values, named_classes
from .._core.samples import samples_of, takes_samples
from .._core.warning import warn
from .._estimators.estimate import scan_seen
from ..streaming._state import ClassSums
from .additive_bias import Calibrator, check_columns

_SUMS_ARE_EXACT_TO = 1e-12


class NormalizedLogits(Calibrator):
    r"""Standardise the logits of each class.

    .. math:: \tilde z_c = (z_c - \mu_c) / \sigma_c

    Parameters
    ----------
    loc, scale : (C,) tensor or array
        :math:`\mu` and :math:`\sigma > 0`, usually from `fit_normalized_logits`.
    dim : int, default -1
        Dimension of the classes in the logits: 1 for `(B, C, H, W)`.

    Attributes
    ----------
    loc, scale : (C,) float32 buffers
        Casts of the module (``.half()``) move them but never round them.
    method, dim : str or None, int
        The function that fitted it, and the argument. Not part of the `state_dict`; `finecal.save` writes them.

    Raises
    ------
    TypeError, ValueError
        As `AdditiveBias` for `dim` and in `forward`; also if `loc` or `scale` holds no real numbers or is not finite in
        float32, a scale is not positive there, or their lengths differ.

    Notes
    -----
    `forward` as that of `AdditiveBias`; -inf stays -inf. The results are in units of standard deviations: estimate
    gamma and temperatures on the normalised logits.

    Examples
    --------
    >>> import torch, finecal
    >>> calibrator = finecal.NormalizedLogits([2.0, 0.0, -1.0], [2.0, 1.0, 0.5])
    >>> calibrator(torch.tensor([[4.0, 1.0, 0.0]]))
    tensor([[1., 1., 2.]])
    """

    loc: Tensor
    scale: Tensor
    _values = "loc and scale"

    def __init__(self, loc: ArrayLike, scale: ArrayLike, *, dim: int = -1) -> None:
        super().__init__()
        self.dim: int = check_dim(dim)
        location = check_class_values(loc, "loc")
        spread = check_class_values(scale, "scale", positive=True)
        if location.shape != spread.shape:
            raise ValueError(
                f"loc has {location.shape[0]} entries and scale {spread.shape[0]}; pass one number per class in each"
            )
        self.register_buffer("loc", location)
        self.register_buffer("scale", spread if spread.is_meta else spread.to(location.device))

    def forward(self, logits: Tensor) -> Tensor:
        check_columns(logits, self.loc, "loc", self.dim)
        self._look(logits)
        loc, scale = (per_class_view(values, logits.ndim, self.dim) for values in (self.loc, self.scale))
        return ((logits - loc) / scale).to(logits.dtype)

    def _shown(self) -> str:
        ranges = {name: torch.aminmax(buffer) for name, buffer in self.named_buffers()}
        return ", ".join(f"{name}={float(low):.4g}..{float(high):.4g}" for name, (low, high) in ranges.items())


@takes_samples
def fit_normalized_logits(logits: Logits, labels: Labels, seen_mask: Mask) -> NormalizedLogits:
    r"""Fit a per-class standardisation to labelled samples of seen classes.

    .. math::
        \mu_c = \langle z_c \rangle_{y \ne c}, \qquad
        \sigma_c^2 = \left\langle (z_c - \mu_c)^2 \right\rangle_{y \ne c}

    Parameters
    ----------
    logits, labels, seen_mask
        As in `average_logit_gap`, of training or held-out samples. -inf logits are left out.

    Returns
    -------
    NormalizedLogits
        On the device of the logits.

    Raises
    ------
    TypeError, ValueError
        As `average_logit_gap`; ValueError also if all seen, or all absent, classes have fewer than two usable logits,
        or a constant one.

    Warns
    -----
    FinecalWarning
        As `margins`; also if single classes lack a scale (a spread within the rounding of the logits' dtype counts as
        none). Each takes the median of its group's scales; with no logit at all also the median of their locs.

    Notes
    -----
    `O(NC)`. More often than not the trade-off becomes worse: compare AUSUC first, as in :doc:`/theory/calibrators`.
    Estimate gamma after it, on the normalised logits. Finecal's own, after per-class score normalisation.

    Examples
    --------
    >>> import torch, finecal
    >>> logits = torch.tensor([[9.0, 4, 1], [8, 2, 2], [3, 8, 0], [5, 7, 1]])
    >>> labels, mask = [0, 0, 1, 1], [True, True, False]
    >>> calibrator = finecal.calibrators.fit_normalized_logits(logits, labels, mask)
    >>> calibrator.loc, calibrator.scale
    (tensor([4., 3., 1.]), tensor([1.0000, 1.0000, 0.7071]))
    """
    samples = samples_of(logits, labels)
    scan = scan_seen(samples, seen_mask, "fit_normalized_logits")
    scan.warn()
    loc, scale, count = ClassSums(scan.mask).update(samples).compute()
    rounding = max(torch.finfo(scan.logits.dtype).eps, _SUMS_ARE_EXACT_TO) * loc.abs()
    without_loc, without_scale = count == 0, ~(scale > rounding)
    for name, group in (("seen", scan.mask), ("absent", ~scan.mask)):
        usable = group & ~without_scale
        if not bool(usable.any()):
            raise ValueError(
                f"logits are constant, -inf or fewer than two in all {int(group.sum())} {name} classes, labels' own "
                "left out; fit_normalized_logits has no scale to divide by: pass more samples, or calibrate without it"
            )
        loc = torch.where(group & without_loc, loc[usable].median(), loc)
        scale = torch.where(group & without_scale, scale[usable].median(), scale)
    if bool(without_scale.any()):
        warn(
            f"{int(without_scale.sum())} of {count.shape[0]} classes have fewer than two usable logits, or constant "
            f"ones, and take the median scale of their group: {named_classes(without_scale, count)} (usable logits in "
            "brackets); pass more samples"
        )
    normalized = NormalizedLogits(loc, scale)
    normalized.method = "fit_normalized_logits"
    return normalized
