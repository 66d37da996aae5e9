"""finecal for scikit-learn: a classifier that brings absent classes back, its metrics, and displays.

Import everything from ``finecal.sklearn``, which needs the extra ``sklearn``. Its modules are private; within
finecal, they may import packages up to `calibrators`, and `plots`.
"""

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
