import math

import numpy as np
import pytest
import torch

import finecal
import reference


def overlapping(rng, n=400, dtype=np.float32):
    """Seen margins around 4 and absent ones around 1: the best gamma is near 2.5."""
    labels = rng.integers(0, 4, n)
    mask = np.array([True, True, False, False])
    logits = rng.normal(size=(n, 4)).astype(dtype)
    logits[np.arange(n), labels] += 4
    logits[:, mask] += 2.5
    return logits, labels, mask


@pytest.mark.parametrize("objective", ["overall", "balanced", "harmonic", "absent"])
@pytest.mark.parametrize("drop", [None, 0.0, 0.05])
def test_attains_the_maximum(rng, objective, drop):
    logits, labels, mask = overlapping(rng, n=150)
    estimate = finecal.search_gamma(logits, labels, mask, objective, drop)
    got = reference.accuracies(logits, labels, mask, estimate.gamma)
    assert reference.objective(objective, *got) == pytest.approx(
        reference.best_value(logits, labels, mask, objective, drop)
    )
    assert estimate.acc_seen_at_gamma == pytest.approx(got[0])
    assert objective in estimate.method
    assert ("max_seen_drop" in estimate.method) == (drop is not None)


def test_says_what_it_rests_on(rng):
    logits, labels, mask = overlapping(rng)
    estimate = finecal.search_gamma(logits, labels, mask)
    n_seen = mask[labels].sum()
    assert estimate.n == 400
    assert estimate.acc_seen_at_zero == finecal.evaluate(logits, labels, mask).acc_seen
    assert estimate.data == f"400 labelled samples ({n_seen} of seen, {400 - n_seen} of absent classes)"
    assert str(estimate).startswith(
        f"gamma = {estimate.gamma:.6g}  (search_gamma(objective='overall'); from 400 labelled"
    )


@pytest.mark.filterwarnings("ignore:.*may lose the maximum")
def test_devices_and_dtypes(rng, device, dtype):
    logits, labels, mask = overlapping(rng, n=100)
    tensor = torch.tensor(logits).to(device, dtype)
    estimate = finecal.search_gamma(tensor, torch.tensor(labels, device=device), mask)
    assert estimate.warnings == () or dtype in (torch.float16, torch.bfloat16)
    rows = tensor.double().cpu().numpy()
    got = reference.accuracies(rows, labels, mask, estimate.gamma)[2]
    assert got == pytest.approx(reference.best_value(rows, labels, mask, "overall"))


def test_interval_covers_the_population_optimum(rng):
    covered = 0
    for seed in range(40):
        logits, labels, mask = overlapping(np.random.default_rng(seed), n=300)
        low, high = finecal.search_gamma(logits, labels, mask, n_bootstrap=100, seed=seed).interval
        covered += low <= 2.5 <= high
        assert high - low < 2
    assert covered >= 34  # 38 expected, with a standard deviation of 1.4


def test_interval_is_reproducible_and_shrinks(rng):
    small = finecal.search_gamma(*overlapping(rng, 200), n_bootstrap=100).interval
    problem = overlapping(rng, 20_000)
    large = finecal.search_gamma(*problem, n_bootstrap=100).interval
    assert large == finecal.search_gamma(*problem, n_bootstrap=100).interval
    assert large[1] - large[0] < (small[1] - small[0]) / 2


def test_narrow_interval_is_warned_of():
    step = np.nextafter(np.float32(1000), np.float32(2000))
    logits = np.array([[1000.0, 0], [step, 0], [2000, 0], [-9, 0]], np.float32)
    with pytest.warns(finecal.FinecalWarning, match="adding gamma in float32 may lose the maximum"):
        finecal.search_gamma(logits, [1, 0, 0, 1], [True, False])


def test_gamma_that_empties_a_side_is_warned_of():
    logits = np.array([[1.0, 0.0]] * 9 + [[0.5, 0.0]])
    with pytest.warns(finecal.FinecalWarning, match="no sample of the seen classes"):
        finecal.search_gamma(logits, [1] * 9 + [0], [True, False])
    with pytest.warns(finecal.FinecalWarning, match="no sample of the absent classes"):
        finecal.search_gamma(-logits, [0] * 9 + [1], [True, False])


def test_zero_logits_have_no_rounding_step():
    assert finecal.search_gamma(np.array([[0.0, 0.0], [0.0, 0.0], [5, 0]]), [1, 0, 0], [True, False]).gamma == 2.5


@pytest.mark.parametrize(("labels", "group"), [([0, 1], "seen"), ([2, 2], "absent")])
def test_labels_of_one_group_are_an_error(labels, group):
    with pytest.raises(ValueError, match=f"labels are of {group} classes only"):
        finecal.search_gamma(np.array([[4.0, 2.0, 1.0]] * 2), labels, [True, True, False])


