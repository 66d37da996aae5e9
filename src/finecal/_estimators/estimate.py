"""Gamma as JSON, with the seen classes that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._core.arrays import Mask, check_num_classes
from .._core.checks import check_gamma, check_not_empty, check_only_seen
from .._core.files import CHECKSUM, Unreadable, check_checksum, check_source
from .._core.groups import group_warnings, in_groups, percentile_interval
from .._core.plausibility import rounding_warnings
from .._core.results import (
    Block,
    Caution,
    Part,
    Result,
    data_frame,
    decoded_fields,
    parse_json,
    percent,
    plain_fields,
    refuse_misnamed,
    with_new_names,
)
from .._core.samples import Samples, Scan
from .._core.seen_mask import seen_mask_from_indices
from .._core.warning import error_context, warn

if TYPE_CHECKING:
    from pandas import DataFrame

GIVEN = "given"
ESTIMATED = "estimated from unlabelled samples"
EQUALLY_FREQUENT = "every class equally frequent"
"""Sources of a share of seen samples."""

TRAINING = "training samples"
HELD_OUT = "held-out samples"
"""Samples that the cost of gamma was measured on."""
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
        The samples that it was estimated from, in words.
    n : int
        Their number.
    acc_seen_at_gamma, acc_seen_at_zero : float or None
        `Acc_{S/Y}` at this gamma and at gamma = 0, on the labelled seen samples given (None without any): the
        difference is the cost of gamma. Optimistic on samples that the model was trained on.
    interval : (float, float) or None
        95 % interval, if asked for with ``n_bootstrap``, over other samples (with ``groups``, other groups) of the same
        number; that of `estimate_gamma` covers the error of the method as well.
    warnings : tuple of str
        Where the method's assumptions are visibly broken; each was also issued as a `FinecalWarning`.
    seen_share : float or None
        Share of seen samples, in (0, 1), that gamma is for: another share needs another gamma. None where the method
        has no share of its own.
    seen_share_source : str or None
        Source of that share: "given", "estimated from unlabelled samples", or "every class equally frequent", the
        number of seen classes over C, but for classes that -inf masks in all samples. None without `seen_share`.
    cost_source : str or None
        Samples on which both accuracies were measured: "training samples", "held-out samples", or None if the function
        was not given whether the model was trained on them.
    weights : dict of str to float
        Weight of each function in the gap of `estimate_gamma`; empty for other functions.
    sources : dict of str to int
        Number of samples by argument: "train", "held_out", "unlabelled" or "labelled", or of "folds"; "seen" where the
        function was not given whether the model was trained on the samples.
    min_absent_share : float or None
        The share of absent samples above which gamma is expected to gain accuracy overall, `c / (c + g)`: c is the
        measured cost, g the gain on absent samples, which is not measured but that of seen ones mirrored at the gap
        (at gamma where the function tells no gap). None without labelled seen samples, or for gamma <= 0.

    Examples
    --------
    >>> import finecal
    >>> logits, mask = [[9.0, 7, 1, 2], [8.0, 9, 0, 1]], [True, True, False, False]
    >>> print(finecal.estimators.max_logit_gap(logits, [0, 1], mask))
    gamma = 6  (max_logit_gap; from 2 labelled samples (seen classes))
    Cost: accuracy on seen classes stays at 100.0 % on these samples
    Pays at any share of absent samples
    """

    gamma: float
    method: str
    data: str
    n: int
    acc_seen_at_gamma: float | None = None
    interval: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()
    acc_seen_at_zero: float | None = None
    seen_share: float | None = None
    seen_share_source: str | None = None
    cost_source: str | None = None
    weights: dict[str, float] = field(default_factory=dict, hash=False)
    sources: dict[str, int] = field(default_factory=dict, hash=False)
    min_absent_share: float | None = None

    _FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "expected_acc_seen": "acc_seen_at_gamma",
        "acc_seen_before": "acc_seen_at_zero",
    }
    """Names of fields in files, where these are others."""

    @property
    def function(self) -> str:
        """The name of the function that estimated gamma."""
        return self.method.partition("(")[0]

    def __float__(self) -> float:
        return float(self.gamma)

    def to_pandas(self) -> DataFrame:
        """Return a table of one row: the fields, the interval as two columns; NaN where there is no number."""
        low, high = self.interval or (math.nan, math.nan)
        names = ("acc_seen_at_gamma", "acc_seen_at_zero", "seen_share", "min_absent_share")
        numbers = {name: getattr(self, name) for name in names}
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
        if (pays := break_even_in_words(self)) is not None:
            lines.append(pays)
        return [[*lines, *(Caution(f"warning: {sentence}") for sentence in self.warnings)]]


def interval_name(estimate: GammaEstimate) -> str:
    """Return the name of its interval: only that of `estimate_gamma` includes the error of the method."""
    return "95 % interval" if estimate.function == "estimate_gamma" else "95 % sampling interval"


def cost_in_words(estimate: GammaEstimate) -> str | None:
    """Describe the change of accuracy on seen classes and its samples; None if it was not measured."""
    if (change := change_in_words(estimate)) is None:
        return None
    where = {
        TRAINING: "these samples (training samples, so optimistic)",
        HELD_OUT: "the held-out samples",
    }.get(estimate.cost_source or "", "these samples")
    return f"{change} on {where}"


def change_in_words(estimate: GammaEstimate) -> str | None:
    """Return the verb and the accuracies on seen classes without and with gamma; None if they were not measured."""
    left, before = estimate.acc_seen_at_gamma, estimate.acc_seen_at_zero
    if left is None or math.isnan(left):
        return None
    if before is None or math.isnan(before):
        return f"is {percent(left)} %"
    if percent(before) == percent(left):
        return f"stays at {percent(left)} %"
    return f"{'falls' if left < before else 'rises'} from {percent(before)} % to {percent(left)} %"


