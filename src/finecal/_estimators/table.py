"""The table of estimators. `compare_estimators`, the command line, scikit-learn and the documentation read it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from .estimate import GammaEstimate
from .fold_search import pseudo_cv_gamma
from .gaps import average_logit_gap, head_drift_gamma, max_logit_gap
from .mixed_pairs import mixed_pair_gap
from .residuals import residual_gap
from .search import search_gamma
from .seen_budget import seen_budget_gamma
from .unlabelled import known_share_gamma, mixture_gamma


class Choice(NamedTuple):
    """One answer: what there is, what to call, and what that recovers."""

    question: str
    """Asked in this order: the first one that is answered as below decides; the last choice is for all others."""
    answer: str
    have: str
    call: str
    options: str
    """Of ``finecal estimate``."""
    recovered: int
    """In % of what the best gamma gains: the median of the models that count in ``tests/benchmarks/estimators.py``."""


MODELS = 61
CHOICES = (
    Choice(
        "Do you have labels of all classes?",
        "yes",
        "labelled samples of all classes",
        "search_gamma(logits, labels, seen_mask)",
        "--labelled FILE --method search_gamma",
        97,
    ),
    Choice(
        "Do you have held-out samples of the seen classes?",
        "no",
        "only the training samples",
        "estimate_gamma(seen_mask, train=...)",
        "--train FILE",
        94,
    ),
    Choice(
        "Do you have unlabelled samples of what the model meets?",
        "no",
        "held-out samples of the seen classes",
        "estimate_gamma(seen_mask, held_out=...)",
        "--held-out FILE",
        95,
    ),
    Choice(
        "",
        "yes",
        "held-out and unlabelled samples",
        "estimate_gamma(seen_mask, held_out=..., unlabelled=...)",
        "--held-out FILE --unlabelled FILE",
        95,
    ),
)


def choices_for_the_command_line() -> str:
    """Return a line for each choice, with the options of ``finecal estimate``."""
    width = max(len(choice.have) for choice in CHOICES)
    lines = [f"  {each.have:<{width}}  {each.recovered} %  {each.options}" for each in CHOICES]
    return "\n".join(lines)


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
