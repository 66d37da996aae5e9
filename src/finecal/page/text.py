"""Sentences of the page: the effect of gamma, its gain, cost and origin, and descriptions of the pictures."""

import math

import numpy as np

from ..evaluation.curve import TradeoffCurve
from ..evaluation.report import SeenAbsentReport
from ..gamma.estimate import HELD_OUT, TRAINING, GammaEstimate, change_in_words, interval_name
from ..inputs.arrays import NumpyArray
from ..results.format import UNDEFINED, percent, points
from .data import Page, WithPrototypes

TITLE = "How gamma changes accuracy on seen and absent classes"
_GROUPS = (
    "The model was fine-tuned on the seen classes; it knows the absent classes from before. Fine-tuning makes it "
    "prefer the seen classes. Gamma, one number added to the scores of all absent classes, undoes that."
)
_NOTHING = 5e-4
"""Gains below this are written as 0.0 points."""


def summary(page: Page) -> list[str]:
    """Return the paragraphs below the slider."""
    before, now = page.curve.at(0.0), page.curve.at(page.gamma)
    oracle = None if page.oracle is None else page.curve.at(page.oracle)
    paragraphs = [_GROUPS, _samples(page), _effect(before, now), _bound(page, before, now, oracle), _origin(page)]
    if page.prototypes is not None:
        paragraphs.append(_beyond(page.curve.at(page.prototypes.gamma), page.prototypes))
    return [paragraph for paragraph in paragraphs if paragraph]


def gamma_text(gamma: float) -> str:
    """Return gamma with four significant digits, as everywhere on the page."""
    return f"{gamma:.4g}"


def change(fraction: float) -> str:
    """Return a difference in points, with its sign."""
    return points(fraction).replace("-", "\N{MINUS SIGN}") if not math.isnan(fraction) else UNDEFINED


def _samples(page: Page) -> str:
    n_seen, n_absent = page.curve.n_seen, page.curve.n_absent
    text = f"{n_seen + n_absent:,} labelled samples: {n_seen:,} of seen classes, {n_absent:,} of absent classes."
    if page.num_classes is not None and page.num_seen is not None:
        num_absent = page.num_classes - page.num_seen
        text += f" The model knows {page.num_classes:,} classes, {page.num_seen:,} seen and {num_absent:,} absent."
    if page.curve.average == "macro":
        text += " Accuracies are means over the classes that occur, so that every class counts the same (macro)."
    return text


def _effect(before: SeenAbsentReport, now: SeenAbsentReport) -> str:
    if now.gamma == 0:
        parts = [f"on {name} classes it is {percent(then)} %" for name, (then, _) in _by_group(before, now).items()]
        return (
            f"At gamma = 0 the model is as fine-tuning left it. Its accuracy is {percent(before.acc_all)} %: "
            f"{' and '.join(parts)}."
        )
    return f"Gamma = {gamma_text(now.gamma)}, at which this page opens, changes the accuracy {_moves(before, now)}."


def _beyond(gamma_alone: SeenAbsentReport, prototypes: WithPrototypes) -> str:
    made_from = "" if prototypes.made_from is None else f", made from {prototypes.made_from.n:,} unlabelled samples,"
    return (
        f"Prototypes of the classes{made_from} are added to gamma = {gamma_text(prototypes.gamma)}. They change the "
        f"accuracy {_moves(gamma_alone, prototypes.accuracies)}."
    )


def _by_group(before: SeenAbsentReport, now: SeenAbsentReport) -> dict[str, tuple[float, float]]:
    """Return the accuracies of the groups that occur."""
    groups = {"seen": (before.acc_seen, now.acc_seen), "absent": (before.acc_absent, now.acc_absent)}
    return {name: pair for name, pair in groups.items() if not math.isnan(pair[0])}


def _moves(before: SeenAbsentReport, now: SeenAbsentReport) -> str:
    parts = [f"on {name} classes {_from_to(*pair)}" for name, pair in _by_group(before, now).items()]
    return f"{_from_to(before.acc_all, now.acc_all)}: {' and '.join(parts)}"


