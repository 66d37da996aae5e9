"""What the callbacks of all ecosystems share: gamma from batches of logits and labels, and the accuracies with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ..calibrators.additive_bias import AdditiveBias
from ..evaluation.report import SeenAbsentReport
from ..evaluation.samples import Samples
from ..gamma.auto import estimate_gamma
from ..gamma.estimate import GammaEstimate
from ..inputs.arrays import Mask
from ..inputs.checks import as_bool_mask, check_mask_values
from ..inputs.numbers import check_count
from ..inputs.warning import warn
from ..models.fold_proof import Run, check_fold
from ..models.fold_record import check_uncalibrated
from ..models.foldable import bias_of, head_and_shift
from ..models.heads import find_head
from ..results.format import percent
from ..streaming.margins import MarginRows

Estimator: TypeAlias = Callable[[Tensor, Tensor, Tensor], GammaEstimate]
"""Of the logits and labels of seen samples, and the seen mask."""

CALIBRATOR_FILE = "finecal.safetensors"
ACCURACIES = ("acc_seen", "acc_absent", "acc_all")
_TITLES = dict(zip(("Acc_S/Y", "Acc_U/Y", "Acc_Y/Y"), ACCURACIES, strict=True))


class Accuracies(NamedTuple):
    """On one data set, without gamma and with it."""

    before: SeenAbsentReport
    after: SeenAbsentReport

    def as_dict(self, prefix: str) -> dict[str, float]:
        """Return both by name, without those that no sample defines."""
        values = {f"{prefix}{name}": getattr(self.before, name) for name in ACCURACIES}
        values |= {f"{prefix}{name}_calibrated": getattr(self.after, name) for name in ACCURACIES}
        return {name: value for name, value in values.items() if not math.isnan(value)}


def check_callback_mask(seen_mask: Mask) -> Tensor:
    """Return `seen_mask` as a boolean tensor on the CPU."""
    return check_mask_values(as_bool_mask(seen_mask)).cpu()


def check_calibratable(model: nn.Module, seen_mask: Tensor, head: nn.Module | None) -> None:
    """Refuse a calibrated model, and one that gamma cannot be folded into: before the training, not after it."""
    check_uncalibrated(model)
    if head is not None:
        head_and_shift(head, AdditiveBias(seen_mask, 0.0))


def check_head_fold(head: nn.Module, run: Run) -> None:
    """Refuse a head whose bias does not act on the logits: before the training as well."""
    found = find_head(head)
    check_fold(found, torch.zeros(found.outputs), run)


def head_to_fold(model: nn.Module, fold: bool | nn.Linear) -> nn.Module | None:
    """Return what `fold_into_head` gets, None if nothing is to be folded."""
    if isinstance(fold, nn.Module):
        return fold
    return model if fold else None


def biases_of(head: nn.Module) -> list[Tensor]:
    """Return copies of the biases of a head: whether they are still those that gamma was folded into."""
    return [bias_of(layer).detach().cpu().clone() for layer in find_head(head).layers]


def same_biases(first: list[Tensor] | None, second: list[Tensor]) -> bool:
    return first is not None and all(map(torch.equal, first, second))


def check_max_samples(max_samples: int | None) -> int | None:
    """Positive, or None."""
    if max_samples is not None and check_count(max_samples, "max_samples") == 0:
        raise ValueError("max_samples is 0; gamma needs samples to be estimated from: pass a positive number, or None")
    return max_samples


def choose_samples(dataset: Any, max_samples: int | None) -> list[int] | None:
    """Return the indices of samples chosen at random, the same ones each time, or None for all samples."""
    if max_samples is None or not isinstance(dataset, Sized) or len(dataset) <= max_samples:
        return None
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    return order[:max_samples].tolist()


def estimate_from(samples: Samples, seen_mask: Tensor, estimator: Estimator | None, is_training: bool) -> GammaEstimate:
    """Estimate gamma from training samples, or from those held-out ones that are of seen classes."""
    if not is_training:
        samples = samples[seen_mask[samples.labels_tensor]]
    if estimator is not None:
        return estimator(samples.logits, samples.labels, seen_mask)
    if is_training:
        return estimate_gamma(seen_mask, train=samples)
    return estimate_gamma(seen_mask, held_out=samples)


@contextmanager
def continuing(when: str) -> Iterator[None]:
    """Warn where gamma cannot be estimated, and go on: early in a training the model may know too little."""
    try:
        yield
    except ValueError as error:
        warn(f"gamma is not estimated at {when}: {error}")


def accuracies_at(gamma: GammaEstimate, rows: MarginRows) -> Accuracies:
    """Return the accuracies of all samples without gamma and with it."""
    curve = rows.compute().curve()
    return Accuracies(curve.at(0.0), curve.at(gamma))


def account_of(estimate: GammaEstimate, accuracies: Mapping[str, Accuracies]) -> str:
    """Say what gamma is, how it was found, and what it changes on each data set."""
    lines = [str(estimate)]
    for name, (before, after) in accuracies.items():
        known = {title: (getattr(before, field), getattr(after, field)) for title, field in _TITLES.items()}
        shown = [f"{title} {percent(a)} -> {percent(b)} %" for title, (a, b) in known.items() if not math.isnan(a)]
        lines.append(f"{name}, without gamma -> with it: {', '.join(shown)}")
    return "\n".join(lines)


def values_of(estimate: GammaEstimate) -> dict[str, float]:
    """Return what an estimate says of itself, for a log."""
    values = {"gamma": estimate.gamma}
    if estimate.expected_acc_seen is not None:
        values["expected_acc_seen"] = estimate.expected_acc_seen
    return values
