"""One temperature for all classes, fitted by Newton's method on the likelihood of the labels."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, check_bounds, check_temperature
from .._core.checks import check_logits, check_module_device, check_not_empty, check_scores
from .._core.kernels import tiles, wide_dtype
from .._core.reductions import Samples, group_log_sums, group_moments, make_samples, rising_root, thin
from .._core.results import plain_fields
from .._core.samples import samples_of, takes_samples
from .._core.warning import warn
from .additive_bias import Calibrator

BOUNDS = (1e-5, 1e5)
_INFINITELY_HOT = 1e-36
"""An inverse temperature at which all classes weigh the same, but those masked by -inf or float32's lowest number."""


@dataclass(frozen=True)
class TemperatureFit:
    """What `fit_temperature` or `fit_group_temperature` did; the `report` of the module that it returned.

    Attributes
    ----------
    nll_before, nll_after : float
        Mean negative log-likelihood of the labels, in nats, at T = 1 (and gamma = 0) and with the fitted values as the
        module holds them, in float32.
    n : int
        Samples that it was fitted on.
    steps : int
        Newton steps on all samples; with more than a few thousand of them, others on a part went before.
    at_bound : tuple of str
        Temperatures that are at a bound: ``"temperature"``, or ``"seen_temperature"`` and ``"absent_temperature"``.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[8.0, 2.0], [6.0, 1.0], [7.0, 3.0]])
    >>> print(finecal.calibrators.fit_temperature(logits, [0, 0, 1]).report)
    NLL 1.3424 -> 0.5825 on 3 samples, 4 Newton steps
    """

    nll_before: float
    nll_after: float
    n: int
    steps: int
    at_bound: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as Python numbers and a list of texts."""
        return plain_fields(self)

    def __str__(self) -> str:
        bound = f"; at its bound: {', '.join(self.at_bound)}" if self.at_bound else ""
        samples, steps = f"{self.n} sample{'s' * (self.n != 1)}", f"{self.steps} Newton step{'s' * (self.steps != 1)}"
        return f"NLL {self.nll_before:.4f} -> {self.nll_after:.4f} on {samples}, {steps}{bound}"


class Temperature(Calibrator):
    r"""Divide all logits by one temperature.

    .. math:: \tilde z_c = z_c / T

    Parameters
    ----------
    temperature : float or 0-d tensor
        T, positive and finite in float32. T > 1 makes the probabilities softer, T < 1 sharper.

    Attributes
    ----------
    temperature : 0-d float32 buffer
        Casts of the module (``.half()``) move it but never round it.
    method, report : str or None, TemperatureFit or None
        The function that fitted it, and its report. Not part of the `state_dict`; `finecal.save` writes them.

    Raises
    ------
    TypeError, ValueError
        If `temperature` is not a number, or not positive and finite in float32; in `forward`, if the logits are not a
        floating-point tensor.

    Notes
    -----
    **It cannot change a decision**, nor any accuracy, nor the trade-off that gamma runs through.

    **The order matters if gamma is added too**: ``Sequential(AdditiveBias(seen_mask, gamma), Temperature(T))`` equals
    ``Sequential(Temperature(T), AdditiveBias(seen_mask, gamma / T))``. Fit T on the logits that it will be applied to.

    `forward` as that of `AdditiveBias`, for logits of any shape: it needs no `dim`.

    Examples
    --------
    >>> import torch, finecal
    >>> finecal.Temperature(2.0)(torch.tensor([[4.0, 1.0, 3.0]]))
    tensor([[2.0000, 0.5000, 1.5000]])
    """

    temperature: Tensor
    report: TemperatureFit | None = None
    _values = "temperature"

    def __init__(self, temperature: SupportsFloat) -> None:
        super().__init__()
        self.register_buffer("temperature", temperature_buffer(temperature, "temperature"))

    def forward(self, logits: Tensor) -> Tensor:
        check_logits(logits, any_batch=True, dim=None)
        check_module_device(self.temperature.device, logits.device)
        self._look(logits)
        return (logits.to(wide_dtype(logits.dtype)) / self.temperature).to(logits.dtype)

    def _shown(self) -> str:
        return f"temperature={float(self.temperature):.6g}"


def temperature_buffer(temperature: SupportsFloat, name: str, device: torch.device | None = None) -> Tensor:
    """Return a checked temperature; one on the meta device has no value yet."""
    if isinstance(temperature, Tensor) and temperature.is_meta and temperature.ndim == 0:
        return torch.empty_like(temperature, dtype=torch.float32)
    return torch.tensor(check_temperature(temperature, name), dtype=torch.float32, device=device)


@takes_samples
def fit_temperature(logits: Logits, labels: Labels, *, bounds: tuple[float, float] = BOUNDS) -> Temperature:
    r"""Fit the temperature that minimises the NLL of the labels.

    .. math:: T = \arg\min_T \Big\langle \log \sum_c e^{z_c / T} - z_y / T \Big\rangle

    over all C classes. Labels of seen classes suffice: then the probabilities are right for such samples, on average.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax, held out: on samples that the model was trained on, T is too small. -inf masks a class.
    labels : (N,) int
        Class indices in ``[0, C)``.
    bounds : (float, float), default (1e-5, 1e5)
        Smallest and largest T, in units of the logits.

    Returns
    -------
    Temperature
        On the device of the logits, with a `report`. The NLL is within 1e-9 of its minimum between the bounds, and,
        unless they exclude T = 1, never above that of T = 1. If it does not depend on T, T = 1.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `labels` not integer, or a bound not a number.
    ValueError
        If shapes or devices do not match, there are no samples, labels are out of range, logits hold NaN, +inf or
        probabilities, the label of every sample is masked, or `bounds` are not positive and in order.

    Warns
    -----
    FinecalWarning
        If T is at a bound: the lower one if every label has the largest logit, the upper one if labels are worse than
        chance. If labels are masked by -inf, and left out. If the logits of every sample are all equal.

    Notes
    -----
    See `Temperature` for the order of T and gamma. About five passes, `O(NC)` each; with many rows the first are on
    about 2048 of them. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[8.0, 2.0], [6.0, 1.0], [7.0, 3.0]])
    >>> finecal.calibrators.fit_temperature(logits, labels=[0, 0, 1])
    Temperature(temperature=5.04497, method='fit_temperature')
    """
    low, high = check_bounds(bounds)
    given = samples_of(logits, labels)
    x, y = given.logits_tensor, given.labels_tensor
    check_not_empty(x.shape[0], "fit_temperature")
    top = torch.cat([tile.amax(1) for tile, _ in tiles(x)])
    check_scores(x, top)
    samples = make_samples(x, y, torch.ones((1, x.shape[1]), device=x.device), top.unsqueeze(1), "fit_temperature")

    rows = thin(samples)
    start = scale_of(rows)
    if rows is not samples:
        warm, _, _ = solve_shortfall(rows, start, low, high)
        start = warm if low < warm < high else start
    temperature, after, steps = solve_shortfall(samples, start, low, high)
    log_sums = group_log_sums(samples, samples.top.new_tensor([1.0]))
    before = float((log_sums.squeeze(1) + _shortfalls(samples)).mean())
    if after > before and low <= 1 <= high:
        temperature, after = 1.0, before
    at_bound = ("temperature",) if temperature in (low, high) else ()
    doubt = _bound_warning(samples, temperature, low, high)
    if doubt:
        warn(f"fit_temperature: {doubt}")
    with x.device:
        module = Temperature(temperature)
    module.method = "fit_temperature"
    module.report = TemperatureFit(before, after, samples.own.shape[0], steps, at_bound)
    return module


def _bound_warning(samples: Samples, temperature: float, low: float, high: float) -> str:
    target, largest = float(_shortfalls(samples).mean()), math.inf
    if target == 0 or temperature == high:
        largest = _moments_of_one(samples, 1 / _INFINITELY_HOT)[1]
    if largest == 0:
        return (
            "the logits of every sample are all equal (or -inf), so the NLL does not depend on T; T is "
            f"{temperature:.4g}: check the model"
        )
    if target == 0:
        return (
            "every label has the largest logit of its row, so the NLL falls down to T = 0; T is at its lower bound, "
            f"{temperature:.4g}, which makes every prediction certain: fit on more held-out samples"
        )
    if target >= largest:
        return (
            f"the labels are no better than chance, so the NLL falls up to T = infinity; T is at its upper bound, "
            f"{temperature:.4g}, which makes all classes equally likely: check that labels index the columns of these "
            "logits"
        )
    if temperature in (low, high):
        return (
            f"the NLL still falls at the bound of T, {temperature:.4g}: if logits on this scale are right, widen bounds"
        )
    return ""


def solve_shortfall(samples: Samples, start: float, low: float, high: float) -> tuple[float, float, int]:
    """Return the temperature, its NLL and the number of Newton steps, by the root of log r over log T."""
    target = float(_shortfalls(samples).mean())
    if target == 0:
        flat = _moments_of_one(samples, 1 / _INFINITELY_HOT)[1] == 0
        temperature = min(max(1.0, low), high) if flat else low
        return temperature, _moments_of_one(samples, temperature)[0], 0
    at, nll, shortfall, variance = 1.0, 0.0, 0.0, 0.0

    def moments(temperature: float) -> tuple[float, float]:
        nonlocal at, nll, shortfall, variance
        at, (nll, shortfall, variance) = temperature, _moments_of_one(samples, temperature)
        return shortfall, variance

    temperature, steps = temperature_of_shortfall(moments, target, start, low, high)
    moved = 1 / temperature - 1 / at
    return temperature, nll + moved * (target - shortfall + moved * variance / 2), steps


def temperature_of_shortfall(
    moments: Callable[[float], tuple[float, float]], target: float, start: float, low: float, high: float
) -> tuple[float, int]:
    """Return the temperature at which the mean shortfall equals the target, or a bound, and the steps that it took.

    `moments` returns the mean shortfall and the mean variance of the logits at a temperature.
    """

    def log_ratio(log_t: float) -> tuple[float, float]:
        temperature = math.exp(log_t)
        shortfall, variance = moments(min(max(temperature, low), high))
        if shortfall < sys.float_info.min:  # so cold that it underflows
            return math.log(sys.float_info.min) - math.log(target), 0.0
        return math.log(shortfall) - math.log(target), variance / (shortfall * temperature)

    root, steps = rising_root(log_ratio, math.log(start), math.log(low), math.log(high))
    return min(max(round_to_float32(math.exp(root)), low), high), steps


def _moments_of_one(samples: Samples, temperature: float) -> tuple[float, float, float]:
    """Return NLL, shortfall and variance of the logits at `temperature`, each the mean over the samples."""
    log_sum, mean, variance = group_moments(samples, samples.top.new_tensor([1 / temperature]))
    nll = log_sum.squeeze(1) + _shortfalls(samples) / temperature
    return float(nll.mean()), -float(mean.mean()), float(variance.mean())


def _shortfalls(samples: Samples) -> Tensor:
    return samples.top.squeeze(1) - samples.own


def scale_of(samples: Samples) -> float:
    """Return the temperature at which a typical row's largest logit weighs as much as all others: a start."""
    log_count, mean, _ = group_moments(samples, samples.top.new_tensor([_INFINITELY_HOT]))
    shortfall = -float(mean.mean())
    return shortfall / float(log_count.mean()) if shortfall > 0 else 1.0


def round_to_float32(value: float) -> float:
    """Round to float32, in which modules hold their values."""
    return float(torch.tensor(value, dtype=torch.float32, device="cpu"))
