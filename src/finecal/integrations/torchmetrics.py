"""Metrics of torchmetrics: accuracies on seen and absent classes, AUSUC, and gamma itself, over all processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, SupportsFloat, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .._core.arrays import Mask, check_choice
from .._core.checks import as_logits, check_labels
from .._core.curve import TradeoffCurve
from .._core.report import AVERAGES
from .._core.samples import validate_logits
from .._core.warning import without_warnings
from .._estimators.gaps import GAPS
from ..plots._curves import plot_tradeoff
from ..streaming._bins import MarginRows
from ..streaming._sums import AccuracySums, GapSums

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AUSUC", "LogitGap", "SeenAbsentAccuracy"]

ACCURACIES = (
    "acc_all",
    "acc_seen",
    "acc_absent",
    "acc_seen_within",
    "acc_absent_within",
    "harmonic_mean",
    "balanced",
)
SETTINGS = ("seen_mask", "gamma")
"""Entries of a streaming state that are settings; all others are sums over samples."""

StateT = TypeVar("StateT", AccuracySums, MarginRows, GapSums)


class _StreamingMetric(Metric, Generic[StateT]):
    """A metric whose torchmetrics states are the sums of a streaming state, and its settings.

    With the settings as a state, in bytes, which compare exactly, a `MetricCollection` shares sums of equal ones only.
    """

    full_state_update: bool = False
    is_differentiable: bool = False
    settings: Tensor

    def __init__(self, empty: StateT, reduction: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._empty: StateT = empty.to(self.device)
        settings = torch.cat([value.reshape(-1).view(torch.uint8) for value in self._settings().values()])
        self.add_state("settings", settings, dist_reduce_fx=_require_equal)
        self._grown = {name: value for name, value in empty.state_dict().items() if name not in SETTINGS}
        for name, value in self._grown.items():
            self.add_state(name, [] if reduction == "cat" else value, dist_reduce_fx=reduction)

    @property
    def seen_mask(self) -> Tensor:
        """True for the seen classes."""
        mask: Tensor = self._empty.seen_mask
        return mask

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch of logits `(N, C)` with labels `(N,)`, on any device."""
        batch = copy.copy(self._empty).update(as_logits(preds), target).state_dict()
        for name in self._grown:
            own = getattr(self, name)
            if isinstance(own, list):
                own.append(_as_common_dtype(batch[name]))
            else:
                setattr(self, name, own + batch[name])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch, and return the value of this batch alone, without warnings about its size."""
        with without_warnings():
            return super().forward(*args, **kwargs)

    def plot(self, val: Any = None, ax: Axes | None = None) -> tuple[Any, Any]:
        """Draw `val`, a value of ``compute`` or a sequence of them (default: the current one); as `Metric.plot`."""
        return self._plot(val, ax)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Synchronise; a process without samples contributes an empty tensor of the common dtype."""
        for name, value in self._grown.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                getattr(self, name).append(_as_common_dtype(value).to(self.device))
        super().sync(*args, **kwargs)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another metric with the same settings."""
        states: dict[str, Any] = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        if "settings" in states:
            _require_equal([self.settings, states["settings"].to(self.device)])
        super().merge_state(incoming_state)
        self._computed = None  # otherwise torchmetrics returns the cached value

    def _state(self) -> StateT:
        """Return the streaming state of all samples so far."""
        grown = {name: getattr(self, name) for name in self._grown}
        return copy.copy(self._empty).load_state_dict(
            self._settings() | {name: dim_zero_cat(value) for name, value in grown.items()}
        )

    def _settings(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._empty.state_dict().items() if name in SETTINGS}

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """Apply `fn` to the states but keep their dtypes: half precision would round counts."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, *args, **kwargs)
        self._empty = self._empty.to(self.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(f"{prefix}settings")
        if given is not None:
            _require_equal([self.settings, given.to(self.device)])
        super()._load_from_state_dict(state_dict, prefix, *args)


class SeenAbsentAccuracy(_StreamingMetric[AccuracySums]):
    """Accuracies on seen, absent and all classes at one gamma, in `O(C)` memory (`streaming.AccuracySums`).

    ``metric.update(preds, target)`` takes logits `(N, C)` before softmax, to which gamma is added, and labels `(N,)`.
    ``metric.compute()`` returns 0-d float64 tensors by name, as defined in `SeenAbsentReport`: ``acc_all``,
    ``acc_seen``, ``acc_absent``, ``acc_seen_within``, ``acc_absent_within``, ``harmonic_mean`` and ``balanced``; NaN
    without samples.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        Fixed for the metric. Leave it at 0 for logits of a calibrated model.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.
    accuracy : str, optional
        Name of one accuracy to return alone, for Lightning's ``self.log``. Metrics of a `MetricCollection` that differ
        only in this and `average` share their sums.
    **kwargs
        As for `torchmetrics.Metric`.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or another argument is out of its range; and
        by ``update`` as by `evaluate`.

    Examples
    --------
    >>> import torch
    >>> metric = SeenAbsentAccuracy(torch.tensor([True, True, False]), gamma=0.75)
    >>> metric.update(torch.tensor([[4.0, 1, 3], [2, 5, 4.5]]), torch.tensor([0, 2]))
    >>> metric.compute()["acc_all"]
    tensor(1., dtype=torch.float64)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    def __init__(
        self,
        seen_mask: Mask,
        gamma: SupportsFloat = 0.0,
        average: str = "micro",
        accuracy: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.average: str = check_choice(average, AVERAGES, "average")
        self.accuracy: str | None = None if accuracy is None else check_choice(accuracy, ACCURACIES, "accuracy")
        super().__init__(AccuracySums(seen_mask, gamma), "sum", **kwargs)

    @property
    def gamma(self) -> float:
        """Gamma of the accuracies."""
        return float(self._settings()["gamma"])

    def compute(self) -> dict[str, Tensor] | Tensor:
        """Return the accuracies of all samples so far, or the one asked for."""
        report = self._state().compute(self.average)
        values = {name: self._scalar(getattr(report, name)) for name in ACCURACIES}
        return values if self.accuracy is None else values[self.accuracy]


class AUSUC(_StreamingMetric[MarginRows]):
    """Area under the seen-absent curve, which does not depend on gamma.

    ``metric.update(preds, target)`` takes logits `(N, C)` before softmax and labels `(N,)`. ``metric.compute()``
    returns a 0-d float64 tensor, NaN while the samples are of one group only. `O(NC + N log N)` time, 13 bytes of
    memory per sample (`streaming.MarginRows`).

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.
    **kwargs
        As for `torchmetrics.Metric`.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or `average` is neither of the two; and by
        ``update`` as by `tradeoff_curve`.

    Examples
    --------
    >>> import torch
    >>> metric = AUSUC(torch.tensor([True, True, False]))
    >>> metric.update(
    ...     torch.tensor([[4.0, 1, 3], [2, 5, 4.5], [6, 1, 2]]), torch.tensor([0, 2, 0])
    ... )
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    def __init__(self, seen_mask: Mask, average: str = "micro", **kwargs: Any) -> None:
        self.average: str = check_choice(average, AVERAGES, "average")
        # Labels are kept for micro averages too, so that a MetricCollection shares the rows of both averages.
        super().__init__(MarginRows(seen_mask, keep_labels=True), "cat", **kwargs)

    def compute(self) -> Tensor:
        """Return the area of all samples so far."""
        return self._scalar(self._curve().ausuc)

    def curve(self) -> TradeoffCurve[Tensor]:
        """Return the curve of all samples of all processes, each of which must call this."""
        with self.sync_context(self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._curve()

    def plot(self, val: Any = None, ax: Axes | None = None) -> tuple[Any, Any]:
        """Draw the curve of all samples so far, or the areas `val`; returns as `Metric.plot`."""
        if val is not None:
            return super().plot(val, ax)
        curve = self.curve()
        figure = None
        if ax is None:
            import matplotlib.pyplot as plt

            figure, ax = plt.subplots(layout="constrained")
        return figure, plot_tradeoff(curve, ax)

    def _curve(self) -> TradeoffCurve[Tensor]:
        return self._state().compute().curve(self.average)


class LogitGap(_StreamingMetric[GapSums]):
    """Gamma by the maximum or the average logit gap, from the samples of seen classes among those given.

    ``metric.update(preds, target)`` takes uncalibrated logits `(N, C)` before softmax and labels `(N,)`; samples of
    absent classes are ignored. ``metric.compute()`` returns gamma as a 0-d float64 tensor, NaN without samples of seen
    classes. `O(NC)` time, `O(1)` memory (`streaming.GapSums`).

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes; at least two.
    method : {"max_logit_gap", "average_logit_gap"}
        The estimator of this name. Metrics of a `MetricCollection` that differ only in this share their sums.
    **kwargs
        As for `torchmetrics.Metric`.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has fewer than two seen or no absent class, or `method` is neither of the two;
        and by ``update`` and ``compute`` as by the functions.

    Warns
    -----
    FinecalWarning
        By ``compute``, as the functions do.

    Examples
    --------
    >>> import torch
    >>> metric = LogitGap(torch.tensor([True, True, False, False]))
    >>> metric.update(
    ...     torch.tensor([[9.0, 4, 1, 2], [3, 8, 0, 1], [2, 2, 7, 1]]),
    ...     torch.tensor([0, 1, 2]),
    ... )
    >>> metric.compute()
    tensor(2., dtype=torch.float64)
    """

    samples: Tensor

    def __init__(self, seen_mask: Mask, method: str = "max_logit_gap", **kwargs: Any) -> None:
        self.method: str = check_choice(method, tuple(GAPS), "method")
        super().__init__(GapSums(seen_mask), "sum", **kwargs)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the samples of seen classes in a batch of logits `(N, C)` with labels `(N,)`, on any device."""
        logits, mask = validate_logits(preds, self.seen_mask)
        labels = check_labels(target, logits.shape[0], logits.shape[1], logits.device)
        is_seen = mask[labels]
        super().update(logits[is_seen], labels[is_seen])

    def compute(self) -> Tensor:
        """Return gamma from all samples of seen classes so far."""
        state = self._state()
        return self._scalar(state.estimate(self.method).gamma if self.samples else math.nan)


def _require_equal(settings: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the common settings; ValueError if they differ."""
    first = settings[0]
    if not all(torch.equal(first, other) for other in settings):
        raise ValueError(
            "seen_mask or gamma differs between metrics that are to be merged, synchronised or loaded; construct them "
            "with the same"
        )
    return first


def _as_common_dtype(rows: Tensor) -> Tensor:
    """Return floating-point rows in float64, the dtype that all processes send."""
    return rows.double() if rows.is_floating_point() else rows
