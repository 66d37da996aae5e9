"""`estimate_gamma` from odd, wrong, doubtful and superfluous data."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal._core.warning import without_warnings
from four_classes import MASK, labelled, sentences_of
from problems import MASK as SEVEN
from problems import doubtful_problem, mixture
from profiles import examples

# --- odd data ---------------------------------------------------------------------------------------------------------


@examples(100)
@given(st.integers(0, 10_000), st.integers(1, 30), st.booleans(), st.booleans())
def test_gamma_is_finite_or_an_error(seed, n, masked, with_stream):
    """Few samples, integer logits full of ties, masked classes, one absent class."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(3, 7))
    mask = rng.permutation(np.arange(classes) < rng.integers(2, classes))
    labels = rng.choice(np.flatnonzero(mask), n)
    logits = rng.integers(-3, 4, (n, classes)).astype(np.float32) + 3 * mask
    if masked:
        logits[rng.random((n, classes)) < 0.15] = -np.inf
    given = {"held_out": finecal.Samples(logits, labels, pretrained_logits=logits[::-1].copy()), "n_bootstrap": 3}
    if with_stream:
        unlabelled = rng.integers(-3, 4, (int(rng.integers(1, 20)), classes)).astype(np.float32)
        given["unlabelled"] = finecal.Samples(unlabelled - 5, pretrained_logits=unlabelled)
    for data in (given, {"train": (logits, labels), "n_bootstrap": 3}):
        try:
            with without_warnings():
                estimate = finecal.estimate_gamma(mask, **data)
        except ValueError as error:
            refused = str(error)
            assert re.match("train: |held_out: ", refused), refused
            continue
        assert math.isfinite(estimate.gamma)
        if estimate.interval is not None:
            assert estimate.interval[0] <= estimate.gamma <= estimate.interval[1]


def test_one_sample(rng):
    logits, labels = labelled(rng, 1)
    estimate, sentences = sentences_of(held_out=(logits, labels), n_bootstrap=5)
    assert math.isfinite(estimate.gamma)
    assert any("only 1 labelled samples were given" in sentence for sentence in sentences)
    with pytest.raises(ValueError, match="^train: labels are all of class 0; mixed_pair_gap needs"):
        finecal.estimate_gamma(MASK, train=(logits, labels))


def test_logits_that_are_all_equal(rng):
    for name in ("train", "held_out"):
        given = {name: (np.zeros((40, 4)), np.arange(40) % 2)}
        if name == "train":
            with pytest.raises(ValueError, match="^train: logits prefer another class for every pair"):
                finecal.estimate_gamma(MASK, **given)
        else:
            estimate, (sentence, *_) = sentences_of(**given)
            assert estimate.gamma == 0
            assert sentence.startswith("no gap is seen (0, 0 units of log-odds)")


def test_one_absent_class(rng):
    logits, labels = labelled(rng)
    estimate, sentences = sentences_of([True, True, False], held_out=(logits[:, :3], labels))
    assert estimate.gamma > 1
    assert sentences == ()


def test_masked_classes_are_as_if_they_were_not_there(rng):
    logits, labels = doubtful_problem(rng, 100)
    masked = np.insert(logits, [2, 7, 7], -np.inf, axis=1)
    mask = np.insert(SEVEN, [2, 7, 7], [True, False, False])
    with without_warnings():
        expected = finecal.estimate_gamma(SEVEN, held_out=(logits, labels))
        estimate = finecal.estimate_gamma(mask, held_out=(masked, labels + (labels >= 2)))
    assert estimate.gamma == pytest.approx(expected.gamma, abs=1e-5)
    assert estimate.method == expected.method


def test_a_share_decides_with_labelled_samples_that_are_of_no_use(data):
    logits, labels = data["train"]
    one_class = logits[labels == 0], labels[labels == 0]
    given = {"unlabelled": data["unlabelled"], "seen_share": 0.4}
    with pytest.warns(finecal.FinecalWarning, match="not used: train: labels are all of class 0; mixed_pair_gap needs"):
        estimate = finecal.estimate_gamma(MASK, train=one_class, **given)
    assert estimate.gamma == finecal.estimate_gamma(MASK, **given).gamma
    assert len(estimate.warnings) == 1


def test_unlabelled_of_the_wrong_kind_are_named(data):
    with pytest.raises(ValueError, match="^unlabelled: logits contain NaN"):
        finecal.estimate_gamma(MASK, held_out=data["held_out"], unlabelled=np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="^unlabelled: logits are empty .* estimate_gamma has nothing"):
        finecal.estimate_gamma(MASK, held_out=data["held_out"], unlabelled=np.ones((0, 4)))


