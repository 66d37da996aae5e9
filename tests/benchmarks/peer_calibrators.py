"""What finecal and other packages calibrate with, as functions `fit(logits, labels)` that return `apply(logits)`.

Logits and labels go to the package as they come, tensors or arrays, and what it returns comes back as it is: logits or
probabilities, of which only the order within a row matters. Packages that ask for probabilities get
`probabilities(logits)`, by default the softmax.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

import finecal

Apply = Callable[[Any], Any]
Fit = Callable[[Any, Any], Apply]
Convert = Callable[[Any], Any]


def softmax(scores: Any) -> Any:
    """Return probabilities of the type of the scores."""
    probabilities = torch.softmax(torch.as_tensor(scores).double(), 1)
    return probabilities if isinstance(scores, torch.Tensor) else probabilities.numpy()


def of_finecal(num_classes: int, probabilities: Convert = softmax) -> dict[str, Fit]:
    def estimate_gamma(logits: Any, labels: Any) -> Apply:
        mask = finecal.seen_mask_from_labels(labels, num_classes)
        gamma = finecal.estimate_gamma(mask, held_out=(logits, labels))
        return lambda scores: finecal.calibrate_logits(scores, mask, gamma)

    def average_logit_gap(logits: Any, labels: Any) -> Apply:
        mask = finecal.seen_mask_from_labels(labels, num_classes)
        gamma = finecal.estimators.average_logit_gap(logits, labels, mask)
        return lambda scores: finecal.calibrate_logits(scores, mask, gamma)

    return {"estimate_gamma": estimate_gamma, "average_logit_gap": average_logit_gap}


class Scores:
    """A fitted classifier of scikit-learn's kind, whose inputs are its scores."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.classes_ = np.arange(num_classes)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any, y: Any) -> "Scores":
        return self

    def predict(self, X: Any) -> Any:
        return self.classes_[np.asarray(X).argmax(1)]


def by_scikit_learn(logits: Any, labels: Any, *, method: str) -> Any:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Logits(ClassifierMixin, Scores, BaseEstimator):
        def decision_function(self, X: Any) -> Any:
            return X

    return CalibratedClassifierCV(FrozenEstimator(Logits(logits.shape[1])), method=method).fit(logits, labels)


def of_scikit_learn(num_classes: int, probabilities: Convert = softmax) -> dict[str, Fit]:
    def fit(method: str, logits: Any, labels: Any) -> Apply:
        return by_scikit_learn(logits, labels, method=method).predict_proba

    return {f"method={method!r}": partial(fit, method) for method in ("temperature", "sigmoid", "isotonic")}


def of_netcal(num_classes: int, probabilities: Convert = softmax) -> dict[str, Fit]:
    from netcal.binning import HistogramBinning, IsotonicRegression
    from netcal.scaling import LogisticCalibration, TemperatureScaling

    def fit(calibrator: type, options: dict[str, Any], logits: Any, labels: Any) -> Apply:
        fitted = calibrator()
        fitted.fit(probabilities(logits), labels, **options)
        return lambda scores: fitted.transform(probabilities(scores))

    silent = {"tensorboard": False}
    return {
        "TemperatureScaling": partial(fit, TemperatureScaling, silent),
        "LogisticCalibration": partial(fit, LogisticCalibration, silent),
        "HistogramBinning": partial(fit, HistogramBinning, {}),
        "IsotonicRegression": partial(fit, IsotonicRegression, {}),
    }


def of_probmetrics(num_classes: int, probabilities: Convert = softmax) -> dict[str, Fit]:
    from probmetrics.calibrators import get_calibrator
    from probmetrics.distributions import CategoricalLogits

    def fit(name: str, logits: Any, labels: Any) -> Apply:
        calibrator = get_calibrator(name)
        if isinstance(logits, torch.Tensor):
            calibrator.fit_torch(CategoricalLogits(logits), labels)
            return lambda scores: calibrator.predict_proba_torch(CategoricalLogits(scores)).get_probs()
        calibrator.fit(probabilities(logits), labels)
        return lambda scores: calibrator.predict_proba(probabilities(scores))

    return {name: partial(fit, name) for name in ("temp-scaling", "svs", "sms", "isotonic")}


def of_torch_uncertainty(num_classes: int, probabilities: Convert = softmax) -> dict[str, Fit]:
    from torch.utils.data import DataLoader, TensorDataset
    from torch_uncertainty import post_processing

    def fit(make: Callable[[], Any], logits: Any, labels: Any) -> Apply:
        scaler = make()
        scaler.fit(DataLoader(TensorDataset(logits, labels), batch_size=len(labels)), progress=False)
        return scaler

    return {
        "TemperatureScaler": partial(fit, post_processing.TemperatureScaler),
        "VectorScaler": partial(fit, partial(post_processing.VectorScaler, num_classes)),
        "IsotonicRegressionScaler": partial(fit, post_processing.IsotonicRegressionScaler),
    }


def of_pytorch_ood(num_classes: int, probabilities: Convert = softmax) -> dict[str, Fit]:
    from pytorch_ood.detector import TemperatureScaling

    def fit(logits: Any, labels: Any) -> Apply:
        temperature = TemperatureScaling(model=None).fit_logits(logits, labels).t.detach()
        return lambda scores: scores / temperature

    return {"TemperatureScaling": fit}


def of_mapie(num_classes: int, probabilities: Convert = softmax) -> dict[str, Fit]:
    from mapie.calibration import TopLabelCalibrator, VennAbersCalibrator
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Probabilities(ClassifierMixin, Scores, BaseEstimator):
        def predict_proba(self, X: Any) -> Any:
            return probabilities(X)

    def fit(calibrator: type, logits: Any, labels: Any) -> Apply:
        fitted = calibrator(Probabilities(num_classes), cv="prefit").fit(logits, labels)

        def apply(scores: Any) -> Any:
            columns = fitted.predict_proba(scores).shape[1]
            if columns != num_classes:
                raise ValueError(f"{columns} columns for {num_classes} classes")
            return np.eye(num_classes)[fitted.predict(scores)]  # the columns of a top label are not in class order

        return apply

    return {
        "TopLabelCalibrator": partial(fit, TopLabelCalibrator),
        "VennAbersCalibrator": partial(fit, VennAbersCalibrator),
    }
