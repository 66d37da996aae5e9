"""The margins of a classifier, as a display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, SupportsFloat

from numpy.typing import ArrayLike

from .._checks import without_warnings
from ..margin import margins
from ..plots import plot_margins
from ._axes import pyplot_axes
from ._metrics import scores_and_labels
from ._scored import scores_before_gamma

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..margin import Margins


class MarginDisplay:
    """Histograms of the margins of seen and of absent samples, with lines at 0 and at gamma.

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    margins : Margins
    gamma : float, 0-d tensor or GammaEstimate, optional

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn last.
    figure_ : matplotlib Figure
        The figure of `ax_`.

    See Also
    --------
    finecal.plots.plot_margins : Draws it.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import MarginDisplay
    >>> scores = np.array([[4.0, 1.0, 3.0], [1.0, 4.0, 0.0], [2.0, 1.0, 0.0], [2.0, 5.0, 1.5]])
    >>> y = ["cat", "dog", "owl", "owl"]
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> display = MarginDisplay.from_predictions(y, scores, seen_classes=["cat", "dog"], ax=ax)
    >>> display.margins.margin
    array([1. , 4. , 2. , 3.5])
    """

    def __init__(self, margins: Margins[Any], *, gamma: SupportsFloat | None = None) -> None:
        self.margins = margins
        self.gamma = gamma

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw the histograms.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_margins`.

        Returns
        -------
        MarginDisplay
            Itself.
        """
        self.ax_ = plot_margins(self.margins, ax or pyplot_axes(), gamma=self.gamma, **style)
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
        gamma: SupportsFloat | None = None,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the margins of a fitted classifier, before gamma was added.

        Parameters
        ----------
        estimator : fitted classifier
            As in `TradeoffDisplay.from_estimator`.
        X : array-like, sparse matrix, data frame or list of N samples
        y : (N,) array-like
            Class labels.
        seen_classes : (|S|,) array-like of labels, optional
            By default those of the `SeenAbsentCalibratedClassifier`; needed for any other classifier.
        gamma : float, 0-d tensor or GammaEstimate, optional
            Where the line is drawn; by default at `gamma_` of the `SeenAbsentCalibratedClassifier`.
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_margins`.

        Returns
        -------
        MarginDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        AttributeError, TypeError, ValueError
            As `TradeoffDisplay.from_estimator`; but `y` may hold one group only.
        """
        scored = scores_before_gamma(estimator, X, y, seen_classes)
        with without_warnings():
            samples = margins(*scored.samples)
        return cls(samples, gamma=scored.gamma if gamma is None else gamma).plot(ax, **style)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        *,
        seen_classes: ArrayLike,
        labels: ArrayLike | None = None,
        gamma: SupportsFloat | None = None,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the margins of scores.

        Parameters
        ----------
        y_true : (N,) array-like
            Class labels.
        y_score : (N, C) array-like, or (N,) for two classes
            As in `finecal.sklearn.ausuc_score`.
        seen_classes : (|S|,) array-like of labels
            The others are absent.
        labels : (C,) array-like, optional
            The label of each column of `y_score`, as in `finecal.sklearn.ausuc_score`.
        gamma : float, 0-d tensor or GammaEstimate, optional
            Where a line is drawn besides that at 0.
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_margins`.

        Returns
        -------
        MarginDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError, ValueError
            As `finecal.sklearn.ausuc_score`.
        """
        with without_warnings():
            samples = margins(*scores_and_labels(y_true, y_score, seen_classes, labels))
        return cls(samples, gamma=gamma).plot(ax, **style)
