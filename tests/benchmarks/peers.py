"""Fit one temperature to the same logits with finecal and with other packages: time, temperature, NLL above the best.

Needs those that are to be compared; others are left out:
pip install scikit-learn netcal probmetrics numba torch-uncertainty lightning rich torchvision pytorch-ood
"""

import logging
import statistics
import warnings
from collections.abc import Callable

import numpy as np
import torch
from performance import Problem, problem, seconds

import finecal
from finecal._core.results import format_table

ROUNDS = 3
SAMPLES, CLASSES = 10_000, 1000


def by_finecal(given: Problem) -> float:
    return float(finecal.calibrators.fit_temperature(given.logits, given.labels).temperature)


def by_probmetrics(given: Problem) -> float:
    from probmetrics.calibrators import TemperatureScalingCalibrator
    from probmetrics.distributions import CategoricalLogits

    calibrator = TemperatureScalingCalibrator()
    calibrator.fit_torch(CategoricalLogits(given.logits), given.labels)
    return 1 / float(calibrator.invtemp_)


def by_torch_uncertainty(given: Problem) -> float:
    from torch.utils.data import DataLoader, TensorDataset
    from torch_uncertainty.post_processing import TemperatureScaler

    scaler = TemperatureScaler()
    scaler.fit(DataLoader(TensorDataset(given.logits, given.labels), batch_size=SAMPLES), progress=False)
    return 1 / float(
        scaler.inverse_temperature if hasattr(scaler, "inverse_temperature") else scaler.inv_temperature[0]
    )


def by_netcal(given: Problem) -> float:
    from netcal.scaling import TemperatureScaling

    scaling = TemperatureScaling()
    scaling.fit(given.logits.double().softmax(1).numpy(), given.labels.numpy(), tensorboard=False)
    return 1 / float(np.ravel(scaling.temperature)[0])


def by_scikit_learn(given: Problem) -> float:
    from peer_calibrators import by_scikit_learn

    fitted = by_scikit_learn(given.logits.numpy(), given.labels.numpy(), method="temperature")
    return 1 / float(fitted.calibrated_classifiers_[0].calibrators[0].beta_)


def by_pytorch_ood(given: Problem) -> float:
    from pytorch_ood.detector import TemperatureScaling

    return float(TemperatureScaling(model=None).fit_logits(given.logits, given.labels).t)


FITS: dict[str, Callable[[Problem], float]] = {
    "finecal": by_finecal,
    "probmetrics": by_probmetrics,
    "torch-uncertainty": by_torch_uncertainty,
    "netcal": by_netcal,
    "scikit-learn": by_scikit_learn,
    "pytorch-ood": by_pytorch_ood,
}


def nll(given: Problem, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(given.logits.double() / temperature, given.labels))


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    given = problem(SAMPLES, CLASSES)
    found: dict[str, float] = {}
    for name, fit in FITS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = fit(given)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name in found:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                times[name].append(seconds(lambda name=name: FITS[name](given)))
    best = min(nll(given, temperature) for temperature in found.values())
    own = statistics.median(times["finecal"])
    rows = [
        [
            name,
            f"{statistics.median(times[name]) / own:.1f}",
            f"{found[name]:.6f}",
            f"{nll(given, found[name]) - best:.1e}",
        ]
        for name in found
    ]
    print(format_table(["package", "time by finecal's", "temperature", "NLL above the best"], rows))


if __name__ == "__main__":
    main()
