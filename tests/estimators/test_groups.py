"""What holds for all estimators with groups: which draws they make, and what they say."""

import warnings

import numpy as np
import pytest
import torch

import finecal
from problems import MASK, doubtful_problem
from public_names import public

FUNCTIONS = ["average_logit_gap", "max_logit_gap", "mixed_pair_gap", "residual_gap", "head_drift_gamma"]
FUNCTIONS += ["known_share_gamma", "mixture_gamma", "search_gamma", "pseudo_cv_gamma"]
ON_SEEN = FUNCTIONS[:5]


def call(name, problem, groups=None, **options):
    """Call an estimator on labelled samples; those of other data make these of them."""
    logits, labels = problem
    function = public(name)
    if name == "known_share_gamma":
        return function(finecal.Samples(logits, groups=groups), MASK, 0.4, **options)
    if name == "mixture_gamma":
        both = (finecal.Samples(given, groups=groups) for given in (logits + 4 * MASK, logits))
        return function(*both, MASK, **options)
    if name == "search_gamma":
        return function(finecal.Samples(logits, turned(labels), groups=groups), MASK, **options)
    if name == "pseudo_cv_gamma":
        half = MASK & (np.arange(7) < 3)
        return function(
            [finecal.estimators.PseudoFold(finecal.Samples(logits, labels, groups=groups), half)], MASK, **options
        )
    if name == "head_drift_gamma":
        head, before = np.eye(7), np.eye(7) - 2 * np.diag(MASK)
        options |= {"features": logits, "head": (head, None), "pretrained_head": (before, None)}
    return function(finecal.Samples(logits, labels, groups=groups), MASK, **options)


def turned(labels):
    """Every other label is an absent class."""
    return np.where(np.arange(len(labels)) % 4 < 2, labels, 1)


def quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        return call(*args, **options)


@pytest.fixture
def problem(rng):
    return doubtful_problem(rng, 80)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_groups_of_one_sample_are_none(problem, name, rng):
    """The draws are the same, but where seen and absent samples are drawn apart without groups."""
    expected = quietly(name, problem, n_bootstrap=150, seed=3)
    found = quietly(name, problem, rng.permutation(80) - 40, n_bootstrap=150, seed=3)
    apart = name in ("search_gamma", "pseudo_cv_gamma")
    assert found.interval == pytest.approx(expected.interval, abs=0.6 if apart else 1e-12)
    assert (found.gamma, found.n) == (expected.gamma, expected.n)
    assert " 80 groups" in found.data


@pytest.mark.parametrize("name", FUNCTIONS)
def test_names_of_groups_do_not_matter(problem, name, rng, device):
    groups = rng.integers(12, size=80)
    first = quietly(name, problem, groups, n_bootstrap=20)
    assert quietly(name, problem, (1000 - 7 * groups).tolist(), n_bootstrap=20) == first
    assert quietly(name, problem, torch.tensor(-groups, device=device), n_bootstrap=20) == first
    assert quietly(name, problem, rng.permutation(groups), n_bootstrap=20).interval != first.interval


@pytest.mark.parametrize("name", ["average_logit_gap", "max_logit_gap", "residual_gap"])
def test_samples_that_come_thrice_tell_no_more(problem, name):
    options = {"temperature": 1.0} if name == "residual_gap" else {}
    once = quietly(name, problem, n_bootstrap=60, **options)
    thrice = [np.repeat(part, 3, axis=0) for part in problem]
    found = quietly(name, thrice, np.repeat(np.arange(80), 3), n_bootstrap=60, **options)
    assert (found.gamma, *found.interval) == pytest.approx((once.gamma, *once.interval), rel=1e-6)
    without = quietly(name, thrice, n_bootstrap=60, **options)
    assert without.interval[1] - without.interval[0] < 0.75 * (once.interval[1] - once.interval[0])


@pytest.mark.parametrize("name", ["search_gamma", "pseudo_cv_gamma"])
@pytest.mark.parametrize("objective", ["overall", "nll"])
def test_a_search_of_samples_that_come_thrice_is_the_same(problem, name, objective):
    logits, labels = problem
    once, thrice = np.arange(80), np.repeat(np.arange(80), 3)

    def interval(rows):
        options = {"objective": objective, "n_bootstrap": 40}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", finecal.FinecalWarning)
            if name == "search_gamma":
                samples = finecal.Samples(logits[rows], turned(labels)[rows], groups=rows)
                return finecal.search_gamma(samples, MASK, **options).interval
            samples = finecal.Samples(logits[rows], labels[rows], groups=rows)
            fold = finecal.estimators.PseudoFold(samples, MASK & (np.arange(7) < 3))
            return finecal.estimators.pseudo_cv_gamma([fold], MASK, **options).interval

    assert interval(thrice) == pytest.approx(interval(once), abs=1e-6)


@pytest.mark.parametrize("name", ["known_share_gamma", "mixed_pair_gap"])
def test_interval_is_as_wide_as_of_the_samples_that_are_repeated(problem, name):
    once = quietly(name, problem, n_bootstrap=300)
    found = quietly(
        name, [np.repeat(part, 4, axis=0) for part in problem], np.repeat(np.arange(80), 4), n_bootstrap=300
    )
    width, expected = (e.interval[1] - e.interval[0] for e in (found, once))
    assert width == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("name", [*FUNCTIONS, "seen_budget_gamma"])
