"""Estimators of gamma beyond `estimate_gamma` and `search_gamma`, each named by its method.

All return a `GammaEstimate`, but `task_biases`, which returns a bias for each class.
"""

from ._calibrators.compare import ComparedEstimate, EstimatorComparison
from ._estimators.fold_search import pseudo_cv_gamma
from ._estimators.folds import PseudoFold, pseudo_cv_splits
from ._estimators.gaps import average_logit_gap, head_drift_gamma, max_logit_gap
from ._estimators.mixed_pairs import mixed_pair_gap
from ._estimators.residuals import residual_gap
from ._estimators.seen_budget import seen_budget_gamma
from ._estimators.task_biases import task_biases
from ._estimators.unlabelled import known_share_gamma, mixture_gamma
from ._models.pseudo_cv import pseudo_cv

__all__ = [
    "ComparedEstimate",
    "EstimatorComparison",
    "PseudoFold",
    "average_logit_gap",
    "head_drift_gamma",
    "known_share_gamma",
    "max_logit_gap",
    "mixed_pair_gap",
    "mixture_gamma",
    "pseudo_cv",
    "pseudo_cv_gamma",
    "pseudo_cv_splits",
    "residual_gap",
    "seen_budget_gamma",
    "task_biases",
]
