"""Bring back the classes that fine-tuning seems to have lost: one number, gamma, added to their logits.

Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024. This file is the API.
"""

from ._checks import FinecalWarning
from .budget import seen_budget_gamma
from .calibrators import AdditiveBias
from .choose import estimate_gamma
from .curve import TradeoffCurve, tradeoff_curve
from .gamma import GammaEstimate
from .gaps import average_logit_gap, max_logit_gap
from .logits import calibrate_logits, predict
from .margin import Margins, margins
from .masks import seen_mask_from_indices, seen_mask_from_labels, seen_mask_from_names
from .mixed_pairs import mixed_pair_gap
from .report import SeenAbsentReport, evaluate
from .search import search_gamma
from .unlabelled import known_share_gamma, mixture_gamma

__version__ = "0.1.0"

__all__ = [
    "AdditiveBias",
    "FinecalWarning",
    "GammaEstimate",
    "Margins",
    "SeenAbsentReport",
    "TradeoffCurve",
    "average_logit_gap",
    "calibrate_logits",
    "estimate_gamma",
    "evaluate",
    "known_share_gamma",
    "margins",
    "max_logit_gap",
    "mixed_pair_gap",
    "mixture_gamma",
    "predict",
    "search_gamma",
    "seen_budget_gamma",
    "seen_mask_from_indices",
    "seen_mask_from_labels",
    "seen_mask_from_names",
    "tradeoff_curve",
]
