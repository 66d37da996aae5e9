"""Displays of scikit-learn: trade-off curve, margins and reliability."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, SupportsFloat

from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from .._core.curve import TradeoffCurve
from .._core.report import Margins
from .._core.samples import Samples as LabelledSamples
from .._core.warning import without_warnings
from ..plots._axes import check_gammas
from ..plots._curves import plot_tradeoff
from ..plots._estimators import plot_reliability
from ..plots._margins import plot_margins
from ..probabilities import ProbabilityReport, evaluate_probabilities
from ._classifier import SeenAbsentCalibratedClassifier
from ._gamma import add_gamma, add_prototypes, class_scores, features_of, unwrap
from ._metrics import Labelled, mask_of, scores_and_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


class _Display(ABC):
    """A result and its picture."""

    @abstractmethod
    def _draw(self, ax: Axes, **style: Any) -> Axes:
        """Draw the result with `finecal.plots`."""

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw the picture on `ax`, by default on a new figure of pyplot, and return the display.

        `style` is that of the function of `finecal.plots`. Sets `ax_` and `figure_`. ImportError without matplotlib.
        """
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise ImportError("finecal.sklearn draws with matplotlib: pip install 'finecal[plots]'") from error
            ax = pyplot.subplots(layout="constrained")[1]
        self.ax_: Axes = self._draw(ax, **style)
        self.figure_: Figure | SubFigure = self.ax_.figure
        return self


class TradeoffDisplay(_Display):
    """The seen-absent curve, `Acc_{U/Y}` against `Acc_{S/Y}` over all gamma, drawn by `finecal.plots.plot_tradeoff`.

    Parameters
    ----------
    curve : TradeoffCurve
    gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
        Further points to mark, by their name in the legend.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import TradeoffDisplay
    >>> y, scores = ["cat", "owl"], [[4.0, 1.0, 3.0], [2.0, 5.0, 1.5]]
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> draw = TradeoffDisplay.from_predictions
    >>> draw(y, scores, seen_classes=["cat", "dog"], ax=ax).curve.ausuc
    0.0
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
        """Draw the curve of a fitted classifier, *before* gamma was added; its `gamma_` is marked as "calibrated".

        Parameters
        ----------
        estimator : fitted classifier
            With scores for every class. A `SeenAbsentCalibratedClassifier` can be the end of a pipeline, or inside a
            fitted search or ``FrozenEstimator``.
        X : array-like, sparse matrix, data frame or list of N samples
        y : (N,) array-like of labels, of seen and of absent classes
        seen_classes : (|S|,) array-like of labels, optional
            By default those of the `SeenAbsentCalibratedClassifier`; required for other classifiers.
        average : {"micro", "macro"}
            As in `finecal.tradeoff_curve`.
        gammas : mapping of str to float, 0-d tensor or GammaEstimate, optional
            Further points to mark.
        ax, **style
            As in `plot`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        AttributeError, TypeError, ValueError
            If `estimator` is not fitted or has not one score per class, `seen_classes` are missing or not those of the
            `SeenAbsentCalibratedClassifier`, or `y` has unknown classes or classes of one group only.
        """
        samples, gamma = scores_before_gamma(estimator, X, y, seen_classes)
        calibrated = {} if gamma is None else {"calibrated": gamma}
        curve = _margins(samples).curve(average)
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
        """Draw the curve of scores; ValueError if `y_true` has one group only.

        Parameters and errors are otherwise those of `finecal.sklearn.ausuc_score` and `from_estimator`.
        """
        samples = scores_and_labels(y_true, y_score, seen_classes, labels)
        return cls(_margins(samples).curve(average), gammas=gammas).plot(ax, **style)


class MarginDisplay(_Display):
    """Histograms of the margins of seen and of absent samples, drawn by `finecal.plots.plot_margins`.

    Parameters
    ----------
    margins : Margins
    gamma : float, 0-d tensor or GammaEstimate, optional
        Position of a line besides that at 0.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import MarginDisplay
    >>> y, scores = ["cat", "owl"], [[4.0, 1.0, 3.0], [2.0, 5.0, 1.5]]
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> draw = MarginDisplay.from_predictions
    >>> draw(y, scores, seen_classes=["cat", "dog"], ax=ax).margins.margin
    array([1. , 3.5])
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

        Parameters and errors are those of `TradeoffDisplay.from_estimator`, but `y` may have one group only. `gamma` is
        by default `gamma_` of the `SeenAbsentCalibratedClassifier`.
        """
        samples, found = scores_before_gamma(estimator, X, y, seen_classes)
        return cls(_margins(samples), gamma=found if gamma is None else gamma).plot(ax, **style)

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

        Parameters and errors are those of `TradeoffDisplay.from_predictions`, but `y_true` may have one group only.
        """
        return cls(_margins(scores_and_labels(y_true, y_score, seen_classes, labels)), gamma=gamma).plot(ax, **style)