def test_unlabelled_samples_that_cannot_be_used_are_warned_of(data):
    with pytest.warns(finecal.FinecalWarning, match="the unlabelled samples were not used"):
        estimate = finecal.estimate_gamma(MASK, train=data["train"], unlabelled=data["unlabelled"])
    assert len(estimate.warnings) == 1
    assert estimate.gamma == finecal.estimate_gamma(MASK, train=data["train"]).gamma


def test_opposite_signs_are_warned_of(rng):
    logits, labels = labelled(rng, lead=9)
    logits[:, 2:] += 3.2  # rivals of a seen sample: the absent ones are ahead
    _, sentences = sentences_of(held_out=(logits, labels))
    assert any(re.search("max_logit_gap is -.* of the other sign", sentence) for sentence in sentences)
    for share in ({"unlabelled": logits[:, ::-1].copy()}, {"seen_share": 0.5}):  # then the share may be the reason
        _, sentences = sentences_of(held_out=(logits, labels), **share)
        assert not any("max_logit_gap" in sentence for sentence in sentences)


def test_the_same_samples_are_warned_of(data):
    _, sentences = sentences_of(train=data["held_out"], held_out=data["held_out"])
    assert any("150 of the 150 samples of held_out have the very logits of samples of train" in s for s in sentences)
    _, sentences = sentences_of(held_out=data["held_out"], unlabelled=data["held_out"][0])
    assert any("150 of the 150 samples of unlabelled have the very logits of" in s for s in sentences)


def test_masked_rivals_do_not_hide_the_others(data):
    logits, labels = data["train"]
    logits[0, 2:] = -math.inf
    with pytest.warns(finecal.FinecalWarning, match="1 of 200 samples were left out"):
        estimate = finecal.estimate_gamma(MASK, train=(logits, labels))
    assert (len(estimate.warnings), estimate.n) == (1, 199)
    assert estimate.data == "199 labelled training samples (seen classes)"


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


@pytest.mark.parametrize("names", [("train",), ("held_out", "unlabelled"), ("unlabelled",)])
@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, math.nan])
def test_a_share_is_between_zero_and_one(data, names, share):
    with pytest.raises(ValueError, match="^seen_share"):
        finecal.estimate_gamma(MASK, **{name: data[name] for name in names}, seen_share=share)


def test_one_seen_class_is_enough_with_unlabelled_samples(rng):
    mask = np.array([True, False, False, False])
    given = {"held_out": (mixture(rng, 100, 0), np.zeros(100, int)), "unlabelled": mixture(rng, 100, 100)}
    direct = finecal.estimators.mixture_gamma(given["held_out"][0], given["unlabelled"], mask)
    with pytest.warns(finecal.FinecalWarning, match="with one seen class no sample has a seen rival"):
        estimate = finecal.estimate_gamma(mask, **given)
    assert (estimate.gamma, estimate.method) == (direct.gamma, direct.method)
    with_share = finecal.estimate_gamma(mask, **given, seen_share=0.5)
    assert with_share.gamma == finecal.estimators.known_share_gamma(given["unlabelled"], mask, 0.5).gamma
    assert min(estimate.acc_seen_at_gamma, with_share.acc_seen_at_gamma) > 0.9
    with pytest.warns(finecal.FinecalWarning, match="unlabelled samples; the training samples were not used$"):
        finecal.estimate_gamma(mask, **given, train=(mixture(rng, 100, 0), np.zeros(100, int)))
    with pytest.raises(ValueError, match="seen_mask has one seen class; estimate_gamma compares"):
        finecal.estimate_gamma(mask, held_out=given["held_out"])


@pytest.mark.parametrize("share", [None, 0.25, 0.5])
def test_two_classes_are_told_apart_by_one_margin(rng, share):
    """Gamma is a threshold on the difference of the two logits, as brute force finds it."""
    mask, lead = [True, False], 4.0

    def sample(n, centre):
        return np.c_[rng.normal(centre, 1, n) + lead, rng.normal(size=n) / 2]

    seen, absent = sample(300, 2), sample(900 if share == 0.25 else 300, -2)
    unlabelled, held_out = np.r_[seen, absent], (sample(300, 2), np.zeros(300, int))
    expected = len(seen) / len(unlabelled) if share is None else share
    given = {"held_out": held_out, "unlabelled": unlabelled, "seen_share": share}
    if share is None:
        words = "gamma is that of mixture_gamma, from the margins of the held-out and the unlabelled samples$"
        with pytest.warns(finecal.FinecalWarning, match=words):
            estimate = finecal.estimate_gamma(mask, **given)
    else:
        estimate = finecal.estimate_gamma(mask, **given)
        assert estimate.method.startswith("known_share_gamma")
        assert estimate.data == (
            f"{len(unlabelled)} unlabelled samples; with one seen class the labelled ones only tell what gamma costs"
        )
        assert estimate.warnings == ()
    margin = np.sort(unlabelled[:, 0] - unlabelled[:, 1])
    predicted_seen = (margin >= estimate.gamma).mean()
    assert predicted_seen == pytest.approx(estimate.seen_share, abs=1 / len(margin))
    assert estimate.seen_share == pytest.approx(expected, abs=0.12)
    right = ((seen @ [1, -1] >= estimate.gamma).sum() + (absent @ [1, -1] < estimate.gamma).sum()) / len(margin)
    best = max((seen @ [1, -1] >= g).sum() + (absent @ [1, -1] < g).sum() for g in margin) / len(margin)
    assert right > best - 0.05
    assert estimate.acc_seen_at_gamma == (held_out[0] @ [1, -1] >= estimate.gamma).mean()


