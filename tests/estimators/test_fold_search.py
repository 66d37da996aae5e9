import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import finecal
import reference
from profiles import examples

OBJECTIVES = ["balanced", "overall", "harmonic", "absent"]
COMBINATIONS = ["mean", "median", "pooled"]
pytestmark = pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")


def problem(rng, n_folds=3, classes=9, seen=6, n=24, spread=4, constrained=True):
    """Draw folds of integer logits, full of ties."""
    mask = rng.permutation(np.arange(classes) < seen)
    folds = []
    for split in finecal.estimators.pseudo_cv_splits(mask, n_folds, seed=int(rng.integers(100))):
        labels = rng.choice(np.flatnonzero(mask), n)
        labels[0], labels[1] = np.flatnonzero(split)[0], np.flatnonzero(mask & ~split)[0]
        logits, pretrained = (rng.integers(-spread, spread + 1, (n, classes)).astype(np.float32) for _ in range(2))
        logits[np.arange(n), labels] += 3
        pretrained[np.arange(n), labels] += 2
        logits[:, split] += 3
        folds.append(make_fold(logits, labels, split, pretrained if constrained else None))
    return folds, mask


def make_fold(logits, labels, pseudo_seen_mask, pretrained=None):
    return finecal.estimators.PseudoFold(
        finecal.Samples(logits, labels, pretrained_logits=pretrained), pseudo_seen_mask
    )


def columns_of_seen(fold, mask, field="logits"):
    """Return the fold as a problem of its own: the columns of S, with pseudo-seen as seen."""
    columns = np.flatnonzero(mask)
    logits, labels = getattr(fold.samples, field), fold.samples.labels
    return logits[:, columns], np.searchsorted(columns, labels), fold.pseudo_seen_mask[columns]


def value(fold, mask, gamma, name, average="micro"):
    return reference.objective(name, *reference.accuracies(*columns_of_seen(fold, mask), gamma, average))


def is_allowed(fold, mask, gamma, average="micro"):
    before = reference.accuracies(*columns_of_seen(fold, mask, "pretrained_logits"), 0.0, average)[1]
    return reference.accuracies(*columns_of_seen(fold, mask), gamma, average)[1] >= before - 1e-9


def candidates(folds, mask):
    rows = [columns_of_seen(fold, mask) for fold in folds]
    edges = sorted({reference.margin(row, group) for logits, _, group in rows for row in logits})
    return [edges[0] - 1, *((a + b) / 2 for a, b in pairwise(edges)), edges[-1] + 1]


def best_over_folds(folds, mask, name, constrained, average):
    """Return the largest mean objective over every gamma, under each constraint that some gamma meets."""
    gammas = candidates(folds, mask)
    bound = [f for f in folds if constrained and any(is_allowed(f, mask, gamma, average) for gamma in gammas)]
    allowed = [gamma for gamma in gammas if all(is_allowed(fold, mask, gamma, average) for fold in bound)]
    return max(statistics.fmean(value(fold, mask, gamma, name, average) for fold in folds) for gamma in allowed)


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_attains_the_maximum(objective, constrained, average):
    for seed in range(4):
        folds, mask = problem(np.random.default_rng(seed), seen=5 + seed % 3, n=16)
        options = {"objective": objective, "constrained": constrained, "average": average}
        own = [finecal.estimators.pseudo_cv_gamma([fold], mask, **options).gamma for fold in folds]
        for fold, gamma in zip(folds, own, strict=True):
            best = best_over_folds([fold], mask, objective, constrained, average)
            assert value(fold, mask, gamma, objective, average) == pytest.approx(best)
        combined = {
            c: finecal.estimators.pseudo_cv_gamma(folds, mask, combine=c, **options).gamma for c in COMBINATIONS
        }
        assert combined["mean"] == pytest.approx(sum(own) / 3)
        assert combined["median"] == sorted(own)[1]
        got = statistics.fmean(value(fold, mask, combined["pooled"], objective, average) for fold in folds)
        assert got == pytest.approx(best_over_folds(folds, mask, objective, constrained, average))


