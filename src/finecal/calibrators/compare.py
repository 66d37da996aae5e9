"""All estimators that the given data allow, side by side, and prototypes beside gamma alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Self

from torch import Tensor

from ..evaluation.curve import TradeoffCurve
from ..evaluation.evaluate import evaluate
from ..evaluation.report import SeenAbsentReport
from ..evaluation.samples import (
    Samples,
    SamplesLike,
    Scan,
    UnlabelledLike,
    labelled_samples,
    scan_batch,
    unlabelled_samples,
)
from ..gamma.absent_health import NO_FOLDS, retention_from_folds
from ..gamma.auto import AutoEstimator, estimate_gamma
from ..gamma.bootstrap import Bootstrap
from ..gamma.estimate import GammaEstimate, with_cost
from ..gamma.estimators import ESTIMATORS, Data
from ..gamma.folds import PseudoFold, list_folds
from ..gamma.same_samples import same_sample_warnings
from ..gamma.search import search_gamma
from ..gamma.seen_samples import SeenSamples
from ..inputs.arrays import Mask
from ..inputs.numbers import check_share
from ..inputs.warning import error_context, warn, without_warnings
from .comparison import ComparedEstimate, EstimatorComparison
from .prototypes_fit import fit_prototypes


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
    seen_mask : (C,) bool
        True for the seen classes.
    train : Samples, or (logits, labels), optional
        Samples that the model was fine-tuned on: `(N, C)` scores before softmax and `(N,)` class indices.
    held_out : Samples, or (logits, labels), optional
        Samples of the seen classes that it was not trained on; with features also the check of `fit_prototypes`.
    unlabelled : Samples, or (M, C) logits, optional
        Samples of all classes, in the proportions in which the model will be used; with features also for prototypes.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used, for the estimators that take it.
    folds : iterable of PseudoFold, optional
        From models that were fine-tuned on half of the seen classes; see `pseudo_cv`.
    labelled : Samples, or (logits, labels), optional
        Samples of all classes to estimate gamma from.
    test : Samples, or (logits, labels), optional
        Samples of all classes to score every gamma on, and perhaps the model before fine-tuning (`pretrained_logits`)
        and prototypes (`features`). No estimator but the oracle sees them.
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval of each; of whole groups where the samples have `groups`.
    seed : int, default 0
        Seed of the bootstrap, and of the pairs of `mixed_pair_gap`.

    Returns
    -------
    EstimatorComparison
        What an estimator warns of is in its row and in the print, and not issued; where the data do not allow one, its
        row says why.

    Raises
    ------
    TypeError, ValueError
        As `estimate_gamma`; ValueError if the data allow no estimator, or `test` is not of both groups.

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
    >>> print(
    ...     finecal.compare_estimators(
    ...         [True, True, False, False], train=(logits, labels)
    ...     )
    ... )  # doctest: +ELLIPSIS
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
    """One row: the name of an estimator, the data that it needs in words, and what makes the estimate."""

    method: str
    needs: str
    estimate: Callable[[], GammaEstimate]


class _Given(NamedTuple):
    """The data, and which estimators they allow."""

    seen_mask: Mask
    options: Bootstrap
    samples: Mapping[str, SeenSamples]
    """The labelled seen ones: "train", "held_out"."""
    unlabelled: Samples | None
    share: float | None
    folds: Sequence[PseudoFold] | None
    labelled: Samples | None

    def check(self) -> None:
        """Read the data that nothing has read yet, so that an error in them is one of the call and not of a row."""
        if self.labelled is not None:
            self.labelled.scan(self.seen_mask)
        if self.unlabelled is not None:
            self.unlabelled.margin(self.seen_mask)
            self.unlabelled.check_not_empty("compare_estimators")

    @property
    def best(self) -> tuple[str, Scan]:
        """The labelled seen samples that tell what gamma costs, by name."""
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
        """Yield what the data allow: the estimators of the table, each kind of data followed by `estimate_gamma`."""
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
        """Return `estimate_gamma` on the labelled samples of these names, and what else is given.

        What is found in labelled samples is found once for all such attempts.
        """
        samples = {name: self.samples[name] for name in names}

        def estimate() -> GammaEstimate:
            retention = NO_FOLDS if folds is None else retention_from_folds(folds, self.seen_mask)
            return AutoEstimator(self.seen_mask, samples, retention, self.options).estimate(unlabelled, seen_share)

        return _Attempt(estimate_gamma.__name__, needs, estimate)


class _Scores(NamedTuple):
    """What every gamma is scored on: the test samples."""

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
        replace(estimate, expected_acc_seen=left),
        report=report,
        recovered=scores.recovered(report),
        prototypes=prototypes.report,
    )