def test_interval_keeps_to_the_budget(rng):
    """Resamples are searched under the same constraint: without it, their gamma would be larger."""
    problem = overlapping(rng, 2000)
    free = finecal.search_gamma(*problem, "absent", n_bootstrap=60).interval
    bound = finecal.search_gamma(*problem, "absent", 0.02, n_bootstrap=60).interval
    assert bound[1] < free[0]


def test_interval_is_that_of_smaller_resamples_shrunk(rng):
    problem = overlapping(rng, 1000)
    estimate = finecal.search_gamma(*problem, n_bootstrap=300)
    m = finecal.Samples(*problem[:2]).margins(problem[2])
    groups = [np.flatnonzero(m.is_seen), np.flatnonzero(~m.is_seen)]
    sizes = [int(np.ceil(len(group) ** 0.75)) for group in groups]
    best = []
    for _ in range(300):
        index = np.concatenate([rng.choice(group, size) for group, size in zip(groups, sizes, strict=True)])
        best.append(
            finecal.logits.Margins(m.margin[index], m.is_seen[index], m.hit[index], m.label[index]).curve().best()
        )
    shrunk = estimate.gamma + (sum(sizes) / 1000) ** (1 / 3) * (np.array(best) - estimate.gamma)
    assert estimate.interval == pytest.approx(np.quantile(shrunk, [0.025, 0.975]), abs=0.12)


def test_the_groups_are_resampled_independently(rng):
    problem = overlapping(rng, 200)
    intervals = {finecal.search_gamma(*problem, n_bootstrap=40, seed=seed).interval for seed in range(4)}
    assert len(intervals) == 4


@pytest.mark.parametrize(("width", "narrow"), [(3.5, True), (4.0, False), (4.5, False)])
@pytest.mark.parametrize("size", [0.75, 3.0, 1000.0])
def test_narrow_is_below_four_rounding_steps_of_the_largest_logit(width, narrow, size):
    ulp = np.spacing(np.float32(size))
    low = np.float32(size / 2)
    high = low + np.float32(width * ulp)
    logits = np.array([[low, 0], [high, 0], [size, 0], [-size, 0]], np.float32)
    labels = [1, 0, 0, 1]
    low_margin, high_margin = finecal.tradeoff_curve(logits, labels, [True, False]).breakpoints[1:3]
    assert ((high_margin - low_margin) < 4 * ulp) == narrow
    if narrow:
        with pytest.warns(finecal.FinecalWarning) as record:
            finecal.search_gamma(logits, labels, [True, False])
        assert f"lies in an interval {high_margin - low_margin:.3g} wide" in str(record[0].message)
        assert f"of the size of the largest logit are {ulp:.3g} apart" in str(record[0].message)
    else:
        finecal.search_gamma(logits, labels, [True, False])


def test_a_group_without_hits_is_not_emptied_by_gamma():
    # no absent sample is a hit: nothing of it can be lost
    logits = np.array([[3.0, 0, 1, 0], [5.0, 0, 1, 0], [0.0, 1, 0, 2]])
    finecal.search_gamma(logits, [0, 0, 2], [True, True, False, False])


@pytest.mark.parametrize(("n_seen", "n_absent"), [(4000, 80), (80, 4000)])
def test_interval_keeps_the_share_of_the_groups(rng, n_seen, n_absent):
    """The best gamma depends on the share, so that resamples of another share have another one."""
    labels = np.repeat([0, 1], [n_seen, n_absent])
    logits = np.stack([np.where(labels == 0, 7.0, 4.0) + rng.normal(0, 1, len(labels)), np.zeros(len(labels))], axis=1)
    true = 5.5 + math.log(n_absent / n_seen) / 3  # where the two weighted densities cross
    inside = 0
    for seed in range(10):
        index = np.random.default_rng(seed).integers(0, len(labels), len(labels))
        low, high = finecal.search_gamma(logits[index], labels[index], [True, False], n_bootstrap=60).interval
        inside += low <= true <= high
    assert inside >= 7


def test_rows_without_a_finite_logit_are_legal():
    finecal.search_gamma(np.full((2, 3), -np.inf), [0, 2], [True, True, False])


def test_seed_is_checked():
    for seed, error in ((None, TypeError), (1 << 64, ValueError)):
        with pytest.raises(error, match="seed is"):
            finecal.search_gamma(np.array([[1.0, 0], [0, 1]]) * 2, [0, 1], [True, False], seed=seed, n_bootstrap=2)
