"""Fill the templates of the page."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, SupportsFloat

import torch
from torch import Tensor

from .._calibrators.prototypes import Prototypes
from .._core.arrays import ArrayLike, Labels, Logits, Mask, NumpyArray, check_choice, to_numpy
from .._core.checks import check_features, check_scores, gamma_as_float, warn_if_reindexed
from .._core.curve import evaluate
from .._core.kernels import LabelHits
from .._core.plausibility import warn_of_input
from .._core.reductions import margin_of, winners
from .._core.report import AVERAGES, Margins, SeenAbsentReport
from .._core.results import percent
from .._core.samples import samples_of, takes_samples
from .._core.seen_mask import ClassNames, check_class_names
from .._core.warning import without_warnings
from .._estimators.estimate import GammaEstimate
from .._version import __version__
from .data import EXACT, Page, WithPrototypes, class_rows, script_data, slider_steps
from .figures import TITLE, change, draw_figures, gamma_text, summary

if TYPE_CHECKING:
    from jinja2 import Template

_SCRIPTS = ("counts.js", "tables.js", "page.js")
_ACCURACIES = {
    "acc_all": "all samples",
    "acc_seen": "seen classes",
    "acc_absent": "absent classes",
    "harmonic_mean": "harmonic mean of seen and absent",
    "balanced": "mean of seen and absent (balanced)",
    "acc_seen_within": "seen, only seen classes allowed",
    "acc_absent_within": "absent, only absent classes allowed",
}


@takes_samples
def html_report(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    gamma: SupportsFloat | None = 0.0,
    *,
    class_names: ClassNames | None = None,
    average: str = "micro",
    title: str | None = None,
    prototypes: tuple[Prototypes, ArrayLike] | None = None,
) -> str:
    """Return a self-contained HTML page on the effect of gamma on these samples, with a slider for gamma.

    It shows the accuracies of `evaluate` at 0, `gamma` and the slider, text, pictures, the accuracy of each class, and
    the most confused pairs of a seen and an absent class. `O(NC + N log N)`. See :doc:`/how-to/results`.

    Parameters
    ----------
    logits, labels, seen_mask, average
        As in `evaluate`.
    gamma : float, 0-d tensor, GammaEstimate or None, default 0
        Initial position of the slider; an estimate is also described. None: the oracle, the best gamma on these labels.
    class_names : sequence of C str or dict, optional
        As for `seen_mask_from_names`; default: the indices of the classes.
    title : str, optional
        Heading; by default "How gamma changes accuracy on seen and absent classes".
    prototypes : (Prototypes, features), optional
        From `fit_prototypes`, and the inputs of the final linear layer for these samples, `(N, D)`: an additional
        column of accuracies, which the slider does not change.

    Returns
    -------
    str
        HTML without external resources, to be written in UTF-8.

    Raises
    ------
    ImportError
        If jinja2 is not installed.
    TypeError, ValueError
        As `evaluate`; if there are no samples, `class_names` are not one text per class, `prototypes` are not a pair or
        have other classes, or `gamma` is None and the samples are of one group only.

    Warns
    -----
    FinecalWarning
        As `margins`.

    Notes
    -----
    Up to 16,384 samples, the page is exact at every gamma. With more, margins are rounded down to levels, which include
    all positions of the slider, 0, `gamma` and the oracle; the page is exact at each level.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    >>> page = finecal.html_report(
    ...     logits, labels=[0, 2, 0], seen_mask=[True, True, False], gamma=0.75
    ... )
    >>> page.startswith("<!doctype html>"), "from 66.7 % to 100.0 %" in page
    (True, True)
    """
    check_choice(average, AVERAGES, "average")
    samples = samples_of(logits, labels)
    x, y, mask = samples.logits_tensor, samples.labels_tensor, samples.check_mask(seen_mask)
    best = winners(x, mask)  # margins, hits and predictions in one pass
    check_scores(x, torch.maximum(best.seen_max, best.absent_max))
    is_seen = mask[y]
    hit = torch.where(is_seen, best.seen, best.absent) == y
    warn_if_reindexed(y, mask)
    warn_of_input(x, y, mask, LabelHits(best.seen_max, best.absent_max, hit))
    curve = _samples_as_numpy(Margins(margin_of(best.seen_max, best.absent_max), is_seen, hit, y)).curve(average)
    page = Page(
        curve,
        gamma=curve.best() if gamma is None else gamma_as_float(gamma),
        num_classes=mask.shape[0],
        num_seen=int(mask.sum()),
        class_names=check_class_names(class_names, mask.shape[0]),
        title=_check_title(title),
        estimate=gamma if isinstance(gamma, GammaEstimate) else None,
        gamma_was_given=gamma is not None,
        winners=(to_numpy(best.seen), to_numpy(best.absent)),
        prototypes=None if prototypes is None else _with_prototypes(prototypes, x, y, mask, average),
    )
    return render(page)


def _with_prototypes(pair: object, x: Tensor, y: Tensor, mask: Tensor, average: str) -> WithPrototypes:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], Prototypes):
        raise TypeError("prototypes are not a pair; pass prototypes=(prototypes, features), as from fit_prototypes")
    module, features = pair
    logits = module(x, check_features(features, x.shape[0], x.device))
    if not torch.equal(module.seen_mask, mask):
        raise ValueError("prototypes have other seen classes than seen_mask; pass those of this model")
    with without_warnings():  # warnings about these samples were issued before
        accuracies = evaluate(logits, y, mask, average=average)
    return WithPrototypes(float(module.gamma), accuracies, module.report)


def html_of_report(report: SeenAbsentReport, class_names: ClassNames | None, title: str | None) -> str:
    """Return the page of a report, which has margins but no predictions; ValueError without samples."""
    if report.samples is None:
        raise ValueError(
            "this report was not made by evaluate, so it has no samples to show; use evaluate(...).to_html() or "
            "html_report(logits, ...)"
        )
    samples = _samples_as_numpy(report.samples)
    if samples.label is not None:
        class_names = check_class_names(class_names, int(samples.label.max()) + 1, at_least=True)
    elif class_names is not None:
        raise ValueError("class_names are given, but these samples come without labels; leave class_names out")
    return render(Page(samples.curve(report.average), report.gamma, class_names=class_names, title=_check_title(title)))


def render(page: Page) -> str:
    """Return the HTML of the page."""
    figures = draw_figures(page.curve, page.gamma if page.estimate is None else page.estimate, page.oracle)
    slider = slider_steps(page)
    scripts = [_text_of(name) for name in _SCRIPTS]
    return _template().render(
        page=page,
        title=page.title or TITLE,
        summary=summary(page),
        accuracies=_ACCURACIES,
        before=page.curve.at(0.0),
        now=page.curve.at(page.gamma),
        oracle=None if page.oracle is None else page.curve.at(page.oracle),
        classes=class_rows(page),
        figures=figures,
        slider=slider,
        data=script_data(page, slider, {figure.name: figure.axes._asdict() for figure in figures}),
        most_exact=EXACT,
        style=_text_of("page.css"),
        scripts=scripts,
        script_hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        version=__version__,
        percent=percent,
        change=change,
        gamma_text=gamma_text,
    )


def _template() -> Template:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the report is made with jinja2: pip install 'finecal[report]'") from error
    return _compile(jinja2)


@functools.cache
def _compile(jinja2: Any) -> Template:
    template: Template = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text_of),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("page.html")
    return template


def _text_of(name: str) -> str:
    return (files("finecal") / "_report" / name).read_text(encoding="utf-8")


def _check_title(title: object) -> str | None:
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title is a {type(title).__name__}; pass a str, or None for the usual one")
    return title


def _samples_as_numpy(samples: Margins[Any]) -> Margins[NumpyArray]:
    if len(samples) == 0:
        raise ValueError("there are no samples, and nothing to show on a page: pass at least one")
    label = None if samples.label is None else to_numpy(samples.label)
    return Margins(to_numpy(samples.margin), to_numpy(samples.is_seen), to_numpy(samples.hit), label)