def test_every_class_may_count_the_same():
    """Nine samples of a pseudo-absent class have a margin of -1, one each of two others 4, and five seen ones 2."""
    logits = np.array([[2.0, 0, 0, 0]] * 5 + [[-1, 0, -9, -9]] * 9 + [[4, -9, 0, -9]] + [[4, -9, -9, 0]])
    labels = np.array([0] * 5 + [1] * 9 + [2, 3])
    mask, pseudo = np.arange(5) < 4, np.arange(5) == 0
    fold = finecal.estimators.PseudoFold((np.c_[logits, np.zeros(16)], labels), pseudo)
    # Between -1 and 2: 14 of 16 samples, but 2 of 4 classes. Above 4: 11 of 16 samples, but 3 of 4 classes.
    micro, macro = (
        finecal.estimators.pseudo_cv_gamma([fold], mask, "overall", average=name) for name in ("micro", "macro")
    )
    assert -1 < micro.gamma < 2
    assert macro.gamma > 4
    assert micro.method == "pseudo_cv_gamma(objective='overall', combine='mean')"
    assert macro.method == "pseudo_cv_gamma(objective='overall', combine='mean', average='macro')"


def test_classes_of_equally_many_samples_count_the_same_either_way(rng):
    mask = np.arange(9) < 6
    labels = np.tile(np.arange(6), 12)
    folds = []
    for split in finecal.estimators.pseudo_cv_splits(mask, 3):
        logits = rng.normal(size=(72, 9)) + 2 * np.eye(9)[labels] + 3 * split
        folds.append(finecal.estimators.PseudoFold((logits, labels), split))
    for objective in (*OBJECTIVES, "nll"):
        for combine in COMBINATIONS:
            micro, macro = (
                finecal.estimators.pseudo_cv_gamma(
                    folds, mask, objective, combine=combine, average=average, n_bootstrap=3
                )
                for average in ("micro", "macro")
            )
            assert macro.gamma == pytest.approx(micro.gamma)
            assert np.isfinite(macro.interval).all()


def test_the_likelihood_may_count_every_class_the_same(rng):
    folds, mask = problem(rng, n=40, constrained=False)

    def minimum(some):
        def mean(gamma):
            means = []
            for fold in some:
                logits, labels, group = columns_of_seen(fold, mask)
                loss = -log_softmax(logits + gamma * ~group, axis=1)[np.arange(len(labels)), labels]
                means.append(statistics.fmean(loss[labels == c].mean() for c in np.unique(labels)))
            return statistics.fmean(means)

        return minimize_scalar(mean, bracket=(0, 5), tol=1e-9).x

    for fold in folds:
        found = finecal.estimators.pseudo_cv_gamma([fold], mask, "nll", average="macro").gamma
        assert found == pytest.approx(minimum([fold]), abs=1e-6)
    pooled = finecal.estimators.pseudo_cv_gamma(folds, mask, "nll", combine="pooled", average="macro").gamma
    assert pooled == pytest.approx(minimum(folds), abs=1e-6)


def nll(fold, mask, gamma):
    logits, labels, group = columns_of_seen(fold, mask)
    return -log_softmax(logits + gamma * ~group, axis=1)[np.arange(len(labels)), labels].mean()


def test_nll_is_minimal(rng):
    folds, mask = problem(rng)
    folds[0] = finecal.estimators.PseudoFold(folds[0].samples[:9], folds[0].pseudo_seen_mask)

    def minimum(some):
        mean = lambda gamma: statistics.fmean(nll(fold, mask, gamma) for fold in some)  # noqa: E731
        return minimize_scalar(mean, bracket=(0, 5), tol=1e-9).x

    own = [finecal.estimators.pseudo_cv_gamma([fold], mask, "nll").gamma for fold in folds]
    assert own == pytest.approx([minimum([fold]) for fold in folds], abs=1e-6)
    assert finecal.estimators.pseudo_cv_gamma(folds, mask, "nll", combine="pooled").gamma == pytest.approx(
        minimum(folds), abs=1e-6
    )


def test_nll_leaves_out_what_no_gamma_can_change(rng):
    fold, mask = separated(rng, 6)
    expected = finecal.estimators.pseudo_cv_gamma([fold], mask, "nll").gamma
    logits, labels, pseudo = fold.samples.logits, fold.samples.labels, fold.pseudo_seen_mask
    rows = logits[:2].copy()
    rows[0, labels[0]] = -math.inf
    rows[1, pseudo] = -math.inf
    longer = finecal.estimators.PseudoFold((np.vstack([logits, rows]), np.append(labels, labels[:2])), pseudo)
    with pytest.warns(finecal.FinecalWarning, match="2 of 202 samples were left out"):
        assert finecal.estimators.pseudo_cv_gamma([longer], mask, "nll").gamma == pytest.approx(expected)
    masked = finecal.estimators.PseudoFold((np.where(pseudo, -math.inf, logits), labels), pseudo)
    assert finecal.estimators.pseudo_cv_gamma([masked], mask, "nll").gamma == 0


