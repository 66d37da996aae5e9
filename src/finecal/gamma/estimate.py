"""What every estimator of gamma returns, and how its interval is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..evaluation.rounding import doubts_about_rounding
from ..evaluation.scan import LabelledScan, scan_labelled
from ..inputs.arrays import Labels, Logits, Mask
from ..inputs.checks import check_not_empty, check_only_seen
from ..inputs.warning import warn
from ..results.display import Block, Caution, Part
from ..results.format import percent
from ..results.records import data_frame, plain_fields
from ..results.result import Result
from .bootstrap import percentile_interval

if TYPE_CHECKING:
    from pandas import DataFrame

GIVEN = "given"
ESTIMATED = "estimated from unlabelled samples"
EQUALLY_FREQUENT = "every class equally frequent"
"""Where a share of seen samples comes from."""


@dataclass(frozen=True)
class GammaEstimate(Result):
    """An estimate of gamma, with what it rests on; ``float(estimate)`` is gamma.

    Accuracies and shares are fractions in [0, 1]; they are printed in %.

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
        `Acc_{S/Y}` that remains at this gamma, on the labelled seen samples given. Optimistic on samples that the model
        was trained on. None where there were none.
    interval : (float, float) or None
        95 % interval, if asked for with ``n_bootstrap``. It covers what other samples of as many would have given; that
        of `estimate_gamma` covers the error of the method as well.
    warnings : tuple of str
        Where the method's assumptions are visibly broken; each was also issued as a `FinecalWarning`.
    acc_seen_before : float or None
        `Acc_{S/Y}` at gamma = 0 on the same samples: the difference to `expected_acc_seen` is what gamma costs.
    seen_share : float or None
        Share of seen samples, in (0, 1), that gamma is for: another share needs another gamma. None where the method
        has no share of its own.
    seen_share_source : str or None
        Where that share comes from: "given", "estimated from unlabelled samples", or "every class equally frequent",
        the number of seen classes over C, but for classes that -inf masks in all samples. None without `seen_share`.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]])
    >>> print(finecal.max_logit_gap(logits, [0, 1], [True, True, False, False]))
    gamma = 2  (max_logit_gap; from 2 labelled seen-class samples)
    Acc_S/Y of the labelled seen samples given: 100.0 % (100.0 % at gamma = 0)
    """

    gamma: float
    method: str
    data: str
    n: int
    expected_acc_seen: float | None = None
    interval: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()
    acc_seen_before: float | None = None
    seen_share: float | None = None
    seen_share_source: str | None = None

    def __float__(self) -> float:
        return float(self.gamma)

    def to_pandas(self) -> DataFrame:
        """Return a table of one row: the fields, the interval as two columns; NaN where there is no number."""
        low, high = self.interval or (math.nan, math.nan)
        numbers = {name: getattr(self, name) for name in ("expected_acc_seen", "acc_seen_before", "seen_share")}
        record = {
            **plain_fields(self, leave_out=["interval", "warnings"]),
            **{name: math.nan if value is None else float(value) for name, value in numbers.items()},
            "interval_low": low,
            "interval_high": high,
            "warnings": "; ".join(self.warnings),
        }
        return data_frame([record])

    def _blocks(self) -> list[Block]:
        lines: list[Part] = [f"gamma = {self.gamma:.6g}  ({self.method}; from {self.data})"]
        if self.interval is not None:
            lines.append("{}: {:.6g} to {:.6g}".format(interval_name(self), *self.interval))
        if self.expected_acc_seen is not None:
            before = "" if self.acc_seen_before is None else f" ({percent(self.acc_seen_before)} % at gamma = 0)"
            lines.append(f"Acc_S/Y of the labelled seen samples given: {percent(self.expected_acc_seen)} %{before}")
        return [[*lines, *(Caution(f"warning: {sentence}") for sentence in self.warnings)]]


def interval_name(estimate: GammaEstimate) -> str:
    """Return what its interval is called: only that of `estimate_gamma` holds the error of the method."""
    return "95 % interval" if estimate.method.startswith("estimate_gamma(") else "95 % sampling interval"


def share_in_words(estimate: GammaEstimate) -> str | None:
    """Return the share of seen samples that gamma is for, and where it comes from; None if the method has none."""
    if estimate.seen_share is None:
        return None
    source = "" if estimate.seen_share_source is None else f" ({estimate.seen_share_source})"
    return f"{percent(estimate.seen_share)} %{source}"


def function_of(estimate: GammaEstimate) -> str:
    """Return the name of the function that estimated gamma: the arguments would hide what a warning says."""
    return estimate.method.partition("(")[0]


def with_warnings(estimate: GammaEstimate, sentences: Sequence[str]) -> GammaEstimate:
    """Return a copy of `estimate` with further warnings, each issued once."""
    for sentence in sentences:
        warn(f"{function_of(estimate)}: {sentence}")
    return replace(estimate, warnings=(*estimate.warnings, *sentences))


def scan_seen(logits: Logits, labels: Labels, seen_mask: Mask, caller: str, min_seen: int = 2) -> LabelledScan:
    """Check and scan labelled samples of seen classes only."""
    scan = scan_labelled(logits, labels, seen_mask)
    check_not_empty(scan.labels.shape[0], caller)
    check_only_seen(scan.labels, scan.mask, caller)
    if min_seen > 1:
        check_two_seen(scan.mask, caller)
    return scan


def check_two_seen(mask: Tensor, caller: str) -> None:
    if int(mask.sum()) < 2:
        raise ValueError(
            f"seen_mask has one seen class; {caller} compares the seen classes that a sample does not belong to and "
            "needs two: use search_gamma or known_share_gamma"
        )


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
    about_gap = [] if gap is None else doubts_about_gap(gap)
    count = scan.labels.shape[0] if n is None else n
    data, interval = f"{count} labelled seen-class samples", percentile_interval(replicates)
    estimate = with_cost(GammaEstimate(gamma, method, data, count, interval=interval), scan)
    return with_warnings(estimate, [*doubts_about_seen(scan, estimate), *sentences, *about_gap])


def doubts_about_gap(gap: float) -> list[str]:
    """Return a warning if there is no gap."""
    if gap > 0:
        return []
    return [
        f"the gap is {gap:.4g}: the seen logits have not grown against the absent ones, as in a distilled or "
        "already balanced model; the estimate may have the wrong sign: check it with search_gamma or mixture_gamma"
    ]


def with_cost(estimate: GammaEstimate, scan: LabelledScan) -> GammaEstimate:
    """Return a copy of `estimate` that says what gamma costs the scanned seen samples."""
    return replace(estimate, expected_acc_seen=scan.acc_seen(estimate.gamma), acc_seen_before=scan.acc_seen(0.0))


def doubts_about_seen(scan: LabelledScan, estimate: GammaEstimate) -> list[str]:
    """Return warnings if the input looks wrong, or gamma is lost in its dtype, or leaves no sample correct.

    `estimate` is one `with_cost` on these samples.
    """
    before = estimate.acc_seen_before or 0.0
    sentences = [*scan.doubts(), *doubts_about_rounding(scan.logits, estimate.gamma)]
    if before > 0 and estimate.expected_acc_seen == 0:
        sentences.append(
            f"gamma = {estimate.gamma:.4g} costs the seen classes everything: none of the given samples stays correct "
            f"({percent(before)} % were); do not use it without checking"
        )
    return sentences
