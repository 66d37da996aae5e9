"""Mean IoU of the seen and the absent classes in dense outputs, at one gamma and at all."""

from ._evaluation.iou import evaluate_iou, iou_curve
from ._evaluation.iou_curve import IoUCurve, IoUReport

__all__ = ["IoUCurve", "IoUReport", "evaluate_iou", "iou_curve"]