def test_nll_under_the_constraint():
    for seed in range(8):
        folds, mask = problem(np.random.default_rng(seed), n_folds=1)
        free, bound = (
            finecal.estimators.pseudo_cv_gamma(folds, mask, "nll", constrained).gamma for constrained in (False, True)
        )
        gammas = [gamma for gamma in candidates(folds, mask) if is_allowed(folds[0], mask, gamma)]
        expected = free if not gammas or is_allowed(folds[0], mask, free) else min(gammas)
        assert bound == pytest.approx(expected)


def by_hand():
    """Margins of two pseudo-seen samples 5 and 3, of two pseudo-absent ones 1 and -2, and 2 of one that is wrong."""
    logits = np.array([[5, -9, 0, 99], [-9, 3, 0, 99], [1, -9, 0, 99], [-2, -9, 0, 99], [2, -9, 0, -math.inf]])
    return logits, np.array([0, 1, 2, 2, 1]), np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool)


@pytest.mark.parametrize("objective", ["overall", "balanced"])
def test_golden_numbers(objective):
    logits, labels, mask, pseudo = by_hand()
    fold = finecal.estimators.PseudoFold((logits, labels), pseudo)
    # All four are right for gamma in (1, 3]; the wrong sample tells (1, 2] from (2, 3], of which the lower is taken.
    assert finecal.estimators.pseudo_cv_gamma([fold], mask, objective).gamma == 1.5
    higher = finecal.estimators.PseudoFold((logits + np.array([3, 3, 0, 0]), labels), pseudo)
    estimate = finecal.estimators.pseudo_cv_gamma([fold, higher], mask, objective)
    assert estimate.gamma == 3.0
    assert estimate.n == 10
    assert estimate.acc_seen_at_gamma is None
    assert estimate.method == f"pseudo_cv_gamma(objective={objective!r}, combine='mean')"
    assert estimate.data == "10 labelled samples (seen classes) in 2 folds (gamma 1.5, 4.5)"
    assert "1 fold (" in finecal.estimators.pseudo_cv_gamma([fold], mask, objective).data
    assert finecal.estimators.pseudo_cv_gamma([fold], mask) == finecal.estimators.pseudo_cv_gamma(
        [fold], mask, "overall"
    )
    # (1, 3] of one and (4, 6] of the other do not meet. In (4, 5] the first loses one of its three seen samples; in
    # (1, 3] the second would lose one of its two absent ones.
    assert finecal.estimators.pseudo_cv_gamma([fold, higher], mask, "balanced", combine="pooled").gamma == 4.5


def test_constraint_by_hand():
    logits, labels, mask, pseudo = by_hand()
    right = np.array([[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 9, 0], [9, 0, 0, 0.0]])
    low = make_fold(logits + np.array([0, 0, 4.5, 0]), labels, pseudo, right)
    # Margins 0.5, -1.5 | -3.5, -6.5 and -2.5 of the wrong one: feasible without a loss.
    assert finecal.estimators.pseudo_cv_gamma([low], mask, constrained=True).gamma == -2.0
    # Margins 4, 3 | 5, 0: only gamma > 5 brings both pseudo-absent samples back, at the price of everything.
    logits = np.array([[4, -9, 0, 99], [-9, 3, 0, 99], [5, -9, 0, 99], [0, -9, 0, 99.0]])
    crossed = make_fold(logits, labels[:4], pseudo, right[:4])
    assert finecal.estimators.pseudo_cv_gamma([crossed], mask).gamma == 1.5
    with pytest.warns(finecal.FinecalWarning, match="in fold 0 the constraint is barely feasible: .* at most 0 % "):
        assert finecal.estimators.pseudo_cv_gamma([crossed], mask, constrained=True).gamma == 6.0
    never = make_fold(np.where([0, 0, 1, 0], -math.inf, logits), labels[:4], pseudo, right[:4])
    with pytest.warns(finecal.FinecalWarning, match="in folds 1, 2 no gamma brings .* unconstrained gamma was taken"):
        estimate = finecal.estimators.pseudo_cv_gamma([crossed, never, never], mask, constrained=True)
    assert estimate.data.endswith("(gamma 6, 0, 0)")
    assert finecal.estimators.pseudo_cv_gamma([crossed, never], mask, constrained=True, combine="pooled").gamma == 6.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_constraint_is_barely_feasible_whatever_the_objective_prefers(objective):
    said = []
    for seed in range(40):
        folds, mask = problem(np.random.default_rng(seed), n_folds=1, n=12)
        samples = folds[0].samples
        pretrained = samples.pretrained_logits + seed % 5 * np.eye(9, dtype=np.float32)[samples.labels]
        folds = [make_fold(samples.logits, samples.labels, folds[0].pseudo_seen_mask, pretrained)]
        allowed = [gamma for gamma in candidates(folds, mask) if is_allowed(folds[0], mask, gamma)]
        before, *left = (reference.accuracies(*columns_of_seen(folds[0], mask), g)[0] for g in (0.0, *allowed))
        barely = bool(left) and max(left) < before / 2
        estimate = finecal.estimators.pseudo_cv_gamma(folds, mask, objective, constrained=True)
        said.append(any("barely feasible" in sentence for sentence in estimate.warnings))
        assert said[-1] == barely
    assert 0 < sum(said) < 40


