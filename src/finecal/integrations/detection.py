"""Object detectors: the logits that gamma is estimated from, and average precision of seen and absent classes."""

from ._average_precision import AveragePrecisionReport, SeenAbsentAveragePrecision
from ._box_logits import collect_box_logits, match_boxes

__all__ = ["AveragePrecisionReport", "SeenAbsentAveragePrecision", "collect_box_logits", "match_boxes"]
