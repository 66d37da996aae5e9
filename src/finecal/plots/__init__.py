"""Pictures of curves, margins, probabilities, estimators and gaps. They need the extra ``plots`` (matplotlib).

Every function takes a result and the axes to draw on, by default those of a new figure outside pyplot, and returns the
axes. It raises ImportError without matplotlib, and TypeError for another result or axes. See :doc:`/how-to/results`.
Artists have ids (`Artist.get_gid`), which an SVG keeps:

==================  ==================================================================================================
plot_tradeoff       ``finecal-tradeoff-curve``, ``-zero``, ``-best``, and ``-chosen-0``, ``-chosen-1``, ... for `gammas`
plot_margins        ``finecal-margins-zero``, ``-gamma``
plot_accuracy       ``finecal-accuracy-seen``, ``-absent``, ``-all``, ``-zero``, ``-gamma``, ``-interval``, ``-best``
plot_reliability    ``finecal-reliability-seen``, ``-absent``, ``-all``
plot_estimators     ``finecal-estimators-0``, ``-1``, ... for the points, in the order of the rows
plot_gaps           ``finecal-gaps-pretrained-seen``, ``-pretrained-absent``, ``-finetuned-seen``, ``-finetuned-absent``
==================  ==================================================================================================
"""

from ._curves import plot_accuracy, plot_tradeoff
from ._estimators import plot_estimators, plot_reliability
from ._margins import plot_gaps, plot_margins

__all__ = ["plot_accuracy", "plot_estimators", "plot_gaps", "plot_margins", "plot_reliability", "plot_tradeoff"]
