"""Bring back the classes that fine-tuning seems to have lost: one number, gamma, added to their logits.

Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024. This file is the API.
"""

from ._version import __version__ as __version__
from .calibrators.additive_bias import AdditiveBias
from .calibrators.class_bias import ClassBias, ClassBiasReport
from .calibrators.class_bias_fit import fit_class_bias
from .calibrators.compare import compare_estimators
from .calibrators.comparison import ComparedEstimate, EstimatorComparison
from .calibrators.file import load, save
from .calibrators.group_temperature import GroupTemperature, fit_group_temperature
from .calibrators.normalization import NormalizedLogits, fit_normalized_logits
from .calibrators.prototypes import Prototypes, PrototypesReport
from .calibrators.prototypes_fit import fit_prototypes
from .calibrators.temperature import Temperature, TemperatureFit, fit_temperature
from .evaluation.curve import TradeoffCurve
from .evaluation.diagnose import diagnose
from .evaluation.diagnosis import Diagnosis
from .evaluation.evaluate import evaluate, tradeoff_curve
from .evaluation.iou import evaluate_iou, iou_curve
from .evaluation.iou_curve import IoUCurve
from .evaluation.iou_report import IoUReport
from .evaluation.margins import Margins
from .evaluation.probabilities import ProbabilityReport, ProbabilityScores, ReliabilityBins, evaluate_probabilities
from .evaluation.report import SeenAbsentReport
from .evaluation.samples import Samples
from .gamma.auto import estimate_gamma
from .gamma.estimate import GammaEstimate
from .gamma.fold_search import pseudo_cv_gamma
from .gamma.folds import PseudoFold, pseudo_cv_splits
from .gamma.gaps import average_logit_gap, max_logit_gap
from .gamma.head_drift import head_drift_gamma
from .gamma.mixed_pairs import mixed_pair_gap
from .gamma.residuals import residual_gap
from .gamma.search import search_gamma
from .gamma.seen_budget import seen_budget_gamma
from .gamma.task_biases import task_biases
from .gamma.unlabelled import known_share_gamma, mixture_gamma
from .inputs.seen_mask import seen_mask_from_indices, seen_mask_from_labels, seen_mask_from_names
from .inputs.warning import FinecalWarning
from .logits.compiled_kernels import compile_kernels
from .logits.drop_classes import KeptClasses, drop_classes
from .logits.predict import calibrate_logits, predict
from .models.calibrate import calibrate_model
from .models.calibrated_model import CalibratedModel
from .models.collection import collect_logits
from .models.folding import fold_into_head, unfold_from_head
from .models.head_normalization import normalize_head
from .models.interpolation import interpolate_weights
from .models.interpolation_search import search_interpolation
from .models.interpolation_table import InterpolationSearch, InterpolationStep
from .models.positions import Positions
from .models.pseudo_cv import pseudo_cv
from .page.document import html_report

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
    "GroupTemperature",
    "InterpolationSearch",
    "InterpolationStep",
    "IoUCurve",
    "IoUReport",
    "KeptClasses",
    "Margins",
    "NormalizedLogits",
    "Positions",
    "ProbabilityReport",
    "ProbabilityScores",
    "Prototypes",
    "PrototypesReport",
    "PseudoFold",
    "ReliabilityBins",
    "Samples",
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
    "drop_classes",
    "estimate_gamma",
    "evaluate",
    "evaluate_iou",
    "evaluate_probabilities",
    "fit_class_bias",
    "fit_group_temperature",
    "fit_normalized_logits",
    "fit_prototypes",
    "fit_temperature",
    "fold_into_head",
    "head_drift_gamma",
    "html_report",
    "interpolate_weights",
    "iou_curve",
    "known_share_gamma",
    "load",
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
    "search_interpolation",
    "seen_budget_gamma",
    "seen_mask_from_indices",
    "seen_mask_from_labels",
    "seen_mask_from_names",
    "task_biases",
    "tradeoff_curve",
    "unfold_from_head",
]
