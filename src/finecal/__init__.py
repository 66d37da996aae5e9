"""Bring back the classes that fine-tuning seems to have lost: one number, gamma, added to their logits.

Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024. This file is the API: what stands in `__all__`, and the
namespaces, which are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._calibrators.additive_bias import AdditiveBias
from ._calibrators.compare import compare_estimators
from ._calibrators.file import load, save
from ._calibrators.normalization import NormalizedLogits
from ._calibrators.temperature import Temperature
from ._core.calibrate import calibrate_logits, predict
from ._core.curve import TradeoffCurve, evaluate, tradeoff_curve
from ._core.report import SeenAbsentReport
from ._core.samples import Samples
from ._core.seen_mask import seen_mask_from_indices, seen_mask_from_labels, seen_mask_from_names
from ._core.warning import FinecalWarning
from ._estimators.auto import estimate_gamma
from ._estimators.estimate import GammaEstimate
from ._estimators.search import search_gamma
from ._evaluation.diagnose import diagnose
from ._evaluation.diagnosis import Diagnosis
from ._models.calibrate import calibrate_model
from ._models.calibrated_model import CalibratedModel
from ._models.collect import collect_logits
from ._models.fold import fold_into_head, unfold_from_head
from ._models.positions import Positions
from ._models.restore import restore_head
from ._report.document import html_report
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import calibrators as calibrators
    from . import dense as dense
    from . import distributed as distributed
    from . import estimators as estimators
    from . import integrations as integrations
    from . import logits as logits
    from . import plots as plots
    from . import probabilities as probabilities
    from . import sequences as sequences
    from . import sklearn as sklearn
    from . import streaming as streaming
    from . import weights as weights

__all__ = [
    "AdditiveBias",
    "CalibratedModel",
    "Diagnosis",
    "FinecalWarning",
    "GammaEstimate",
    "NormalizedLogits",
    "Positions",
    "Samples",
    "SeenAbsentReport",
    "Temperature",
    "TradeoffCurve",
    "calibrate_logits",
    "calibrate_model",
    "collect_logits",
    "compare_estimators",
    "diagnose",
    "estimate_gamma",
    "evaluate",
    "fold_into_head",
    "html_report",
    "load",
    "predict",
    "restore_head",
    "save",
    "search_gamma",
    "seen_mask_from_indices",
    "seen_mask_from_labels",
    "seen_mask_from_names",
    "tradeoff_curve",
    "unfold_from_head",
]
_NAMESPACES = (
    "calibrators",
    "dense",
    "distributed",
    "estimators",
    "integrations",
    "logits",
    "plots",
    "probabilities",
    "sequences",
    "sklearn",
    "streaming",
    "weights",
)


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMESPACES, "__version__"])
