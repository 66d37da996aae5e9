"""finecal for scikit-learn, extra ``finecal[sklearn]``: a classifier that brings absent classes back; its measures."""

from ._classifier import SeenAbsentCalibratedClassifier
from ._margin_display import MarginDisplay
from ._metrics import absent_accuracy_score, ausuc_score, harmonic_mean_score, seen_accuracy_score
from ._reliability_display import GroupReliabilityDisplay
from ._tradeoff_display import TradeoffDisplay

__all__ = [
    "GroupReliabilityDisplay",
    "MarginDisplay",
    "SeenAbsentCalibratedClassifier",
    "TradeoffDisplay",
    "absent_accuracy_score",
    "ausuc_score",
    "harmonic_mean_score",
    "seen_accuracy_score",
]
