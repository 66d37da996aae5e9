"""Displays of scikit-learn: margins, trade-off curve and reliability."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, SupportsFloat

from numpy.typing import ArrayLike

from ..evaluation.curve import TradeoffCurve
from ..evaluation.margins import Margins
from ..evaluation.probabilities import ProbabilityReport, evaluate_probabilities
from ..evaluation.samples import Samples as LabelledSamples
from ..inputs.warning import without_warnings
from ..plots.arguments import check_gammas
from ..plots.margins import plot_margins
from ..plots.reliability import plot_reliability
from ..plots.tradeoff import plot_tradeoff
from ._metrics import scores_and_labels
from ._scored import Samples, scores_after_gamma, scores_before_gamma

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Display(ABC):
    """A picture of a result, which can be drawn again."""

    @abstractmethod
    def _draw(self, ax: Axes, **style: Any) -> Axes:
        """Draw it with `finecal.plots`."""

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw the picture.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            By default those of a new figure of pyplot.
        **style
            As in the function of `finecal.plots` that draws it.

        Returns
        -------
        Self
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        self.ax_ = self._draw(_pyplot_axes() if ax is None else ax, **style)
        self.figure_ = self.ax_.figure
        return self


class MarginDisplay(_Display):
    """Histograms of the margins of seen and of absent samples, with lines at 0 and at gamma.

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    margins : Margins
    gamma : float, 0-d tensor or GammaEstimate, optional

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn last.

    See Also
    --------
    finecal.plots.plot_margins : Draws it.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import MarginDisplay
    >>> scores = np.array(
    ...     [[4.0, 1.0, 3.0], [1.0, 4.0, 0.0], [2.0, 1.0, 0.0], [2.0, 5.0, 1.5]]
    ... )
    >>> y = ["cat", "dog", "owl", "owl"]
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> display = MarginDisplay.from_predictions(
    ...     y, scores, seen_classes=["cat", "dog"], ax=ax
    ... )
    >>> display.margins.margin
    array([1. , 4. , 2. , 3.5])
    """

    def __init__(self, margins: Margins[Any], *, gamma: SupportsFloat | None = None) -> None:
        self.margins = margins
        self.gamma = gamma

    def _draw(self, ax: Axes, **style: Any) -> Axes:
        return plot_margins(self.margins, ax, gamma=self.gamma, **style)

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
        y : (N,) array-like of labels
        seen_classes : (|S|,) array-like of labels, optional
            By default those of the `SeenAbsentCalibratedClassifier`; needed for any other classifier.
        gamma : float, 0-d tensor or GammaEstimate, optional
            Where the line is drawn; by default at `gamma_` of the `SeenAbsentCalibratedClassifier`.
        ax, **style
            As in `plot`.

        Returns
        -------
        MarginDisplay

        Raises
        ------
        ImportError, AttributeError, TypeError, ValueError
            As `TradeoffDisplay.from_estimator`; but `y` may hold one group only.
        """
        scored = scores_before_gamma(estimator, X, y, seen_classes)
        return cls(_margins(scored.samples), gamma=scored.gamma if gamma is None else gamma).plot(ax, **style)

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
        y_true : (N,) array-like of labels
        y_score : (N, C) array-like, or (N,) for two classes
            As in `finecal.sklearn.ausuc_score`.
        seen_classes : (|S|,) array-like of labels
            The others are absent.
        labels : (C,) array-like, optional
            The label of each column of `y_score`, as in `finecal.sklearn.ausuc_score`.
        gamma : float, 0-d tensor or GammaEstimate, optional
            Where a line is drawn besides that at 0.
        ax, **style
            As in `plot`.

        Returns
        -------
        MarginDisplay

        Raises
        ------
        ImportError, TypeError, ValueError
            As `plot` and `finecal.sklearn.ausuc_score`.
        """
        samples = scores_and_labels(y_true, y_score, seen_classes, labels)
        return cls(_margins(samples), gamma=gamma).plot(ax, **style)


class GroupReliabilityDisplay(_Display):
    """Reliability diagram with a line for the seen, for the absent and for all samples.

    Make it with `from_estimator` or `from_predictions`. Unlike ``sklearn.calibration.CalibrationDisplay``, it is for
    several classes: the confidence is the probability of the predicted one.

    Parameters
    ----------
    report : ProbabilityReport

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn last.

    See Also
    --------
    finecal.plots.plot_reliability : Draws it.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import GroupReliabilityDisplay
    >>> probabilities, y = (
    ...     [[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3]],
    ...     ["cat", "dog", "owl"],
    ... )
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> display = GroupReliabilityDisplay.from_predictions(
    ...     y, probabilities, seen_classes=["cat", "dog"], ax=ax
    ... )
    >>> round(display.report.absent.ece, 3)
    0.5
    """

    def __init__(self, report: ProbabilityReport[Any]) -> None:
        self.report = report

    def _draw(self, ax: Axes, **style: Any) -> Axes:
        return plot_reliability(self.report, ax, **style)

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
        y : (N,) array-like of labels
        seen_classes : (|S|,) array-like of labels, optional
            By default those of the `SeenAbsentCalibratedClassifier`; needed for any other classifier.
        n_bins : int, default 15
            Of equal width, from 0 to 1.
        ax, **style
            As in `plot`.

        Returns
        -------
        GroupReliabilityDisplay

        Raises
        ------
        ImportError, AttributeError, TypeError, ValueError
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
        y_true : (N,) array-like of labels
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
        ax, **style
            As in `plot`.

        Returns
        -------
        GroupReliabilityDisplay

        Raises
        ------
        ImportError, TypeError, ValueError
            As `plot`, `finecal.sklearn.ausuc_score` and `finecal.evaluate_probabilities`.
        """
        samples = scores_and_labels(y_true, y_score, seen_classes, labels)
        return cls(evaluate_probabilities(*samples, gamma, n_bins)).plot(ax, **style)


