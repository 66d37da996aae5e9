"""What a gamma may be best for, where outputs are dense: a mean of intersection over union."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..inputs.arrays import as_tensor
from ..inputs.checks import check_both_groups
from ..inputs.numbers import check_choice


class IoUs(Protocol):
    """What objectives are formed from: an `IoUCurve`, or a `BinnedIoUCurve`."""

    @property
    def iou_seen(self) -> Any: ...
    @property
    def iou_absent(self) -> Any: ...
    @property
    def iou_all(self) -> Any: ...
    @property
    def n_seen(self) -> int: ...
    @property
    def n_absent(self) -> int: ...


def iou_values(curve: IoUs, objective: str) -> Tensor:
    """Return the objective at each point of a curve, larger is better; ValueError if labels are of one group only."""
    value_of = IOU_OBJECTIVES[check_choice(objective, tuple(IOU_OBJECTIVES), "objective")]
    check_both_groups(curve.n_seen, curve.n_absent)
    return value_of(*(as_tensor(getattr(curve, name), name) for name in ("iou_seen", "iou_absent", "iou_all")))


def harmonic_means(seen: Tensor, absent: Tensor) -> Tensor:
    """Return the harmonic mean of two accuracies, or the like, at each point; NaN if one is."""
    total = seen + absent
    return torch.where(total == 0, 0, 2 * seen * absent / total)


IOU_OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "overall": lambda seen, absent, all_classes: all_classes,
    "balanced": lambda seen, absent, all_classes: (seen + absent) / 2,
    "harmonic": lambda seen, absent, all_classes: harmonic_means(seen, absent),
    "seen": lambda seen, absent, all_classes: seen,
    "absent": lambda seen, absent, all_classes: absent,
}
