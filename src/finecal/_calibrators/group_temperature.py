"""A temperature per group of classes, and gamma with them, fitted by Newton's method on the likelihood of the labels.

In inverse temperatures and gamma the mean NLL is convex: a mean of log-sum-exps of linear functions.
"""

from __future__ import annotations

from typing import NamedTuple, SupportsFloat

import torch
from torch import Tensor, nn

from .._core.arrays import Labels, Logits, Mask, check_bounds, check_dim
from .._core.calibrate import per_class_view
from .._core.checks import (
    as_bool_mask,
    check_both_groups,
    check_mask_values,
    check_not_empty,
    check_scores,
    warn_if_reindexed,
)
from .._core.plausibility import warn_of_input
from .._core.reductions import Samples, group_moments, label_hits, make_samples, thin
from .._core.samples import samples_of, takes_samples
from .._core.warning import warn
from .additive_bias import AdditiveBias, Calibrator, check_columns
from .temperature import BOUNDS, TemperatureFit, round_to_float32, scale_of, solve_shortfall, temperature_buffer

_MAX_STEPS = 100
_CONVERGED = 1e-11
_NOT_CONVERGED = 1e-9
"""Decreases of the NLL that a further step promises: not worth a step, and worth a warning."""
_SUFFICIENT = 1e-4
"""Part of the promised decrease that a shortened step has to reach."""
_SHORTEST = 1e-6
"""Least length of a shortened step, against Newton's."""
_RIDGE = 1e-13
_NOTHING = 1e-140
"""Square roots of curvatures below it count as 0: the curvatures lack digits in float64."""
_SOLVED = 1e-15
"""Tolerance of the quadratic model's minimum in the box."""
_FLAT_STEP = 1e-2
"""A relative change (of gamma: in log-odds) this large without one of the NLL: the data do not determine the value."""


class GroupTemperature(Calibrator):
    r"""Divide the logits of the seen classes by one temperature, and those of the absent classes by another.

    .. math:: \tilde z_c = \begin{cases} z_c / T_S & \text{if } c \in S \\ z_c / T_U & \text{if } c \in U \end{cases}

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    seen_temperature, absent_temperature : float or 0-d tensor
        :math:`T_S` and :math:`T_U`, positive and finite in float32.
    dim : int, default -1
        Dimension of the classes in the logits: 1 for `(B, C, H, W)`.

    Attributes
    ----------
    seen_mask : (C,) bool buffer
    seen_temperature, absent_temperature : 0-d float32 buffers
        Casts of the module (``.half()``) move them but never round them.
    method, report, dim : str or None, TemperatureFit or None, int
        The fitting function, its report, and the argument. Not part of the `state_dict`; `finecal.save` writes them.

    Raises
    ------
    TypeError, ValueError
        As `AdditiveBias`; also if a temperature is not a number, or not positive and finite in float32.

    Notes
    -----
    **It changes decisions between the groups**, unlike `Temperature`, but not `Acc_{S/S}` and `Acc_{U/U}`: a sample is
    predicted absent iff :math:`\max_S z / T_S < \max_U z / T_U`, which is no threshold on the margin. Adding a constant
    to a row changes the result if :math:`T_S \ne T_U`. `forward` as that of `AdditiveBias`, with a quotient.

    Examples
    --------
    >>> import torch, finecal
    >>> calibrator = finecal.calibrators.GroupTemperature([True, True, False], 2.0, 1.0)
    >>> calibrator(torch.tensor([[4.0, 1.0, 3.0]]))
    tensor([[2.0000, 0.5000, 3.0000]])
    """

    seen_mask: Tensor
    seen_temperature: Tensor
    absent_temperature: Tensor
    report: TemperatureFit | None = None
    _values = "temperatures"

    def __init__(
        self, seen_mask: Mask, seen_temperature: SupportsFloat, absent_temperature: SupportsFloat, *, dim: int = -1
    ) -> None:
        super().__init__()
        self.dim: int = check_dim(dim)
        mask = check_mask_values(as_bool_mask(seen_mask, abstract=True)).clone()
        self.register_buffer("seen_mask", mask)
        self.register_buffer("seen_temperature", temperature_buffer(seen_temperature, "seen_temperature", mask.device))
        self.register_buffer(
            "absent_temperature", temperature_buffer(absent_temperature, "absent_temperature", mask.device)
        )

    def forward(self, logits: Tensor) -> Tensor:
        check_columns(logits, self.seen_mask, dim=self.dim)
        self._look(logits)
        temperatures = torch.where(self.seen_mask, self.seen_temperature, self.absent_temperature)
        return (logits / per_class_view(temperatures, logits.ndim, self.dim)).to(logits.dtype)

    def _shown(self) -> str:
        seen, absent = float(self.seen_temperature), float(self.absent_temperature)
        return f"seen_temperature={seen:.6g}, absent_temperature={absent:.6g}"


