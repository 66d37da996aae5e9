import math

import numpy as np
import pytest

import finecal
from test_unlabelled import MASK, mixture


def labelled(rng, n=200):
    logits = mixture(rng, n, 0)
    labels = np.arange(n) % 2
    logits[labels == 1, :2] = logits[labels == 1, 1::-1]
    logits[:, :2] += 2
    return logits, labels


@pytest.fixture
def data(rng):
    return {
        "train": labelled(rng),
        "held_out": labelled(rng),
        "unlabelled": mixture(rng, 100, 100) + np.array([2, 2, 0, 0]),
        "seen_share": 0.4,
    }


@pytest.mark.parametrize(
    ("given", "method", "words"),
    [
        (("train",), "mixed_pair_gap(seen_share=0.5)", "200 training labelled seen-class samples"),
        (("held_out",), "mixed_pair_gap(seen_share=0.5)", "200 held-out labelled seen-class samples"),
        (("train", "held_out"), "mixed_pair_gap(seen_share=0.5)", "200 training labelled seen-class samples"),
        (("train", "seen_share"), "mixed_pair_gap(seen_share=0.4)", "200 training labelled seen-class samples"),
        (("unlabelled", "seen_share"), "known_share_gamma(seen_share=0.4)", "200 unlabelled samples"),
        (("train", "unlabelled", "seen_share"), "known_share_gamma(seen_share=0.4)", "200 unlabelled samples"),
        (("held_out", "unlabelled"), "mixture_gamma", "200 unlabelled samples"),
        (("train", "held_out", "unlabelled"), "mixture_gamma", "200 unlabelled samples"),
    ],
)
def test_rule(data, given, method, words):
    estimate = finecal.estimate_gamma(MASK, **{name: data[name] for name in given})
    assert estimate.method == method
    assert estimate.data.startswith(words)
    source = data.get("held_out") if "held_out" in given else data["train"] if "train" in given else None
    if source is None:
        assert estimate.expected_acc_seen is None
    else:
        assert estimate.expected_acc_seen == finecal.evaluate(*source, MASK, estimate).acc_seen
        assert estimate.acc_seen_before == finecal.evaluate(*source, MASK).acc_seen


def test_equals_the_estimator_it_names(data):
    direct = finecal.mixed_pair_gap(*data["train"], MASK, seed=3, n_bootstrap=20)
    chosen = finecal.estimate_gamma(MASK, train=data["train"], seed=3, n_bootstrap=20)
    assert (chosen.gamma, chosen.interval) == (direct.gamma, direct.interval)


def test_unlabelled_samples_that_cannot_be_used_are_warned_of(data):
    with pytest.warns(finecal.FinecalWarning, match="the unlabelled samples were not used"):
        estimate = finecal.estimate_gamma(MASK, train=data["train"], unlabelled=data["unlabelled"])
    assert len(estimate.warnings) == 1


def test_opposite_signs_are_warned_of(rng):
    logits, labels = labelled(rng)
    logits[:, 2:] += 5  # rivals of a seen sample: the absent ones are ahead
    with pytest.warns(finecal.FinecalWarning, match="max_logit_gap is -.* of the other sign"):
        finecal.estimate_gamma(MASK, train=(logits, labels), seen_share=0.1)


def test_masked_rivals_do_not_hide_the_others(rng, data):
    logits, labels = data["train"]
    logits[0, 2:] = -math.inf
    assert finecal.estimate_gamma(MASK, train=(logits, labels)).warnings == ()


def test_unlabelled_samples_alone_are_too_little():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finecal.estimate_gamma(MASK, unlabelled=np.ones((3, 4)))
    assert str(error.value) == (
        "unlabelled samples alone do not tell gamma: add seen_share=, their share of seen-class samples, or "
        "held_out=(logits, labels)"
    )


@pytest.mark.parametrize("given", [{}, {"seen_share": 0.5}])
def test_too_little_data_is_an_error(given):
    with pytest.raises(ValueError, match="no data to estimate gamma from: pass train="):
        finecal.estimate_gamma(MASK, **given)


@pytest.mark.parametrize("value", [np.ones((3, 4)), (np.ones((3, 4)),), "ab"])
def test_pairs_are_asked_for(value):
    with pytest.raises(TypeError, match=r"pass a pair: train=\(logits, labels\)"):
        finecal.estimate_gamma(MASK, train=value)


@pytest.mark.parametrize("given", [("held_out", "unlabelled"), ("unlabelled", "seen_share")])
def test_passes_bootstrap_and_seed_on(data, given):
    arguments = {name: data[name] for name in given}
    chosen = [finecal.estimate_gamma(MASK, **arguments, n_bootstrap=20, seed=seed) for seed in (3, 3, 4)]
    assert chosen[0].interval == chosen[1].interval != chosen[2].interval


def test_one_seen_class_is_enough_with_unlabelled_samples(rng):
    mask = np.array([True, False, False, False])
    held_out = (mixture(rng, 100, 0), np.zeros(100, int))
    estimate = finecal.estimate_gamma(mask, held_out=held_out, unlabelled=mixture(rng, 100, 100))
    assert estimate.expected_acc_seen > 0.9


def test_gaps_of_the_same_sign_agree_however_small(rng):
    logits, labels = labelled(rng)
    finecal.estimate_gamma(MASK, train=(logits / 32, labels), seen_share=0.5)


def test_messages_are_whole_sentences(data):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finecal.estimate_gamma(MASK)
    assert str(error.value) == (
        "no data to estimate gamma from: pass train=(logits, labels), held_out=(logits, labels), or unlabelled= with "
        "held_out= or seen_share="
    )
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimate_gamma(MASK, train=data["train"], unlabelled=data["unlabelled"])
    assert str(record[0].message) == (
        "mixed_pair_gap(seen_share=0.5): the unlabelled samples were not used: estimating their share of seen "
        "samples needs held_out="
    )
    with pytest.raises(TypeError, match=r"^held_out is a ndarray; pass a pair: held_out=\(logits, labels\)"):
        finecal.estimate_gamma(MASK, held_out=np.ones((3, 4)))
    logits, labels = data["held_out"]
    with pytest.raises(ValueError, match="estimate_gamma needs seen-class samples only"):
        finecal.estimate_gamma(MASK, held_out=(logits, labels * 2), unlabelled=data["unlabelled"])


def test_a_gamma_that_costs_everything_is_warned_of_whatever_found_it(rng, data):
    unlabelled = data["unlabelled"].copy()
    unlabelled[:, 0] += 50
    with pytest.warns(finecal.FinecalWarning, match="costs the seen classes everything"):
        finecal.estimate_gamma(MASK, held_out=data["held_out"], unlabelled=unlabelled, seen_share=0.4)


def test_three_items_are_counted():
    with pytest.raises(TypeError, match="train is a tuple of 3 items; pass a pair"):
        finecal.estimate_gamma(MASK, train=(1, 2, 3))


def test_looks_at_the_samples_once(rng):
    logits, labels = labelled(rng)
    scattered = [False, True, False, True]  # the labels 0 and 1 look re-indexed
    with pytest.warns(finecal.FinecalWarning) as record, pytest.raises(ValueError, match="absent class 0"):
        finecal.estimate_gamma(scattered, train=(logits, labels))
    assert len(record) == 1
