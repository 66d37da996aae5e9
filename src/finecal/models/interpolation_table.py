"""The result of `search_interpolation`, and its table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..gamma.estimate import GammaEstimate
from ..results.display import Block, Caution, Table
from ..results.format import percent
from ..results.records import data_frame
from ..results.result import Result

if TYPE_CHECKING:
    from pandas import DataFrame

_LEGEND = (
    "S/S: Acc_S/S in %, which no gamma changes. Cost: points of Acc_S/Y lost against gamma = 0, on the same samples."
)


@dataclass(frozen=True)
class InterpolationStep:
    """One row of an `InterpolationSearch`.

    Attributes
    ----------
    alpha : float
        Share of the fine-tuned weights.
    acc_seen_within : float
        `Acc_{S/S}` on the held-out samples, which no gamma changes, as a fraction.
    gamma : GammaEstimate
        By `estimate_gamma` from the held-out samples, for the model at this alpha.
    """

    alpha: float
    acc_seen_within: float
    gamma: GammaEstimate


@dataclass(frozen=True)
class InterpolationSearch(Result):
    """Weights between before and after fine-tuning, side by side; made by `search_interpolation`. Prints as a table.

    Attributes
    ----------
    alpha : float
        The choice.
    gamma : GammaEstimate
        For the model at this alpha.
    steps : tuple of InterpolationStep
        All that were tried, by alpha.
    max_seen_drop : float
        How much `Acc_{S/S}` may lose against the largest alpha, as a fraction.
    n : int
        Held-out samples.
    warnings : tuple of str
        About alpha; ``gamma.warnings`` are about gamma. Each was also issued as a `FinecalWarning`.

    Examples
    --------
    See `search_interpolation`.
    """

    alpha: float
    gamma: GammaEstimate
    steps: tuple[InterpolationStep, ...]
    max_seen_drop: float
    n: int
    warnings: tuple[str, ...] = ()

    _width = 110

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per alpha: `Acc_{S/S}`, gamma, and the part of `Acc_{S/Y}` that it costs."""
        return data_frame(
            [
                {
                    "alpha": step.alpha,
                    "acc_seen_within": step.acc_seen_within,
                    "gamma": step.gamma.gamma,
                    "cost": _cost(step),
                    "chosen": step.alpha == self.alpha,
                }
                for step in self.steps
            ]
        )

    def _blocks(self) -> Iterator[Block]:
        """The choice, the table, and the warnings."""
        yield [f"alpha = {self.alpha:g}, gamma = {self.gamma.gamma:.6g}", _reason(self)]
        yield [_table(self)]
        yield [_LEGEND]
        sentences = [*self.warnings, *self.gamma.warnings]
        if sentences:
            yield [Caution(f"warning: {sentence}") for sentence in sentences]


def _reason(found: InterpolationSearch) -> str:
    """Give the reason for the chosen alpha."""
    last = found.steps[-1]
    if last.gamma.gamma <= 0:
        return f"No gap is found at alpha = {last.alpha:g}, so nothing is taken back."
    lower = f"at most {percent(found.max_seen_drop)} points" if found.max_seen_drop else "no"
    return (
        f"The smallest alpha that shows the gap and whose Acc_S/S on {found.n} held-out samples is {lower} lower than "
        f"at alpha = {last.alpha:g}, {percent(last.acc_seen_within)} %."
    )


def _table(found: InterpolationSearch) -> Table:
    rows = [
        [
            f"{step.alpha:g}",
            percent(step.acc_seen_within),
            f"{step.gamma.gamma:.4g}",
            percent(_cost(step)),
            "yes" if step.alpha == found.alpha else "",
        ]
        for step in found.steps
    ]
    return Table(["alpha", "S/S", "gamma", "cost", "chosen"], rows)


def _cost(step: InterpolationStep) -> float:
    """Loss of `Acc_{S/Y}` by gamma, on the held-out samples that gamma was estimated from."""
    before, after = step.gamma.acc_seen_before, step.gamma.expected_acc_seen
    return math.nan if before is None or after is None else before - after
