"""The public functions on labelled logits: the curve, and the accuracies at one gamma."""

from __future__ import annotations

from typing import Any, SupportsFloat

from .arrays import Labels, Logits, Mask, check_choice
from .curve import TradeoffCurve
from .report import AVERAGES, SeenAbsentReport
from .samples import samples_of, takes_samples


@takes_samples
def tradeoff_curve(logits: Logits, labels: Labels, seen_mask: Mask, average: str = "micro") -> TradeoffCurve[Any]:
    r"""Return the exact accuracies on seen and absent classes at every gamma.

    .. math::
        \text{Acc}_{S/Y}(\gamma) &= \langle\, \text{hit} \wedge \text{margin} \ge \gamma \,\rangle_S \\
        \text{Acc}_{U/Y}(\gamma) &= \langle\, \text{hit} \wedge \text{margin} < \gamma \,\rangle_U

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
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
        As `Samples.margins`; ValueError if `average` is neither of the two.

    Warns
    -----
    FinecalWarning
        As `Samples.margins`.

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
    return samples_of(logits, labels).margins(seen_mask).curve(average)


@takes_samples
def evaluate(
    logits: Logits, labels: Labels, seen_mask: Mask, gamma: SupportsFloat | None = 0.0, average: str = "micro"
) -> SeenAbsentReport:
    r"""Return the accuracies on seen, absent and all classes at `gamma`.

    .. math:: \text{Acc}_{S/Y} = \langle\, \hat y(\gamma) = y \,\rangle_{y \in S}, \qquad
              \text{Acc}_{S/S} = \left\langle\, \arg\max_{c \in S} z_c = y \,\right\rangle_{y \in S}

    and likewise on U; :math:`\hat y` is `predict`.

    Parameters
    ----------
    logits, labels, seen_mask
        As in `tradeoff_curve`; the logits are *not* yet calibrated.
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
        As `Samples.margins`.

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
    margins = samples_of(logits, labels).margin_tensors(seen_mask)
    return margins.curve(average).at(0.0 if gamma is None else gamma)