@pytest.mark.parametrize("objective", [*OBJECTIVES, "nll"])
def test_devices_and_dtypes(rng, objective, device, dtype):
    folds, mask = problem(rng)
    expected = finecal.estimators.pseudo_cv_gamma(folds, mask, objective, constrained=True)
    tensors = [
        make_fold(
            torch.tensor(fold.samples.logits).to(device, dtype),
            torch.tensor(fold.samples.labels, device=device),
            fold.pseudo_seen_mask,
            torch.tensor(fold.samples.pretrained_logits).to(device, dtype),
        )
        for fold in folds
    ]
    got = finecal.estimators.pseudo_cv_gamma(tensors, torch.tensor(mask, device=device), objective, constrained=True)
    assert got.gamma == pytest.approx(expected.gamma, abs=1e-9)
    assert got.warnings == expected.warnings


@examples(40)
@given(st.integers(0, 10_000), st.sampled_from([*OBJECTIVES, "nll"]), st.sampled_from(COMBINATIONS))
def test_invariances(seed, objective, combine):
    rng = np.random.default_rng(seed)
    folds, mask = problem(rng, classes=7, seen=4, n=9)
    order = rng.permutation(len(mask))
    column = np.argsort(order)

    def without_ties(fold):
        """Take away what goes to the lowest index within a group, which a permutation changes."""
        apart = np.arange(7, dtype=np.float32) / 32
        logits, pretrained = (x + apart for x in (fold.samples.logits, fold.samples.pretrained_logits))
        return make_fold(logits, fold.samples.labels, fold.pseudo_seen_mask, pretrained)

    def changed(fold):
        """Permute classes, add a constant per row, and score the absent classes at random."""
        shift = rng.integers(-9, 9, (len(fold.samples), 1))
        logits, pretrained = (
            np.where(mask, x + shift, rng.integers(-99, 99, x.shape))[:, order].astype(np.float32)
            for x in (fold.samples.logits, fold.samples.pretrained_logits)
        )
        return make_fold(logits, column[fold.samples.labels], fold.pseudo_seen_mask[order], pretrained)

    folds = list(map(without_ties, folds))
    expected = finecal.estimators.pseudo_cv_gamma(folds, mask, objective, True, combine).gamma
    got = finecal.estimators.pseudo_cv_gamma(list(map(changed, folds)), mask[order], objective, True, combine).gamma
    assert got == pytest.approx(expected, abs=1e-5)


@examples(40)
@given(st.integers(0, 10_000), st.sampled_from([*OBJECTIVES, "nll"]), st.sampled_from(COMBINATIONS), st.booleans())
def test_is_always_finite(seed, objective, combine, constrained):
    rng = np.random.default_rng(seed)
    folds, mask = problem(rng, n_folds=2, classes=4, seen=2 + seed % 2, n=2 + seed % 5)
    folds = [
        make_fold(
            np.where(rng.random(fold.samples.logits.shape) < 0.4, np.float32(-math.inf), fold.samples.logits),
            fold.samples.labels,
            fold.pseudo_seen_mask,
            fold.samples.pretrained_logits,
        )
        for fold in folds
    ]
    estimate = finecal.estimators.pseudo_cv_gamma(folds, mask, objective, constrained, combine, n_bootstrap=3)
    assert math.isfinite(estimate.gamma)
    assert all(map(math.isfinite, estimate.interval))
    accuracies = [reference.accuracies(*columns_of_seen(fold, mask), estimate.gamma) for fold in folds]
    emptied = any(min(acc_seen, acc_absent) == 0 for acc_seen, acc_absent, _ in accuracies)
    assert emptied == any("empties" in sentence for sentence in estimate.warnings)


