"""What every estimator of gamma returns, and how its interval is made."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ._arrays import ArrayLike
from ._checks import check_count, check_not_empty, check_only_seen, check_seed, warn
from .margin import LabelledScan, scan_labelled

_COVERAGE = (0.025, 0.975)


@dataclass(frozen=True)
class GammaEstimate:
    """An estimate of gamma, with what it rests on; ``float(estimate)`` is gamma.

    Attributes
    ----------
    gamma : float
        In units of the logits; to be added to every absent logit.
    method : str
        The function that estimated it, with the arguments that matter.
    data : str
        What it was estimated from, in words.
    n : int
        Samples that it was estimated from.
    expected_acc_seen : float or None
        `Acc_{S/Y}` at this gamma on the labelled seen samples given: what gamma costs the seen classes. Optimistic on
        samples that the model was trained on. None where there were none.
    interval : (float, float) or None
        95 % bootstrap interval, if asked for with ``n_bootstrap``.
    warnings : tuple of str
        Where the method's assumptions are visibly broken; each was also issued as a `FinecalWarning`.
    """

    gamma: float
    method: str
    data: str
    n: int
    expected_acc_seen: float | None = None
    interval: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.gamma

    def __str__(self) -> str:
        lines = [f"gamma = {self.gamma:.6g}  ({self.method}; from {self.data})"]
        if self.interval is not None:
            lines.append("95 % bootstrap interval: {:.6g} to {:.6g}".format(*self.interval))
        if self.expected_acc_seen is not None:
            lines.append(f"Acc_S/Y on the given seen samples at this gamma: {100 * self.expected_acc_seen:.1f} %")
        lines += [f"warning: {sentence}" for sentence in self.warnings]
        return "\n".join(lines)

    def with_warnings(self, sentences: Sequence[str]) -> "GammaEstimate":
        """Return a copy with further warnings, each issued once."""
        for sentence in sentences:
            warn(f"{self.method}: {sentence}")
        return replace(self, warnings=(*self.warnings, *sentences))


def resamples(n: int, n_bootstrap: int, seed: int, size: int | None = None, stream: int = 0) -> Iterator[Tensor]:
    """Yield `n_bootstrap` index tensors of `size` (default n) draws with replacement, the same on every device.

    Draws that have to be independent under one seed take different streams.
    """
    generator = torch.Generator("cpu").manual_seed(check_seed(seed) + stream)
    for _ in range(check_count(n_bootstrap, "n_bootstrap")):
        yield torch.randint(n, (size or n,), generator=generator, device="cpu")


def resampled_means(values: Tensor, n_bootstrap: int, seed: int) -> list[float]:
    """Return the means of `n_bootstrap` resamplings of `values`."""
    return [float(values[index.to(values.device)].mean()) for index in resamples(values.shape[0], n_bootstrap, seed)]


def percentile_interval(replicates: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the finite bootstrap replicates, None without any."""
    finite = [value for value in replicates if math.isfinite(value)]
    if not finite:
        return None
    low, high = np.quantile(finite, _COVERAGE)
    return float(low), float(high)


def scan_seen(
    logits: ArrayLike, labels: ArrayLike, seen_mask: ArrayLike, caller: str, min_seen: int = 2
) -> LabelledScan:
    """Check and scan labelled samples of seen classes only."""
    scan = scan_labelled(logits, labels, seen_mask)
    check_not_empty(scan.labels.shape[0], caller)
    check_only_seen(scan.labels, scan.mask, caller)
    if int(scan.mask.sum()) < min_seen:
        raise ValueError(
            f"seen_mask has one seen class; {caller} compares the seen classes that a sample does not belong to and "
            "needs two: use search_gamma or known_share_gamma"
        )
    return scan


def finish_from_seen(
    scan: LabelledScan,
    gamma: float,
    method: str,
    replicates: Sequence[float],
    sentences: Sequence[str] = (),
    n: int | None = None,
    gap: float | None = None,
) -> GammaEstimate:
    """Make the estimate from labelled seen samples: what it costs them, and warnings where something looks wrong."""
    sentences = list(sentences)
    if gap is not None and gap <= 0:
        sentences.append(
            f"the gap is {gap:.4g}: the seen logits have not grown against the absent ones, as in a distilled or "
            "already balanced model; the estimate may have the wrong sign: check it with search_gamma or mixture_gamma"
        )
    sentences += doubts_about_cost(scan, gamma)
    count = scan.labels.shape[0] if n is None else n
    estimate = GammaEstimate(
        gamma,
        method,
        f"{count} labelled seen-class samples",
        count,
        scan.acc_seen(gamma),
        percentile_interval(replicates),
    )
    return estimate.with_warnings(sentences)


def doubts_about_cost(scan: LabelledScan, gamma: float) -> list[str]:
    """Return a warning if gamma leaves no seen sample correct."""
    before = scan.acc_seen(0.0)
    if before == 0 or scan.acc_seen(gamma) > 0:
        return []
    return [
        f"gamma = {gamma:.4g} costs the seen classes everything: none of the given samples stays correct "
        f"({100 * before:.1f} % were); do not use it without checking"
    ]
