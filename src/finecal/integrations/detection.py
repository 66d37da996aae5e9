"""Object detectors: the logits that gamma is estimated from, and average precision of seen and absent classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from .._core.arrays import Mask
from .._core.checks import as_bool_mask, check_index_range, check_mask_values
from .._core.report import harmonic_mean
from .._core.results import Block, Result, Table, percent
from ._box_logits import check_corners, check_no_nan, collect_box_logits, match_boxes

__all__ = ["AveragePrecisionReport", "SeenAbsentAveragePrecision", "collect_box_logits", "match_boxes"]

_HALF = 0.5
"""IoU threshold reported beside the mean over thresholds."""


class SeenAbsentAveragePrecision(MeanAveragePrecision):
    """Average precision of seen, absent and all classes: torchmetrics' `MeanAveragePrecision`, averaged by group.

    ``metric.update(preds, target)`` takes lists of dicts, as there. ``metric.compute()`` returns the fields of
    `AveragePrecisionReport` as 0-d float64 tensors by name; ``metric.report()`` returns the report. A class counts if
    the truth has an object of it. For recall at a confidence, drop boxes of lower scores before ``update``.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes, indexed by the labels; the entry of a background class is ignored.
    **kwargs
        As for `torchmetrics.detection.MeanAveragePrecision`; ``average`` must be "macro", ``iou_type`` one type.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or another argument is out of its range; by
        ``update``, if a label is outside the mask, boxes or scores contain NaN, or corners are in another order.

    Examples
    --------
    >>> import torch
    >>> metric = SeenAbsentAveragePrecision(torch.tensor([True, True, False]))
    >>> box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    >>> found = {"boxes": box, "scores": torch.ones(1), "labels": torch.tensor([1])}
    >>> truth = {"boxes": box.repeat(2, 1), "labels": torch.tensor([1, 2])}
    >>> metric.update([found], [truth])
    >>> print(metric.report())
    | average precision, %     |  seen | absent | harmonic |  all |
    | ------------------------ | ----: | -----: | -------: | ---: |
    | mean over IoU thresholds | 100.0 |    0.0 |      0.0 | 50.0 |
    | at IoU 0.5               | 100.0 |    0.0 |      0.0 | 50.0 |
    | recall at IoU 0.5        | 100.0 |    0.0 |      0.0 | 50.0 |
    | classes                  |     1 |      1 |          |    2 |
    """

    seen_mask: Tensor

    def __init__(self, seen_mask: Mask, **kwargs: Any) -> None:
        mask = check_mask_values(as_bool_mask(seen_mask))
        super().__init__(**{**kwargs, "extended_summary": True})
        if self.average != "macro" or len(self.iou_type) != 1:
            raise ValueError(
                f'average is {self.average!r} and iou_type {self.iou_type!r}; leave average at "macro" and pass one '
                "iou_type: classes are averaged by group"
            )
        self.register_buffer("seen_mask", mask.clone(), persistent=False)

    def update(self, preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
        """Add the boxes of a batch of pictures, and the true objects."""
        for name, items in (("preds", preds), ("target", target)):
            for item in items:
                given = item if isinstance(item, Mapping) else {}
                labels, boxes, scores = (given.get(key) for key in ("labels", "boxes", "scores"))
                if isinstance(labels, Tensor):
                    bound = "number of entries of seen_mask"
                    check_index_range(labels, len(self.seen_mask), f"labels of {name}", bound)
                if isinstance(scores, Tensor):
                    check_no_nan(scores, f"scores of {name}")
                if isinstance(boxes, Tensor):
                    check_no_nan(boxes, f"boxes of {name}")
                    if self.box_format == "xyxy" and boxes.ndim == 2 and boxes.shape[1] == 4:
                        check_corners(boxes, f"boxes of {name}")
        super().update(preds, target)

    def compute(self) -> dict[str, Tensor]:
        """Return the averages of all pictures so far."""
        report = self._compute_report()
        return {
            field.name: torch.tensor(getattr(report, field.name), dtype=torch.float64, device=self.device)
            for field in fields(report)
            if field.type == "float"
        }

    def report(self) -> AveragePrecisionReport:
        """Return the averages of all pictures so far, of all processes, which all have to call this."""
        with self.sync_context(self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._compute_report()

    def _compute_report(self) -> AveragePrecisionReport:
        summary = super().compute()
        half = next((i for i, iou in enumerate(self.iou_thresholds) if math.isclose(iou, _HALF)), None)
        if "precision" not in summary:  # there is no picture, or no box at all
            nothing = torch.full((len(self.seen_mask),), math.nan)
            return _report(nothing, nothing, nothing, self.seen_mask)
        # Index 0: objects of all sizes; index -1: the most boxes per picture. Classes without an object have -1.
        precision = summary["precision"][:, :, :, 0, -1].double().mean(1)
        recall = summary["recall"][:, :, 0, -1].double()
        classes = summary["classes"].long()

        def by_class(values: Tensor) -> Tensor:
            every = torch.full((len(self.seen_mask),), math.nan, dtype=torch.float64)
            every[classes] = torch.where(values < 0, math.nan, values)
            return every

        missing = torch.full_like(precision[0], math.nan)
        return _report(
            by_class(precision.mean(0)),
            by_class(missing if half is None else precision[half]),
            by_class(missing if half is None else recall[half]),
            self.seen_mask,
        )


@dataclass(frozen=True)
class AveragePrecisionReport(Result):
    """Average precision by group of classes; made by `SeenAbsentAveragePrecision`. Prints as a table.

    Fractions in [0, 1], printed in %: means over the classes of the group that have true objects. NaN without such a
    class, and at 0.5 without that IoU threshold.

    Attributes
    ----------
    map_seen, map_absent, map_harmonic, map_all : float
        Mean over the IoU thresholds (default 0.5 to 0.95); `map_harmonic` is the harmonic mean of the first two.
    map_50_seen, map_50_absent, map_50_harmonic, map_50_all : float
        At an IoU of 0.5.
    recall_50_seen, recall_50_absent, recall_50_harmonic, recall_50_all : float
        Share of objects that a box of their class overlaps with an IoU of at least 0.5.
    n_seen, n_absent : int
        Number of averaged classes.
    """

    map_seen: float
    map_absent: float
    map_harmonic: float
    map_all: float
    map_50_seen: float
    map_50_absent: float
    map_50_harmonic: float
    map_50_all: float
    recall_50_seen: float
    recall_50_absent: float
    recall_50_harmonic: float
    recall_50_all: float
    n_seen: int
    n_absent: int

    def _blocks(self) -> list[Block]:
        rows = {
            "mean over IoU thresholds": "map",
            "at IoU 0.5": "map_50",
            "recall at IoU 0.5": "recall_50",
        }
        parts = ("seen", "absent", "harmonic", "all")
        table = Table(
            ["average precision, %", *parts],
            [
                *(
                    [title, *(percent(getattr(self, f"{name}_{part}")) for part in parts)]
                    for title, name in rows.items()
                ),
                ["classes", str(self.n_seen), str(self.n_absent), "", str(self.n_seen + self.n_absent)],
            ],
        )
        return [[table]]


def _report(mean: Tensor, at_half: Tensor, recall: Tensor, seen_mask: Tensor) -> AveragePrecisionReport:
    """Average `(C,)` values by group; NaN marks classes that do not count."""
    mask = seen_mask.cpu()

    def means(values: Tensor) -> tuple[float, float, float, float]:
        seen, absent = (float(values[group].nanmean()) for group in (mask, ~mask))
        return seen, absent, harmonic_mean(seen, absent), float(values.nanmean())

    counted = ~mean.isnan()
    n_seen, n_absent = (int((counted & group).sum()) for group in (mask, ~mask))
    return AveragePrecisionReport(*means(mean), *means(at_half), *means(recall), n_seen, n_absent)