def test_two_classes_and_a_known_share_need_nothing_else(rng):
    logits = rng.normal(size=(200, 2)) + np.array([3, 0])
    estimate = finecal.estimate_gamma([True, False], unlabelled=logits, seen_share=0.5)
    assert estimate == finecal.estimators.known_share_gamma(logits, [True, False], 0.5)
    assert estimate.warnings == ()


def test_two_classes_are_refused_without_their_share(rng):
    logits, seen = rng.normal(size=(200, 2)), (rng.normal(size=(50, 2)), np.zeros(50, int))
    with pytest.raises(ValueError, match="^unlabelled samples alone do not tell gamma: add seen_share="):
        finecal.estimate_gamma([True, False], unlabelled=logits)
    for data in ({"held_out": seen}, {"train": seen}, {"train": seen, "unlabelled": logits}):
        with pytest.raises(ValueError, match="or unlabelled samples of all classes with held-out ones, or with their "):
            finecal.estimate_gamma([True, False], **data)


def test_gaps_of_the_same_sign_agree_however_small(rng):
    logits, labels = labelled(rng)
    _, sentences = sentences_of(held_out=(logits / 32, labels), seen_share=0.5)
    assert sentences == ()


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
        "estimate_gamma: the unlabelled samples were not used: estimating their share "
        "of seen samples needs held-out samples, held_out="
    )
    with pytest.raises(TypeError, match=r"^held_out is a ndarray; pass a pair, held_out=\(logits, labels\), or with"):
        finecal.estimate_gamma(MASK, held_out=np.ones((3, 4)))
    logits, labels = data["held_out"]
    with pytest.raises(ValueError, match="estimate_gamma needs seen-class samples only"):
        finecal.estimate_gamma(MASK, held_out=(logits, labels * 2), unlabelled=data["unlabelled"])


def test_a_share_that_says_something_else_is_warned_of(data):
    unlabelled = data["unlabelled"].copy()
    unlabelled[:, 0] += 50
    _, sentences = sentences_of(held_out=data["held_out"], unlabelled=unlabelled, seen_share=0.4)
    assert any("disagree about gamma: check the share" in sentence for sentence in sentences)


def test_a_gamma_that_costs_everything_is_warned_of(rng):
    """Only the share of unlabelled samples finds such a gamma: with labelled ones half of the recognised stay so."""
    mask = np.array([True, False, False, False])
    given = {
        "held_out": (mixture(rng, 100, 0), np.zeros(100, int)),
        "unlabelled": mixture(rng, 100, 100) + np.array([50, 0, 0, 0]),
    }
    with without_warnings():
        estimate = finecal.estimate_gamma(mask, **given, seen_share=0.5)
    assert any("costs the seen classes everything" in sentence for sentence in estimate.warnings)


def test_looks_at_the_samples_once(rng):
    logits, labels = labelled(rng)
    scattered = [False, True, False, True]  # the labels 0 and 1 look re-indexed
    with pytest.warns(finecal.FinecalWarning) as record, pytest.raises(ValueError, match="absent class 0"):
        finecal.estimate_gamma(scattered, train=(logits, labels))
    assert len(record) == 1


def test_training_samples_that_are_of_no_use_do_not_stop_held_out_ones(data):
    logits, labels = data["train"]
    one_class = logits[labels == 0], labels[labels == 0]
    with pytest.warns(finecal.FinecalWarning, match="not used: train: labels are all of class 0; mixed_pair_gap needs"):
        estimate = finecal.estimate_gamma(MASK, train=one_class, held_out=data["held_out"])
    alone = finecal.estimate_gamma(MASK, held_out=data["held_out"])
    assert (estimate.gamma, estimate.data) == (alone.gamma, alone.data)
    with pytest.raises(ValueError, match="^train: labels are all of class 0; mixed_pair_gap needs"):
        finecal.estimate_gamma(MASK, train=one_class)


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_errors_name_the_argument(data, name):
    logits, labels = data[name]
    for wrong, message in (((logits * np.nan, labels), "logits contain NaN"), ((logits, labels[:3]), "labels have")):
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            finecal.estimate_gamma(MASK, **{**data, name: wrong})


