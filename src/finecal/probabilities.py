"""How good the probabilities are: likelihood, Brier score and calibration errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, SupportsFloat

import torch
from torch import Tensor

from ._core import results as lazy
from ._core.arrays import ArrayT, Labels, Logits, Mask, as_type_of, check_bins, to_numpy
from ._core.calibrate import absent_indicator
from ._core.checks import gamma_as_float
from ._core.kernels import concat_columns, map_row_chunks, tile_rows, tiles
from ._core.results import Block, Result, Table, data_frame, decimal, plain_fields
from ._core.samples import Scan, samples_of, takes_samples
from ._core.warning import warn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

__all__ = ["ProbabilityReport", "ProbabilityScores", "ReliabilityBins", "evaluate_probabilities"]

_ROUNDED = 1 - 1e-12


class SampleScores(NamedTuple):
    """`(N,)` each: three in float64, three flags."""

    nll: Tensor
    brier: Tensor
    confidence: Tensor
    correct: Tensor
    is_seen: Tensor
    all_masked: Tensor


def no_samples() -> SampleScores:
    number, flag = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.bool)
    return SampleScores(number, number, number, flag, flag, flag)


def no_class_excess(num_classes: int, edges: Tensor) -> Tensor:
    return edges.new_zeros(num_classes, edges.shape[0] - 1)


def equal_width_edges(n_bins: int, device: torch.device) -> Tensor:
    return torch.arange(n_bins + 1, dtype=torch.float64, device=device) / n_bins


def equal_mass_edges(confidence: Tensor, width: Tensor) -> Tensor:
    """Return edges at quantiles that are confidences themselves; those of equal width without samples."""
    n, n_bins = confidence.shape[0], width.shape[0] - 1
    if n == 0:
        return width
    ranks = (torch.arange(1, n_bins, device=width.device) * n + n_bins - 1) // n_bins - 1
    return torch.cat([width[:1], confidence.sort().values[ranks], width[-1:]])


def bin_of(values: Tensor, edges: Tensor) -> Tensor:
    """Return the index of the bin ``(edges[b], edges[b+1]]`` that holds each value in [0, 1]; 0 is in the first."""
    return torch.searchsorted(edges[1:-1].contiguous(), values.contiguous())


def score_samples(scan: Scan, gamma: float, edges: Tensor) -> tuple[SampleScores, Tensor]:
    """Score each sample; also return `(C, B)` sums of probabilities less labels per class and bin (classwise ECE)."""
    x, labels, scalars = scan.logits, scan.labels, scan.scalars
    seen_max, absent_max = scalars.seen_max.double(), scalars.absent_max.double() + gamma
    predicts_absent = scan.margin.double() < gamma
    winner, top = torch.where(predicts_absent, absent_max, seen_max), torch.maximum(seen_max, absent_max)
    all_masked = top == -math.inf
    if bool(all_masked.any()):
        top, winner = top.masked_fill(all_masked, 0), winner.masked_fill(all_masked, 0)

    shift = absent_indicator(scan.mask, torch.float64) * gamma
    no_excess = no_class_excess(x.shape[1], edges)

    def kernel(rows: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        class_excess, parts = no_excess.clone(), []
        blocks = zip(*(torch.split(column.unsqueeze(1), tile_rows(rows)) for column in columns), strict=True)
        for (tile, scratch), block in zip(tiles(rows, torch.float64, writable=True), blocks, strict=True):
            own, highest, won, masked = block
            tile.add_(shift)
            if bool(masked.any()):
                tile.masked_fill_(masked, 0)
            parts.append(_score_tile(tile.sub_(highest), own, won - highest, edges, class_excess, scratch))
        return (*concat_columns(parts), class_excess.unsqueeze(0))

    nll, brier, confidence, class_excess = map_row_chunks(kernel, x, labels, top, winner, all_masked)
    correct = scalars.hit & (scalars.is_seen != predicts_absent)
    return SampleScores(nll, brier, confidence, correct, scalars.is_seen, all_masked), class_excess.sum(0)


def _score_tile(
    tile: Tensor, own: Tensor, winner: Tensor, edges: Tensor, class_excess: Tensor, scratch: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Score the rows of a (writable) tile whose largest logit is 0, and add their probabilities to `class_excess`.

    Few probabilities exceed the first bin: they are added one by one, the others by a product with the whole tile.
    """
    own_logit = tile.gather(1, own).squeeze(1)
    weight = tile.exp_()
    total = weight.sum(1)
    own_weight = weight.gather(1, own).squeeze(1)
    own_share = own_weight / total
    others = torch.mul(weight, weight, out=scratch).sum(1) - own_weight.square()
    brier = (1 - own_share).square() + others.clamp(min=0) / total.square()

    flat, n_bins = class_excess.view(-1), edges.shape[0] - 1
    row, column = (weight > (edges[1] * _ROUNDED * total).unsqueeze(1)).nonzero().unbind(1)
    share = weight[row, column] / total[row]
    flat.index_add_(0, column * n_bins + bin_of(share, edges), share)
    weight[row, column] = 0
    class_excess[:, 0] += total.reciprocal() @ weight
    flat.index_add_(0, own.squeeze(1) * n_bins + bin_of(own_share, edges), -torch.ones_like(own_share))
    return total.log() - own_logit, brier, winner.squeeze(1).exp() / total


