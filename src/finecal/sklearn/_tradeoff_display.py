"""The seen-absent curve of a classifier, as a display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, SupportsFloat

from numpy.typing import ArrayLike

from .._checks import without_warnings
from ..curve import tradeoff_curve
from ..plots import plot_tradeoff
from ._axes import pyplot_axes
from ._metrics import scores_and_labels
from ._scored import scores_before_gamma

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..curve import TradeoffCurve


class TradeoffDisplay:
    """The seen-absent curve: `Acc_{U/Y}` against `Acc_{S/Y}` over all gamma.

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    curve : TradeoffCurve
    gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
        Further points to mark, by the name that they get in the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn last.
    figure_ : matplotlib Figure
        The figure of `ax_`.

    See Also
    --------
    finecal.plots.plot_tradeoff : Draws it.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import TradeoffDisplay
    >>> scores = np.array([[4.0, 1.0, 3.0], [1.0, 4.0, 0.0], [2.0, 1.0, 0.0], [2.0, 5.0, 1.5]])
    >>> y = ["cat", "dog", "owl", "owl"]
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> display = TradeoffDisplay.from_predictions(y, scores, seen_classes=["cat", "dog"], ax=ax)
    >>> display.curve.ausuc
    0.5
    """

    def __init__(self, curve: TradeoffCurve[Any], *, gammas: Mapping[str, SupportsFloat] | None = None) -> None:
        self.curve = curve
        self.gammas = gammas

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_tradeoff`.

        Returns
        -------
        TradeoffDisplay
            Itself.
        """
        self.ax_ = plot_tradeoff(self.curve, ax or pyplot_axes(), gammas=self.gammas, **style)
        self.figure_ = self.ax_.figure
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        seen_classes: ArrayLike | None = None,
        average: str = "micro",
        gammas: Mapping[str, SupportsFloat] | None = None,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the curve of a fitted classifier.

        That of a `SeenAbsentCalibratedClassifier` is the curve of its scores *before* gamma was added; `gamma_` is
        marked as "calibrated".

        Parameters
        ----------
        estimator : fitted classifier
            With scores for every class, of seen and of absent ones. A `SeenAbsentCalibratedClassifier` is found at the
            end of a pipeline, in a fitted search and in a ``FrozenEstimator``, too.
        X : array-like, sparse matrix, data frame or list of N samples
        y : (N,) array-like
            Class labels, of seen and of absent classes.
        seen_classes : (|S|,) array-like of labels, optional
            By default those of the `SeenAbsentCalibratedClassifier`; needed for any other classifier.
        average : {"micro", "macro"}
            As in `finecal.tradeoff_curve`.
        gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
            Further points to mark.
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_tradeoff`.

        Returns
        -------
        TradeoffDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        AttributeError, TypeError, ValueError
            If `estimator` is not fitted or does not score its classes one by one; if `seen_classes` are needed, or not
            those of the `SeenAbsentCalibratedClassifier`; if `y` holds unknown classes, or of one group only.
        """
        scored = scores_before_gamma(estimator, X, y, seen_classes)
        calibrated = {} if scored.gamma is None else {"calibrated": scored.gamma}
        curve = _curve(*scored.samples, average)
        return cls(curve, gammas={**calibrated, **(gammas or {})}).plot(ax, **style)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        *,
        seen_classes: ArrayLike,
        labels: ArrayLike | None = None,
        average: str = "micro",
        gammas: Mapping[str, SupportsFloat] | None = None,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the curve of scores.

        Parameters
        ----------
        y_true : (N,) array-like
            Class labels, of seen and of absent classes.
        y_score : (N, C) array-like, or (N,) for two classes
            As in `finecal.sklearn.ausuc_score`.
        seen_classes : (|S|,) array-like of labels
            The others are absent.
        labels : (C,) array-like, optional
            The label of each column of `y_score`, as in `finecal.sklearn.ausuc_score`.
        average : {"micro", "macro"}
            As in `finecal.tradeoff_curve`.
        gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
            Further points to mark.
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_tradeoff`.

        Returns
        -------
        TradeoffDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError, ValueError
            As `finecal.sklearn.ausuc_score`; ValueError also if `y_true` holds one group only.
        """
        curve = _curve(*scores_and_labels(y_true, y_score, seen_classes, labels), average)
        return cls(curve, gammas=gammas).plot(ax, **style)


def _curve(scores: Any, indices: Any, seen_mask: Any, average: str) -> TradeoffCurve[Any]:
    # Labels are found by name, so that they cannot be re-indexed ones.
    with without_warnings():
        return tradeoff_curve(scores, indices, seen_mask, average)
