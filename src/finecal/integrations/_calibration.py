"""Shared parts of the callbacks: estimates of gamma, accuracies with it, and checks of head and arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .._calibrators.additive_bias import AdditiveBias
from .._core.arrays import Mask, check_count, check_flag
from .._core.checks import as_bool_mask, check_logits, check_mask_values
from .._core.report import SeenAbsentReport
from .._core.results import percent
from .._core.samples import Samples
from .._core.warning import warn
from .._estimators.auto import estimate_gamma
from .._estimators.estimate import GammaEstimate
from .._models.fold import check_uncalibrated
from .._models.fold_check import head_and_shift
from .._models.fold_trial import Run, check_fold
from .._models.heads import find_head
from .._models.positions import AtLabelSize, PositionRows, Positions, SampleRows
from ..streaming._bins import MarginRows

Estimator: TypeAlias = Callable[[Tensor, Tensor, Tensor], GammaEstimate]
"""``estimator(logits, labels, seen_mask)`` of samples of seen classes."""

_AN_ESTIMATOR = "a function of (logits, labels, seen_mask) such as finecal.estimators.max_logit_gap"
CALIBRATOR_FILE = "finecal.safetensors"
ACCURACIES = ("acc_seen", "acc_absent", "acc_all")
_TITLES = dict(zip(("Acc_S/Y", "Acc_U/Y", "Acc_Y/Y"), ACCURACIES, strict=True))


class Accuracies(NamedTuple):
    """Accuracies on one data set without gamma and with it."""

    before: SeenAbsentReport
    after: SeenAbsentReport

    def as_dict(self, prefix: str) -> dict[str, float]:
        """Return the accuracies by name; NaN is left out."""
        values = {f"{prefix}{name}": getattr(self.before, name) for name in ACCURACIES}
        values |= {f"{prefix}{name}_calibrated": getattr(self.after, name) for name in ACCURACIES}
        return {name: value for name, value in values.items() if not math.isnan(value)}


def check_callback_mask(seen_mask: Mask) -> Tensor:
    """Return `seen_mask` as a boolean tensor on the CPU."""
    return check_mask_values(as_bool_mask(seen_mask)).cpu()


def check_calibratable(model: nn.Module, seen_mask: Tensor, head: nn.Module | None) -> None:
    """Raise before training if the model is calibrated already, or `head` cannot take gamma."""
    check_uncalibrated(model)
    if head is not None:
        head_and_shift(head, AdditiveBias(seen_mask, 0.0))


def check_head_fold(head: nn.Module, run: Run, dim: int = -1) -> None:
    """Raise if the bias of the head does not act on the logits of `run`, with the classes along `dim`."""
    found = find_head(head)
    check_fold(found, torch.zeros(found.outputs), run, dim)


def head_to_fold(model: nn.Module, fold: bool | nn.Module) -> nn.Module | None:
    """Return the argument of `fold_into_head`; None without a fold."""
    if isinstance(fold, nn.Module):
        return fold
    return model if fold else None


def copy_biases(head: nn.Module) -> list[Tensor]:
    """Return copies of the biases of a head on the CPU."""
    return [bias.detach().cpu().clone() for bias in find_head(head).biases]


def are_biases_equal(first: list[Tensor] | None, second: list[Tensor]) -> bool:
    return first is not None and all(map(torch.equal, first, second))


def check_fold_argument(fold: object) -> bool | nn.Module:
    """Return `fold` if it is a boolean or a module."""
    return fold if isinstance(fold, nn.Module) else check_flag(fold, "fold", "pass True, False, or the head")


def check_estimator(estimator: object) -> Estimator | None:
    """Return `estimator` if it is a function or None."""
    if estimator is not None and (isinstance(estimator, type) or not callable(estimator)):
        raise TypeError(f"estimator is {estimator!r:.60}; pass {_AN_ESTIMATOR}, or leave it out")
    return estimator


def check_max_samples(max_samples: int | None) -> int | None:
    """Return `max_samples` if it is positive or None."""
    if max_samples is not None and check_count(max_samples, "max_samples") == 0:
        raise ValueError("max_samples is 0; gamma needs samples to be estimated from: pass a positive number, or None")
    return max_samples


def choose_samples(dataset: Any, max_samples: int | None) -> list[int] | None:
    """Return indices drawn with a fixed seed; None for all samples."""
    if max_samples is None or not isinstance(dataset, Sized) or len(dataset) <= max_samples:
        return None
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    return order[:max_samples].tolist()


def selected_rows(
    batches: Iterable[tuple[Tensor, Tensor]], positions: Positions | None, watches_background: bool = False
) -> SampleRows | PositionRows:
    """Return the samples of batches of logits and labels: their rows, or the selected positions of dense logits."""
    rows = SampleRows() if positions is None else PositionRows(positions, watches_background)
    receiver = rows if positions is None else AtLabelSize(rows, positions.dim)
    for logits, labels in batches:
        receiver.update(check_logits(logits) if positions is None else logits, labels)
    return rows


def estimate_from(samples: Samples, seen_mask: Tensor, estimator: Estimator | None, is_training: bool) -> GammaEstimate:
    """Estimate gamma from training samples, or from the held-out samples of seen classes."""
    if not is_training:
        samples = samples[seen_mask[samples.labels_tensor]]
    if estimator is not None:
        estimate = estimator(samples.logits, samples.labels, seen_mask)
        if not isinstance(estimate, GammaEstimate):
            raise TypeError(
                f"estimator returned {estimate!r:.60}; it must return a GammaEstimate, as {_AN_ESTIMATOR}. For a gamma "
                "of your own: finecal.GammaEstimate(gamma, method, data, n)"
            )
        return estimate
    if is_training:
        return estimate_gamma(seen_mask, train=samples)
    return estimate_gamma(seen_mask, held_out=samples)


@contextmanager
def warn_on_failure(when: str) -> Iterator[None]:
    """Turn a ValueError into a warning: early in training a model may be too inaccurate for an estimate."""
    try:
        yield
    except ValueError as error:
        warn(f"gamma is not estimated at {when}: {error}")


def accuracies_at(gamma: GammaEstimate, rows: MarginRows) -> Accuracies:
    """Return the accuracies of `rows` without gamma and with it."""
    curve = rows.compute().curve()
    return Accuracies(curve.at(0.0), curve.at(gamma))


def describe_estimate(estimate: GammaEstimate, accuracies: Mapping[str, Accuracies]) -> str:
    """Return the estimate and the accuracies on each data set as text."""
    lines = [str(estimate)]
    for name, (before, after) in accuracies.items():
        known = {title: (getattr(before, field), getattr(after, field)) for title, field in _TITLES.items()}
        shown = [f"{title} {percent(a)} -> {percent(b)} %" for title, (a, b) in known.items() if not math.isnan(a)]
        lines.append(f"{name}, without gamma -> with it: {', '.join(shown)}")
    return "\n".join(lines)


def log_values(estimate: GammaEstimate) -> dict[str, float]:
    """Return the numbers of an estimate that are logged."""
    values = {"gamma": estimate.gamma}
    if estimate.acc_seen_at_gamma is not None:
        values["acc_seen_at_gamma"] = estimate.acc_seen_at_gamma
    return values
