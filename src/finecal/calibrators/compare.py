"""All estimators that the given data allow, side by side, and prototypes beside gamma alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ..evaluation.curve import TradeoffCurve
from ..evaluation.evaluate import evaluate, tradeoff_curve
from ..evaluation.report import SeenAbsentReport
from ..evaluation.scan import LabelledScan, scan_batch, scan_labelled, unlabelled_margins
from ..gamma.absent_health import NO_FOLDS, health_of_folds
from ..gamma.auto import GivenData, estimate_gamma
from ..gamma.bootstrap import Bootstrap
from ..gamma.estimate import GammaEstimate, scan_seen, with_cost
from ..gamma.estimators import ESTIMATORS, Data
from ..gamma.folds import PseudoFold, listed_folds
from ..gamma.given import (
    Labelled,
    LabelledFeatures,
    check_belongs,
    labelled_pair,
    labelled_with_features,
    logits_with_features,
)
from ..gamma.same_samples import Rows, doubts_about_same_samples
from ..gamma.search import search_gamma
from ..gamma.seen_samples import SeenSamples
from ..inputs.arrays import ArrayLike, Groups, Logits, Mask, as_tensor
from ..inputs.checks import check_not_empty
from ..inputs.features import check_features
from ..inputs.groups import check_groups, numbers_of
from ..inputs.numbers import check_share
from ..inputs.warning import naming, warn, without_warnings
from .comparison import ComparedEstimate, EstimatorComparison
from .prototypes_fit import fit_prototypes


def compare_estimators(
    seen_mask: Mask,
    *,
    train: Labelled | None = None,
    held_out: Labelled | LabelledFeatures | None = None,
    unlabelled: Logits | tuple[Logits, ArrayLike] | None = None,
    seen_share: float | None = None,
    folds: Iterable[PseudoFold] | None = None,
    labelled: Labelled | None = None,
    test: Labelled | LabelledFeatures | None = None,
    pretrained_logits: Logits | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
    train_groups: Groups | None = None,
    held_out_groups: Groups | None = None,
    unlabelled_groups: Groups | None = None,
    labelled_groups: Groups | None = None,
    test_groups: Groups | None = None,
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
    train : (logits, labels), optional
        Samples that the model was fine-tuned on: `(N, C)` scores before softmax and `(N,)` class indices. (The features
        that `estimate_gamma` takes are not taken here.)
    held_out : (logits, labels) or (logits, labels, features), optional
        Samples of the seen classes that it was not trained on; with features also the check of `fit_prototypes`.
    unlabelled : (M, C) logits or (logits, features), optional
        Samples of all classes, in the proportions in which the model will be used. Features, `(M, D)`, are what the
        final linear layer takes; pass them in a tuple, as a list of two is two rows of logits.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used, for the estimators that take it.
    folds : iterable of PseudoFold, optional
        From models that were fine-tuned on half of the seen classes; see `pseudo_cv`.
    labelled : (logits, labels), optional
        Samples of all classes to estimate gamma from.
    test : (logits, labels) or (logits, labels, features), optional
        Samples of all classes to score every gamma on. No estimator but the oracle sees them.
    pretrained_logits : (N, C) logits, optional
        The test samples, scored by the model before fine-tuning.
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval of each.
    seed : int, default 0
        Seed of the bootstrap, and of the pairs of `mixed_pair_gap`.
    train_groups, held_out_groups, unlabelled_groups, labelled_groups, test_groups : (N,) int, optional
        Which picture (patient, document) each sample comes from, for the estimators that take `groups`.

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
        If `unlabelled` or features cannot be used; `train` and `held_out`, or `labelled` and `test`, are the same
        samples; or labels look re-indexed to 0..|S|-1.

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
    options = Bootstrap.checked(n_bootstrap, seed)
    held_out_pair, held_out_features = labelled_with_features(held_out, "held_out")
    test_pair, test_features = labelled_with_features(test, "test")
    unlabelled_logits, unlabelled_features = logits_with_features(unlabelled, "unlabelled")
    given = _Given(
        seen_mask,
        options,
        _samples(seen_mask, (train, held_out_pair), (train_groups, held_out_groups), options),
        unlabelled_logits,
        None if seen_share is None else check_share(seen_share, "seen_share"),
        None if folds is None else listed_folds(folds),
        _labelled_of_all(labelled, seen_mask, labelled_groups),
    )
    for name, of_each, samples in (("unlabelled", unlabelled_groups, unlabelled), ("test", test_groups, test)):
        check_belongs(of_each, samples, name)
    if unlabelled_logits is not None:
        count = len(unlabelled_margins(unlabelled_logits, seen_mask, "unlabelled"))
        check_not_empty(count, "compare_estimators", "unlabelled")
        groups = check_groups(unlabelled_groups, count, "unlabelled_groups", "unlabelled")
        given = given._replace(unlabelled_groups=numbers_of(groups))
    if pretrained_logits is not None and test is None:
        raise ValueError("pretrained_logits are of the test samples: pass test=(logits, labels) as well")
    attempts = list(given.attempts())
    if not attempts:
        raise ValueError(
            "no data to estimate gamma from: pass train=, held_out=, folds= or labelled=, or unlabelled= with "
            "held_out= or seen_share="
        )
    scores = _scores(test_pair, pretrained_logits, seen_mask, options, test_groups)
    features = _features(given, scores, unlabelled_features, held_out_features, test_features)
    if unlabelled is not None and given.share is None and "held-out" not in given.samples and features is None:
        warn("unlabelled samples were not used: mixture_gamma needs held_out=, known_share_gamma needs seen_share=")
    for sentence in given.same_samples(scores):
        warn(sentence)
    rows = [_row(attempt) for attempt in attempts]
    if scores is not None:
        rows.append(ComparedEstimate("oracle", "test labels", scores.oracle))
    cost_data = None
    if given.samples:
        name, scan = given.best
        source = f"{name} samples"
        rows = [
            row if row.estimate is None else replace(row, estimate=with_cost(row.estimate, scan, source))
            for row in rows
        ]
        cost_data = f"{len(scan.labels)} {source}"
    if scores is None:
        return EstimatorComparison(tuple(rows), cost_data=cost_data)
    rows = [_with_report(row, scores) for row in rows]
    if features is not None:
        rows = _with_prototypes(rows, given, scores, features)
    return EstimatorComparison(tuple(rows), scores.curve.at(0.0), scores.pretrained, cost_data)


def _samples(
    seen_mask: Mask,
    values: tuple[object, object],
    groups: tuple[Groups | None, Groups | None],
    options: Bootstrap,
) -> dict[str, SeenSamples]:
    samples = {}
    names = ("train", "training"), ("held_out", "held-out")
    for (argument, name), value, of_each in zip(names, values, groups, strict=True):
        pair = labelled_pair(value, argument)
        check_belongs(of_each, pair, argument)
        if pair is not None:
            with naming(argument):
                scan = scan_seen(
                    *pair,
                    seen_mask,
                    "compare_estimators",
                    min_seen=1,
                    groups=of_each,
                    groups_name=f"{argument}_groups",
                )
            samples[name] = SeenSamples(scan, options, are_new=argument == "held_out")
    return samples


def _labelled_of_all(labelled: object, seen_mask: Mask, groups: Groups | None) -> LabelledScan | None:
    pair = labelled_pair(labelled, "labelled")
    check_belongs(groups, pair, "labelled")
    if pair is None:
        return None
    with naming("labelled"):
        return scan_labelled(*pair, seen_mask, groups, "labelled_groups")


class _Attempt(NamedTuple):
    """One row: the name of an estimator, the data that it needs in words, and what makes the estimate."""

    method: str
    needs: str
    estimate: Callable[[], GammaEstimate]


class _Given(NamedTuple):
    """The data, checked, and what they allow."""

    seen_mask: Mask
    options: Bootstrap
    samples: Mapping[str, SeenSamples]
    """The labelled seen ones: "training", "held-out"."""
    unlabelled: Logits | None
    share: float | None
    folds: Sequence[PseudoFold] | None
    labelled: LabelledScan | None
    unlabelled_groups: Tensor | None = None

    @property
    def best(self) -> tuple[str, LabelledScan]:
        """The labelled seen samples that tell what gamma costs, by name."""
        name = "held-out" if "held-out" in self.samples else "training"
        return name, self.samples[name].scan

    def same_samples(self, scores: _Scores | None) -> list[str]:
        """Return a warning for each two arguments that hold the same samples and should not."""
        sentences = []
        if len(self.samples) == 2:
            train, held_out = (Rows(of.scan.logits, of.scan.margin) for of in self.samples.values())
            remedy = "the cost on samples that the model was trained on is too low: give others as held_out"
            sentences += doubts_about_same_samples(train, held_out, ("train", "held_out"), remedy)
        if self.labelled is not None and scores is not None:
            labelled = Rows(self.labelled.logits, self.labelled.margin)
            remedy = "scores on samples that gamma was chosen on are too high: split the labelled samples"
            sentences += doubts_about_same_samples(labelled, scores.rows, ("labelled", "test"), remedy)
        return sentences

    def attempts(self) -> Iterator[_Attempt]:
        """Yield what the data allow: the estimators of the table, each kind of data followed by `estimate_gamma`."""
        for name, samples in self.samples.items():
            scan, is_new = samples.scan, name == "held-out"
            seen, share = (scan.logits, scan.labels, scan.mask), f"{name}, seen share"
            yield from self._of(Data.SEEN, f"{name} logits", seen, share, groups=numbers_of(scan.groups))
            if is_new:
                yield from self._of(Data.HELD_OUT, f"{name} logits", seen, share, groups=numbers_of(scan.groups))
            else:
                needs = "training logits" if self.share is None else "training, seen share"
                yield self._auto(needs, ("training",), seen_share=self.share)
        both = tuple(self.samples)
        some = "both" if len(both) == 2 else "".join(both)
        if len(both) == 2:
            needs = "train, held-out" if self.share is None else "train, held-out, share"
            yield self._auto(needs, both, seen_share=self.share)
        if self.folds is not None:
            refits = f"{len(self.folds)} refits"
            yield from self._of(Data.FOLDS, refits, (self.folds, self.seen_mask))
            if both:
                yield self._auto(f"{some}, {refits}", both, seen_share=self.share, folds=self.folds)
        if self.unlabelled is not None and "held-out" in self.samples:
            mixture = self.samples["held-out"].scan.logits, self.unlabelled, self.seen_mask
            yield from self._of(
                Data.MIXTURE,
                "held-out, unlabelled",
                mixture,
                seen_groups=numbers_of(self.samples["held-out"].scan.groups),
                unlabelled_groups=self.unlabelled_groups,
            )
            yield self._auto(f"{some}, unlabelled", both, unlabelled=self.unlabelled)
        if self.unlabelled is not None and self.share is not None:
            needs = "unlabelled, share"
            stream = self.unlabelled, self.seen_mask
            yield from self._of(Data.SHARE, needs, stream, needs, groups=self.unlabelled_groups)
            if both:
                yield self._auto(f"known share, {some}", both, unlabelled=self.unlabelled, seen_share=self.share)
        if self.labelled is not None:
            labelled = self.labelled.logits, self.labelled.labels, self.labelled.mask
            yield from self._of(Data.LABELLED, "labelled samples", labelled, groups=numbers_of(self.labelled.groups))

    def _of(
        self,
        data: Data,
        needs: str,
        arguments: tuple[Any, ...],
        with_share: str = "",
        **groups: Tensor | None,
    ) -> Iterator[_Attempt]:
        """Yield the estimators from these data; `with_share` is what those need that make use of a known share."""
        for estimator in ESTIMATORS:
            if estimator.data is data:
                takes_share = self.share is not None and "seen_share" in estimator.options
                keywords: dict[str, Any] = {"seen_share": self.share} if takes_share else {}
                keywords |= {name: of_each for name, of_each in groups.items() if of_each is not None}
                options = {"n_bootstrap": self.options.n, "seed": self.options.seed}
                estimate = partial(estimator.function, *arguments, **keywords, **options)
                yield _Attempt(estimator.name, with_share if takes_share else needs, estimate)

    def _auto(
        self,
        needs: str,
        names: Sequence[str],
        *,
        unlabelled: Logits | None = None,
        seen_share: float | None = None,
        folds: Sequence[PseudoFold] | None = None,
    ) -> _Attempt:
        """Return `estimate_gamma` on the labelled samples of these names, and what else is given.

        What is found in labelled samples is found once for all such attempts.
        """
        arguments = {"training": "train", "held-out": "held_out"}
        samples = {arguments[name]: self.samples[name] for name in names}

        def estimate() -> GammaEstimate:
            health = NO_FOLDS if folds is None else health_of_folds(folds, self.seen_mask)
            data = GivenData(self.seen_mask, samples, health, None, None, self.options)
            return data.estimate(unlabelled, seen_share, self.unlabelled_groups)

        return _Attempt(estimate_gamma.__name__, needs, estimate)


class _Scores(NamedTuple):
    """What every gamma is scored on: the test samples."""

    rows: Rows
    labels: ArrayLike
    curve: TradeoffCurve[Tensor]
    oracle: GammaEstimate
    pretrained: SeenAbsentReport | None

    def recovered(self, report: SeenAbsentReport) -> float | None:
        """Return the share of the oracle's gain that a report has, if there is any."""
        before = self.curve.at(0.0).acc_all
        gain = self.curve.at(self.oracle).acc_all - before
        return (report.acc_all - before) / gain if gain > 0 else None


