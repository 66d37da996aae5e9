"""What the page shows, and what its scripts count from."""

import base64
import math
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


_NARROWEST = 1e-300
_STEPS = 200
"""Of the slider, at least; at most ten times as many."""


class ClassRow(NamedTuple):
    """One line of the table of classes."""

    label: int
    name: str
    is_seen: bool
    samples: int
    before: float
    now: float


def class_rows(page: Page) -> list[ClassRow]:
    """Return a row for each class that occurs; none where labels are unknown."""
    samples = page.curve.samples
    if samples.label is None:
        return []
    counts = np.bincount(samples.label)
    right = [
        np.bincount(samples.label[_is_right(samples, gamma)], minlength=len(counts)) for gamma in (0.0, page.gamma)
    ]
    is_seen = np.zeros(len(counts), dtype=bool)
    is_seen[samples.label] = samples.is_seen
    return [
        ClassRow(c, page.name(c), bool(is_seen[c]), int(counts[c]), *(float(row[c] / counts[c]) for row in right))
        for c in counts.nonzero()[0].tolist()
    ]


def _is_right(samples: Margins[NumpyArray], gamma: float) -> NumpyArray:
    is_right: NumpyArray = samples.hit & (samples.is_seen == (samples.margin.astype(np.float64) >= gamma))
    return is_right


class SliderRange(NamedTuple):
    """Ends and step of the slider; both ends are whole steps, so that 0 is one of its positions."""

    low: float
    high: float
    step: float


def slider_range(page: Page) -> SliderRange:
    """Return the bulk of the margins, with 0, gamma and the oracle inside."""
    margin = page.curve.samples.margin
    finite = margin[np.isfinite(margin)].astype(np.float64)
    bulk = np.quantile(finite, [0.005, 0.995]).tolist() if len(finite) else [-1.0, 1.0]
    points = [*bulk, 0.0, page.gamma, *([] if page.oracle is None else [page.oracle])]
    first, last = min(points), max(points)
    if last - first < _NARROWEST:
        first, last = -1.0, 1.0
    step = 10.0 ** math.floor(math.log10((last - first) / _STEPS))
    low, high = math.floor(first / step) - 1, math.ceil(last / step) + 1
    # Divided where possible: 3 / 10 is the number that 0.3 names, 3 * 0.1 is not.
    per_unit = round(1 / step) if step < 1 else 1
    return (
        SliderRange(low / per_unit, high / per_unit, step) if step < 1 else SliderRange(low * step, high * step, step)
    )


def script_data(page: Page, axes: dict[str, Any]) -> dict[str, Any]:
    """Return what the scripts count from, and where the axes of the figures lie."""
    samples = page.curve.samples
    classes: dict[str, NumpyArray | None] = {"label": samples.label, "seen_class": None, "absent_class": None}
    if page.winners is not None:
        classes["seen_class"], classes["absent_class"] = page.winners
    return {
        "gamma": page.gamma,
        "average": page.curve.average,
        "class_names": page.class_names,
        "axes": axes,
        "margin": _packed(samples.margin),
        "flags": _packed(samples.is_seen | samples.hit.astype(np.uint8) << 1),
        **{key: None if array is None else _packed(array.astype(_index_type(array))) for key, array in classes.items()},
    }


def _index_type(array: NumpyArray) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if array.max() < 1 << 16 else np.uint32


def _packed(array: NumpyArray) -> dict[str, str]:
    little = array.astype(array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "base64": base64.b64encode(little.tobytes()).decode()}