@takes_samples
def fit_group_temperature(
    logits: Logits, labels: Labels, seen_mask: Mask, *, bounds: tuple[float, float] = BOUNDS
) -> nn.Sequential:
    r"""Fit a temperature for the seen classes, one for the absent classes, and gamma, that minimise the NLL together.

    .. math:: T_S, T_U, \gamma = \arg\min \Big\langle \log \sum_c e^{\tilde z_c} - \tilde z_y \Big\rangle,
        \qquad \tilde z_c = \begin{cases} z_c / T_S & c \in S \\ z_c / T_U + \gamma & c \in U \end{cases}

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax, held out. -inf masks a class.
    labels : (N,) int
        Class indices in ``[0, C)``, of seen and of absent classes, in the shares of the intended use.
    seen_mask : (C,) bool
        True for the seen classes.
    bounds : (float, float), default (1e-5, 1e5)
        Smallest and largest temperature, in units of the logits.

    Returns
    -------
    torch.nn.Sequential
        Of a `GroupTemperature`, with a `report`, and an `AdditiveBias`, on the device of the logits. Its gamma is added
        *after* the division, in units of log-odds. The NLL is within 1e-9 of its minimum between the bounds, and,
        unless they exclude 1, never above that of the logits as they are.

    Raises
    ------
    TypeError, ValueError
        As `fit_temperature`; also if `seen_mask` is not boolean or has no seen or no absent class, or labels are of one
        group only.

    Warns
    -----
    FinecalWarning
        As `margins`; also if a temperature is at a bound, the data do not determine it or gamma (the NLL is flat to
        1e-11 while the value runs away), float32 values of gamma miss the minimum by more than 1e-9, or labels are
        masked by -inf and left out.

    Notes
    -----
    Convex in :math:`(1 / T_S, 1 / T_U, \gamma)`: Newton's method, `O(NC)` a step. `search_gamma` maximises accuracy
    instead. BiC (Wu et al., "Large Scale Incremental Learning", CVPR 2019) is the special case :math:`T_S = 1`, with
    :math:`\alpha = 1 / T_U` and :math:`\beta = \gamma`.

    Examples
    --------
    >>> import torch, finecal
    >>> rows = [[4.0, 1, 3], [2, 5, 1], [6, 1, 2], [3, 2.5, 1], [5, 4, 3.5]]
    >>> logits, labels = torch.tensor(rows), torch.tensor([0, 2, 0, 1, 2])
    >>> mask = [True, True, False]
    >>> calibrator = finecal.calibrators.fit_group_temperature(logits, labels, mask)
    >>> print(calibrator[0].report)
    NLL 1.4918 -> 0.9866 on 5 samples, 3 Newton steps
    >>> f"{calibrator[0].seen_temperature:.4f}, {calibrator[1].gamma:.4f}"
    '2.4704, 1.0904'
    """
    low, high = check_bounds(bounds)
    given = samples_of(logits, labels)
    x, y, mask = given.logits_tensor, given.labels_tensor, given.check_mask(seen_mask)
    check_not_empty(x.shape[0], "fit_group_temperature")
    hits = label_hits(x, y, mask)
    top = torch.stack([hits.seen_max, hits.absent_max], dim=1)
    check_scores(x, top.amax(1))
    warn_if_reindexed(y, mask)
    warn_of_input(x, y, mask, hits)
    samples = make_samples(x, y, torch.stack([mask, ~mask]), top, "fit_group_temperature")
    n_seen, n_absent = (int(count) for count in samples.own_group.sum(0))
    check_both_groups(
        n_seen, n_absent, "fit_group_temperature", "for one temperature of all classes use fit_temperature"
    )

    rows = thin(samples)
    one = rows._replace(groups=rows.groups.sum(0, keepdim=True), top=rows.top.amax(1, keepdim=True))
    start, _, _ = solve_shortfall(one, scale_of(one), low, high)
    values = (start, start, 0.0)
    if rows is not samples and bool(rows.own_group.any(0).all()):
        values = _solve_jointly(rows, values, low, high).values
    fit = _solve_jointly(samples, values, low, high)
    before, (values, after) = _likelihood(samples, (1.0, 1.0, 0.0)).nll, (fit.values, fit.nll)
    if after > before and low <= 1 <= high:
        values, after = (1.0, 1.0, 0.0), before
    names = ("seen_temperature", "absent_temperature", "gamma")
    at_bound = tuple(name for name, value in zip(names[:2], values, strict=False) if value in (low, high))
    loose = [name for name, runs in zip(names, fit.runs_away, strict=True) if runs and name not in at_bound]
    if at_bound:
        warn(
            f"fit_group_temperature: the NLL still falls at the bound of {' and '.join(at_bound)}, as where the labels "
            "of a group are all predicted right, or no better than chance: fit on more held-out samples, widen bounds, "
            "or use fit_temperature"
        )
    if fit.promised > _NOT_CONVERGED:
        warn(
            f"fit_group_temperature: it stopped where the NLL could still fall by about {fit.promised:.2g}, because "
            f"float32 numbers near gamma = {values[2]:.4g} are too far apart: subtract a constant from all logits, so "
            "that they are near 0, or fit on more held-out samples"
        )
    elif loose:
        warn(
            f"fit_group_temperature: the samples do not determine {' and '.join(loose)}: the NLL hardly changes on the "
            "way to infinity or 0, as where all labels have the largest logit: fit on more held-out samples"
        )
    module = GroupTemperature(mask, values[0], values[1])
    bias = AdditiveBias(mask, values[2])
    module.method = bias.method = "fit_group_temperature"
    module.report = TemperatureFit(before, after, samples.own.shape[0], fit.steps, at_bound)
    return nn.Sequential(module, bias)


