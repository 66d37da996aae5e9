"""finecal for scikit-learn, extra ``finecal[sklearn]``: a classifier that brings absent classes back; its measures."""

from ._classifier import SeenAbsentCalibratedClassifier
from ._displays import GroupReliabilityDisplay, MarginDisplay, TradeoffDisplay
from ._metrics import absent_accuracy_score, ausuc_score, harmonic_mean_score, seen_accuracy_score

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