def test_few_groups_are_warned_of_and_one_is_an_error(problem, name):
    few = [s for s in quietly(name, problem, np.arange(80) % 9, n_bootstrap=3).warnings if "only 9 groups" in s]
    assert len(few) == (2 if name == "mixture_gamma" else 1)
    assert "the interval rests on these few" in few[0]
    for groups, n_bootstrap in ((np.arange(80) % 10, 3), (np.arange(80) % 9, 0), (np.zeros(80, int), 0)):
        found = quietly(name, problem, groups, n_bootstrap=n_bootstrap)
        assert not any("rests on these few" in sentence for sentence in found.warnings)
    with pytest.raises(ValueError, match="groups are all the same: .*at least two are needed"):
        quietly(name, problem, np.zeros(80, int), n_bootstrap=3)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_groups_are_checked(problem, name):
    with pytest.raises(ValueError, match=r"groups have shape \(79,\) for 80 rows"):
        quietly(name, problem, np.arange(79))
    with pytest.raises(TypeError, match=r"groups hold names, such as '0'; pass a number for each: numpy\.unique"):
        quietly(name, problem, np.arange(80).astype(str))


def test_samples_that_are_left_out_take_their_groups_along(problem):
    """-inf masks all seen rivals of the first ten: the others alone are drawn, and in their groups."""
    logits, labels = problem[0].copy(), problem[1]
    for row in range(10):
        logits[row, MASK & (np.arange(7) != labels[row])] = -np.inf
    groups = np.arange(80) // 4
    found = quietly("max_logit_gap", (logits, labels), groups, n_bootstrap=30)
    rest = quietly("max_logit_gap", (logits[10:], labels[10:]), groups[10:], n_bootstrap=30)
    assert found.interval == pytest.approx(rest.interval)


