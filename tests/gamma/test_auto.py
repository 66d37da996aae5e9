import math
import re

import numpy as np
import pytest
import torch

import finecal
from finecal.evaluation.scan import scan_labelled
from finecal.gamma.bootstrap import Bootstrap
from finecal.gamma.combination import gap_of_both, gap_of_held_out, gap_of_training
from finecal.gamma.seen_share import estimated_shares
from finecal.inputs.warning import without_warnings
from problems import mixture

MASK = np.array([True, True, False, False])


def labelled(rng, n=200, lead=1.8):
    """Samples of two seen classes, of which the model mistakes some, one in ten; the absent classes lag behind."""
    labels = np.arange(n) % 2
    logits = rng.normal(size=(n, 4))
    logits[:, :2] += 3
    logits[np.arange(n), labels] += lead
    return logits, labels


@pytest.fixture
def data(rng):
    return {
        "train": labelled(rng, lead=7),
        "held_out": labelled(rng, 150),
        "unlabelled": np.concatenate([labelled(rng, 100)[0], labelled(rng, 100)[0][:, ::-1] + [3, 3, 0, 0]]),
        "seen_share": 0.4,
    }


PAIRS, RESIDUALS = r"mixed_pair_gap\(seen_share=0.5\)", r"residual_gap\(seen_share=0.5\)"
BOTH = r"0.67 residual_gap \+ 0.33 mixed_pair_gap \(seen_share=0.5\)"


@pytest.mark.parametrize(
    ("given", "method", "words"),
    [
        (("train",), PAIRS, "200 training labelled seen-class samples"),
        (("held_out",), RESIDUALS, "150 held-out labelled seen-class samples"),
        (("train", "held_out"), BOTH, "200 training and 150 held-out labelled seen-class samples"),
        (("train", "seen_share"), PAIRS.replace("5", "4"), "200 training labelled seen-class samples"),
        (("unlabelled", "seen_share"), r"known_share_gamma\(seen_share=0.4\)", "200 unlabelled samples"),
        (
            ("train", "unlabelled", "seen_share"),
            r"estimate_gamma\(unlabelled, mixed_pair_gap\(seen_share=0.4\)\)",
            "200 unlabelled samples and 200 training labelled seen-class samples",
        ),
        (
            ("held_out", "unlabelled"),
            r"estimate_gamma\(unlabelled, residual_gap\(seen_share=0.[45].*\)\)",
            r"200 unlabelled samples, (4|5). % of them seen as estimated with 150 held-out labelled seen-class samples",
        ),
        (
            ("train", "held_out", "unlabelled"),
            r"estimate_gamma\(unlabelled, 0.67 residual_gap \+ 0.33 mixed_pair_gap \(seen_share=0.[45].*\)\)",
            r"200 unlabelled samples, (4|5). % of them seen as estimated with 200 training and 150 held-out labelled.*",
        ),
    ],
)
def test_rule(data, given, method, words):
    with without_warnings():  # that labelled samples and the share, which is made up, disagree
        estimate = finecal.estimate_gamma(MASK, **{name: data[name] for name in given})
    assert re.fullmatch(method, estimate.method)
    assert re.fullmatch(words, estimate.data)
    source = data.get("held_out") if "held_out" in given else data["train"] if "train" in given else None
    if source is None:
        assert estimate.expected_acc_seen is None
    else:
        assert estimate.expected_acc_seen == finecal.evaluate(*source, MASK, estimate).acc_seen
        assert estimate.acc_seen_before == finecal.evaluate(*source, MASK).acc_seen


@pytest.mark.parametrize(("name", "function"), [("train", finecal.mixed_pair_gap), ("held_out", finecal.residual_gap)])
def test_equals_the_estimator_it_names(data, name, function):
    direct = function(*data[name], MASK, 0.3, seed=3, n_bootstrap=20)
    chosen = finecal.estimate_gamma(MASK, **{name: data[name]}, seen_share=0.3, seed=3, n_bootstrap=20)
    assert (chosen.gamma, chosen.method) == (direct.gamma, direct.method)
    assert chosen.interval == pytest.approx(direct.interval)


