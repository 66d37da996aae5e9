"""What the page shows, and what its scripts count from."""

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..calibrators.prototypes import PrototypesReport
from ..evaluation.curve import TradeoffCurve
from ..evaluation.margins import Margins
from ..evaluation.report import SeenAbsentReport
from ..gamma.estimate import GammaEstimate
from ..inputs.arrays import NumpyArray
from .steps import Steps, steps_around
from .tallies import Tally, confused_pairs, first_changes, levels_of, tally


class WithPrototypes(NamedTuple):
    """The samples at the gamma that prototypes were made with, and with them."""

    gamma: float
    accuracies: SeenAbsentReport
    made_from: PrototypesReport | None


@dataclass(frozen=True, eq=False)
class Page:
    """What the page shows: N samples on a curve, and the gamma at which it opens."""

    curve: TradeoffCurve[NumpyArray]
    gamma: float
    num_classes: int | None = None
    num_seen: int | None = None
    class_names: tuple[str, ...] | None = None
    title: str | None = None
    estimate: GammaEstimate | None = None
    gamma_was_given: bool = True
    winners: tuple[NumpyArray, NumpyArray] | None = None
    """The best seen and the best absent class of each sample, `(N,)` each; None without logits."""
    prototypes: WithPrototypes | None = None

    @cached_property
    def oracle(self) -> float | None:
        """The best gamma on these very labels; None if they are of one group."""
        return self.curve.best() if self.curve.n_seen and self.curve.n_absent else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the estimate, and of the prototypes."""
        sources = (self.estimate, None if self.prototypes is None else self.prototypes.made_from)
        return tuple(sentence for source in sources if source is not None for sentence in source.warnings)

    def name(self, index: int) -> str:
        return str(index) if self.class_names is None else self.class_names[index]


SHOWN_PAIRS, SHOWN_CHANGES = 20, 12
"""Rows of two tables, at most."""
_NARROWEST = 1e-300
_MOST_STEPS, _MOST_OF_MANY_CLASSES = 2000, 500
"""Of the slider. A round step makes fewer of them: two fifths at least."""
_CELLS = 1 << 19
"""Classes times steps of the slider, at most: with more, there are as many steps as for many classes."""


class ClassRow(NamedTuple):
    """One line of the table of classes."""

    label: int
    name: str
    group: str
    """ "seen" or "absent"."""
    samples: int
    before: float
    now: float

    @property
    def change(self) -> float:
        return self.now - self.before


def class_rows(page: Page) -> list[ClassRow]:
    """Return a row for each class that occurs, the largest loss first; none where labels are unknown."""
    samples = page.curve.samples
    if samples.label is None:
        return []
    counts = np.bincount(samples.label)
    right = [
        np.bincount(samples.label[_is_right(samples, gamma)], minlength=len(counts)) for gamma in (0.0, page.gamma)
    ]
    is_seen = np.zeros(len(counts), dtype=bool)
    is_seen[samples.label] = samples.is_seen
    columns = [array.tolist() for array in (is_seen, counts, *right)]
    rows = [
        ClassRow(label, page.name(label), "seen" if seen else "absent", size, before / size, now / size)
        for label, (seen, size, before, now) in enumerate(zip(*columns, strict=True))
        if size
    ]
    return sorted(rows, key=lambda row: row.change)


def _is_right(samples: Margins[NumpyArray], gamma: float) -> NumpyArray:
    is_right: NumpyArray = samples.hit & (samples.is_seen == (samples.margin.astype(np.float64) >= gamma))
    return is_right


def slider_steps(page: Page) -> Steps:
    """Return the positions of the slider: the bulk of the margins, with 0, gamma and the oracle inside."""
    margin = page.curve.samples.margin
    finite = margin[np.isfinite(margin)].astype(np.float64)
    bulk = np.quantile(finite, [0.005, 0.995]).tolist() if len(finite) else [-1.0, 1.0]
    points = [*bulk, *_marked(page)]
    low, high = min(points), max(points)
    if high - low < _NARROWEST:
        low, high = -1.0, 1.0
    return steps_around(low, high, min(_MOST_STEPS, max(_MOST_OF_MANY_CLASSES, _CELLS // _class_count(page))))


def _marked(page: Page) -> list[float]:
    """Return the gammas that the page names."""
    return [0.0, page.gamma, *([] if page.oracle is None else [page.oracle])]


def _class_count(page: Page) -> int:
    label = page.curve.samples.label
    return 1 if label is None else int(label.max()) + 1


def script_data(page: Page, slider: Steps, axes: dict[str, Any]) -> dict[str, Any]:
    """Return what the scripts count from, and where the axes of the figures lie."""
    samples = page.curve.samples
    levels = levels_of(samples.margin, [*slider.values, *_marked(page)])
    is_seen, hit, label = samples.is_seen, samples.hit, samples.label
    data: dict[str, Any] = {
        "gamma": page.gamma,
        "average": page.curve.average,
        "class_names": page.class_names,
        "axes": axes,
        "shown_pairs": SHOWN_PAIRS,
        "shown_changes": SHOWN_CHANGES,
        "are_exact": levels.are_exact,
        "levels": _packed(levels.values),
        # By group: absent miss, seen miss, absent hit, seen hit.
        "samples": _packed_tally(tally(is_seen | hit.astype(np.uint8) << 1, levels.of_sample, 4)),
        "classes": None,
        "pairs": None,
        "changes": None,
    }
    if label is not None:
        count = np.bincount(label)
        class_is_seen = np.zeros(len(count), dtype=np.uint8)
        class_is_seen[label] = is_seen
        hits = _packed_tally(tally(label[hit], levels.of_sample[hit], len(count)))
        data["classes"] = {"size": _packed_counts(count), "is_seen": _packed(class_is_seen), "hits": hits}
    if label is not None and page.winners is not None:
        seen_class, absent_class = page.winners
        other = np.where(is_seen, absent_class, seen_class)
        pairs = confused_pairs(label, other, is_seen, levels, SHOWN_PAIRS)
        data["pairs"] = {
            "label": _packed_counts(pairs.label),
            "predicted": _packed_counts(pairs.predicted),
            "samples": _packed_tally(pairs.tally),
        }
        sample = first_changes(levels, SHOWN_CHANGES)
        of_sample = {
            "level": levels.of_sample,
            "label": label,
            "seen_class": seen_class,
            "absent_class": absent_class,
        }
        chosen = {name: _packed_counts(array[sample]) for name, array in of_sample.items()}
        data["changes"] = {"sample": _packed_counts(sample), **chosen}
    return data


def _packed_tally(counted: Tally) -> dict[str, dict[str, str]]:
    return {name: _packed_counts(array) for name, array in counted._asdict().items()}


def _packed_counts(array: NumpyArray) -> dict[str, str]:
    """Pack whole numbers that are not negative, in as few bytes as they need."""
    largest = int(array.max(initial=0))
    return _packed(
        array.astype(next(kind for kind in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(kind).max))
    )


def _packed(array: NumpyArray) -> dict[str, str]:
    little = array.astype(array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "base64": base64.b64encode(little.tobytes()).decode()}