def separated(rng, shift, classes=16, n=200):
    """A fold in which the pseudo-seen classes score higher by about `shift`."""
    mask = np.arange(classes + 2) < classes
    pseudo = rng.permutation(np.arange(classes + 2) < classes) & mask
    pseudo[np.flatnonzero(pseudo)[classes // 2 :]] = False
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes + 2))
    logits[np.arange(n), labels] += 4
    logits[:, pseudo] += shift
    return finecal.estimators.PseudoFold((logits, labels), pseudo), mask


def test_agreeing_folds_of_many_classes_are_not_warned_of(rng):
    folds, masks = zip(*(separated(rng, 6) for _ in range(3)), strict=True)
    estimate = finecal.estimators.pseudo_cv_gamma(folds, masks[0])
    assert estimate.warnings == ()
    assert 5 < estimate.gamma < 7


def test_folds_that_disagree_are_warned_of(rng):
    folds, masks = zip(*(separated(rng, shift) for shift in (4, 4, 9)), strict=True)
    own = [finecal.estimators.pseudo_cv_gamma([fold], masks[0]).gamma for fold in folds]
    for combine in ("mean", "median"):
        estimate = finecal.estimators.pseudo_cv_gamma(folds, masks[0], combine=combine)
        kept = [
            (value(fold, masks[0], estimate.gamma, "balanced") - value(fold, masks[0], 0, "balanced"))
            / (value(fold, masks[0], gamma, "balanced") - value(fold, masks[0], 0, "balanced"))
            for fold, gamma in zip(folds, own, strict=True)
        ]
        assert [share < 0.5 for share in kept] == [False, False, True]
        (sentence,) = estimate.warnings
        assert sentence.startswith(f"the folds disagree: in fold 2 gamma = {estimate.gamma:.4g} does worse ")
        assert f"own gamma ({own[2]:.4g}), by more than half of what that gains" in sentence


def test_gamma_that_empties_a_side_is_warned_of(rng):
    folds, masks = zip(*(separated(rng, shift) for shift in (0, 60)), strict=True)
    estimate = finecal.estimators.pseudo_cv_gamma(folds, masks[0])
    emptied = [sentence for sentence in estimate.warnings if "empties" in sentence]
    assert [s.partition(":")[0][-6:] for s in emptied] == ["fold 0", "fold 1"]
    assert "pseudo-seen" in emptied[0]
    assert "pseudo-absent" in emptied[1]


def test_few_classes_are_warned_of(rng):
    fold, mask = separated(rng, 6, classes=6)
    assert ["only 3 pseudo-absent classes" in s for s in finecal.estimators.pseudo_cv_gamma([fold], mask).warnings] == [
        True
    ]


def test_interval_holds_the_spread_between_folds(rng):
    folds, masks = zip(*(separated(rng, shift) for shift in (4, 6, 8)), strict=True)
    apart = finecal.estimators.pseudo_cv_gamma(folds, masks[0], n_bootstrap=30)
    assert apart.interval == finecal.estimators.pseudo_cv_gamma(folds, masks[0], n_bootstrap=30).interval
    assert apart.interval[0] < apart.gamma < apart.interval[1]
    alike = finecal.estimators.pseudo_cv_gamma([folds[1]] * 3, masks[0], n_bootstrap=30).interval
    assert alike[1] - alike[0] < (apart.interval[1] - apart.interval[0]) / 2
    smooth = finecal.estimators.pseudo_cv_gamma([folds[1]] * 3, masks[0], "nll", n_bootstrap=30).interval
    assert smooth[1] - smooth[0] < alike[1] - alike[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folds": []}, "folds are empty"),
        ({"objective": "accuracy"}, "objective is 'accuracy'"),
        ({"combine": "sum"}, "combine is 'sum'; choose one of 'mean', 'median', 'pooled'"),
        ({"average": "weighted"}, "average is 'weighted'; choose one of 'micro', 'macro'"),
        ({"n_bootstrap": -1}, "n_bootstrap is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments(rng, arguments, message):
    folds, mask = problem(rng)
    with pytest.raises(ValueError, match=message):
        finecal.estimators.pseudo_cv_gamma(**{"folds": folds, "seen_mask": mask, **arguments})
