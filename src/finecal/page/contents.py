"""What a report is about."""

from dataclasses import dataclass
from functools import cached_property

from .._arrays import NumpyArray
from ..curve import TradeoffCurve
from ..gamma import GammaEstimate


@dataclass(frozen=True, eq=False)
class Page:
    """What the page shows: N samples on a curve, and the gamma at which it opens."""

    curve: TradeoffCurve[NumpyArray]
    gamma: float
    num_classes: int | None = None
    num_seen: int | None = None
    class_names: tuple[str, ...] | None = None
    title: str | None = None
    estimate: GammaEstimate | None = None
    gamma_was_given: bool = True
    winners: tuple[NumpyArray, NumpyArray] | None = None
    """The best seen and the best absent class of each sample, `(N,)` each; None without logits."""

    @cached_property
    def oracle(self) -> float | None:
        """The best gamma on these very labels; None if they are of one group."""
        return self.curve.best() if self.curve.n_seen and self.curve.n_absent else None

    def name(self, index: int) -> str:
        return str(index) if self.class_names is None else self.class_names[index]
