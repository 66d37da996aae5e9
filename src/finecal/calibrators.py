"""All calibrators, and the functions that fit them."""

from ._calibrators.additive_bias import AdditiveBias
from ._calibrators.class_bias import ClassBias, ClassBiasReport
from ._calibrators.class_bias_fit import fit_class_bias
from ._calibrators.class_bias_shares import class_bias_from_shares
from ._calibrators.group_temperature import GroupTemperature, fit_group_temperature
from ._calibrators.normalization import NormalizedLogits, fit_normalized_logits
from ._calibrators.prototypes import Prototypes, PrototypesReport, fit_prototypes
from ._calibrators.temperature import Temperature, TemperatureFit, fit_temperature

__all__ = [
    "AdditiveBias",
    "ClassBias",
    "ClassBiasReport",
    "GroupTemperature",
    "NormalizedLogits",
    "Prototypes",
    "PrototypesReport",
    "Temperature",
    "TemperatureFit",
    "class_bias_from_shares",
    "fit_class_bias",
    "fit_group_temperature",
    "fit_normalized_logits",
    "fit_prototypes",
    "fit_temperature",
]
