"""The public functions on labelled logits: margins, the curve, and the accuracies at one gamma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, SupportsFloat, overload

from numpy.typing import NDArray
from torch import Tensor

from ..inputs.arrays import Labels, Logits, Mask, NumpyArray
from ..inputs.checks import warn_if_reindexed
from ..inputs.numbers import check_choice
from .accuracies import AVERAGES
from .curve import TradeoffCurve, curve_of, curve_with
from .doubts import warn_of_input
from .margins import Margins, margins_like
from .report import SeenAbsentReport
from .scan import checked, margins_of


@overload
def margins(logits: Tensor, labels: Labels, seen_mask: Mask) -> Margins[Tensor]: ...
@overload
def margins(logits: NumpyArray | Sequence[Any], labels: Labels, seen_mask: Mask) -> Margins[NDArray[Any]]: ...
def margins(logits: Logits, labels: Labels, seen_mask: Mask) -> Margins[Any]:
    r"""Reduce logits to one margin, two flags and the label per sample.

    .. math:: \text{margin} = \max_{c \in S} z_c - \max_{c \in U} z_c

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes; -inf masks a class.
    labels : (N,) int
        Class indices in ``[0, C)``, on the device of the logits.
    seen_mask : (C,) bool
        True for the seen classes.

    Returns
    -------
    Margins
        Of the type and device of `logits`. No samples give empty fields.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `labels` not integer, or `seen_mask` not boolean.
    ValueError
        If shapes or devices do not match, labels are out of range, logits hold NaN, +inf or probabilities, or
        `seen_mask` has no seen or no absent class.

    Warns
    -----
    FinecalWarning
        If labels look re-indexed to 0..|S|-1; if samples are told apart within their own group hardly better than by
        guessing, or better once each label is replaced by its neighbour: the labels seem to be of other samples or
        columns than these; if classes seem to be masked by a large negative number in place of -inf.

    Notes
    -----
    One pass over the logits in cache-sized tiles, `O(NC)`; memory beyond the result does not grow with N.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> m = finecal.margins(logits, labels=[0, 2], seen_mask=[True, True, False])
    >>> m.margin, m.is_seen, m.hit
    (array([1. , 2.5]), array([ True, False]), array([ True,  True]))
    """
    return margins_like(_margins(logits, labels, seen_mask), logits)


def _margins(logits: Logits, labels: Labels, seen_mask: Mask) -> Margins[Tensor]:
    """Check labelled logits, warn of what looks wrong about them, and return their margins."""
    x, mask = checked(logits, seen_mask)
    samples, label, hits = margins_of(x, labels, mask)
    warn_if_reindexed(label, mask)
    warn_of_input(x, label, mask, hits)
    return samples


@overload
def tradeoff_curve(
    logits: Tensor, labels: Labels, seen_mask: Mask, average: str = "micro"
) -> TradeoffCurve[Tensor]: ...
@overload
def tradeoff_curve(
    logits: NumpyArray | Sequence[Any], labels: Labels, seen_mask: Mask, average: str = "micro"
) -> TradeoffCurve[NumpyArray]: ...
def tradeoff_curve(logits: Logits, labels: Labels, seen_mask: Mask, average: str = "micro") -> TradeoffCurve[Any]:
    r"""Return the exact accuracies on seen and absent classes at every gamma.

    .. math::
        \text{Acc}_{S/Y}(\gamma) &= \langle\, \text{hit} \wedge \text{margin} \ge \gamma \,\rangle_S \\
        \text{Acc}_{U/Y}(\gamma) &= \langle\, \text{hit} \wedge \text{margin} < \gamma \,\rangle_U

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes.
    labels : (N,) int
        Class indices in ``[0, C)``; samples of one group only leave the other's accuracies NaN.
    seen_mask : (C,) bool
        True for the seen classes.
    average : {"micro", "macro"}
        "macro" weighs each sample by 1 / (samples of its class x occurring classes of its group).

    Returns
    -------
    TradeoffCurve
        Of the type and device of `logits`.

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError if `average` is neither of the two.

    Warns
    -----
    FinecalWarning
        As `margins`.

    Notes
    -----
    `O(NC + N log N)`. Equal margins flip together; samples whose margin is infinite never flip. AUSUC: Chao et al., "An
    Empirical Study and Analysis of Generalized Zero-Shot Learning", ECCV 2016.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> curve = finecal.tradeoff_curve(logits, labels=[0, 2], seen_mask=[True, True, False])
    >>> curve.gamma, curve.acc_seen, curve.acc_absent
    (array([0.  , 1.75, 3.5 ]), array([1., 0., 0.]), array([0., 0., 1.]))
    """
    check_choice(average, AVERAGES, "average")
    curve = curve_of(_margins(logits, labels, seen_mask), average)
    return curve_with(curve, margins_like(curve.samples, logits))


def evaluate(
    logits: Logits, labels: Labels, seen_mask: Mask, gamma: SupportsFloat | None = 0.0, average: str = "micro"
) -> SeenAbsentReport:
    r"""Return the accuracies on seen, absent and all classes at `gamma`.

    .. math:: \text{Acc}_{S/Y} = \langle\, \hat y(\gamma) = y \,\rangle_{y \in S}, \qquad
              \text{Acc}_{S/S} = \left\langle\, \arg\max_{c \in S} z_c = y \,\right\rangle_{y \in S}

    and likewise on U; :math:`\hat y` is `predict`.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes, *not* yet calibrated.
    labels : (N,) int
        Class indices in ``[0, C)``.
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor, GammaEstimate or None, default 0
        A sample is predicted absent iff its margin is below it. None is 0: no gamma.
    average : {"micro", "macro"}
        Every sample counts the same, or every class that occurs.

    Returns
    -------
    SeenAbsentReport

    Raises
    ------
    TypeError, ValueError
        As `tradeoff_curve`; ValueError if `gamma` is not finite.

    Warns
    -----
    FinecalWarning
        As `margins`.

    Notes
    -----
    `O(NC + N log N)`. Mai et al., NeurIPS 2024, section 3, for the five accuracies; Chao et al., ECCV 2016, for AUSUC.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    >>> print(
    ...     finecal.evaluate(
    ...         logits, labels=[0, 2], seen_mask=[True, True, False], gamma=0.5
    ...     )
    ... )
    gamma = 0.5
    | accuracy, %         |  seen | absent |  all |
    | ------------------- | ----: | -----: | ---: |
    | every class allowed | 100.0 |    0.0 | 50.0 |
    | own group allowed   | 100.0 |  100.0 |      |
    | samples             |     1 |      1 |    2 |
    harmonic mean 0.0 %, balanced 50.0 %, AUSUC 0.0000
    """
    check_choice(average, AVERAGES, "average")
    curve = curve_of(_margins(logits, labels, seen_mask), average)
    report = curve.at(0.0 if gamma is None else gamma)
    return replace(report, _samples=margins_like(curve.samples, logits))
