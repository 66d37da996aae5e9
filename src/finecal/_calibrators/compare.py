"""All estimators that the given data allow, side by side, and prototypes beside gamma alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from torch import Tensor

from .._core import results as lazy
from .._core.arrays import Mask, check_share
from .._core.curve import TradeoffCurve, evaluate
from .._core.groups import Bootstrap
from .._core.report import SeenAbsentReport
from .._core.results import UNDEFINED, Block, Caution, Result, Table, data_frame, decimal, percent
from .._core.samples import Samples, SamplesLike, Scan, UnlabelledLike, labelled_samples, scan_batch, unlabelled_samples
from .._core.warning import error_context, warn, without_warnings
from .._estimators.auto import AutoEstimator, estimate_gamma
from .._estimators.estimate import GammaEstimate, with_cost
from .._estimators.evidence import NO_FOLDS, SeenSamples, retention_from_folds
from .._estimators.folds import PseudoFold, list_folds
from .._estimators.search import search_gamma
from .._estimators.table import ESTIMATORS, Data
from .._estimators.unlabelled import same_sample_warnings
from .prototypes import PrototypesReport, fit_prototypes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

_OF_ESTIMATE = ("gamma", "n", "acc_seen_at_gamma", "acc_seen_at_zero", "seen_share")
_OF_REPORT = ("acc_all", "acc_seen", "acc_absent", "harmonic_mean", "balanced")


@dataclass(frozen=True)
class ComparedEstimate:
    """One row of an `EstimatorComparison`.

    Attributes
    ----------
    method, needs : str
        Name of the function, and the data it was given, in words.
    estimate, error : GammaEstimate or None, str or None
        The estimate is None where the data did not allow it; `error` gives the reason.
    report : SeenAbsentReport or None
        The accuracies on the test samples at this gamma, if there are any.
    recovered : float or None
        Share of the oracle's gain in `Acc_{Y/Y}` on the test samples; None without them, or if the oracle gains
        nothing. With prototypes it may exceed 1: the oracle has gamma alone.
    prototypes : PrototypesReport or None
        In the row with prototypes, the report on them. There `estimate` is the gamma that they were made with, its
        `acc_seen_at_gamma` is with both (None without features of held-out samples), and `report` is of their logits.

    Examples
    --------
    >>> import finecal
    >>> samples = [[9.0, 4, 1, 2], [3.0, 8, 0, 1]], [0, 1]
    >>> mask = [True, True, False, False]
    >>> finecal.compare_estimators(mask, train=samples).rows[1].needs
    'training logits'
    """

    method: str
    needs: str
    estimate: GammaEstimate | None
    error: str | None = None
    report: SeenAbsentReport | None = None
    recovered: float | None = None
    prototypes: PrototypesReport | None = None


@dataclass(frozen=True)
class EstimatorComparison(Result):
    """Estimators of gamma side by side; made by `compare_estimators`. Prints as a Markdown table, with the warnings.

    Attributes
    ----------
    rows : tuple of ComparedEstimate
        Those that need least come first; prototypes follow the gamma that they were made with; the last one is the
        oracle where there are test samples of both groups.
    uncalibrated, pretrained : SeenAbsentReport or None
        Accuracies on the test samples at gamma = 0, and those of the model before fine-tuning.
    cost_data : str or None
        The samples that the cost to the seen classes was measured on.
    """

    rows: tuple[ComparedEstimate, ...]
    uncalibrated: SeenAbsentReport | None = None
    pretrained: SeenAbsentReport | None = None
    cost_data: str | None = None

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per estimator: its estimate, and the accuracies at its gamma; NaN where unknown."""
        return data_frame([_record(row) for row in self.rows])

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw what each estimator reaches; see `finecal.plots.plot_estimators` (needs the extra ``plots``)."""
        axes: Axes = lazy.plots().plot_estimators(self, ax, **style)
        return axes

    def _blocks(self) -> Iterator[Block]:
        """The table, its notes, and the estimators' warnings."""
        with_interval = any(row.estimate is not None and row.estimate.interval is not None for row in self.rows)
        models = [("pre-trained", self.pretrained), ("fine-tuned", self.uncalibrated)]
        models += [("with prototypes", row.report) for row in self.rows if row.prototypes is not None]
        reports = [(name, report) for name, report in models if report is not None]
        yield [_table(self, with_interval)]
        if reports:
            notes = (
                f"{name} {percent(at.acc_seen_within)}, {percent(at.acc_absent_within)} and {decimal(at.ausuc, 3)}"
                for name, at in reports
            )
            yield [f"Acc_S/S, Acc_U/U and AUSUC, which no gamma changes: {'; '.join(notes)}."]
        if with_interval:
            yield ["Interval: 95 % sampling interval of gamma; of estimate_gamma with the error of the method."]
        if self.cost_data is not None:
            yield [f"Cost: points of Acc_S/Y lost against gamma = 0, on {self.cost_data}."]
        for row in self.rows:
            if row.error is not None:
                yield [f"Not possible: {row.method} from {row.needs}: {row.error}"]
            for sentence in _warnings(row):
                yield [Caution(f"Warning of {row.method} from {row.needs}: {sentence}")]


