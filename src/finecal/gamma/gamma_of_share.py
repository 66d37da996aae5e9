"""A gap that labelled seen samples show, and the gamma that it means for a share of seen samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..evaluation.samples import Scan
from ..inputs.numbers import check_share
from .estimate import EQUALLY_FREQUENT, GIVEN, GammaEstimate, finish_from_seen


class GapEstimate(NamedTuple):
    """What one estimator found."""

    gap: float
    """The gamma for as many seen as absent samples."""
    temperature: float
    """Logits per unit of log-odds, by which the share of seen samples moves gamma."""
    replicates: list[float]
    """The gap of each resampling, NaN where it has none."""
    n: int
    function: str
    """The name of the estimator."""
    sentences: Sequence[str] = ()
    """What there is to warn of."""
    unit: float = 1.0
    """Logits per unit of log-odds as fitted: a temperature that had to be raised is larger."""
    spread: float = math.nan
    """Standard deviation of the gaps that this one is the mean of."""

    def gamma(self, share: float) -> float:
        """Return the gamma for a share of seen samples, by Bayes' rule: the log of the prior odds is added."""
        return self.gap + self.share_term(share)

    def gammas(self, share: float) -> list[float]:
        """Return the gamma of each resampling."""
        return [replicate + self.share_term(share) for replicate in self.replicates]

    def share_term(self, share: float) -> float:
        return self.temperature * math.log((1 - share) / share)

    def method(self, share: float) -> str:
        """Return the function with the share."""
        return f"{self.function}(seen_share={share:.4g})"


def equal_share(scan: Scan) -> float:
    """Return the share of seen samples where every class is equally frequent that is not masked in all rows."""
    logits, mask = scan.logits, scan.mask
    if bool((logits[0] == -math.inf).any()):
        mask = mask[logits.amax(0) > -math.inf]
    return int(mask.sum()) / len(mask)


def share_or_default(scan: Scan, seen_share: float | None) -> float:
    """Return the given share, checked; by default the one of equally frequent classes."""
    return equal_share(scan) if seen_share is None else check_share(seen_share, "seen_share")


def share_source(seen_share: float | None) -> str:
    """Return where `share_or_default` has its share from."""
    return EQUALLY_FREQUENT if seen_share is None else GIVEN


def finish_gap(scan: Scan, found: GapEstimate, seen_share: float | None) -> GammaEstimate:
    """Make the estimate of gamma for a share of seen samples."""
    share = share_or_default(scan, seen_share)
    estimate = finish_from_seen(
        scan,
        found.gamma(share),
        found.method(share),
        found.gammas(share),
        found.sentences,
        n=found.n,
        gap=found.gamma(equal_share(scan)),
    )
    return replace(estimate, seen_share=share, seen_share_source=share_source(seen_share))