def _scores(
    test: Labelled | None,
    pretrained_logits: Logits | None,
    seen_mask: Mask,
    options: Bootstrap,
    groups: Groups | None,
) -> _Scores | None:
    if test is None:
        return None
    with naming("test"):
        logits = as_tensor(test[0], "logits").detach()
        curve = tradeoff_curve(logits, test[1], seen_mask)
        rows = Rows(logits, curve.samples.margin)
        grouping = numbers_of(check_groups(groups, len(rows), "test_groups"))
        with without_warnings():
            oracle = search_gamma(*test, seen_mask, n_bootstrap=options.n, seed=options.seed, groups=grouping)
    if pretrained_logits is None:
        return _Scores(rows, test[1], curve, oracle, None)
    with naming("pretrained_logits"):
        pretrained = evaluate(as_tensor(pretrained_logits, "logits"), test[1], seen_mask)
    return _Scores(rows, test[1], curve, oracle, pretrained)


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


class _Features(NamedTuple):
    """What the final linear layer takes, of the samples that prototypes need."""

    unlabelled: Tensor
    held_out: Tensor | None
    test: Tensor


def _features(
    given: _Given,
    scores: _Scores | None,
    unlabelled: ArrayLike | None,
    held_out: ArrayLike | None,
    test: ArrayLike | None,
) -> _Features | None:
    """Check the features; warn, and return None, where they do not allow prototypes."""
    if unlabelled is None or test is None or scores is None or not given.samples:
        if any(features is not None for features in (unlabelled, held_out, test)):
            warn("features were not used: prototypes need those of unlabelled and of test, and train= or held_out=")
        return None

    def checked(name: str, features: ArrayLike, logits: Tensor) -> Tensor:
        with naming(name):
            return check_features(features, logits.shape[0], logits.device)

    return _Features(
        checked("unlabelled", unlabelled, as_tensor(given.unlabelled, "unlabelled")),
        None if held_out is None else checked("held_out", held_out, given.samples["held-out"].scan.logits),
        checked("test", test, scores.rows.logits),
    )


