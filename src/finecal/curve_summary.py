"""A curve in a few lines: where the model is without calibration, and the best that gamma can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._display import Block, Picture, Table, drawn

if TYPE_CHECKING:
    from .curve import TradeoffCurve

_BEST = {"overall": "best Acc_Y/Y", "balanced": "best balanced", "harmonic": "best harmonic mean"}


def blocks(curve: TradeoffCurve[Any]) -> Iterator[Block]:
    """What the curve is of, and its operating points that matter; never all of them."""
    gammas = {"no calibration": 0.0}
    if curve.n_seen and curve.n_absent:
        gammas |= {f"{name} (oracle)": curve.best(objective) for objective, name in _BEST.items()}
    yield [
        f"{curve.n_seen} seen and {curve.n_absent} absent samples ({curve.average}), {len(curve.gamma)} operating "
        f"points, AUSUC {curve.ausuc:.4f}"
    ]
    yield [
        Table(
            ["accuracy, %", "gamma", "seen", "absent", "all", "balanced", "harmonic"],
            [[name, f"{gamma:.4g}", *_accuracies(curve, gamma)] for name, gamma in gammas.items()],
        )
    ]


def picture(curve: TradeoffCurve[Any]) -> Picture | None:
    """Return the curve itself, where it is one and there is matplotlib to draw it with."""
    if not (curve.n_seen and curve.n_absent):
        return None
    return drawn(curve.plot, "Acc_U/Y against Acc_S/Y over all gamma; the marks are rows of the table")


def _accuracies(curve: TradeoffCurve[Any], gamma: float) -> list[str]:
    at = curve.at(gamma)
    return [f"{100 * value:.1f}" for value in (at.acc_seen, at.acc_absent, at.acc_all, at.balanced, at.harmonic_mean)]