def _warnings(row: ComparedEstimate) -> tuple[str, ...]:
    """Return the warnings of the prototypes if it has any, else of gamma."""
    source = row.estimate if row.prototypes is None else row.prototypes
    return () if source is None else source.warnings


def _record(row: ComparedEstimate) -> dict[str, Any]:
    """Return the row without nesting, NaN for each number that there is not."""
    interval = None if row.estimate is None else row.estimate.interval
    low, high = interval or (None, None)
    numbers = {
        **{name: getattr(row.estimate, name, None) for name in _OF_ESTIMATE},
        "interval_low": low,
        "interval_high": high,
        **{name: getattr(row.report, name, None) for name in _OF_REPORT},
        "recovered": row.recovered,
    }
    return {
        "method": row.method,
        "needs": row.needs,
        **{name: math.nan if value is None else value for name, value in numbers.items()},
        "warnings": "; ".join(_warnings(row)),
        "error": row.error,
    }


def _table(comparison: EstimatorComparison, with_interval: bool) -> Table:
    with_test = comparison.uncalibrated is not None
    columns = ["gamma", *["interval"] * with_interval]
    columns += ["cost"] * (comparison.cost_data is not None)
    columns += ["S/Y", "U/Y", "Y/Y", "harmonic", "recovered"] * with_test
    places = _places([row.estimate.gamma for row in comparison.rows if row.estimate is not None])

    def line(name: str, needs: str, cells: dict[str, str]) -> list[str]:
        return [name, *(cells.get(column, "") for column in columns), needs]

    lines = []
    if comparison.pretrained is not None:
        lines.append(line("pre-trained", "", _accuracies(comparison.pretrained)))
    if comparison.uncalibrated is not None:
        lines.append(line("fine-tuned", "", {"gamma": "0", **_accuracies(comparison.uncalibrated)}))
    lines += [line(row.method, row.needs, _cells(row, places)) for row in comparison.rows]
    return Table(["Acc in %" if with_test else "estimator", *columns, "needs"], lines)


def _places(gammas: Sequence[float]) -> int:
    """Return the decimals that show the largest gamma to three digits, two at least."""
    largest = max(map(abs, gammas), default=0.0)
    return max(2, 2 - math.floor(math.log10(largest))) if largest > 0 else 2


def _cells(row: ComparedEstimate, places: int) -> dict[str, str]:
    estimate = row.estimate
    if estimate is None:
        return {"gamma": UNDEFINED}
    cells = {"gamma": f"{estimate.gamma:.{places}f}"}
    if estimate.interval is not None:
        cells["interval"] = ", ".join(f"{end:.{places}f}" for end in estimate.interval)
    if estimate.acc_seen_at_gamma is not None and estimate.acc_seen_at_zero is not None:
        cells["cost"] = percent(estimate.acc_seen_at_zero - estimate.acc_seen_at_gamma)
    if row.report is not None:
        cells |= _accuracies(row.report)
    if row.recovered is not None:
        cells["recovered"] = percent(row.recovered, 0)
    return cells


def _accuracies(at: SeenAbsentReport) -> dict[str, str]:
    shown = {"S/Y": at.acc_seen, "U/Y": at.acc_absent, "Y/Y": at.acc_all, "harmonic": at.harmonic_mean}
    return {column: percent(value) for column, value in shown.items()}


