"""What every estimator of gamma returns, and how its interval is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..evaluation.rounding import rounding_warnings
from ..evaluation.samples import Samples, Scan
from ..inputs.arrays import Mask
from ..inputs.checks import check_not_empty, check_only_seen
from ..inputs.groups import group_warnings, in_groups
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

TRAINING = "training samples"
HELD_OUT = "held-out samples"
"""What the cost of gamma was measured on."""
KINDS = {"train": "training", "held_out": "held-out"}
COST_SOURCES: dict[str, str | None] = {"train": TRAINING, "held_out": HELD_OUT}


@dataclass(frozen=True)
class GammaEstimate(Result):
    """An estimate of gamma, and how it was found; ``float(estimate)`` is gamma.

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
        95 % interval, if asked for with ``n_bootstrap``. It covers what other samples of as many would have given
        (with ``groups``, as many other groups); that of `estimate_gamma` covers the error of the method as well.
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
    cost_source : str or None
        What `expected_acc_seen` and `acc_seen_before` were measured on: "training samples", "held-out samples", or None
        where the function was not told whether the model was trained on the samples.
    weights : dict of str to float
        The functions whose gaps `estimate_gamma` averages, and how much each counts; empty for other functions.
    sources : dict of str to int
        What gamma was estimated from, by the names of the arguments, and how many there were of each: samples of
        "train", "held_out", "unlabelled" or "labelled", or "folds"; "seen" where the function was not told whether the
        model was trained on the samples.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]])
    >>> print(finecal.max_logit_gap(logits, [0, 1], [True, True, False, False]))
    gamma = 2  (max_logit_gap; from 2 labelled samples (seen classes))
    Cost: accuracy on seen classes stays at 100.0 % on these samples
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
    cost_source: str | None = None
    weights: dict[str, float] = field(default_factory=dict, hash=False)
    sources: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def function(self) -> str:
        """The name of the function that estimated gamma."""
        return self.method.partition("(")[0]

    def __float__(self) -> float:
        return float(self.gamma)

    def to_pandas(self) -> DataFrame:
        """Return a table of one row: the fields, the interval as two columns; NaN where there is no number."""
        low, high = self.interval or (math.nan, math.nan)
        numbers = {name: getattr(self, name) for name in ("expected_acc_seen", "acc_seen_before", "seen_share")}
        record = {
            **plain_fields(self, leave_out=["interval", "warnings", "weights", "sources"]),
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
        if (cost := cost_in_words(self)) is not None:
            lines.append(f"Cost: accuracy on seen classes {cost}")
        return [[*lines, *(Caution(f"warning: {sentence}") for sentence in self.warnings)]]


def interval_name(estimate: GammaEstimate) -> str:
    """Return what its interval is called: only that of `estimate_gamma` holds the error of the method."""
    return "95 % interval" if estimate.function == "estimate_gamma" else "95 % sampling interval"


def cost_in_words(estimate: GammaEstimate) -> str | None:
    """Return what becomes of the accuracy on seen classes, and on which samples; None if it was not measured."""
    if (change := change_in_words(estimate)) is None:
        return None
    where = {
        TRAINING: "these samples (training samples, so optimistic)",
        HELD_OUT: "the held-out samples",
    }.get(estimate.cost_source or "", "these samples")
    return f"{change} on {where}"


def change_in_words(estimate: GammaEstimate) -> str | None:
    """Return the verb and the accuracies on seen classes without and with gamma; None if they were not measured."""
    left, before = estimate.expected_acc_seen, estimate.acc_seen_before
    if left is None or math.isnan(left):
        return None
    if before is None or math.isnan(before):
        return f"is {percent(left)} %"
    if percent(before) == percent(left):
        return f"stays at {percent(left)} %"
    return f"{'falls' if left < before else 'rises'} from {percent(before)} % to {percent(left)} %"


def share_in_words(estimate: GammaEstimate) -> str | None:
    """Return the share of seen samples that gamma is for, and where it comes from; None if the method has none."""
    if estimate.seen_share is None:
        return None
    source = "" if estimate.seen_share_source is None else f" ({estimate.seen_share_source})"
    return f"{percent(estimate.seen_share)} %{source}"


def with_warnings(estimate: GammaEstimate, sentences: Sequence[str]) -> GammaEstimate:
    """Return a copy of `estimate` with further warnings, each issued once."""
    for sentence in sentences:
        warn(f"{estimate.function}: {sentence}")
    return replace(estimate, warnings=(*estimate.warnings, *sentences))


def scan_seen(samples: Samples, seen_mask: Mask, caller: str, min_seen: int = 2) -> Scan:
    """Scan labelled samples, which have to be of seen classes only."""
    scan = samples.scan(seen_mask)
    with samples.naming_errors():
        check_not_empty(len(samples), caller)
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
    scan: Scan,
    gamma: float,
    method: str,
    replicates: Sequence[float],
    sentences: Sequence[str] = (),
    n: int | None = None,
    gap: float | None = None,
) -> GammaEstimate:
    """Make the estimate from labelled seen samples: what it costs them, and warnings where something looks wrong."""
    last = [] if gap is None else missing_gap_warnings(gap)
    count = scan.labels.shape[0] if n is None else n
    kind = f"{KINDS[scan.name]} " if scan.name in KINDS else ""
    data = f"{count} labelled {kind}samples (seen classes){in_groups(scan.groups)}"
    interval = percentile_interval(replicates)
    last += [] if interval is None else group_warnings(scan.groups)
    sources = {scan.name if kind else "seen": count}
    estimate = GammaEstimate(gamma, method, data, count, interval=interval, sources=sources)
    estimate = with_cost(estimate, scan, COST_SOURCES.get(scan.name))
    return with_warnings(estimate, [*seen_warnings(scan, estimate), *sentences, *last])


def missing_gap_warnings(gap: float) -> list[str]:
    """Return a warning if there is no gap."""
    if gap > 0:
        return []
    return [
        f"the gap is {gap:.4g}: the seen logits have not outgrown the absent ones, as in a distilled or "
        "already balanced model; the estimate may have the wrong sign: check it with search_gamma or mixture_gamma"
    ]


def with_cost(estimate: GammaEstimate, scan: Scan, source: str | None = None) -> GammaEstimate:
    """Return a copy of `estimate` that says what gamma costs the scanned seen samples, and which these are."""
    left, before = scan.acc_seen(estimate.gamma), scan.acc_seen(0.0)
    return replace(estimate, expected_acc_seen=left, acc_seen_before=before, cost_source=source)


def seen_warnings(scan: Scan, estimate: GammaEstimate) -> list[str]:
    """Return warnings if the input looks wrong, or gamma is lost in its dtype, or leaves no sample correct.

    `estimate` is one `with_cost` on these samples.
    """
    before = estimate.acc_seen_before or 0.0
    sentences = [*scan.doubts(), *rounding_warnings(scan.logits, estimate.gamma)]
    if before > 0 and estimate.expected_acc_seen == 0:
        sentences.append(
            f"gamma = {estimate.gamma:.4g} costs the seen classes everything: none of the given samples stays correct "
            f"({percent(before)} % were); do not use it without checking"
        )
    return sentences