def break_even_in_words(estimate: GammaEstimate) -> str | None:
    """Say from which share of absent samples on gamma is expected to pay; None where that is not known."""
    share = estimate.min_absent_share
    if share is None:
        return None
    if share == 1:
        return "Pays at no share of absent samples"
    if percent(share) == percent(0.0):
        return "Pays at any share of absent samples"
    return f"Pays if more than {percent(share)} % of the samples are of absent classes"


def share_in_words(estimate: GammaEstimate) -> str | None:
    """Describe the share of seen samples that gamma is for, with its source; None without a share."""
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
    """Scan labelled samples; ValueError if one is of an absent class."""
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
    """Return the estimate from labelled seen samples, with its cost and its warnings."""
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


def with_cost(
    estimate: GammaEstimate, scan: Scan, source: str | None = None, gain: float | None = None
) -> GammaEstimate:
    """Return a copy of `estimate` with the accuracy on the scanned seen samples at gamma and at 0, and the break-even.

    `gain` is the expected one of absent samples; default: that of seen ones mirrored at gamma, but the break-even that
    `estimate_gamma` has found stays.
    """
    gamma, share = estimate.gamma, estimate.min_absent_share
    left, before = scan.acc_seen(gamma), scan.acc_seen(0.0)
    if gamma > 0 and (gain is not None or not estimate.weights):
        gained = max(0.0, left - scan.acc_seen(2 * gamma) if gain is None else gain)
        share = (before - left) / (before - left + gained) if left < before else float(not gained)
    return replace(
        estimate, acc_seen_at_gamma=left, acc_seen_at_zero=before, cost_source=source, min_absent_share=share
    )


def seen_warnings(scan: Scan, estimate: GammaEstimate) -> list[str]:
    """Return warnings about input, dtype and cost of an estimate that is `with_cost` on these samples."""
    before = estimate.acc_seen_at_zero or 0.0
    sentences = [*scan.doubts(), *rounding_warnings(scan.logits, estimate.gamma)]
    if before > 0 and estimate.acc_seen_at_gamma == 0:
        sentences.append(
            f"gamma = {estimate.gamma:.4g} costs the seen classes everything: none of the given samples stays correct "
            f"({percent(before)} % were); do not use it without checking"
        )
    return sentences


_CPU = torch.device("cpu")
GAMMA_HINT = "give a number, or what finecal estimate -o wrote"
_SIGN_AGAIN = f"estimate gamma again, or if you changed it on purpose, delete its entry {CHECKSUM!r}"
_NEEDED = ("gamma", "seen_classes", "num_classes", "class_names", CHECKSUM)
"""Entries without which a file means something else."""


@dataclass(frozen=True, eq=False)
class GammaFile:
    """Gamma, and where they are known the seen classes `(C,)` bool that it belongs to, and how it was estimated."""

    gamma: float
    seen_mask: Tensor | None = None
    estimate: GammaEstimate | None = None
    class_names: tuple[str, ...] | None = None


def gamma_record(
    estimate: GammaEstimate, seen_mask: Tensor, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what `read_gamma` reads: the estimate, without its warnings, and the classes it belongs to."""
    record = estimate.to_dict()
    del record["warnings"]
    record |= {"num_classes": seen_mask.shape[0], "seen_classes": seen_mask.nonzero().squeeze(1).tolist()}
    return record if class_names is None else {**record, "class_names": list(class_names)}


def read_gamma(gamma: str) -> GammaFile:
    """Read gamma from a number in words or from a JSON file, as `gamma_record` makes it.

    Raises
    ------
    OSError, ValueError
        As `finecal._core.logits_file.read_logits`.
    """
    try:
        number = float(gamma)
    except ValueError:
        return _read_record(Path(gamma))
    return GammaFile(float(check_gamma(number, _CPU)))


def _read_record(path: Path) -> GammaFile:
    check_source(path, or_pipe=True)
    try:
        record = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {GAMMA_HINT}") from error
    if not isinstance(record, dict) or "gamma" not in record:
        raise ValueError(f"{path} has no entry 'gamma'; {GAMMA_HINT}")
    try:
        check_checksum(record)
    except Unreadable as error:
        raise ValueError(f"{path} {error}; {_SIGN_AGAIN}") from error
    with error_context(path, ValueError):
        refuse_misnamed(record, _NEEDED)
        value = float(check_gamma(record["gamma"], _CPU))
        estimate = _estimate({**record, "gamma": value})
        if "seen_classes" not in record:
            return GammaFile(value, estimate=estimate)
        num_classes = check_num_classes(record.get("num_classes"))
        mask = torch.from_numpy(seen_mask_from_indices(record["seen_classes"], num_classes))
        return GammaFile(value, mask, estimate, _class_names(record.get("class_names"), num_classes))


def _class_names(names: Any, num_classes: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names are no list of {num_classes} texts, one for each class; {GAMMA_HINT}")
    return tuple(names)


def _estimate(record: Mapping[str, Any]) -> GammaEstimate | None:
    """Return the estimate as it was written; None if the file tells less, as one written by hand may."""
    record = with_new_names(record, GammaEstimate)
    entries = {field.name: record[field.name] for field in fields(GammaEstimate) if field.name in record}
    if isinstance(interval := entries.get("interval"), list) and None in interval:
        del entries["interval"]  # It had an infinite end, which JSON has not.
    try:
        return decoded_fields(entries, "the estimate", GammaEstimate)
    except ValueError:
        return None