class _JointFit(NamedTuple):
    values: tuple[float, float, float]
    nll: float
    steps: int
    runs_away: list[bool]
    promised: float
    """Decrease of the NLL that a further step promises."""


class _Likelihood(NamedTuple):
    """Mean NLL, and its derivatives in the inverse temperatures and gamma."""

    nll: float
    gradient: Tensor
    curvature: Tensor


def _solve_jointly(samples: Samples, start: tuple[float, float, float], low: float, high: float) -> _JointFit:
    """Minimise by Newton's method with step halving. No value changes more than about tenfold in a step."""
    values, steps = start, 0
    here = _likelihood(samples, values)
    while True:
        point = _point(values)
        reach = 10 * (1 + abs(values[2]))
        lower = torch.cat([(point[:2] / 10).clamp(min=1 / high), point[2:] - reach])
        upper = torch.cat([(point[:2] * 10).clamp(max=1 / low), point[2:] + reach])
        change, promised = _newton_change(here, torch.stack([lower, upper]) - point)
        if promised <= _CONVERGED or steps == _MAX_STEPS:
            break
        length = 1.0
        while True:
            trial = _values(point + length * change, low, high)
            there = _likelihood(samples, trial)
            if there.nll <= here.nll - _SUFFICIENT * length * promised or length < _SHORTEST:
                break
            length /= 2
        if there.nll >= here.nll:
            break
        values, here, steps = trial, there, steps + 1
    scale = torch.cat([point[:2], point.new_ones(1)])
    return _JointFit(values, here.nll, steps, (change.abs() > _FLAT_STEP * scale).tolist(), promised)


def _newton_change(here: _Likelihood, box: Tensor) -> tuple[Tensor, float]:
    """Return the change that minimises the quadratic model in the box, and by how much the model then decreases.

    A ridge keeps what the samples leave undetermined as it is.
    """
    from scipy.optimize import lsq_linear

    size = here.curvature.diagonal().sqrt()
    size = torch.where(size > _NOTHING, size, here.gradient.abs().clamp(min=_NOTHING))
    gradient = here.gradient / size
    curvature = here.curvature / size / size.unsqueeze(1) + _RIDGE * torch.eye(3, dtype=torch.float64, device="cpu")
    # With curvature = R' R, the model is |R change - target|^2 / 2, but for a constant.
    factor = torch.linalg.cholesky(curvature, upper=True)
    target = -torch.linalg.solve_triangular(factor.T, gradient.unsqueeze(1), upper=False).squeeze(1)
    found = lsq_linear(factor.numpy(), target.numpy(), (box * size).numpy(), method="bvls", tol=_SOLVED)
    change = torch.from_numpy(found.x)
    return change / size, -float(gradient @ change + change @ curvature @ change / 2)


def _point(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor([1 / values[0], 1 / values[1], values[2]], dtype=torch.float64, device="cpu")


def _values(point: Tensor, low: float, high: float) -> tuple[float, float, float]:
    """Return the temperatures and gamma at `point` as the modules will hold them, in float32."""
    seen, absent = (min(max(round_to_float32(1 / inverse), low), high) for inverse in point[:2].tolist())
    return seen, absent, round_to_float32(float(point[2]))


def _likelihood(samples: Samples, values: tuple[float, float, float]) -> _Likelihood:
    """Combine the moments within the groups: the variance is that within, plus that of the means of the two."""
    inverse = _point(values)[:2].to(samples.top.device)
    log_sum, mean, variance = group_moments(samples, inverse)
    own_group, gamma = samples.own_group, inverse.new_tensor([0.0, values[2]])
    scores = log_sum + inverse * samples.top + gamma
    own_score = own_group @ inverse * samples.own + own_group @ gamma
    share = scores.softmax(1)
    mean = mean + samples.top
    gradient = share * mean - own_group * samples.own.unsqueeze(1)
    between = torch.stack([-mean[:, 0], mean[:, 1], torch.ones_like(samples.own)], dim=1)
    curvature = (between * share.prod(1, keepdim=True)).T @ between / samples.own.shape[0]
    curvature[:2, :2] += torch.diag((share * variance).mean(0))
    return _Likelihood(
        float((scores.logsumexp(1) - own_score).mean()),
        torch.cat([gradient, (share - own_group)[:, 1:]], dim=1).mean(0).cpu(),
        curvature.cpu(),
    )
