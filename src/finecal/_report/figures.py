"""Figures for `figure.html`: lines, marks, ticks and legends in units of its SVG."""

import math
from typing import NamedTuple, SupportsFloat

import numpy as np

from .._core.arrays import NumpyArray
from .._core.curve import TradeoffCurve
from .._core.report import SeenAbsentReport
from .._core.results import UNDEFINED, percent, points
from .._estimators.estimate import (
    HELD_OUT,
    TRAINING,
    GammaEstimate,
    break_even_in_words,
    change_in_words,
    interval_name,
)
from ..plots._axes import CELLS, bulk, thin, widen
from ..plots._curves import HARMONIC_MEANS
from ..plots._margins import BINS
from .data import Page, steps_inside

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
    if (added := page.prototypes) is not None:
        source = "" if added.made_from is None else f", made from {added.made_from.n:,} unlabelled samples,"
        paragraphs.append(
            f"Prototypes of the classes{source} are added to gamma = {gamma_text(added.gamma)}. They change the "
            f"accuracy {_moves(page.curve.at(added.gamma), added.accuracies)}."
        )
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
    pays = break_even_in_words(estimate)
    return " ".join(
        [text, *([] if change is None else [_cost(estimate, change)]), *([] if pays is None else [f"{pays}."])]
    )


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