def found(data, *names):
    scans = {name: scan_labelled(*data[name], MASK) for name in names}
    if len(scans) == 1:
        return gap_of_held_out(scans["held_out"], Bootstrap())
    return gap_of_both(
        gap_of_training(scans["train"], Bootstrap()), gap_of_held_out(scans["held_out"], Bootstrap()), 0.5
    )


def test_both_kinds_of_labelled_samples_are_blended(data):
    chosen = finecal.estimate_gamma(MASK, train=data["train"], held_out=data["held_out"], seen_share=0.2)
    assert chosen.gamma == pytest.approx(found(data, "train", "held_out").gamma(0.2))
    assert chosen.n == 350


@pytest.mark.parametrize("names", [("held_out",), ("train", "held_out")])
def test_unlabelled_samples_meet_labelled_ones_half_way(data, names):
    given = {name: data[name] for name in (*names, "unlabelled")}
    chosen = finecal.estimate_gamma(MASK, **given)
    gap = found(data, *names)
    margins = [row[:, MASK].max(1) - row[:, ~MASK].max(1) for row in (data["held_out"][0], data["unlabelled"])]
    share = estimated_shares(*map(torch.tensor, margins), gap.gamma(0.5), 0.5).likeliest(0.5, 150)
    known = finecal.known_share_gamma(data["unlabelled"], MASK, share).gamma
    half_way = (known - gap.gamma(share)) / 2
    assert chosen.gamma == pytest.approx(
        gap.gamma(share) + np.clip(half_way, -gap.temperature / 2, gap.temperature / 2)
    )
    assert f"{100 * share:.0f} % of them seen" in chosen.data


@pytest.mark.parametrize("names", [("held_out",), ("train", "held_out")])
def test_unlabelled_samples_of_a_known_share_meet_labelled_ones_half_way(data, names):
    given = {name: data[name] for name in (*names, "unlabelled")}
    for share in (0.1, 0.7):
        with without_warnings():  # of samples that do not come at this share
            chosen = finecal.estimate_gamma(MASK, **given, seen_share=share)
        known = finecal.known_share_gamma(data["unlabelled"], MASK, share).gamma
        assert chosen.gamma == pytest.approx((found(data, *names).gamma(share) + known) / 2)
        assert chosen.n == sum(len(data[name][1]) for name in names) + 200


def test_a_known_share_does_without_labelled_samples_that_are_of_no_use(data):
    logits, labels = data["train"]
    one_class = logits[labels == 0], labels[labels == 0]
    given = {"unlabelled": data["unlabelled"], "seen_share": 0.4}
    with pytest.warns(finecal.FinecalWarning, match="not used: train: labels are all of class 0; mixed_pair_gap needs"):
        estimate = finecal.estimate_gamma(MASK, train=one_class, **given)
    assert estimate.gamma == finecal.estimate_gamma(MASK, **given).gamma
    assert len(estimate.warnings) == 1


def test_no_gap_is_no_harm(rng):
    logits, labels = labelled(rng, lead=2)
    logits[:, 2:] += 5
    for given in ({"train": (logits, labels)}, {"held_out": (logits, labels)}):
        with pytest.warns(finecal.FinecalWarning, match="no gap is seen .* gamma from them is 0"):
            assert finecal.estimate_gamma(MASK, **given).gamma == 0


