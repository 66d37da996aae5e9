"""Bring back the classes that fine-tuning seems to have lost: one number, gamma, added to their logits.

Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024. This file is the API.
"""

from ._checks import FinecalWarning
from .budget import seen_budget_gamma
from .calibrated_model import CalibratedModel
from .calibrator_file import load, save
from .calibrators import AdditiveBias
from .choose import estimate_gamma
from .class_bias import ClassBias, ClassBiasReport, fit_class_bias
from .collection import collect_logits
from .comparison import ComparedEstimate, EstimatorComparison, compare_estimators
from .compiled_kernels import compile_kernels
from .curve import TradeoffCurve, tradeoff_curve
from .diagnosis import Diagnosis, diagnose
from .folding import fold_into_head, unfold_from_head
from .gamma import GammaEstimate
from .gaps import average_logit_gap, max_logit_gap
from .group_temperature import GroupTemperature, fit_group_temperature
from .head_drift import head_drift_gamma
from .logits import calibrate_logits, predict
from .margin import Margins, margins
from .masks import seen_mask_from_indices, seen_mask_from_labels, seen_mask_from_names
from .mixed_pairs import mixed_pair_gap
from .model_calibration import calibrate_model
from .normalization import GroupStandardization, NormalizedLogits, fit_normalized_logits, normalize_head
from .page import html_report
from .probability import ProbabilityReport, ProbabilityScores, ReliabilityBins, evaluate_probabilities
from .pseudo_folds import PseudoFold, pseudo_cv_splits
from .pseudo_validation import pseudo_cv_gamma
from .refits import pseudo_cv
from .report import SeenAbsentReport, evaluate
from .residuals import residual_gap
from .search import search_gamma
from .temperature import Temperature, TemperatureFit, fit_temperature
from .unlabelled import known_share_gamma, mixture_gamma

__version__ = "0.1.0"

__all__ = [
    "AdditiveBias",
    "CalibratedModel",
    "ClassBias",
    "ClassBiasReport",
    "ComparedEstimate",
    "Diagnosis",
    "EstimatorComparison",
    "FinecalWarning",
    "GammaEstimate",
    "GroupStandardization",
    "GroupTemperature",
    "Margins",
    "NormalizedLogits",
    "ProbabilityReport",
    "ProbabilityScores",
    "PseudoFold",
    "ReliabilityBins",
    "SeenAbsentReport",
    "Temperature",
    "TemperatureFit",
    "TradeoffCurve",
    "average_logit_gap",
    "calibrate_logits",
    "calibrate_model",
    "collect_logits",
    "compare_estimators",
    "compile_kernels",
    "diagnose",
    "estimate_gamma",
    "evaluate",
    "evaluate_probabilities",
    "fit_class_bias",
    "fit_group_temperature",
    "fit_normalized_logits",
    "fit_temperature",
    "fold_into_head",
    "head_drift_gamma",
    "html_report",
    "known_share_gamma",
    "load",
    "margins",
    "max_logit_gap",
    "mixed_pair_gap",
    "mixture_gamma",
    "normalize_head",
    "predict",
    "pseudo_cv",
    "pseudo_cv_gamma",
    "pseudo_cv_splits",
    "residual_gap",
    "save",
    "search_gamma",
    "seen_budget_gamma",
    "seen_mask_from_indices",
    "seen_mask_from_labels",
    "seen_mask_from_names",
    "tradeoff_curve",
    "unfold_from_head",
]
