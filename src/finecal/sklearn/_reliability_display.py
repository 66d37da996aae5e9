"""How far a classifier's probabilities can be believed, as a display."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, SupportsFloat

from numpy.typing import ArrayLike

from ..plots import plot_reliability
from ..probability import evaluate_probabilities
from ._axes import pyplot_axes
from ._metrics import scores_and_labels
from ._scored import scores_after_gamma

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..probability import ProbabilityReport


class GroupReliabilityDisplay:
    """Reliability diagram with a line for the seen, for the absent and for all samples.

    Make it with `from_estimator` or `from_predictions`. Unlike ``sklearn.calibration.CalibrationDisplay``, it is for
    several classes: the confidence is the probability of the predicted one.

    Parameters
    ----------
    report : ProbabilityReport

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn last.
    figure_ : matplotlib Figure
        The figure of `ax_`.

    See Also
    --------
    finecal.plots.plot_reliability : Draws it.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import GroupReliabilityDisplay
    >>> probabilities, y = [[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3]], ["cat", "dog", "owl"]
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> display = GroupReliabilityDisplay.from_predictions(y, probabilities, seen_classes=["cat", "dog"], ax=ax)
    >>> round(display.report.absent.ece, 3)
    0.5
    """

    def __init__(self, report: ProbabilityReport[Any]) -> None:
        self.report = report

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw the diagram.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_reliability`.

        Returns
        -------
        GroupReliabilityDisplay
            Itself.
        """
        self.ax_ = plot_reliability(self.report, ax or pyplot_axes(), **style)
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
        n_bins: int = 15,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the reliability of a fitted classifier's probabilities: the calibrated ones, with gamma and temperature.

        Parameters
        ----------
        estimator : fitted classifier
            With ``predict_log_proba`` or ``predict_proba``, over seen and absent classes.
        X : array-like, sparse matrix, data frame or list of N samples
        y : (N,) array-like
            Class labels.
        seen_classes : (|S|,) array-like of labels, optional
            By default those of the `SeenAbsentCalibratedClassifier`; needed for any other classifier.
        n_bins : int, default 15
            Of equal width, from 0 to 1.
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_reliability`.

        Returns
        -------
        GroupReliabilityDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        AttributeError, TypeError, ValueError
            As `TradeoffDisplay.from_estimator`; but `y` may hold one group only.
        """
        scored = scores_after_gamma(estimator, X, y, seen_classes)
        report = evaluate_probabilities(*scored.samples, n_bins=n_bins)
        # Gamma is in the probabilities already: only the title is to tell.
        return cls(report if scored.gamma is None else replace(report, gamma=scored.gamma)).plot(ax, **style)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        *,
        seen_classes: ArrayLike,
        labels: ArrayLike | None = None,
        gamma: SupportsFloat = 0.0,
        n_bins: int = 15,
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Draw the reliability of probabilities, or of the softmax of scores.

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
        gamma : float, 0-d tensor or GammaEstimate, default 0
            Added to the scores, or the logarithms of the probabilities, of absent classes beforehand.
        n_bins : int, default 15
            Of equal width, from 0 to 1.
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in `finecal.plots.plot_reliability`.

        Returns
        -------
        GroupReliabilityDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError, ValueError
            As `finecal.sklearn.ausuc_score` and `finecal.evaluate_probabilities`.
        """
        samples = scores_and_labels(y_true, y_score, seen_classes, labels)
        return cls(evaluate_probabilities(*samples, gamma, n_bins)).plot(ax, **style)