def _bound(page: Page, before: SeenAbsentReport, now: SeenAbsentReport, oracle: SeenAbsentReport | None) -> str:
    if oracle is None:
        group = "seen" if now.n_seen else "absent"
        return f"All samples are of {group} classes, so they cannot show which gamma is best."
    best = f"The best gamma on these very labels (the oracle), {gamma_text(oracle.gamma)},"
    if not page.gamma_was_given:
        return (
            "No gamma was given, so this is the best one on these very labels (the oracle). It bounds what an estimate "
            "can reach; it is not a result to report."
        )
    gain = oracle.acc_all - before.acc_all
    if gain < _NOTHING:
        return f"{best} gains nothing: there is nothing for gamma to bring back."
    would = f"{best} reaches {percent(oracle.acc_all)} % ({change(gain)} points)"
    if now.gamma == 0:
        return f"{would}. No estimate of gamma can gain more."
    share = (now.acc_all - before.acc_all) / gain
    return f"{would}; this one loses." if share < 0 else f"{would}; this one gets {100 * share:.0f} % of that gain."


def _origin(page: Page) -> str:
    estimate = page.estimate
    if estimate is None:
        return ""
    text = f"Gamma was estimated by {estimate.method} from {estimate.data}."
    if estimate.interval is not None:
        low, high = estimate.interval
        text += f" Its {interval_name(estimate)} is {gamma_text(low)} to {gamma_text(high)}."
    change = change_in_words(estimate)
    return text if change is None else f"{text} {_cost(estimate, change)}"


def _cost(estimate: GammaEstimate, change: str) -> str:
    """Return the cost of gamma on the labelled seen samples, and its bias."""
    if estimate.cost_source == TRAINING:
        which, doubt = "training", "; the true cost is higher, because the model was trained on them"
    elif estimate.cost_source == HELD_OUT:
        which, doubt = "held-out", ""
    else:
        which, doubt = "labelled", "; if the model was trained on them, the true cost is higher"
    return f"On those {which} samples seen accuracy {change}{doubt}."


def _from_to(before: float, after: float) -> str:
    return f"from {percent(before)} % to {percent(after)} % ({change(after - before)} points)"


# --- descriptions of the pictures, for readers who cannot see them ----------------------------------------------


def tradeoff_words(curve: TradeoffCurve[NumpyArray], oracle: float) -> str:
    zero, best = curve.at(0.0), curve.at(oracle)
    return (
        "Seen-absent curve: accuracy on absent classes against accuracy on seen ones, for every gamma. It runs from "
        f"{percent(curve.acc_seen_within)} % on seen and none on absent classes to none on seen and "
        f"{percent(curve.acc_absent_within)} % on absent ones; at gamma = 0 it is at {_on_both(zero)}, at the best "
        f"gamma on these labels at {_on_both(best)}. The area under it is {curve.ausuc:.3f}."
    )


def accuracy_words(curve: TradeoffCurve[NumpyArray]) -> str:
    return (
        "Accuracy against gamma, on all samples and on those of each group. While gamma grows, the accuracy on seen "
        "classes falls, and that on absent ones rises."
    )


def margin_words(curve: TradeoffCurve[NumpyArray]) -> str:
    margin, is_seen = curve.samples.margin, curve.samples.is_seen
    groups = {"seen": margin[is_seen], "absent": margin[~is_seen]}
    medians = [f"{np.median(values):.3g} for {name} samples" for name, values in groups.items() if len(values)]
    return (
        "Histograms of the margin, the largest seen minus the largest absent logit of a sample. Samples whose margin "
        f"is below gamma are predicted absent. The median is {' and '.join(medians)}."
    )


def _on_both(point: SeenAbsentReport) -> str:
    return f"{percent(point.acc_seen)} % and {percent(point.acc_absent)} %"
