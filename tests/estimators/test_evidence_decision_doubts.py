import math
import re

import numpy as np
import pytest
import torch

import finecal
from finecal._estimators.decision import Decision
from finecal._estimators.estimate import EQUALLY_FREQUENT, GIVEN, GammaEstimate
from finecal._estimators.evidence import (
    AbsentRetention,
    GapEvidence,
    _power_law_share,
    damage_warnings,
    frequency_warnings,
    gap_warnings,
    share_warnings,
)


def found(gap=6.0, unit=1.0, gap_weight=1.0, pair_z_score=4.0):
    return GapEvidence(gap, unit, gap_weight, 1.0, pair_z_score, [], 80, {"residual_gap": 1.0})


def costing(cost=0.1, gamma=4.0, seen_share=0.5):
    """An estimate whose gamma costs the seen samples so much."""
    cost = {"acc_seen_at_zero": 0.9, "acc_seen_at_gamma": 0.9 - cost}
    return GammaEstimate(gamma, "m", "d", 80, seen_share=seen_share, **cost)


HEALTHY = AbsentRetention(1.0, "many of them win")


def test_a_clear_gap_is_not_doubted():
    assert gap_warnings(found(), Decision(5.0, 0.1)) == []


@pytest.mark.parametrize("gap", [-3.0, 0.0, 3.0])
def test_no_gap_is_told_with_what_was_seen(gap):
    (sentence,) = gap_warnings(found(gap, gap_weight=0.0, pair_z_score=0.8), Decision(0.0, 0.0))
    assert sentence == (
        "no gap is seen (mixed pairs prefer seen classes by 0.8 standard deviations of their margins): the model "
        "prefers absent classes about as much as seen ones where neither is right, as a distilled or already balanced "
        "model does, or one with gamma in its head; so gamma is 0"
    )


def test_without_pairs_the_gap_is_told_instead():
    (sentence,) = gap_warnings(found(0.5, 2.0, 0.0, math.nan), Decision(0.0, 0.0))
    assert sentence.startswith("no gap is seen (0.5, 0.25 units of log-odds): the model prefers")


@pytest.mark.parametrize(
    ("pair_z_score", "gap", "told"),
    [(-0.7, 1.0, True), (-0.5, -1.0, False), (0.2, -1.0, False), (math.nan, -1.2, True), (math.nan, -0.9, False)],
)
def test_absent_classes_that_are_preferred_but_not_clearly(pair_z_score, gap, told):
    (sentence,) = gap_warnings(found(gap, 2.0, 0.0, pair_z_score), Decision(0.0, 0.0))
    assert ("the model prefers absent classes, but not clearly enough" in sentence) == told
    assert ("about as much as seen ones" in sentence) != told
    assert "so gamma is 0" in sentence


def test_without_a_gap_gamma_may_follow_the_share():
    (sentence,) = gap_warnings(found(0.0, 2.0, 0.0, 0.2), Decision(-1.5, 0.0))
    assert sentence.endswith("so gamma is -1.5, for the share of seen samples alone")


def test_an_unclear_gap_is_told_with_how_much_of_it_is_taken():
    (sentence,) = gap_warnings(found(gap_weight=0.25, pair_z_score=1.3), Decision(1.5, 0.1))
    assert sentence == (
        "the gap is unclear (mixed pairs prefer seen classes by 1.3 standard deviations of their margins), and may be "
        "none: it counts 25 %, and gamma is 1.5"
    )
    assert gap_warnings(found(gap_weight=0.5, pair_z_score=1.4), Decision(3.0, 0.1)) == []


def test_seen_classes_that_lose():
    (sentence,) = gap_warnings(found(-6.0, 2.0), Decision(-5.0, 0.1))
    assert sentence == (
        "the seen classes lose: absent ones are ahead by 6, 3 units of log-odds, as after a loss that leaves out their "
        "logits (masked losses), or with gamma in the head; gamma is negative: check it with search_gamma on a few "
        "labelled samples of all classes"
    )
    (none,) = gap_warnings(found(-6.0, 2.0), Decision(0.0, 0.0))
    assert "; gamma is 0: check it" in none


