import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finecal._core.groups import check_groups, design_effect, design_effect_of_classes, number_in_words


def naive(values, groups):
    """The cluster-robust variance over the usual one, pair by pair."""
    n = len(values)
    rank = [(sum(v < x for v in values) + sum(v <= x for v in values)) / 2 / n for x in values]
    mean = sum(rank) / n
    pairs = [(i, j) for i in range(n) for j in range(n) if groups[i] == groups[j]]
    between = sum((rank[i] - mean) * (rank[j] - mean) for i, j in pairs)
    spread = sum((x - mean) ** 2 for x in rank)
    return max(1.0, between / spread)


@given(st.integers(0, 10_000), st.integers(3, 12))
def test_equals_the_sum_over_pairs(seed, number):
    rng = np.random.default_rng(seed)
    groups = np.append(rng.integers(number, size=30), [0, 1, 0])
    level = rng.normal(size=number)
    values = np.round(level[groups] + rng.normal(size=33), 1)  # some are equal
    assert design_effect(torch.tensor(values), check_groups(groups, 33)) == pytest.approx(naive(values, groups))


def test_samples_that_come_k_times_count_once(rng):
    values = torch.tensor(rng.normal(size=50))
    groups = check_groups(np.repeat(np.arange(50), 7), 350)
    assert design_effect(values.repeat_interleave(7), groups) == pytest.approx(7)


def test_independent_samples_count_in_full(rng):
    values = torch.tensor(rng.normal(size=20_000))
    assert design_effect(values, None) == design_effect(values, check_groups(np.arange(20_000), 20_000)) == 1
    assert design_effect(values, check_groups(np.arange(20_000) % 400, 20_000)) < 1.2
    assert design_effect(values.sort().values, check_groups(np.arange(20_000) // 50, 20_000)) > 45


def test_neither_scale_nor_order_nor_infinite_values_matter(rng, device):
    values, groups = torch.tensor(rng.normal(size=60), dtype=torch.float32), rng.integers(9, size=60)
    values[:3] = torch.inf
    expected = design_effect(values, check_groups(groups, 60))
    assert expected >= 1
    order = rng.permutation(60)
    for changed in (1e30 * values, values.exp(), -values, values.to(device).bfloat16().float()):
        found = design_effect(changed[order], check_groups(groups[order], 60))
        assert found == pytest.approx(expected, rel=1e-2 if changed.device == device else 1e-12)


def test_where_nothing_can_be_told(rng):
    values = torch.tensor(rng.normal(size=6))
    assert design_effect(values, check_groups([3] * 6, 6)) == 6  # all of them tell as much as one
    assert design_effect(torch.ones(6), check_groups([0, 0, 0, 1, 1, 1], 6)) == 1
    assert design_effect(values[:1], check_groups([3], 1)) == design_effect(values[:0], check_groups([], 0)) == 1
    apart = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert design_effect(apart, check_groups([0, 0, 1, 1], 4)) == 1  # never more than there are


def test_words():
    assert number_in_words(30, 1.0, "labelled") == "30 labelled samples"
    assert number_in_words(300, 25.0, "labelled") == "12 independent labelled samples, which 300 in groups count for"


# --- of classes -------------------------------------------------------------------------------------------------------


def naive_of_classes(classes, groups):
    """The mean over classes, each weighed by 1 - p, of the robust variance of its share over the binomial one."""
    n, total, weights = len(classes), 0.0, 0.0
    for c in set(classes):
        p = classes.count(c) / n
        robust = sum(sum((classes[i] == c) - p for i in range(n) if groups[i] == name) ** 2 for name in set(groups))
        total += (1 - p) * robust / (n * p * (1 - p))
        weights += 1 - p
    return max(1.0, total / weights)


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_of_classes_equals_the_sum_over_classes(seed, number):
    rng = np.random.default_rng(seed)
    groups = np.append(rng.integers(number, size=30), [0, 1, 0]).tolist()
    classes = [int(rng.integers(3)) + 2 * (group % 3) for group in groups[:-1]] + [99]
    found = design_effect_of_classes(torch.tensor(classes), check_groups(groups, 33))
    assert found == pytest.approx(naive_of_classes(classes, groups))


def test_classes_that_come_k_times_count_once(rng, device):
    classes = torch.tensor(rng.integers(6, size=40), device=device)
    groups = check_groups(np.repeat(np.arange(40), 7), 280)
    assert design_effect_of_classes(classes.repeat_interleave(7), groups) == pytest.approx(7)
    assert design_effect_of_classes(classes, None) == 1
    assert design_effect_of_classes(classes, check_groups(np.arange(40), 40)) == 1
    assert design_effect_of_classes(classes, check_groups([3] * 40, 40)) == 40
    assert design_effect_of_classes(classes * 0, check_groups(np.arange(40) // 2, 40)) == 1
    assert design_effect_of_classes(classes[:1], check_groups([3], 1)) == 1