def test_estimates_of_the_share_that_disagree_are_warned_of(rng):
    """Three heaps of margins: one like those of seen samples, one far below, and one in between that may be either."""
    heaps = np.concatenate([rng.normal(5, 1, 100), rng.normal(4, 0.3, 150), rng.normal(-20, 1, 150)])
    logits, labels = labelled(rng, 300, lead=2)
    logits[:, 2:] -= 1.5
    unlabelled = np.stack([heaps, heaps - 4, 0 * heaps, 0 * heaps - 1], axis=1)
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimate_gamma(MASK, held_out=(logits, labels), unlabelled=unlabelled)
    assert any("three estimates of the share of seen samples are far apart" in str(w.message) for w in record)


def test_unlabelled_of_the_wrong_kind_are_named(data):
    with pytest.raises(ValueError, match="^unlabelled: logits contain NaN"):
        finecal.estimate_gamma(MASK, held_out=data["held_out"], unlabelled=np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="^unlabelled: logits are empty .* estimate_gamma has nothing"):
        finecal.estimate_gamma(MASK, held_out=data["held_out"], unlabelled=np.ones((0, 4)))


def test_unlabelled_samples_that_cannot_be_used_are_warned_of(data):
    with pytest.warns(finecal.FinecalWarning, match="the unlabelled samples were not used"):
        estimate = finecal.estimate_gamma(MASK, train=data["train"], unlabelled=data["unlabelled"])
    assert len(estimate.warnings) == 1


def test_opposite_signs_are_warned_of(rng):
    logits, labels = labelled(rng, lead=9)
    logits[:, 2:] += 3.2  # rivals of a seen sample: the absent ones are ahead
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimate_gamma(MASK, held_out=(logits, labels), unlabelled=logits[:, ::-1].copy())
    assert any(re.search("max_logit_gap is -.* of the other sign", str(warning.message)) for warning in record)


def test_the_sign_says_nothing_where_the_share_is_given(rng):
    finecal.estimate_gamma(MASK, held_out=labelled(rng, 1000, lead=2), seen_share=0.99)


def test_masked_rivals_do_not_hide_the_others(rng, data):
    logits, labels = data["train"]
    logits[0, 2:] = -math.inf
    with pytest.warns(finecal.FinecalWarning, match="1 of 200 samples were left out"):
        estimate = finecal.estimate_gamma(MASK, train=(logits, labels))
    assert (len(estimate.warnings), estimate.n) == (1, 199)
    assert estimate.data == "199 training labelled seen-class samples"


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


@pytest.mark.parametrize(
    "given", [("held_out", "unlabelled"), ("unlabelled", "seen_share"), ("train", "unlabelled", "seen_share")]
)
def test_passes_bootstrap_and_seed_on(data, given):
    arguments = {name: data[name] for name in given}
    with without_warnings():  # as above
        chosen = [finecal.estimate_gamma(MASK, **arguments, n_bootstrap=20, seed=seed) for seed in (3, 3, 4)]
    assert chosen[0].interval == chosen[1].interval != chosen[2].interval


def test_one_seen_class_is_enough_with_unlabelled_samples(rng):
    mask = np.array([True, False, False, False])
    given = {"held_out": (mixture(rng, 100, 0), np.zeros(100, int)), "unlabelled": mixture(rng, 100, 100)}
    for share in ({}, {"seen_share": 0.5}):
        estimate = finecal.estimate_gamma(mask, **given, **share)
        assert estimate.expected_acc_seen > 0.9
    with pytest.warns(
        finecal.FinecalWarning, match="training samples were not used: with one seen class no sample has"
    ):
        finecal.estimate_gamma(mask, **given, train=(mixture(rng, 100, 0), np.zeros(100, int)))


def test_gaps_of_the_same_sign_agree_however_small(rng):
    logits, labels = labelled(rng)
    finecal.estimate_gamma(MASK, held_out=(logits / 32, labels), seen_share=0.5)


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
        "samples needs held-out samples, held_out="
    )
    with pytest.raises(TypeError, match=r"^held_out is a ndarray; pass held_out=\(logits, labels\), or \("):
        finecal.estimate_gamma(MASK, held_out=np.ones((3, 4)))
    logits, labels = data["held_out"]
    with pytest.raises(ValueError, match="estimate_gamma needs seen-class samples only"):
        finecal.estimate_gamma(MASK, held_out=(logits, labels * 2), unlabelled=data["unlabelled"])