def compare_estimators(
    seen_mask: Mask,
    *,
    train: SamplesLike | None = None,
    held_out: SamplesLike | None = None,
    unlabelled: UnlabelledLike | None = None,
    seen_share: float | None = None,
    folds: Iterable[PseudoFold] | None = None,
    labelled: SamplesLike | None = None,
    test: SamplesLike | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> EstimatorComparison:
    """Estimate gamma in every way that the given data allow, and score each on labelled test samples if there are any.

    ==================================  ============================================================================
    given                               estimators
    ==================================  ============================================================================
    `train`                             `average_logit_gap`, `max_logit_gap`, `mixed_pair_gap`, `estimate_gamma`
    `held_out`                          the first three, `residual_gap`, `seen_budget_gamma`
    `train`, `held_out`                 `estimate_gamma` on both
    `folds`                             `pseudo_cv_gamma`
    `folds`, labelled ones              `estimate_gamma` on `folds` with `train`, `held_out` or both
    `unlabelled`, `held_out`            `mixture_gamma`, `estimate_gamma`
    `unlabelled`, `seen_share`          `known_share_gamma`, and `estimate_gamma` with labelled ones
    `labelled`                          `search_gamma`
    `test`                              none: the scores, and `search_gamma` on it, the oracle
    `unlabelled`, `test` with features  `fit_prototypes` with the gamma of the last row of `estimate_gamma`
    ==================================  ============================================================================

    Parameters
    ----------
    seen_mask, train, held_out, unlabelled, seen_share, folds
        As in `estimate_gamma`. Features of `unlabelled` are for prototypes, those of `held_out` for their check.
    labelled : Samples, or (logits, labels), optional
        Samples of all classes to estimate gamma from.
    test : Samples, or (logits, labels), optional
        Samples of all classes to score every gamma on, and perhaps the model before fine-tuning (`pretrained_logits`)
        and prototypes (`features`). No estimator but the oracle sees them.
    n_bootstrap, seed : int, default 0
        As in `estimate_gamma`, for each estimator.

    Returns
    -------
    EstimatorComparison
        Warnings of an estimator are in its row and in the print, and not issued; so is the reason if the data do not
        allow one.

    Raises
    ------
    TypeError, ValueError
        As `estimate_gamma`; ValueError also if the data allow no estimator, or `test` is not of both groups.

    Warns
    -----
    FinecalWarning
        If `unlabelled` cannot be used; `unlabelled` and `test` are given, and features of them or of `held_out` cannot
        be used; `train` and `held_out`, or `labelled` and `test`, are the same samples; or labels look re-indexed to
        0..|S|-1.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]], (20, 1))
    >>> labels = np.tile([0, 1], 20)
    >>> mask = [True, True, False, False]
    >>> comparison = finecal.compare_estimators(mask, train=(logits, labels))
    >>> print(comparison)  # doctest: +ELLIPSIS
    | estimator         | gamma | cost | needs           |
    | ----------------- | ----: | ---: | --------------- |
    | average_logit_gap |  2.50 |  0.0 | training logits |
    ...
    | estimate_gamma    |  5.14 |  0.0 | training logits |
    <BLANKLINE>
    Cost: points of Acc_S/Y lost against gamma = 0, on 40 training samples.
    """
    options = Bootstrap.from_arguments(n_bootstrap, seed)
    scored = None if test is None else labelled_samples(test, "test")
    given = _Given(
        seen_mask,
        options,
        {
            name: SeenSamples(labelled_samples(value, name), seen_mask, "compare_estimators", options)
            for name, value in (("train", train), ("held_out", held_out))
            if value is not None
        },
        None if unlabelled is None else unlabelled_samples(unlabelled, "unlabelled"),
        None if seen_share is None else check_share(seen_share, "seen_share"),
        None if folds is None else list_folds(folds),
        None if labelled is None else labelled_samples(labelled, "labelled"),
    )
    given.check()
    attempts = list(given.attempts())
    if not attempts:
        raise ValueError(
            "no data to estimate gamma from: pass train=, held_out=, folds= or labelled=, or unlabelled= with "
            "held_out= or seen_share="
        )
    scores = None if scored is None else _Scores.of(scored, seen_mask, options)
    has_prototypes = _have_features(given, scored)
    if given.unlabelled is not None and given.share is None and "held_out" not in given.samples and not has_prototypes:
        warn("unlabelled samples were not used: mixture_gamma needs held_out=, known_share_gamma needs seen_share=")
    for sentence in given.same_samples(scored):
        warn(sentence)
    rows = [_row(attempt) for attempt in attempts]
    if scores is not None:
        rows.append(ComparedEstimate("oracle", "test labels", scores.oracle))
    cost_data = None
    if given.samples:
        name, scan = given.best
        source = f"{_IN_WORDS[name]} samples"
        rows = [
            row if row.estimate is None else replace(row, estimate=with_cost(row.estimate, scan, source))
            for row in rows
        ]
        cost_data = f"{len(scan.labels)} {source}"
    if scores is None:
        return EstimatorComparison(tuple(rows), cost_data=cost_data)
    rows = [_with_report(row, scores) for row in rows]
    if has_prototypes:
        rows = _with_prototypes(rows, given, scores)
    return EstimatorComparison(tuple(rows), scores.curve.at(0.0), scores.pretrained, cost_data)


_IN_WORDS = {"train": "training", "held_out": "held-out"}


class _Attempt(NamedTuple):
    """One row: estimator, needs in words, and the function that makes the estimate."""

    method: str
    needs: str
    estimate: Callable[[], GammaEstimate]


class _Given(NamedTuple):
    """The data, and the estimators that they allow."""

    seen_mask: Mask
    options: Bootstrap
    samples: Mapping[str, SeenSamples]
    """The labelled seen ones: "train", "held_out"."""
    unlabelled: Samples | None
    share: float | None
    folds: Sequence[PseudoFold] | None
    labelled: Samples | None

    def check(self) -> None:
        """Check the data that no estimator has read, so that their errors are of the call and not of a row."""
        if self.labelled is not None:
            self.labelled.scan(self.seen_mask)
        if self.unlabelled is not None:
            self.unlabelled.margin(self.seen_mask)
            self.unlabelled.check_not_empty("compare_estimators")

    @property
    def best(self) -> tuple[str, Scan]:
        """The labelled seen samples that gamma's cost is measured on, with their name."""
        name = "held_out" if "held_out" in self.samples else "train"
        return name, self.samples[name].scan

    def same_samples(self, test: Samples | None) -> list[str]:
        """Return a warning for each two arguments that hold the same samples and should not."""
        sentences = []
        if len(self.samples) == 2:
            train, held_out = (of.samples for of in self.samples.values())
            remedy = "the cost on samples that the model was trained on is too low: give others as held_out"
            sentences += same_sample_warnings(train, held_out, self.seen_mask, remedy)
        if self.labelled is not None and test is not None:
            remedy = "scores on samples that gamma was chosen on are too high: split the labelled samples"
            sentences += same_sample_warnings(self.labelled, test, self.seen_mask, remedy)
        return sentences

    def attempts(self) -> Iterator[_Attempt]:
        """Yield the estimators that the data allow, each kind of data followed by `estimate_gamma`."""
        for name, of in self.samples.items():
            words = _IN_WORDS[name]
            given, share = (of.samples, self.seen_mask), f"{words}, seen share"
            yield from self._of(Data.SEEN, f"{words} logits", given, share)
            if name == "held_out":
                yield from self._of(Data.HELD_OUT, f"{words} logits", given, share)
            else:
                needs = "training logits" if self.share is None else "training, seen share"
                yield self._auto(needs, ("train",), seen_share=self.share)
        both = tuple(self.samples)
        some = "both" if len(both) == 2 else "".join(_IN_WORDS[name] for name in both)
        if len(both) == 2:
            needs = "train, held-out" if self.share is None else "train, held-out, share"
            yield self._auto(needs, both, seen_share=self.share)
        if self.folds is not None:
            refits = f"{len(self.folds)} refits"
            yield from self._of(Data.FOLDS, refits, (self.folds, self.seen_mask))
            if both:
                yield self._auto(f"{some}, {refits}", both, seen_share=self.share, folds=self.folds)
        if self.unlabelled is not None and "held_out" in self.samples:
            mixture = self.samples["held_out"].samples, self.unlabelled, self.seen_mask
            yield from self._of(Data.MIXTURE, "held-out, unlabelled", mixture)
            yield self._auto(f"{some}, unlabelled", both, unlabelled=self.unlabelled)
        if self.unlabelled is not None and self.share is not None:
            needs = "unlabelled, share"
            yield from self._of(Data.SHARE, needs, (self.unlabelled, self.seen_mask), needs)
            if both:
                yield self._auto(f"known share, {some}", both, unlabelled=self.unlabelled, seen_share=self.share)
        if self.labelled is not None:
            yield from self._of(Data.LABELLED, "labelled samples", (self.labelled, self.seen_mask))

    def _of(self, data: Data, needs: str, given: tuple[Any, ...], with_share: str = "") -> Iterator[_Attempt]:
        """Yield the estimators from these data; `with_share` is what those need that make use of a known share."""
        for estimator in ESTIMATORS:
            if estimator.data is data:
                takes_share = self.share is not None and "seen_share" in estimator.options
                keywords: dict[str, Any] = {"seen_share": self.share} if takes_share else {}
                options = {"n_bootstrap": self.options.n, "seed": self.options.seed}
                estimate = partial(estimator.function, *given, **estimator.arguments, **keywords, **options)
                yield _Attempt(estimator.name, with_share if takes_share else needs, estimate)

    def _auto(
        self,
        needs: str,
        names: Sequence[str],
        *,
        unlabelled: Samples | None = None,
        seen_share: float | None = None,
        folds: Sequence[PseudoFold] | None = None,
    ) -> _Attempt:
        """Return `estimate_gamma` on the labelled samples of these names, whose statistics all attempts share."""
        samples = {name: self.samples[name] for name in names}

        def estimate() -> GammaEstimate:
            retention = NO_FOLDS if folds is None else retention_from_folds(folds, self.seen_mask)
            return AutoEstimator(self.seen_mask, samples, retention, self.options).estimate(unlabelled, seen_share)

        return _Attempt(estimate_gamma.__name__, needs, estimate)


class _Scores(NamedTuple):
    """The test samples, and the scores to compare with."""

    test: Samples
    curve: TradeoffCurve[Tensor]
    oracle: GammaEstimate
    pretrained: SeenAbsentReport | None

    @classmethod
    def of(cls, test: Samples, seen_mask: Mask, options: Bootstrap) -> Self:
        scan = test.scan(seen_mask)
        scan.warn()
        with without_warnings():
            oracle = search_gamma(test, seen_mask, n_bootstrap=options.n, seed=options.seed)
        before = test.pretrained_tensor
        if before is None:
            return cls(test, scan.margins.curve(), oracle, None)
        with error_context(test.called("pretrained_logits")):
            return cls(test, scan.margins.curve(), oracle, evaluate(before, scan.labels, seen_mask))

    def recovered(self, report: SeenAbsentReport) -> float | None:
        """Return the share of the oracle's gain that a report has, if there is any."""
        before = self.curve.at(0.0).acc_all
        gain = self.curve.at(self.oracle).acc_all - before
        return (report.acc_all - before) / gain if gain > 0 else None


def _row(attempt: _Attempt) -> ComparedEstimate:
    method, needs, estimate = attempt
    try:
        with without_warnings():  # They are in the row, and in the print.
            return ComparedEstimate(method, needs, estimate())
    except ValueError as error:
        return ComparedEstimate(method, needs, None, str(error))


def _with_report(row: ComparedEstimate, scores: _Scores) -> ComparedEstimate:
    """Score the row's gamma on the test samples."""
    if row.estimate is None:
        return row
    report = scores.curve.at(row.estimate)
    return replace(row, report=report, recovered=scores.recovered(report))


def _have_features(given: _Given, test: Samples | None) -> bool:
    """Return whether there is what prototypes need; warn if that is unlabelled and test samples, without all features.

    Where one of the two is missing, nobody expects prototypes: features come along with the samples.
    """
    held_out = given.samples["held_out"].samples if "held_out" in given.samples else None
    needed = given.unlabelled, test
    if all(of is not None and of.features_tensor is not None for of in needed) and given.samples:
        return True
    given_both = all(of is not None for of in needed)
    if given_both and any(of is not None and of.features_tensor is not None for of in (*needed, held_out)):
        warn("features were not used: prototypes need those of unlabelled and of test, and train= or held_out=")
    return False


def _with_prototypes(rows: Sequence[ComparedEstimate], given: _Given, scores: _Scores) -> list[ComparedEstimate]:
    """Put a row with prototypes after the last `estimate_gamma`, which is the one from the most data."""
    done = [index for index, row in enumerate(rows) if row.method == "estimate_gamma" and row.estimate is not None]
    if not done:
        return list(rows)
    end = done[-1] + 1
    return [*rows[:end], _prototypes_row(rows[end - 1], given, scores), *rows[end:]]


def _prototypes_row(row: ComparedEstimate, given: _Given, scores: _Scores) -> ComparedEstimate:
    """Return a row like `row` with prototypes added to its gamma."""
    estimate, test = row.estimate, scores.test
    assert estimate is not None
    assert given.unlabelled is not None
    held_out = given.samples["held_out"].samples if "held_out" in given.samples else None
    check = None if held_out is None or held_out.features_tensor is None else held_out
    with without_warnings():  # As above.
        prototypes = fit_prototypes(given.unlabelled, given.seen_mask, estimate, held_out=check)
        with test.naming_errors():
            logits = prototypes(test.logits_tensor, test.features_tensor)
            report = evaluate(logits, test.labels_tensor, given.seen_mask)
    left = None
    if check is not None:
        logits = prototypes(check.logits_tensor, check.features_tensor)
        left = scan_batch(logits, check.labels_tensor, prototypes.seen_mask).acc_seen(0.0)
    return ComparedEstimate(
        f"{row.method} + prototypes",
        f"{row.needs}, features",
        replace(estimate, acc_seen_at_gamma=left),
        report=report,
        recovered=scores.recovered(report),
        prototypes=prototypes.report,
    )