_MOST_TICKS = 7
"""Largest number of steps on an axis: with more, its numbers would touch."""
_FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class AxesBox(NamedTuple):
    """Position of the axes in the SVG, from its upper left corner, and the values at their edges."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def of(cls, x: tuple[float, float], y: tuple[float, float], width: float = 400.0) -> "AxesBox":
        """Return axes for these ranges of values, with room for numbers and labels around them."""
        return cls(62.0, 12.0, width, 270.0, x, y)

    def across(self, x: NumpyArray | float) -> NumpyArray:
        return np.asarray(self.left + self.width * (np.asarray(x, dtype=np.float64) - self.x[0]) / np.ptp(self.x))

    def down(self, y: NumpyArray | float) -> NumpyArray:
        return np.asarray(self.top + self.height * (self.y[1] - np.asarray(y, dtype=np.float64)) / np.ptp(self.y))


class Tick(NamedTuple):
    """A number at an axis, and its position."""

    place: float
    text: str


class Line(NamedTuple):
    """A line or a shape, and its CSS class."""

    look: str
    path: str


class Mark(NamedTuple):
    """A point that stands out."""

    look: str
    x: float
    y: float


class Entry(NamedTuple):
    """A line of the legend: the CSS class of its symbol, and its text."""

    look: str
    text: str


_AT_SLIDER = Entry("now", "at the slider")
"""Legend of the ring or line that the scripts move."""


class Figure(NamedTuple):
    """A picture, with a description in words."""

    name: str
    title: str
    words: str
    axes: AxesBox
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    marks: list[Mark]
    legend: list[Entry]
    right_label: str | None = None
    right_ticks: tuple[Tick, ...] = ()


def draw_figures(curve: TradeoffCurve[NumpyArray], gamma: SupportsFloat, oracle: float | None) -> list[Figure]:
    """Draw the seen-absent curve (if there is an oracle, that is, samples of both groups), accuracies and margins."""
    shown = bulk(curve.samples.margin)
    figures = [] if oracle is None else [_tradeoff(curve, float(gamma), oracle)]
    return [*figures, _accuracy(curve, gamma, oracle, shown), _margins(curve, float(gamma), shown)]


def _tradeoff(curve: TradeoffCurve[NumpyArray], gamma: float, oracle: float) -> Figure:
    box = AxesBox.of((0.0, 1.0), (0.0, 1.0), width=362.0)
    lines = []
    for mean in HARMONIC_MEANS:
        seen = np.geomspace(mean / (2 - mean), 1, 40)
        lines.append(Line("guide", _path(box.across(seen), box.down(mean * seen / (2 * seen - mean)))))
    lines.append(Line("seen-absent", _path(*_visible(box.across(curve.acc_seen), box.down(curve.acc_absent)))))
    marked = [("zero", "no calibration", 0.0), ("best", "best (oracle)", oracle)]
    if gamma not in (0.0, oracle):
        marked.insert(1, ("chosen", "chosen", gamma))
    marks, legend = [], [Entry("seen-absent", "every \N{GREEK SMALL LETTER GAMMA}")]
    for look, name, at in marked:
        report = curve.at(at)
        marks.append(_mark(look, box, report.acc_seen, report.acc_absent))
        legend.append(Entry(look, f"{name}, {_gamma(at)}"))
    legend += [_AT_SLIDER, Entry("guide", "equal harmonic mean")]
    return Figure(
        "tradeoff",
        f"Seen-absent curve, AUSUC {curve.ausuc:.3f}",
        tradeoff_words(curve, oracle),
        box,
        "accuracy on seen classes, %",
        "accuracy on absent classes, %",
        [Tick(float(box.across(value)), _percent(value)) for value in _FRACTIONS],
        [Tick(float(box.down(value)), _percent(value)) for value in _FRACTIONS],
        lines,
        marks,
        legend,
        "harmonic mean, %",
        tuple(Tick(float(box.down(mean / (2 - mean))), _percent(mean)) for mean in HARMONIC_MEANS),
    )


def _accuracy(
    curve: TradeoffCurve[NumpyArray], gamma: SupportsFloat, oracle: float | None, shown: tuple[float, float]
) -> Figure:
    chosen = float(gamma)
    interval = gamma.interval if isinstance(gamma, GammaEstimate) else None
    marked = [value for value in (0.0, chosen, oracle, *(interval or ())) if value is not None and np.isfinite(value)]
    ends = widen([*shown, *marked])
    box = AxesBox.of(ends, (0.0, 1.0))
    first, last = np.searchsorted(curve.breakpoints, ends)
    edges = np.concatenate([[ends[0]], curve.breakpoints[first:last], [ends[1]]])
    lines: list[Line] = []
    legend: list[Entry] = []
    if interval is not None:
        left, right = box.across(np.clip(interval, *ends))
        top, bottom = box.down(1), box.down(0)
        lines.append(Line("interval", f"M{left:.1f},{top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"))
    lines += _vertical_lines(box, chosen)
    for look, accuracy in (("all", curve.acc_all), ("seen", curve.acc_seen), ("absent", curve.acc_absent)):
        values = accuracy[first : last + 1]
        if not np.isnan(values).any():
            x, y = _visible(box.across(edges), box.down(np.append(values, values[-1])))
            lines.append(Line(look, _steps(x, y)))
            legend.append(Entry(look, look))
    legend += _vertical_legend(chosen)
    if interval is not None:
        legend.append(Entry("interval", _signed("interval, {} to {}".format(*map(gamma_text, interval)))))
    marks = []
    if oracle is not None:
        marks.append(_mark("best", box, oracle, curve.at(oracle).acc_all))
        legend.append(Entry("best", f"best (oracle), {_gamma(oracle)}"))
    return Figure(
        "accuracy",
        "Accuracy at every \N{GREEK SMALL LETTER GAMMA}",
        "Accuracy against gamma, on all samples and on those of each group. While gamma grows, the accuracy on seen "
        "classes falls, and that on absent ones rises.",
        box,
        "\N{GREEK SMALL LETTER GAMMA}, added to every absent logit",
        "accuracy, %",
        _ticks_across(box),
        [Tick(float(box.down(value)), _percent(value)) for value in _FRACTIONS],
        lines,
        marks,
        legend,
    )


def _margins(curve: TradeoffCurve[NumpyArray], gamma: float, shown: tuple[float, float]) -> Figure:
    margin, is_seen = curve.samples.margin.astype(np.float64), curve.samples.is_seen
    low, high = shown if shown[1] > shown[0] else (shown[0] - 1, shown[0] + 1)
    inside = (margin >= low) & (margin <= high)
    edges = np.linspace(low, high, BINS + 1)
    groups = {"seen": is_seen, "absent": ~is_seen}
    counts = {name: np.histogram(margin[inside & group], edges)[0] for name, group in groups.items()}
    top = 1.05 * max(1, *(int(count.max()) for count in counts.values()))
    box = AxesBox.of(widen([low, high, 0.0, gamma]), (0.0, top))
    lines, legend = [], []
    for name, count in counts.items():
        x, y = box.across(np.append(edges, edges[-1])), box.down(np.concatenate([count, [0, 0]]))
        lines.append(Line(f"{name} bars", f"M{x[0]:.1f},{box.down(0):.1f}V{y[0]:.1f}{_steps(x, y, start='')}Z"))
        legend.append(Entry(f"{name} bars", f"{name} ({_count_text(inside[groups[name]])})"))
    lines += _vertical_lines(box, gamma)
    legend += _vertical_legend(gamma)
    ticks = steps_inside(0.0, top, _MOST_TICKS).values
    return Figure(
        "margins",
        "Left of the line: predicted absent",
        margin_words(curve),
        box,
        "margin: largest seen \N{MINUS SIGN} largest absent logit",
        "samples",
        _ticks_across(box),
        [Tick(float(box.down(value)), f"{value:,.0f}") for value in ticks if value == int(value)],
        lines,
        [],
        legend,
    )


def _count_text(inside: NumpyArray) -> str:
    outside = len(inside) - int(inside.sum())
    return f"{inside.sum():,}, {outside:,} outside" if outside else f"{len(inside):,}"


def _visible(x: NumpyArray, y: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
    """Drop points closer together than a unit of the SVG."""
    return thin(x, y, CELLS, CELLS)


def _path(x: NumpyArray, y: NumpyArray) -> str:
    return "M" + " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _steps(x: NumpyArray, y: NumpyArray, start: str | None = None) -> str:
    """Return a path of steps: each y holds from its x to the next one."""
    begin = f"M{x[0]:.1f},{y[0]:.1f}" if start is None else start
    return begin + "".join(f"H{a:.1f}V{b:.1f}" for a, b in zip(x[1:].tolist(), y[1:].tolist(), strict=True))


def _vertical_lines(box: AxesBox, gamma: float) -> list[Line]:
    """Return the vertical lines at 0 and, if it is not 0, at gamma."""
    bottom, top = box.top + box.height, box.top
    return [
        Line(look, f"M{box.across(x):.1f},{bottom:.1f}V{top:.1f}") for look, x in _vertical_positions(gamma).items()
    ]


def _vertical_legend(gamma: float) -> list[Entry]:
    """Return the legend of the vertical lines and of the slider."""
    return [*(Entry(look, _gamma(x)) for look, x in _vertical_positions(gamma).items()), _AT_SLIDER]


def _vertical_positions(gamma: float) -> dict[str, float]:
    return {"zero": 0.0} if gamma == 0 else {"zero": 0.0, "gamma": gamma}


def _mark(look: str, box: AxesBox, x: float, y: float) -> Mark:
    return Mark(look, round(float(box.across(x)), 1), round(float(box.down(y)), 1))


def _ticks_across(box: AxesBox) -> list[Tick]:
    steps = steps_inside(*box.x, _MOST_TICKS)
    return [Tick(float(box.across(value)), _signed(f"{value:g}")) for value in steps.values]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f}"


def _gamma(gamma: float) -> str:
    return _signed(f"\N{GREEK SMALL LETTER GAMMA} = {gamma_text(gamma)}")


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