def test_a_resample_has_both_sides():
    """One group of fifty has all absent samples: draws without it cannot be searched."""
    labels = np.repeat([0, 1], [490, 10])
    logits = np.where(labels[:, None] == [0, 1], [[4.0, 2.0]], [[1.0, 0.0]]) + np.arange(500)[:, None] % 7 / 9
    found = finecal.search_gamma(
        finecal.Samples(logits, labels, groups=np.arange(500) // 10), [True, False], n_bootstrap=50
    )
    assert np.isfinite(found.interval).all()
    alone = finecal.search_gamma(
        finecal.Samples(logits, labels, groups=np.arange(500) // 10), [True, False], "nll", n_bootstrap=50
    )
    assert np.isfinite(alone.interval).all()


class TestOfAllData:
    """`estimate_gamma` and `compare_estimators`."""

    @pytest.fixture
    def data(self, rng):
        return {
            "train": doubtful_problem(rng, 60, lead=6.0),
            "held_out": doubtful_problem(rng, 80),
            "unlabelled": doubtful_problem(rng, 90, shift=2.0)[0],
        }

    @staticmethod
    def grouped(data, **groups):
        """The same data, with the samples of these arguments in groups."""
        return data | {
            name: finecal.Samples(data[name], groups=of)
            if name == "unlabelled"
            else finecal.Samples(*data[name], groups=of)
            for name, of in groups.items()
        }

    @staticmethod
    def quietly(function, *args, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", finecal.FinecalWarning)
            return function(*args, **options)

    def test_says_what_it_rests_on(self, data):
        find, stream = finecal.estimate_gamma, data.pop("unlabelled")
        grouped = self.grouped(data, train=np.arange(60) // 3, held_out=np.arange(80) // 4)
        one = self.quietly(find, MASK, held_out=grouped["held_out"])
        assert one.data == "80 labelled held-out samples (seen classes) in 20 groups"
        both = self.quietly(find, MASK, **grouped)
        assert both.data == (
            "60 labelled training and 80 labelled held-out samples (seen classes), the training ones in 20 groups and "
            "the held-out ones in 20 groups"
        )
        everything = self.quietly(find, MASK, **data, unlabelled=finecal.Samples(stream, groups=np.arange(90) // 9))
        assert everything.data.startswith("90 unlabelled samples in 10 groups, ")
        alone = self.quietly(find, MASK, unlabelled=finecal.Samples(stream, groups=[1] * 90), seen_share=0.4)
        assert alone.data == "90 unlabelled samples in 1 group"

    def test_groups_of_one_sample_are_none(self, data, rng):
        groups = {name: rng.permutation(n) for name, n in (("train", 60), ("held_out", 80))}
        known = {name: data[name] for name in ("train", "held_out")}
        expected = self.quietly(finecal.estimate_gamma, MASK, **known, n_bootstrap=30)
        found = self.quietly(finecal.estimate_gamma, MASK, **self.grouped(known, **groups), n_bootstrap=30)
        assert (found.gamma, found.interval) == (expected.gamma, expected.interval)
        groups["unlabelled"] = rng.permutation(90)
        expected = self.quietly(finecal.estimate_gamma, MASK, **data, n_bootstrap=30)
        found = self.quietly(finecal.estimate_gamma, MASK, **self.grouped(data, **groups), n_bootstrap=30)
        assert (found.gamma, *found.interval) == pytest.approx((expected.gamma, *expected.interval), rel=1e-12)

    def test_samples_that_come_k_times_count_once(self, data):
        """Weights and standard errors are those of the independent samples; what is left is their grid."""
        repeated = {
            "train": tuple(np.repeat(part, 5, axis=0) for part in data["train"]),
            "held_out": tuple(np.repeat(part, 5, axis=0) for part in data["held_out"]),
            "unlabelled": np.repeat(data["unlabelled"], 5, axis=0),
        }
        groups = {name: np.repeat(np.arange(n), 5) for name, n in (("train", 60), ("held_out", 80), ("unlabelled", 90))}
        expected = self.quietly(finecal.estimate_gamma, MASK, **data)
        found = self.quietly(finecal.estimate_gamma, MASK, **self.grouped(repeated, **groups))
        assert found.gamma == pytest.approx(expected.gamma, abs=0.25)
        assert found.seen_share == pytest.approx(expected.seen_share, abs=0.02)

    def test_wider_with_groups_that_are_alike(self, rng):
        """Pictures whose seen logits share an offset."""
        offset = rng.normal(size=(30, 1))
        logits, labels = doubtful_problem(rng, 600)
        logits = (logits + 1.5 * MASK * np.repeat(offset, 20, axis=0)).astype(np.float32)
        groups = np.repeat(np.arange(30), 20)
        narrow = self.quietly(finecal.estimate_gamma, MASK, held_out=(logits, labels), n_bootstrap=100)
        held_out = finecal.Samples(logits, labels, groups=groups)
        wide = self.quietly(finecal.estimate_gamma, MASK, held_out=held_out, n_bootstrap=100)
        assert wide.interval[0] < narrow.interval[0] < narrow.interval[1] < wide.interval[1]

    def test_few_independent_samples_are_warned_of(self, rng):
        logits, labels = (np.repeat(part, 50, axis=0) for part in doubtful_problem(rng, 12))
        train = finecal.Samples(logits, labels, groups=np.repeat(np.arange(12), 50))
        found = self.quietly(finecal.estimate_gamma, MASK, train=train)
        (sentence,) = [s for s in found.warnings if "which 600 in groups count for" in s]
        assert sentence.startswith("only 12 independent labelled samples")

    def test_few_groups_are_warned_of_and_one_is_an_error(self, data):
        few = self.grouped(data, train=np.arange(60) % 5, held_out=np.arange(80) % 6, unlabelled=np.arange(90) % 7)
        found = self.quietly(finecal.estimate_gamma, MASK, **few, n_bootstrap=3)
        for name, number in (("train", 5), ("held_out", 6), ("unlabelled", 7)):
            assert sum(f"{name}: groups are only {number} groups" in s for s in found.warnings) == 1
        for name, n in (("train", 60), ("held_out", 80), ("unlabelled", 90)):
            one = self.grouped(data, **{name: [0] * n})
            with pytest.raises(ValueError, match=f"^{name}: groups are all the same"):
                self.quietly(finecal.estimate_gamma, MASK, **one, n_bootstrap=3)

    def test_one_seen_class(self, rng):
        logits, mask = rng.normal(size=(120, 3)), np.array([True, False, False])
        logits[:60, 0] += 6
        given = {"held_out": (logits[:60], np.zeros(60, int)), "unlabelled": logits}
        given = self.grouped(given, held_out=np.arange(60) // 3, unlabelled=np.arange(120) // 4)
        found = self.quietly(finecal.estimate_gamma, mask, **given, n_bootstrap=5)
        assert "120 unlabelled samples in 30 groups" in found.data
        assert "60 held-out seen samples in 20 groups" in found.data

    def test_a_comparison_passes_groups_on(self, data, rng):
        labels = turned(rng.choice(np.flatnonzero(MASK), 90))
        data |= {"labelled": (data["unlabelled"], labels), "test": (data["unlabelled"] + 0.1, labels)}
        counts = {"train": 60, "held_out": 80, "unlabelled": 90, "labelled": 90, "test": 90}
        grouped = self.grouped(data, **{name: np.arange(n) // 3 for name, n in counts.items()})
        options = {"seen_share": 0.4, "n_bootstrap": 5}
        comparison = self.quietly(finecal.compare_estimators, MASK, **grouped, **options)
        assert len(comparison.rows) > 12
        for row in comparison.rows:
            assert "groups" in row.estimate.data, row.method
        plain = self.quietly(finecal.compare_estimators, MASK, **data, **options)
        alike = [
            one.method
            for one, other in zip(comparison.rows, plain.rows, strict=True)
            if one.estimate.interval == other.estimate.interval
        ]
        # The one has too few samples; the share of the other is so small that only the method is uncertain.
        assert set(alike) <= {"seen_budget_gamma", "estimate_gamma"}
        assert len(alike) <= 2