def test_a_gap_that_is_not_worth_its_cost():
    (sentence,) = gap_warnings(found(), Decision(0.0, 0.0))
    assert sentence == (
        "gamma is 0, although the gap is 6: a positive gamma would cost the seen classes more than the absent ones are "
        "expected to gain"
    )
    both = gap_warnings(found(30.0, gap_weight=0.4), Decision(0.0, 0.0))
    assert [s.split(" ")[0] for s in both] == ["the", "gamma"]  # unclear, and not worth it


@pytest.mark.parametrize(
    ("gap", "unit", "is_huge"),
    [(12.0, 1.0, False), (12.1, 1.0, True), (24.0, 2.0, False), (24.1, 2.0, True), (11.0, 0.1, False)],
)
def test_huge_is_more_than_twelve_units_and_more_than_twelve(gap, unit, is_huge):
    sentences = damage_warnings(found(gap, unit), HEALTHY, costing(), 4.0)
    assert len(sentences) == is_huge
    if is_huge:
        assert sentences[0] == (
            f"the gap is {gap:.4g}, more than 12 units of log-odds: high learning rates and long training leave such "
            "gaps, and often damage the absent classes, so that gamma brings little back and may do harm; check it "
            "with search_gamma on a few labelled samples of all classes"
        )


def test_damage_is_told_with_what_it_rests_on():
    health = AbsentRetention(0.3, "few of them win")
    (sentence,) = damage_warnings(found(30.0), health, costing(), 5.0)  # once, although the gap is huge too
    assert sentence == (
        "fine-tuning seems to have damaged the absent classes: few of them win; they count 30 %, so gamma is 4 "
        "instead of 5, and may still do harm: check it with search_gamma on a few labelled samples of all classes, and "
        "leave out columns that belong to no class"
    )
    (same,) = damage_warnings(found(), health, costing(), 4.01)
    assert "so gamma is 4, and may still do harm" in same


@pytest.mark.parametrize(("health", "told"), [(0.0, 1), (0.49, 1), (0.5, 0), (1.0, 0)])
def test_health_is_told_below_a_half(health, told):
    assert len(damage_warnings(found(), AbsentRetention(health, "few of them win"), costing(), 5.0)) == told


@pytest.mark.parametrize(
    ("estimate", "told"),
    [
        (costing(0.0), 0),
        (costing(0.004), 0),
        (costing(0.006), 1),
        (costing(0.006, seen_share=0.4), 0),  # a cost of 0.0024 of all samples
        (costing(gamma=-4.0), 0),
    ],
)
@pytest.mark.parametrize("gap", [6.0, 30.0])
def test_damage_is_told_where_gamma_costs_something(estimate, told, gap):
    health = AbsentRetention(0.3 if gap == 6.0 else 1.0, "few of them win")
    assert len(damage_warnings(found(gap), health, estimate, 5.0)) == told


@pytest.mark.parametrize(
    ("labelled", "alone", "unit", "told"),
    [
        (5.0, 8.0, 1.0, 0),  # three units
        (5.0, 8.1, 1.0, 0),  # less than half of the larger one
        (5.0, 10.1, 1.0, 1),
        (-2.0, 2.0, 1.0, 1),
        (5.0, 10.1, 2.0, 0),
        (0.0, 0.0, 1.0, 0),
    ],
)
def test_shares_disagree_by_three_units_and_by_half(labelled, alone, unit, told):
    sentences = share_warnings(labelled, alone, unit)
    assert len(sentences) == told
    assert share_warnings(alone, labelled, unit) == [] or told
    if told:
        assert sentences[0] == (
            f"labelled samples ({labelled:.4g}) and the share of unlabelled ones ({alone:.4g}) disagree about gamma: "
            "check the share, and that all logits are of the same model"
        )


def labels_by_zipf(exponent, n=4000, seen=8):
    counts = np.round(n * np.arange(1.0, seen + 1) ** -exponent / sum(np.arange(1.0, seen + 1) ** -exponent))
    return np.repeat(np.arange(seen), counts.astype(int))