class TradeoffDisplay(_Display):
    """The seen-absent curve: `Acc_{U/Y}` against `Acc_{S/Y}` over all gamma.

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    curve : TradeoffCurve
    gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
        Further points to mark, by the name that they get in the legend.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn last.

    See Also
    --------
    finecal.plots.plot_tradeoff : Draws it.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import TradeoffDisplay
    >>> scores = np.array(
    ...     [[4.0, 1.0, 3.0], [1.0, 4.0, 0.0], [2.0, 1.0, 0.0], [2.0, 5.0, 1.5]]
    ... )
    >>> y = ["cat", "dog", "owl", "owl"]
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> display = TradeoffDisplay.from_predictions(
    ...     y, scores, seen_classes=["cat", "dog"], ax=ax
    ... )
    >>> display.curve.ausuc
    0.5
    """

    def __init__(self, curve: TradeoffCurve[Any], *, gammas: Mapping[str, SupportsFloat] | None = None) -> None:
        self.curve = curve
        self.gammas = gammas

    def _draw(self, ax: Axes, **style: Any) -> Axes:
        return plot_tradeoff(self.curve, ax, gammas=self.gammas, **style)

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
        y : (N,) array-like of labels, of seen and of absent classes
        seen_classes : (|S|,) array-like of labels, optional
            By default those of the `SeenAbsentCalibratedClassifier`; needed for any other classifier.
        average : {"micro", "macro"}
            As in `finecal.tradeoff_curve`.
        gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
            Further points to mark.
        ax, **style
            As in `plot`.

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
        curve = _margins(scored.samples).curve(average)
        return cls(curve, gammas={**calibrated, **check_gammas(gammas)}).plot(ax, **style)

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
        y_true : (N,) array-like of labels, of seen and of absent classes
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
        ax, **style
            As in `plot`.

        Returns
        -------
        TradeoffDisplay

        Raises
        ------
        ImportError, TypeError, ValueError
            As `plot` and `finecal.sklearn.ausuc_score`; ValueError also if `y_true` holds one group only.
        """
        samples = scores_and_labels(y_true, y_score, seen_classes, labels)
        return cls(_margins(samples).curve(average), gammas=gammas).plot(ax, **style)


def _margins(samples: Samples) -> Margins[Any]:
    # Labels are found by name, so that they cannot be re-indexed ones.
    with without_warnings():
        return LabelledSamples(*samples[:2]).margins(samples[2])


def _pyplot_axes() -> Axes:
    """Return the axes of a new figure that pyplot knows, as scikit-learn's displays do."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("finecal.sklearn draws with matplotlib: pip install 'finecal[plots]'") from error
    return pyplot.subplots(layout="constrained")[1]