def test_a_gamma_that_costs_everything_is_warned_of_whatever_found_it(rng, data):
    unlabelled = data["unlabelled"].copy()
    unlabelled[:, 0] += 50
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimate_gamma(MASK, held_out=data["held_out"], unlabelled=unlabelled, seen_share=0.4)
    assert any("costs the seen classes everything" in str(warning.message) for warning in record)
    assert any("disagree about gamma: check the share" in str(warning.message) for warning in record)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:3], "only 3 unlabelled samples: the estimated share of seen samples is uncertain"),
        (lambda x: x - [60, 60, 0, 0], "the estimated share of seen samples is at its bound, 0.02"),
    ],
)
def test_a_share_that_rests_on_little_is_warned_of(data, change, message):
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimate_gamma(MASK, held_out=data["held_out"], unlabelled=change(data["unlabelled"]))
    assert any(message in str(warning.message) for warning in record)


def test_nothing_outside_decides(data):
    """Neither the default device and dtype of torch nor the scale of tiny logits."""
    given = {
        "held_out": tuple(map(torch.tensor, data["held_out"])),
        "unlabelled": torch.tensor(data["unlabelled"]),
        "n_bootstrap": 3,
    }
    expected = finecal.estimate_gamma(MASK, **given)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            assert finecal.estimate_gamma(torch.tensor(MASK, device="cpu"), **given) == expected
    finally:
        torch.set_default_dtype(torch.float32)
    tiny = (data["held_out"][0] * 1e-300, data["held_out"][1])
    with without_warnings():
        estimate = finecal.estimate_gamma(MASK, held_out=tiny, unlabelled=data["unlabelled"] * 1e-300)
    assert math.isfinite(estimate.gamma)


# --- features and heads -----------------------------------------------------------------------------------------------


@pytest.fixture
def with_heads(rng):
    """A linear head on features, whose absent rows have moved down alike, with train and held-out samples."""
    before = rng.normal(size=(4, 6)), rng.normal(size=4)
    after = before[0] - np.outer([0, 0, 1, 1], rng.normal(size=6)), before[1] - 3.0 * ~MASK

    def samples(n):
        labels = np.arange(n) % 2
        features = 2 * before[0][labels] + rng.normal(size=(n, 6))
        return features @ after[0].T + after[1], labels, features

    return {"train": samples(120), "held_out": samples(90), "head": after, "pretrained_head": before}


def test_drift_of_held_out_samples_counts_a_fifth(with_heads):
    heads = {name: with_heads[name] for name in ("head", "pretrained_head")}
    logits, labels, features = with_heads["held_out"]
    with without_warnings():
        drift = finecal.head_drift_gamma(logits, labels, MASK, features=features, **heads, n_bootstrap=30)
        for train in ({}, {"train": with_heads["train"][:2]}):
            rest = finecal.estimate_gamma(MASK, held_out=(logits, labels), **train)
            estimate = finecal.estimate_gamma(MASK, held_out=with_heads["held_out"], **train, **heads, n_bootstrap=30)
            assert rest.gamma > 0
            unit = gap_of_held_out(scan_labelled(logits, labels, MASK), Bootstrap()).unit
            change = np.clip(0.2 * (drift.gamma - rest.gamma), -unit / 2, unit / 2)
            assert estimate.gamma == pytest.approx(rest.gamma + change)
            assert estimate.n == rest.n
            assert estimate.method.endswith(" + 0.2 head_drift_gamma (seen_share=0.5)")
            assert estimate.interval[0] < estimate.gamma < estimate.interval[1]