def unequal(labels, pays=0.5, source=EQUALLY_FREQUENT, seen=8, num_classes=20, masked=0):
    """The warning of these labels; the last classes are masked by -inf."""
    logits, mask = 3.0 * np.eye(num_classes + masked)[labels], np.arange(num_classes + masked) < seen
    logits[:, num_classes:] = -np.inf
    share = seen / num_classes
    estimate = GammaEstimate(4.0, "m", "d", 80, seen_share=share, seen_share_source=source, min_absent_share=pays)
    return frequency_warnings(finecal.Samples(logits, labels).scan(mask), estimate)


def named_share(sentence):
    return float(re.search(r"gives seen_share=([^ ]+)\. Pass", sentence)[1])


@pytest.mark.parametrize("exponent", [1.6, 2.0])
def test_unequal_labels_are_told_with_the_share_of_their_power_law(exponent):
    labels = labels_by_zipf(exponent)
    (sentence,) = unequal(labels, pays=0.1)
    entropy = -sum(p * math.log(p) for p in np.bincount(labels) / len(labels))
    assert f"as unequal as those of {100 * math.exp(entropy) / 8:.0f} % of the seen classes" in sentence
    assert "60 % of the samples absent ones" in sentence
    assert "Pays if more than 10.0 % of the samples are of absent classes; if" in sentence
    law = np.arange(1.0, 21) ** -exponent
    assert named_share(sentence) == pytest.approx(law[:8].sum() / law.sum(), abs=0.012)
    assert unequal(labels, pays=0.1, masked=500) == [sentence]


@pytest.mark.parametrize("exponent", [1.6, 2.0])
@pytest.mark.parametrize(("part", "told"), [(0.4, 0), (0.6, 1), (2.0, 1)])
def test_unequal_labels_are_told_where_gamma_may_not_pay(exponent, part, told):
    law = np.arange(1.0, 21) ** -exponent
    assert len(unequal(labels_by_zipf(exponent), part * law[8:].sum() / law.sum())) == told


@pytest.mark.parametrize(
    ("exponent", "pays", "source"),
    [(0.5, 0.5, EQUALLY_FREQUENT), (1.6, None, EQUALLY_FREQUENT), (1.6, 0.0, EQUALLY_FREQUENT), (1.6, 0.5, GIVEN)],
)
def test_unequal_labels_are_not_told_where_they_do_not_matter(exponent, pays, source):
    assert unequal(labels_by_zipf(exponent), pays, source) == []


@pytest.mark.parametrize(
    ("counts", "seen", "told"),
    [
        ([1], 1, 0),
        ([9], 1, 0),
        ([1], 2, 0),
        ([9], 2, 1),
        ([10**5], 2, 1),
        ([10**5], 19, 1),
        ([10**5, 1], 2, 1),
        ([10**5, 10**5, 1], 8, 1),
        ([1] * 8, 8, 0),
    ],
)
def test_the_share_that_is_named_can_be_passed(counts, seen, told):
    sentences = unequal(np.repeat(np.arange(len(counts)), counts), 1.0, seen=seen)
    assert len(sentences) == told
    assert all(seen / 20 <= named_share(sentence) < 1 for sentence in sentences)


@pytest.mark.parametrize("counts", [[5], [0, 0, 7], [9, 4], [4, 9], [3, 3, 3], [100, 20, 3, 0], [1, 50, 2, 7, 7, 0, 1]])
def test_the_power_law_is_a_weighted_line_through_logarithms(counts):
    labels, mask = np.repeat(np.arange(len(counts)), counts), np.arange(12) < len(counts)
    share = _power_law_share(torch.from_numpy(labels), torch.from_numpy(mask))
    ranked = np.sort(counts)[::-1] + 0.5
    rank = np.arange(1.0, 13)
    exponent = np.polyfit(np.log(rank[: len(counts)]), np.log(ranked), 1, w=ranked**0.5)[0] if len(counts) > 1 else 0
    assert share == pytest.approx((rank[: len(counts)] ** exponent).sum() / (rank**exponent).sum())