def _with_prototypes(
    rows: Sequence[ComparedEstimate], given: _Given, scores: _Scores, features: _Features
) -> list[ComparedEstimate]:
    """Put a row with prototypes after the last `estimate_gamma`, which is the one from the most data."""
    done = [index for index, row in enumerate(rows) if row.method == "estimate_gamma" and row.estimate is not None]
    if not done:
        return list(rows)
    end = done[-1] + 1
    return [*rows[:end], _prototypes_row(rows[end - 1], given, scores, features), *rows[end:]]


def _prototypes_row(row: ComparedEstimate, given: _Given, scores: _Scores, features: _Features) -> ComparedEstimate:
    """Return a row like `row` with prototypes added to its gamma."""
    estimate, held_out = row.estimate, given.samples.get("held-out")
    assert estimate is not None
    assert given.unlabelled is not None
    check = None
    if held_out is not None and features.held_out is not None:
        check = held_out.scan.logits, held_out.scan.labels, features.held_out
    with without_warnings():  # As above.
        prototypes = fit_prototypes(given.unlabelled, features.unlabelled, given.seen_mask, estimate, held_out=check)
        with naming("test"):
            logits = prototypes(scores.rows.logits, features.test)
            report = evaluate(logits, scores.labels, given.seen_mask)
    left = None
    if check is not None:
        left = scan_batch(prototypes(check[0], check[2]), check[1], prototypes.seen_mask).acc_seen(0.0)
    return ComparedEstimate(
        f"{row.method} + prototypes",
        f"{row.needs}, features",
        replace(estimate, expected_acc_seen=left),
        report=report,
        recovered=scores.recovered(report),
        prototypes=prototypes.report,
    )
