"""The table of estimators. `compare_estimators`, the command line, scikit-learn and the documentation read it.

A new estimator is one line here, beside its file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .estimate import GammaEstimate
from .fold_search import pseudo_cv_gamma
from .gaps import average_logit_gap, max_logit_gap
from .head_drift import head_drift_gamma
from .mixed_pairs import mixed_pair_gap
from .residuals import residual_gap
from .search import search_gamma
from .seen_budget import seen_budget_gamma
from .unlabelled import known_share_gamma, mixture_gamma


class Data(Enum):
    """What an estimator is given, in words. The comments have the arguments that it takes without a name."""

    SEEN = "labelled seen samples"  # logits, labels, seen_mask
    HELD_OUT = "labelled held-out seen samples"  # logits, labels, seen_mask
    HEADS = (
        "labelled seen samples with features, and the head before and after fine-tuning"  # logits, labels, seen_mask
    )
    FOLDS = "refits on halves of the seen classes"  # folds, seen_mask
    MIXTURE = "held-out seen samples, and unlabelled samples of all classes"  # seen and unlabelled logits, seen_mask
    SHARE = "unlabelled samples of all classes, and their share of seen samples"  # logits, seen_mask; seen_share=
    LABELLED = "labelled samples of all classes"  # logits, labels, seen_mask


@dataclass(frozen=True)
class Estimator:
    """One way to find gamma."""

    function: Callable[..., GammaEstimate]
    data: Data
    note: str
    """Remark for tables."""
    options: frozenset[str] = frozenset()
    """Names of its arguments that the command line has as well."""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments with which comparisons call it, where these are not its defaults."""

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__


ESTIMATORS = (
    Estimator(average_logit_gap, Data.SEEN, "ALG, the paper's estimator; usually too low"),
    Estimator(max_logit_gap, Data.SEEN, "the same samples compared by maxima; usually too low"),
    Estimator(
        mixed_pair_gap,
        Data.SEEN,
        "works even if the model has memorised the samples; too high where there is no gap",
        frozenset({"seen_share", "seed"}),
    ),
    Estimator(
        residual_gap, Data.HELD_OUT, "uses the samples that the model is least sure about", frozenset({"seen_share"})
    ),
    Estimator(
        seen_budget_gamma,
        Data.HELD_OUT,
        "the largest gamma that costs the seen classes no more than a budget: a guarantee",
        frozenset({"max_seen_drop", "confidence"}),
    ),
    Estimator(head_drift_gamma, Data.HEADS, "pseudo cross-validation without a refit"),
    Estimator(
        pseudo_cv_gamma,
        Data.FOLDS,
        "PCV, the paper's estimator; needs more than a few seen classes",
        arguments={"objective": "balanced"},
    ),
    Estimator(mixture_gamma, Data.MIXTURE, "estimates the share of seen samples first"),
    Estimator(
        known_share_gamma,
        Data.SHARE,
        "predicts as many samples as seen as there are",
        frozenset({"seen_share"}),
    ),
    Estimator(
        search_gamma,
        Data.LABELLED,
        "exact over all real gamma, for several objectives",
        frozenset({"objective", "max_seen_drop"}),
    ),
)
"""Those that need least come first."""
BY_NAME = {estimator.name: estimator for estimator in ESTIMATORS}
