"""Mean intersection over union at one gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from torch import Tensor

from ..inputs.arrays import ArrayT, matching, to_numpy
from ..results.display import Block, Table
from ..results.format import percent
from ..results.records import data_frame
from ..results.result import Result
from .accuracies import harmonic_mean
from .iou_counts import ClassCounts, ClassGroups, Means, mean_ious

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class IoUReport(Result, Generic[ArrayT]):
    """Mean intersection over union, and accuracies of positions, at one gamma; made by `evaluate_iou`.

    Prints as a table. All are fractions in [0, 1], NaN where no label defines them; they are printed in %. Background
    classes count in what is said of all classes, but neither among the seen nor among the absent ones.

    Attributes
    ----------
    iou_all, iou_seen, iou_absent : float
        Means of `iou` over all, the seen and the absent classes that occur in the labels.
    iou_harmonic : float
        Harmonic mean of `iou_seen` and `iou_absent`, hIoU.
    acc_all, acc_seen, acc_absent : float
        Share of the positions of these classes that are predicted right (pixel accuracy).
    gamma : float
        Where all of this was taken.
    n_all, n_seen, n_absent : int
        Positions with such labels.
    classes_all, classes_seen, classes_absent : int
        Such classes that occur in the labels.
    iou : (C,) float64
        Intersection over union of each class; NaN without labels.
    labelled, predicted, correct : (C,) int64
        Positions with this label, predicted as this class, and both.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> report = finecal.evaluate_iou(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False], gamma=2.0
    ... )
    >>> report.iou, report.iou_all, report.acc_all
    (array([0.5, nan, 0.5]), 0.5, 0.6666666666666666)
    """

    iou_all: float
    iou_seen: float
    iou_absent: float
    iou_harmonic: float
    acc_all: float
    acc_seen: float
    acc_absent: float
    gamma: float
    n_all: int
    n_seen: int
    n_absent: int
    classes_all: int
    classes_seen: int
    classes_absent: int
    iou: ArrayT
    labelled: ArrayT
    predicted: ArrayT
    correct: ArrayT

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per class."""
        columns = ("labelled", "predicted", "correct", "iou")
        return data_frame({name: to_numpy(getattr(self, name)) for name in columns})

    def _blocks(self) -> list[Block]:
        rows = [
            ["mean IoU, %", *map(percent, (self.iou_seen, self.iou_absent, self.iou_all))],
            ["accuracy, %", *map(percent, (self.acc_seen, self.acc_absent, self.acc_all))],
            ["classes", *map(str, (self.classes_seen, self.classes_absent, self.classes_all))],
            ["positions", *map(str, (self.n_seen, self.n_absent, self.n_all))],
        ]
        table = Table(["", "seen", "absent", "all"], rows)
        return [[f"gamma = {self.gamma:.6g}", table, f"harmonic mean IoU {percent(self.iou_harmonic)} %"]]


def report_of_counts(counts: ClassCounts, groups: ClassGroups, gamma: float, like: Any) -> IoUReport[Any]:
    """Form all means from counts; arrays are of the type of `like`."""
    iou_seen, iou_absent, iou_all = mean_ious(counts, groups)
    of_group = groups.seen, groups.absent, counts.labelled >= 0
    n_seen, n_absent, n_all = (int(counts.labelled[of].sum()) for of in of_group)
    means = Means.over(counts.labelled, groups)

    def accuracy(of: Tensor) -> float:
        return float(counts.correct[of].sum().double() / counts.labelled[of].sum())

    out = matching(like)
    return IoUReport(
        iou_all=iou_all,
        iou_seen=iou_seen,
        iou_absent=iou_absent,
        iou_harmonic=harmonic_mean(iou_seen, iou_absent),
        acc_all=accuracy(of_group[2]),
        acc_seen=accuracy(of_group[0]),
        acc_absent=accuracy(of_group[1]),
        gamma=gamma,
        n_all=n_all,
        n_seen=n_seen,
        n_absent=n_absent,
        classes_all=means.num_all,
        classes_seen=means.num_seen,
        classes_absent=means.num_absent,
        iou=out(counts.iou),
        labelled=out(counts.labelled),
        predicted=out(counts.predicted),
        correct=out(counts.correct),
    )
