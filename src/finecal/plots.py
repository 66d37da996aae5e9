"""Pictures of the seen-absent curve and of the margins. They need the extra ``plots`` (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any, SupportsFloat

from ._arrays import NumpyArray, as_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .curve import TradeoffCurve
    from .margin import Margins

__all__ = ["plot_margins", "plot_tradeoff"]

# Colours of Okabe and Ito, told apart by the colour-blind as well.
BLACK, BLUE, ORANGE, VERMILION, GREEN, PURPLE = "#000000", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7"
HEIGHT = 0.75
"""Of the bars and lines in the picture of the margins, in parts of its axes: the legend is above them."""


def plot_tradeoff(
    curve: TradeoffCurve[Any],
    ax: Axes | None = None,
    *,
    gammas: Mapping[str, SupportsFloat] | None = None,
    **style: Any,
) -> Axes:
    """Draw `Acc_{U/Y}` against `Acc_{S/Y}` over all gamma, marking gamma = 0 and the best point.

    The best point is the one with the highest `Acc_{Y/Y}` on the labels of the curve, and says so: oracle.

    Parameters
    ----------
    curve : TradeoffCurve
        Of samples of seen and of absent classes.
    ax : matplotlib Axes, optional
        Where to draw; by default on a new figure, which pyplot does not know: save it with ``ax.figure.savefig``.
    gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
        Further points to mark, by the name that they get in the legend.
    **style
        For the line of the curve, as in `Axes.plot`.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the samples of the curve are of one group only.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_tradeoff
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> samples = finecal.margins(logits, labels=[0, 2, 0], seen_mask=[True, True, False])
    >>> ax = plot_tradeoff(samples.curve(), gammas={"mine": 0.75})
    >>> ax.figure.savefig("tradeoff.png")  # doctest: +SKIP
    """
    best, marked = curve.best(), gammas or {}
    ax = ax or _new_axes()
    ax.plot(_numpy(curve.acc_seen), _numpy(curve.acc_absent), **{"color": BLUE, "linewidth": 2, "zorder": 1, **style})
    _mark(ax, curve, "best (oracle)", best, marker="*", s=260, color=ORANGE)
    _mark(ax, curve, "no calibration", 0.0, marker="o", color=BLACK)
    for (name, gamma), marker, colour in zip(
        marked.items(), cycle("sDv^P"), cycle((VERMILION, GREEN, PURPLE)), strict=False
    ):
        _mark(ax, curve, name, float(gamma), marker=marker, color=colour)
    ax.set(
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        xlabel=r"$Acc_{S/Y}$, seen classes",
        ylabel=r"$Acc_{U/Y}$, absent classes",
        title=f"Seen-absent curve, AUSUC {curve.ausuc:.3f}",
    )
    ax.grid(alpha=0.25)
    ax.legend(loc="best", frameon=False)
    return ax


def plot_margins(
    margins: Margins[Any], ax: Axes | None = None, *, gamma: SupportsFloat | None = None, **style: Any
) -> Axes:
    """Draw histograms of the margins of seen and of absent samples, with lines at 0 and at gamma.

    A sample is predicted absent if its margin lies left of the line: of the line at 0 before, at gamma after.

    Parameters
    ----------
    margins : Margins
        Infinite margins are left out.
    ax : matplotlib Axes, optional
        As in `plot_tradeoff`.
    gamma : float, 0-d tensor or GammaEstimate, optional
        By default there is no line but the one at 0.
    **style
        For both histograms, as in `Axes.hist`: ``bins``, ``density``, ...

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> from finecal.plots import plot_margins
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> samples = finecal.margins(logits, labels=[0, 2, 0], seen_mask=[True, True, False])
    >>> ax = plot_margins(samples, gamma=0.75)
    >>> ax.figure.savefig("margins.png")  # doctest: +SKIP
    """
    ax = ax or _new_axes()
    margin, is_seen = _numpy(margins.margin), _numpy(margins.is_seen)
    finite = abs(margin) < float("inf")
    groups = margin[finite & is_seen], margin[finite & ~is_seen]
    ax.hist(
        groups,
        **{
            "bins": 40,
            "histtype": "stepfilled",
            "alpha": 0.6,
            "color": (BLUE, ORANGE),
            "label": [f"seen ({len(groups[0])})", f"absent ({len(groups[1])})"],
            **style,
        },
    )
    ax.axvline(0, ymax=HEIGHT, color=BLACK, linestyle="--", label="0")
    if gamma is not None:
        ax.axvline(float(gamma), ymax=HEIGHT, color=VERMILION, linewidth=2, label=rf"$\gamma$ = {float(gamma):.2f}")
    ax.set(
        xlabel="margin: largest seen $-$ largest absent logit",
        ylabel="samples",
        title="Left of the line: predicted absent",
    )
    ax.set_ylim(top=ax.get_ylim()[1] / HEIGHT)
    ax.legend(loc="upper center", ncols=2, frameon=False)
    return ax


def _new_axes() -> Axes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("finecal.plots draws with matplotlib: pip install 'finecal[plots]'") from error
    return Figure(figsize=(4.5, 3.6), dpi=160, layout="constrained").subplots()


def _mark(ax: Axes, curve: TradeoffCurve[Any], name: str, gamma: float, **style: Any) -> None:
    point = curve.at(gamma)
    label = rf"{name}, $\gamma$ = {gamma:.2f}"
    # The star of the best point is larger and comes first: where another lies on it, both are visible.
    ax.scatter(
        point.acc_seen,
        point.acc_absent,
        **{"s": 45, "edgecolors": "white", "linewidths": 0.8, "zorder": 3, "label": label, **style},
    )


def _numpy(values: Any) -> NumpyArray:
    array: NumpyArray = as_tensor(values, "values").detach().cpu().numpy()
    return array