def probability_sums(samples: SampleScores, class_excess: Tensor, edges: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add up what the report is made of; row 0 of each sum is of absent samples, row 1 of seen ones."""
    group = samples.is_seen.long()

    def add(values: Tensor, bins: Tensor, n_bins: int) -> Tensor:
        return values.new_zeros(2 * n_bins).index_add_(0, group * n_bins + bins, values).view(2, n_bins)

    one_bin = torch.zeros_like(group)
    sums = {
        "nll": add(samples.nll, one_bin, 1),
        "brier": add(samples.brier, one_bin, 1),
        "class_excess": class_excess,
        "all_masked": samples.all_masked.sum(),
    }
    for kind, of_kind in edges.items():
        bins, n_bins = bin_of(samples.confidence, of_kind), of_kind.shape[0] - 1
        sums[f"{kind}_count"] = add(torch.ones_like(group), bins, n_bins)
        sums[f"{kind}_correct"] = add(samples.correct.long(), bins, n_bins)
        sums[f"{kind}_confidence"] = add(samples.confidence, bins, n_bins)
    return sums


WIDTH, MASS = "width", "mass"
"""Kinds of bins: of equal width, and of equal mass (as many samples in each)."""
_ROWS = {
    "NLL, nats": "nll",
    "Brier score": "brier",
    "ECE, equal width": "ece",
    "ECE, equal mass": "ece_equal_mass",
    "ECE, classwise": "classwise_ece",
    "accuracy": "accuracy",
    "mean confidence": "confidence",
}


@dataclass(frozen=True, eq=False)
class ReliabilityBins(Generic[ArrayT]):
    """Samples by their confidence, the probability of the predicted class; B bins ``(edges[b], edges[b+1]]``.

    The first bin holds a confidence of exactly 0, too.

    Attributes
    ----------
    edges : (B+1,) float64
        From 0 to 1.
    count : (B,) int64
        Samples in each bin.
    accuracy, confidence : (B,) float64
        Share of correct predictions, and mean confidence; NaN in an empty bin.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.probabilities import evaluate_probabilities
    >>> logits = np.log([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8]])
    >>> bins = evaluate_probabilities(
    ...     logits, [0, 1], [True, True, False], n_bins=2
    ... ).all.bins
    >>> bins.edges, bins.count, bins.accuracy
    (array([0. , 0.5, 1. ]), array([1, 1]), array([1., 0.]))
    """

    edges: ArrayT
    count: ArrayT
    accuracy: ArrayT
    confidence: ArrayT

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as lists of Python numbers."""
        return plain_fields(self)

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per bin; its edges are `low` and `high`."""
        edges = to_numpy(self.edges)
        ends = {"low": edges[:-1], "high": edges[1:]}
        return data_frame(
            {**ends, **{name: to_numpy(getattr(self, name)) for name in ("count", "accuracy", "confidence")}}
        )


@dataclass(frozen=True, eq=False)
class ProbabilityScores(Generic[ArrayT]):
    """Scores of the predicted probabilities on one group of samples; part of a `ProbabilityReport`.

    Formulas are in `evaluate_probabilities`. NaN where no sample defines a score.

    Attributes
    ----------
    n : int
        Samples.
    accuracy, confidence : float
        Share of correct predictions, and mean probability of the predicted class, in [0, 1].
    nll : float
        Mean negative log-likelihood of the label, in nats; +inf if the logit of a label is -inf.
    brier : float
        Over all classes, in [0, 2].
    ece, ece_equal_mass : float
        Expected calibration error over the bins of equal width, and over those of equal mass.
    classwise_ece : float
        Calibration error of each class's own probability, averaged over the classes *of the group*, of all samples.
    bins, equal_mass_bins : ReliabilityBins
        The bins of the two calibration errors. Edges of equal mass are those of all samples, in each group.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.probabilities import evaluate_probabilities
    >>> logits = np.log([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    >>> scores = evaluate_probabilities(logits, [0, 2], [True, True, False]).seen
    >>> scores.n, round(scores.nll, 4), round(scores.brier, 4), round(scores.ece, 4)
    (1, 0.6931, 0.38, 0.5)
    """

    n: int
    accuracy: float
    confidence: float
    nll: float
    brier: float
    ece: float
    ece_equal_mass: float
    classwise_ece: float
    bins: ReliabilityBins[ArrayT] = field(repr=False)
    equal_mass_bins: ReliabilityBins[ArrayT] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as Python numbers, NaN among them, and the bins as dicts of lists."""
        return plain_fields(self)


@dataclass(frozen=True, eq=False)
class ProbabilityReport(Result, Generic[ArrayT]):
    """Scores of the predicted probabilities at one gamma; made by `evaluate_probabilities`. Prints as a table.

    Attributes
    ----------
    all, seen, absent : ProbabilityScores
        On all samples, those with a seen and those with an absent label.
    gamma : float
        Added to the absent logits before softmax.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.probabilities import evaluate_probabilities
    >>> logits = np.log([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    >>> report = evaluate_probabilities(logits, [0, 1], [True, True, False])
    >>> round(report.all.nll, 4), report.absent.n
    (1.4979, 0)
    """

    all: ProbabilityScores[ArrayT]
    seen: ProbabilityScores[ArrayT]
    absent: ProbabilityScores[ArrayT]
    gamma: float

    def to_pandas(self) -> DataFrame:
        """Return a table with a row for the seen, the absent and all samples: gamma, and the scores but the bins."""
        groups = ("seen", "absent", "all")
        scores = [plain_fields(getattr(self, group), leave_out=("bins", "equal_mass_bins")) for group in groups]
        return data_frame([{"gamma": self.gamma, **of_group} for of_group in scores], groups, "samples")

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw accuracy against confidence; see `finecal.plots.plot_reliability` (needs the extra ``plots``)."""
        axes: Axes = lazy.plots().plot_reliability(self, ax, **style)
        return axes

    def _blocks(self) -> list[Block]:
        return [[f"gamma = {self.gamma:.6g}", _table(self)]]


@takes_samples
def evaluate_probabilities(
    logits: Logits, labels: Labels, seen_mask: Mask, gamma: SupportsFloat = 0.0, n_bins: int = 15
) -> ProbabilityReport[Any]:
    r"""Return how good the probabilities are at `gamma`, on seen, absent and all classes.

    With :math:`p = \operatorname{softmax}(\tilde z)` of the logits with gamma on the absent ones, and the predicted
    class :math:`\hat y` of `predict`,

    .. math::
        \text{NLL} &= -\langle \log p_y \rangle, \qquad
        \text{Brier} = \Big\langle \sum_c (p_c - [c = y])^2 \Big\rangle \\
        \text{ECE} &= \sum_b \frac{n_b}{n} \big| \langle \hat y = y \rangle_b - \langle p_{\hat y} \rangle_b \big| \\
        \text{classwise ECE} &= \frac1{|G|} \sum_{c \in G} \sum_b \frac{n_{cb}}{n}
            \big| \langle y = c \rangle_{cb} - \langle p_c \rangle_{cb} \big|

    where b runs over bins of the confidence :math:`p_{\hat y}`, and of :math:`p_c` in bins of equal width for class c.

    Parameters
    ----------
    logits, labels, seen_mask
        As in `evaluate`, with its errors and warnings; -inf masks a class. Scores without samples are NaN.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        In units of the logits. ValueError if it is not finite.
    n_bins : int, default 15
        TypeError or ValueError if it is not a positive integer.

    Returns
    -------
    ProbabilityReport
        With bins of the type and device of `logits`. If -inf masks all classes of a row, it warns and counts the row as
        uniform, as rows of equal logits are.

    Notes
    -----
    `O(NC + N log N)` in float64, on tiles; nothing of size (N, C) is allocated, but sums of size (C, B). Bins of equal
    mass have their edges at the quantiles of the confidences. The groups of the classwise error (Kull et al., NeurIPS
    2019) are groups of classes, each over all samples: among samples with a seen label alone every absent class would
    look overconfident. For the same reason no model has an ECE of zero on both groups of samples. ECE: Naeini et al.,
    AAAI 2015; Guo et al., ICML 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.probabilities import evaluate_probabilities
    >>> logits = np.log([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3]])
    >>> report = evaluate_probabilities(logits, [0, 1, 2], [True, True, False])
    >>> round(report.all.nll, 4), round(report.all.ece, 4), round(report.seen.brier, 4)
    (1.3999, 0.2667, 0.92)
    """
    given = samples_of(logits, labels)
    scan = given.scan(seen_mask)
    scan.warn()
    shift, width = gamma_as_float(gamma), equal_width_edges(check_bins(n_bins), scan.logits.device)
    samples, class_excess = score_samples(scan, shift, width)
    edges = {WIDTH: width, MASS: equal_mass_edges(samples.confidence, width)}
    sums = probability_sums(samples, class_excess, edges)
    return report_from_sums(sums, scan.mask, shift, edges, as_type_of(given.logits))


def report_from_sums(
    sums: Mapping[str, Tensor], mask: Tensor, gamma: float, edges: Mapping[str, Tensor], out: Callable[[Tensor], Any]
) -> ProbabilityReport[Any]:
    """Make the report of what `probability_sums` added up."""
    masked = int(sums["all_masked"])
    if masked:
        warn(
            f"logits are -inf on all classes in {masked} of {int(sums['width_count'].sum())} samples, which leaves "
            "their probabilities undefined: they count as uniform over all classes; drop such samples"
        )
    every = torch.ones_like(mask)

    def scores(rows: slice, classes: Tensor) -> ProbabilityScores[Any]:
        count, correct, confidence, nll, brier = (
            sums[name][rows].sum() for name in ("width_count", "width_correct", "width_confidence", "nll", "brier")
        )
        width, mass = (_bins(sums, kind, rows, edges[kind]) for kind in (WIDTH, MASS))
        per_class = sums["class_excess"][classes].abs().sum(1).mean() / sums["width_count"].sum()
        return ProbabilityScores(
            int(count),
            float(correct.double() / count),
            float(confidence / count),
            float(nll / count),
            float(brier / count),
            _calibration_error(width),
            _calibration_error(mass),
            float(per_class),
            ReliabilityBins(out(width.edges), out(width.count), out(width.accuracy), out(width.confidence)),
            ReliabilityBins(out(mass.edges), out(mass.count), out(mass.accuracy), out(mass.confidence)),
        )

    return ProbabilityReport(scores(slice(0, 2), every), scores(slice(1, 2), mask), scores(slice(0, 1), ~mask), gamma)


def _bins(sums: Mapping[str, Tensor], kind: str, rows: slice, edges: Tensor) -> ReliabilityBins[Tensor]:
    count, correct, confidence = (sums[f"{kind}_{name}"][rows].sum(0) for name in ("count", "correct", "confidence"))
    return ReliabilityBins(edges, count, correct.double() / count, confidence / count)


def _calibration_error(bins: ReliabilityBins[Tensor]) -> float:
    share = bins.count.double() / bins.count.sum()
    return float((share * (bins.accuracy - bins.confidence).abs().nan_to_num()).sum())


def _table(report: ProbabilityReport[Any]) -> Table:
    groups = (report.seen, report.absent, report.all)
    rows = [[name, *(decimal(getattr(scores, key), 4) for scores in groups)] for name, key in _ROWS.items()]
    samples = ["samples", *(str(scores.n) for scores in groups)]
    return Table(["probabilities", "seen", "absent", "all"], [*rows, samples])
