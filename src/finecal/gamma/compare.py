"""All estimators that the given data allow, side by side."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from ..evaluation.curve import TradeoffCurve
from ..evaluation.evaluate import evaluate, tradeoff_curve
from ..evaluation.scan import LabelledScan, scan_labelled, unlabelled_margins
from ..inputs.arrays import ArrayLike, as_tensor
from ..inputs.numbers import check_count, check_seed, check_share
from ..inputs.warning import naming, warn, without_warnings
from .auto import Labelled, estimate_gamma, labelled_pair
from .comparison import ComparedEstimate, EstimatorComparison
from .estimate import GammaEstimate, scan_seen, with_cost
from .fold_search import pseudo_cv_gamma
from .folds import PseudoFold, listed_folds
from .gaps import average_logit_gap, max_logit_gap
from .mixed_pairs import mixed_pair_gap
from .residuals import residual_gap
from .search import search_gamma
from .seen_budget import seen_budget_gamma
from .unlabelled import known_share_gamma, mixture_gamma


def compare_estimators(
    seen_mask: ArrayLike,
    *,
    train: Labelled | None = None,
    held_out: Labelled | None = None,
    unlabelled: ArrayLike | None = None,
    seen_share: float | None = None,
    folds: Iterable[PseudoFold] | None = None,
    labelled: Labelled | None = None,
    test: Labelled | None = None,
    pretrained_logits: ArrayLike | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> EstimatorComparison:
    """Estimate gamma in every way that the given data allow, and score each on labelled test samples if there are any.

    ===========================  ============================================================================
    given                        estimators
    ===========================  ============================================================================
    `train`                      `average_logit_gap`, `max_logit_gap`, `mixed_pair_gap`, `estimate_gamma`
    `held_out`                   the first three, `residual_gap`, `seen_budget_gamma`
    `train`, `held_out`          `estimate_gamma` on both
    `folds`                      `pseudo_cv_gamma`
    `folds`, labelled ones       `estimate_gamma` on `folds` with `train`, `held_out` or both
    `unlabelled`, `held_out`     `mixture_gamma`, `estimate_gamma`
    `unlabelled`, `seen_share`   `known_share_gamma`, and `estimate_gamma` with labelled ones
    `labelled`                   `search_gamma`
    `test`                       none: the scores, and `search_gamma` on it, the oracle
    ===========================  ============================================================================

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    train : (logits, labels), optional
        Samples that the model was fine-tuned on: `(N, C)` scores before softmax and `(N,)` class indices. (The features
        that `estimate_gamma` takes are not taken here.)
    held_out : (logits, labels), optional
        Samples of the seen classes that it was not trained on.
    unlabelled : (M, C) logits, optional
        Samples of all classes, in the proportions in which the model will be used.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used, for the estimators that take it.
    folds : iterable of PseudoFold, optional
        From models that were fine-tuned on half of the seen classes; see `pseudo_cv`.
    labelled : (logits, labels), optional
        Samples of all classes to estimate gamma from.
    test : (logits, labels), optional
        Samples of all classes to score every gamma on. No estimator but the oracle sees them.
    pretrained_logits : (N, C) logits, optional
        The test samples, scored by the model before fine-tuning.
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval of each.
    seed : int, default 0
        Of the resamplings, and of the pairs of `mixed_pair_gap`.

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
        If `unlabelled` cannot be used, or labels look re-indexed to 0..|S|-1.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]], (20, 1))
    >>> labels = np.tile([0, 1], 20)
    >>> print(finecal.compare_estimators([True, True, False, False], train=(logits, labels)))
    | estimator         | gamma | cost | needs           |
    | ----------------- | ----: | ---: | --------------- |
    | average_logit_gap |  2.50 |  0.0 | training logits |
    | max_logit_gap     |  2.00 |  0.0 | training logits |
    | mixed_pair_gap    |  5.00 |  0.0 | training logits |
    | estimate_gamma    |  5.00 |  0.0 | training logits |
    <BLANKLINE>
    Cost: points of Acc_S/Y lost against gamma = 0, on 40 training samples.
    """
    options = {"n_bootstrap": check_count(n_bootstrap, "n_bootstrap"), "seed": check_seed(seed)}
    share = None if seen_share is None else check_share(seen_share, "seen_share")
    scans = {}
    for argument, name, value in (("train", "training", train), ("held_out", "held-out", held_out)):
        pair = labelled_pair(value, argument)
        if pair is not None:
            with naming(argument):
                scans[name] = scan_seen(*pair, seen_mask, "compare_estimators", min_seen=1)
    labelled_scan, all_classes = None, labelled_pair(labelled, "labelled")
    if all_classes is not None:
        with naming("labelled"):
            labelled_scan = scan_labelled(*all_classes, seen_mask)
    if unlabelled is not None:
        unlabelled_margins(unlabelled, seen_mask, "unlabelled")
    if pretrained_logits is not None and test is None:
        raise ValueError("pretrained_logits are of the test samples: pass test=(logits, labels) as well")

    attempts = list(_attempts(seen_mask, scans, unlabelled, share, folds, labelled_scan))
    if not attempts:
        raise ValueError(
            "no data to estimate gamma from: pass train=, held_out=, folds= or labelled=, or unlabelled= with "
            "held_out= or seen_share="
        )
    if unlabelled is not None and share is None and "held-out" not in scans:
        warn("unlabelled samples were not used: mixture_gamma needs held_out=, known_share_gamma needs seen_share=")

    curve = oracle = pretrained = None
    test_pair = labelled_pair(test, "test")
    if test_pair is not None:
        labels = test_pair[1]
        with naming("test"):
            curve = tradeoff_curve(as_tensor(test_pair[0], "logits"), labels, seen_mask)
            with without_warnings():
                oracle = search_gamma(*test_pair, seen_mask, n_bootstrap=n_bootstrap, seed=seed)
        if pretrained_logits is not None:
            with naming("pretrained_logits"):
                pretrained = evaluate(as_tensor(pretrained_logits, "logits"), labels, seen_mask)

    rows = [_row(attempt, options) for attempt in attempts]
    if oracle is not None:
        rows.append(ComparedEstimate("oracle", "test labels", oracle))
    scan = scans.get("held-out") or scans.get("training")
    cost_data = None
    if scan is not None:
        rows = [row if row.estimate is None else replace(row, estimate=with_cost(row.estimate, scan)) for row in rows]
        cost_data = f"{len(scan.labels)} {'held-out' if 'held-out' in scans else 'training'} samples"
    if curve is None or oracle is None:
        return EstimatorComparison(tuple(rows), cost_data=cost_data)
    scored = tuple(_with_report(row, curve, oracle) for row in rows)
    return EstimatorComparison(scored, curve.at(0.0), pretrained, cost_data)


class _Attempt(NamedTuple):
    """An estimator, the data that it needs in words, and its arguments."""

    estimator: Callable[..., GammaEstimate]
    needs: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any] = {}


def _attempts(
    seen_mask: ArrayLike,
    scans: Mapping[str, LabelledScan],
    unlabelled: ArrayLike | None,
    share: float | None,
    folds: Iterable[PseudoFold] | None,
    labelled: LabelledScan | None,
) -> Iterator[_Attempt]:
    """Yield what the data allow."""
    arguments = {"training": "train", "held-out": "held_out"}
    labelled_seen = {arguments[name]: (scan.logits, scan.labels) for name, scan in scans.items()}
    for name, scan in scans.items():
        needs, seen = f"{name} logits", (scan.logits, scan.labels, scan.mask)
        needs_share = needs if share is None else f"{name}, seen share"
        yield _Attempt(average_logit_gap, needs, seen)
        yield _Attempt(max_logit_gap, needs, seen)
        yield _Attempt(mixed_pair_gap, needs_share, (*seen, share))
        if name == "training":
            keywords = {"train": labelled_seen["train"], "seen_share": share}
            yield _Attempt(estimate_gamma, needs_share, (seen_mask,), keywords)
        else:
            yield _Attempt(residual_gap, needs_share, (*seen, share))
            yield _Attempt(seen_budget_gamma, needs, seen)
    if len(scans) == 2:
        needs = "train, held-out" if share is None else "train, held-out, share"
        yield _Attempt(estimate_gamma, needs, (seen_mask,), {**labelled_seen, "seen_share": share})
    if folds is not None:
        refits = f"{len(folds)} refits" if isinstance(folds, Sequence) else "refits"
        folds = listed_folds(folds)  # To be read twice.
        yield _Attempt(pseudo_cv_gamma, refits, (folds, seen_mask))
        if scans:
            needs = f"both, {refits}" if len(scans) == 2 else f"{next(iter(scans))}, {refits}"
            yield _Attempt(estimate_gamma, needs, (seen_mask,), {**labelled_seen, "seen_share": share, "folds": folds})
    if unlabelled is not None and "held-out" in scans:
        yield _Attempt(mixture_gamma, "held-out, unlabelled", (scans["held-out"].logits, unlabelled, seen_mask))
        needs = "held-out, unlabelled" if len(scans) == 1 else "both, unlabelled"
        yield _Attempt(estimate_gamma, needs, (seen_mask,), {**labelled_seen, "unlabelled": unlabelled})
    if unlabelled is not None and share is not None:
        yield _Attempt(known_share_gamma, "unlabelled, share", (unlabelled, seen_mask, share))
        if scans:
            needs = f"known share, {'both' if len(scans) == 2 else next(iter(scans))}"
            yield _Attempt(
                estimate_gamma, needs, (seen_mask,), {**labelled_seen, "unlabelled": unlabelled, "seen_share": share}
            )
    if labelled is not None:
        yield _Attempt(search_gamma, "labelled samples", (labelled.logits, labelled.labels, labelled.mask))


def _row(attempt: _Attempt, options: Mapping[str, int]) -> ComparedEstimate:
    name = attempt.estimator.__name__
    try:
        with without_warnings():  # They are in the row, and in the print.
            estimate = attempt.estimator(*attempt.arguments, **attempt.keywords, **options)
            return ComparedEstimate(name, attempt.needs, estimate)
    except ValueError as error:
        return ComparedEstimate(name, attempt.needs, None, str(error))


def _with_report(row: ComparedEstimate, curve: TradeoffCurve[Tensor], oracle: GammaEstimate) -> ComparedEstimate:
    """Score the row's gamma on the samples of `curve`."""
    if row.estimate is None:
        return row
    report, before = curve.at(row.estimate), curve.at(0.0).acc_all
    gain = curve.at(oracle).acc_all - before
    return replace(row, report=report, recovered=(report.acc_all - before) / gain if gain > 0 else None)