def test_a_share_that_rests_on_little_is_warned_of(data):
    _, sentences = sentences_of(held_out=data["held_out"], unlabelled=data["unlabelled"][:3])
    assert any(s.startswith("only 3 unlabelled samples: the estimated share of seen samples is") for s in sentences)


def test_unlabelled_samples_of_another_model_are_warned_of(data):
    for shift in (-60, 60):
        unlabelled = data["unlabelled"] + [shift, shift, 0, 0]
        _, sentences = sentences_of(held_out=data["held_out"], unlabelled=unlabelled)
        assert any("of the unlabelled margins are like neither" in sentence for sentence in sentences)
    _, sentences = sentences_of(held_out=data["held_out"], unlabelled=data["unlabelled"])
    assert not any("like neither" in sentence for sentence in sentences)


def test_folds_are_named_beside_unlabelled_samples(rng):
    """They decide about the health there as well."""
    mask = np.arange(14) % 7 != 3
    labels = np.flatnonzero(mask)[np.arange(240) % mask.sum()]
    logits = rng.normal(size=(240, 14)) + 3 * mask
    logits[np.arange(240), labels] += 2.5
    halves = finecal.estimators.pseudo_cv_splits(mask, 2)
    folds = [finecal.estimators.PseudoFold((logits + 2 * half, labels), half) for half in halves]
    with without_warnings():
        estimate = finecal.estimate_gamma(mask, held_out=(logits[:120], labels[:120]), unlabelled=logits, folds=folds)
    assert estimate.data.endswith("labelled held-out samples (seen classes), and 2 folds")


def test_few_samples_are_warned_of(data):
    logits, labels = data["held_out"]
    for n, told in ((19, True), (20, False)):
        _, sentences = sentences_of(held_out=(logits[:n], labels[:n]))
        assert any(f"only {n} labelled samples were given" in sentence for sentence in sentences) == told


def test_nothing_outside_decides(data):
    """Neither the default device and dtype of torch nor the scale of tiny logits."""
    (logits, labels), unlabelled = map(torch.tensor, data["held_out"]), torch.tensor(data["unlabelled"])

    def estimate(mask, groups):
        of_each = [[i // 2 for i in range(n)] if groups else None for n in (150, 200)]
        held_out = finecal.Samples(logits, labels, pretrained_logits=logits, groups=of_each[0])
        stream = finecal.Samples(unlabelled, pretrained_logits=unlabelled, groups=of_each[1])
        return finecal.estimate_gamma(mask, held_out=held_out, unlabelled=stream, n_bootstrap=3)

    expected = {groups: estimate(MASK, groups) for groups in (False, True)}
    assert expected[False] != expected[True]
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            assert {groups: estimate(torch.tensor(MASK, device="cpu"), groups) for groups in expected} == expected
    finally:
        torch.set_default_dtype(torch.float32)
    for scale in (1e-300, 1e-30, 1e30, 1e200):
        held_out = data["held_out"][0] * scale, data["held_out"][1]
        with without_warnings():
            estimate = finecal.estimate_gamma(MASK, held_out=held_out, unlabelled=data["unlabelled"] * scale)
        assert math.isfinite(estimate.gamma)


def test_inputs_are_not_changed(data):
    copies = {name: np.copy(data[name][0] if name != "unlabelled" else data[name]) for name in ("train", "unlabelled")}
    with without_warnings():
        unlabelled = finecal.Samples(data["unlabelled"], pretrained_logits=data["unlabelled"])
        finecal.estimate_gamma(MASK, **{**data, "unlabelled": unlabelled})
    assert (data["train"][0] == copies["train"]).all()
    assert (data["unlabelled"] == copies["unlabelled"]).all()


@pytest.mark.parametrize("with_stream", [False, True])
def test_features_change_nothing(rng, data, with_stream):
    data = {name: data[name] for name in ("train", "held_out", *(["unlabelled"] if with_stream else []))}
    expected = finecal.estimate_gamma(MASK, **data, n_bootstrap=3)

    def with_features(logits, labels=None):
        features, before = (rng.normal(size=(len(logits), size)) for size in (6, 3))
        return finecal.Samples(logits, labels, features=features, pretrained_features=before)

    given = {name: with_features(*(value if name != "unlabelled" else [value])) for name, value in data.items()}
    assert finecal.estimate_gamma(MASK, **given, n_bootstrap=3) == expected