class GroupReliabilityDisplay(_Display):
    """Reliability diagram of the seen, the absent and all samples, drawn by `finecal.plots.plot_reliability`.

    The confidence is the probability of the predicted class.

    Parameters
    ----------
    report : ProbabilityReport

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from finecal.sklearn import GroupReliabilityDisplay
    >>> y, shares = ["cat", "owl"], [[0.5, 0.2, 0.3], [0.2, 0.5, 0.3]]
    >>> ax = Figure().subplots()  # without it, pyplot's
    >>> draw = GroupReliabilityDisplay.from_predictions
    >>> draw(y, shares, seen_classes=["cat", "dog"], ax=ax).report.absent.n
    1
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
        """Draw the reliability of a fitted classifier's probabilities, with gamma and temperature.

        Parameters and errors are those of `TradeoffDisplay.from_estimator`, but `y` may have one group only. The
        classifier needs ``predict_log_proba`` or ``predict_proba``; the `n_bins` bins have equal width.
        """
        classifier, _ = _find_classifier(estimator, X)
        named = _seen_classes(estimator, classifier, seen_classes)
        method = "predict_log_proba" if hasattr(estimator, "predict_log_proba") else "predict_proba"
        scores = class_scores(estimator, X, response_method=method)
        report = evaluate_probabilities(*scores_and_labels(y, scores, named, estimator.classes_), n_bins=n_bins)
        # The probabilities include gamma already; the report names it for the title.
        return cls(report if classifier is None else replace(report, gamma=classifier.gamma_)).plot(ax, **style)

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

        Parameters and errors are those of `TradeoffDisplay.from_predictions` and
        `finecal.probabilities.evaluate_probabilities`, but `y_true` may have one group only. `gamma` is added to the
        scores, or log-probabilities, of absent classes.
        """
        samples = scores_and_labels(y_true, y_score, seen_classes, labels)
        return cls(evaluate_probabilities(*samples, gamma, n_bins)).plot(ax, **style)


def _margins(samples: Labelled) -> Margins[Any]:
    # Re-indexed labels, the subject of a warning, are impossible: indices come from class names.
    with without_warnings():
        return LabelledSamples(*samples[:2]).margins(samples[2])


def scores_before_gamma(estimator: Any, X: Any, y: Any, seen_classes: Any) -> tuple[Labelled, float | None]:
    """Return the samples with scores before gamma, prototypes included, and gamma; None for other classifiers."""
    classifier, X_inside = _find_classifier(estimator, X)
    named = _seen_classes(estimator, classifier, seen_classes)
    if classifier is None:
        return scores_and_labels(y, class_scores(estimator, X), named, estimator.classes_), None
    scores = class_scores(classifier.estimator_, X_inside, response_method=classifier.response_method)
    if classifier.prototypes_ is not None:
        calibrated = add_prototypes(scores, features_of(classifier.estimator_, X_inside), classifier.prototypes_)
        scores = add_gamma(calibrated, classifier.seen_mask_, -classifier.gamma_)
    return scores_and_labels(y, scores, named, classifier.classes_), classifier.gamma_


def _find_classifier(estimator: Any, X: Any) -> tuple[SeenAbsentCalibratedClassifier | None, Any]:
    """Return the classifier with gamma inside `estimator`, and its input; None without one that has absent classes."""
    for model, steps in unwrap(estimator):
        if isinstance(model, SeenAbsentCalibratedClassifier):
            check_is_fitted(model)
            if model.seen_mask_.all():
                break
            for step in steps:
                X = step.transform(X)
            return model, X
    return None, X


def _seen_classes(estimator: Any, classifier: SeenAbsentCalibratedClassifier | None, seen_classes: Any) -> Any:
    """Return the labels of the seen classes; raise if they are missing or differ from those of the classifier."""
    if classifier is None:
        if seen_classes is None:
            raise TypeError(
                f"seen_classes is None, and {type(estimator).__name__} knows of no absent classes: pass the labels of "
                "the seen ones"
            )
        return seen_classes
    classes, mask = classifier.classes_, classifier.seen_mask_
    if seen_classes is not None and (mask_of(seen_classes, classes) != mask).any():
        raise ValueError(
            "seen_classes are others than those of the SeenAbsentCalibratedClassifier, and its gamma is for those: "
            "leave seen_classes out"
        )
    return classes[mask]