def test_drift_counts_with_unlabelled_samples_too(with_heads, data):
    given = {name: with_heads[name] for name in ("held_out", "head", "pretrained_head")}
    with without_warnings():
        for share in ({}, {"seen_share": 0.3}):
            estimate = finecal.estimate_gamma(MASK, **given, unlabelled=data["unlabelled"], **share)
            assert "0.8 residual_gap + 0.2 head_drift_gamma" in estimate.method


def test_without_a_gap_drift_says_nothing(with_heads):
    logits, labels, features = with_heads["held_out"]
    bias = with_heads["head"][1] + 30.0 * ~MASK
    given = {"head": (with_heads["head"][0], bias), "pretrained_head": with_heads["pretrained_head"]}
    with without_warnings():
        held_out = logits + 30.0 * ~MASK, labels, features
        assert finecal.estimate_gamma(MASK, held_out=held_out, **given).gamma == 0


def test_a_bootstrap_needs_no_more_than_the_estimate(data):
    """Margins that -inf makes infinite may be the quantile of a resample, though not of all samples."""
    unlabelled = data["unlabelled"].copy()
    unlabelled[:90, 2:] = -math.inf
    unlabelled[90:180, :2] = -math.inf
    with without_warnings():
        for given in ({"seen_share": 0.5}, {}):
            given |= {"held_out": data["held_out"], "unlabelled": unlabelled}
            estimate = finecal.estimate_gamma(MASK, **given, n_bootstrap=100)
            assert all(map(math.isfinite, estimate.interval))


def test_few_samples_are_warned_of(data):
    logits, labels = data["held_out"]
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimate_gamma(MASK, held_out=(logits[:19], labels[:19]))
    assert any("gamma rests on only 19 labelled samples" in str(warning.message) for warning in record)


def test_no_features_are_none(data):
    logits, labels = data["held_out"]
    alone = finecal.estimate_gamma(MASK, held_out=(logits, labels))
    assert finecal.estimate_gamma(MASK, held_out=(logits, labels, None)) == alone


def test_a_head_that_did_not_change_tells_of_no_drift(with_heads):
    logits, labels, _ = with_heads["held_out"]
    same = {"head": with_heads["head"], "pretrained_head": with_heads["head"]}
    with pytest.warns(
        finecal.FinecalWarning, match="the drift of the head is not used: head and pretrained_head are eq"
    ):
        estimate = finecal.estimate_gamma(MASK, held_out=with_heads["held_out"], **same)
    with without_warnings():
        assert estimate.gamma == finecal.estimate_gamma(MASK, held_out=(logits, labels)).gamma


def test_features_of_training_samples_are_said_not_to_be_used(with_heads):
    heads = {name: with_heads[name] for name in ("head", "pretrained_head")}
    with pytest.warns(finecal.FinecalWarning, match="features and heads were not used: on training samples"):
        estimate = finecal.estimate_gamma(MASK, train=with_heads["train"], **heads)
    with without_warnings():
        assert estimate.gamma == finecal.estimate_gamma(MASK, train=with_heads["train"][:2]).gamma


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": None}, "features, head= and pretrained_head= belong together"),
        ({"pretrained_head": None}, "features, head= and pretrained_head= belong together"),
        ({"head": None, "pretrained_head": None}, "features, head= and pretrained_head= belong together"),
        ({"held_out": 2}, r"head= and pretrained_head= need features: pass held_out=\(logits, labels, features\)"),
        ({"held_out": "short"}, "held_out: features have shape"),
    ],
)
def test_what_belongs_together_is_asked_for(with_heads, change, message):
    given = {name: with_heads[name] for name in ("held_out", "head", "pretrained_head")}
    logits, labels, features = given["held_out"]
    if change.get("held_out") == 2:
        change = {"held_out": (logits, labels)}
    elif change.get("held_out") == "short":
        change = {"held_out": (logits, labels, features[:3])}
    with pytest.raises(ValueError, match=f"^{message}"), without_warnings():
        finecal.estimate_gamma(MASK, **{**given, **change})
