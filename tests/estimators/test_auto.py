import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
from finecal._core.groups import Bootstrap
from finecal._core.warning import without_warnings
from finecal._estimators import evidence
from finecal._estimators.decision import AbsentModel, SmoothedAccuracy, decide, fit_unlabelled
from finecal._estimators.evidence import combine_evidence, evidence_of_held_out, evidence_of_training
from finecal._estimators.mixed_pairs import estimate_pair_gap
from four_classes import MASK, sentences_of
from problems import MASK as SEVEN
from problems import doubtful_problem, scan_labelled
from profiles import examples

# --- which data decide ------------------------------------------------------------------------------------------------

PAIRS, BOTH = "mixed_pair_gap", r"0.5 residual_gap \+ 0.5 mixed_pair_gap"
ALL = r"0.3\d residual_gap \+ 0.6\d mixed_pair_gap"


@pytest.mark.parametrize(
    ("given", "method", "words"),
    [
        (("train",), f"{PAIRS}, seen_share=0.5", r"200 labelled training samples \(seen classes\)"),
        (("held_out",), f"{BOTH}, seen_share=0.5", r"150 labelled held-out samples \(seen classes\)"),
        (
            ("train", "held_out"),
            f"{ALL}, seen_share=0.5",
            r"200 labelled training and 150 labelled held-out samples \(seen classes\)",
        ),
        (("train", "seen_share"), f"{PAIRS}, seen_share=0.4", r"200 labelled training samples \(seen classes\)"),
        (
            ("train", "unlabelled", "seen_share"),
            f"{PAIRS}, seen_share=0.4",
            r"200 unlabelled samples and 200 labelled training samples \(seen classes\)",
        ),
        (
            ("held_out", "unlabelled"),
            rf"{BOTH}, seen_share=0\.[45]\d*",
            r"200 unlabelled samples, [45]\d % of them seen as estimated with 150 labelled held-out samples \(seen.*",
        ),
        (
            ("train", "held_out", "unlabelled"),
            rf"{ALL}, seen_share=0\.[45]\d*",
            r"200 unlabelled samples, [45]\d % of them seen as estimated with 200 labelled training and 150 labelled.*",
        ),
        (
            ("train", "held_out", "unlabelled", "seen_share"),
            f"{ALL}, seen_share=0.4",
            r"200 unlabelled samples and 200 labelled training and 150 labelled held-out samples \(seen classes\)",
        ),
    ],
)
def test_rule(data, given, method, words):
    with without_warnings():  # that labelled samples and the share, which is made up, disagree
        estimate = finecal.estimate_gamma(MASK, **{name: data[name] for name in given})
    assert re.fullmatch(rf"estimate_gamma\({method}\)", estimate.method)
    assert re.fullmatch(words, estimate.data)
    source = data["held_out"] if "held_out" in given else data["train"]
    assert estimate.acc_seen_at_gamma == finecal.evaluate(*source, MASK, estimate).acc_seen
    assert estimate.acc_seen_at_zero == finecal.evaluate(*source, MASK).acc_seen
    assert estimate.n == sum(int(count) for count in re.findall(r"(\d+) (?!%)", estimate.data))
    assert estimate.interval is None


def test_unlabelled_samples_of_a_known_share_are_taken_alone(data):
    known = finecal.estimators.known_share_gamma(data["unlabelled"], MASK, 0.4, n_bootstrap=5, seed=3)
    given = {"unlabelled": data["unlabelled"], "seen_share": 0.4, "n_bootstrap": 5, "seed": 3}
    assert finecal.estimate_gamma(MASK, **given) == known
    assert known.acc_seen_at_gamma is None


def parts(rng, winners=3):
    """Samples of two kinds, and unlabelled ones, of which few absent classes win."""
    kinds = [doubtful_problem(rng, n, lead=lead) for n, lead in ((80, 4.0), (60, 2.0))]
    unlabelled = doubtful_problem(rng, 70)[0]
    unlabelled[40:, ~SEVEN] += 5
    for logits in (*(kind[0] for kind in kinds), unlabelled):
        logits[:, np.flatnonzero(~SEVEN)[winners:]] -= 5
    return {"train": kinds[0], "held_out": kinds[1], "unlabelled": unlabelled}


def logistic(x):
    return 1 / (1 + math.exp(-x))


def smoothed(logits, labels, gamma, scale):
    """Acc_{S/Y} at gamma, smoothed, sample by sample; of fewer than 50 recognised ones a part of the variance."""
    pairs = zip(logits, labels, strict=True)
    hits = [float(row[label]) - float(max(row[~SEVEN])) for row, label in pairs if max(row[SEVEN]) == row[label]]
    kept, mean = min(1, len(hits) / 50), sum(hits) / len(hits)
    scale = math.sqrt(scale**2 + 3 / math.pi**2 * (1 - kept) * float(np.var(hits)))
    return sum(logistic((mean + math.sqrt(kept) * (m - mean) - gamma) / scale) for m in hits) / len(labels)


def effective_number(winners, k):
    """The exponential of the winners' entropy, over that of random draws."""
    n = len(winners)
    part = np.unique(winners, return_counts=True)[1] / n
    drawn = sum(math.comb(n, c) * (k - 1) ** (n - c) / k**n * -(c / n) * math.log(c / n) for c in range(1, n + 1))
    return math.exp(-(part * np.log(part)).sum() - k * drawn)


def best_class(row, classes):
    return max(classes, key=lambda c: (row[c], -c))


def retention_from_rivals(logits, labels):
    seen, absent = np.flatnonzero(SEVEN).tolist(), np.flatnonzero(~SEVEN).tolist()
    of_seen = [best_class(row, [c for c in seen if c != label]) for row, label in zip(logits, labels, strict=True)]
    of_absent = [best_class(row, absent) for row in logits]
    return min(1, effective_number(of_absent, 3) / effective_number(of_seen, 4) / 0.65)


@pytest.mark.parametrize("names", [("train",), ("held_out",), ("train", "held_out")])
@pytest.mark.parametrize("with_stream", [False, True])
@pytest.mark.parametrize("winners", [1, 3])
def test_gamma_has_the_largest_expected_accuracy(rng, names, with_stream, winners):
    """A grid of gammas; accuracy and health sample by sample. Gap and stream have tests of their own."""
    given = parts(rng, winners)
    scans = {name: scan_labelled(*given[name], SEVEN) for name in names}
    if "train" in names:
        found = train = evidence_of_training(scans["train"], Bootstrap())
    if "held_out" in names:
        found = evidence_of_held_out(scans["held_out"], Bootstrap())
        found = combine_evidence(train, found) if "train" in names else found
    assert found.gap > 0
    logits, labels = given[names[-1]]
    gap, error, share = found.gap, 0.2 * found.gap, 0.3
    health = retention_from_rivals(logits, labels)
    if with_stream:
        margin = given["unlabelled"][:, SEVEN].max(1) - given["unlabelled"][:, ~SEVEN].max(1)
        stream = fit_unlabelled(scans[names[-1]].margin, torch.tensor(margin), gap, found.unit, share)
        gap, error = stream.gap, stream.error
        absent = np.flatnonzero(~SEVEN).tolist()
        winning = [best_class(row, absent) for row, m in zip(given["unlabelled"], margin, strict=True) if m < gap]
        health = min(1, effective_number(winning, 3) / 0.8)
    assert (health < 0.7) == (winners == 1)

    of_seen = math.hypot(found.unit / 2, math.sqrt(3) / math.pi * (1 - found.unfamiliarity) * error)
    of_absent = math.hypot(found.unit / 2, math.sqrt(3) / math.pi * 2 * error)

    def expected(gamma):
        of_absent_classes = health * smoothed(logits, labels, 2 * gap - gamma, of_absent)
        return share * smoothed(logits, labels, gamma, of_seen) + (1 - share) * of_absent_classes

    margins = sorted(
        m
        for row, label in zip(logits, labels, strict=True)
        if max(row[SEVEN]) == row[label] and (m := float(row[label]) - float(max(row[~SEVEN]))) >= 0
    )
    grid = np.linspace(0, min(max(margins[-1], 2 * gap) + found.unit, margins[len(margins) // 2]), 150)
    best = grid[int(np.argmax([expected(gamma) for gamma in grid]))]
    with without_warnings():
        estimate = finecal.estimate_gamma(
            SEVEN,
            **{name: given[name] for name in names},
            seen_share=share,
            unlabelled=given["unlabelled"] if with_stream else None,
        )
    assert estimate.gamma == pytest.approx(found.gap_weight * best, abs=2 * grid[1])
    assert estimate.gamma > 0


def decided(problem, found, share, gap=None):
    """The gamma of held-out samples for a gap that is clear."""
    absent = AbsentModel(found.gap if gap is None else gap, 0.2 * found.gap, share, retention_from_rivals(*problem))
    return decide(SmoothedAccuracy(scan_labelled(*problem, SEVEN)), found.unit, found.unfamiliarity, absent).gamma


def test_an_unclear_gap_is_taken_in_part(rng):
    """Two problems between which the gap becomes clear; in between gamma rises from 0 to what it is."""
    logits, labels = doubtful_problem(rng, 300, shift=0.0, lead=2.0)
    pairs = estimate_pair_gap(scan_labelled(logits, labels, SEVEN), Bootstrap())
    gammas, words = [], set()
    for pair_z_score in (0.9, 1.1, 1.25, 1.35, 1.45, 1.55, 1.7, 3.0):
        problem = logits - np.float32(pair_z_score * pairs.spread - pairs.gap) * ~SEVEN, labels
        found = evidence_of_held_out(scan_labelled(*problem, SEVEN), Bootstrap())
        assert found.pair_z_score == pytest.approx(pair_z_score, abs=1e-4)
        estimate, sentences = sentences_of(SEVEN, held_out=problem)
        gammas.append(estimate.gamma)
        assert estimate.gamma == pytest.approx(found.gap_weight * decided(problem, found, 4 / 7))
        kinds = [kind for kind in ("no gap is seen", "the gap is unclear") if any(kind in s for s in sentences)]
        assert kinds == (
            ["no gap is seen"] if found.gap_weight == 0 else ["the gap is unclear"] * (found.gap_weight < 0.5)
        )
        words |= set(kinds)
    assert words == {"no gap is seen", "the gap is unclear"}
    assert gammas[0] == 0
    assert gammas == sorted(gammas)


# --- invariances ------------------------------------------------------------------------------------------------------


def gamma_of(logits, labels, mask=SEVEN, **options):
    with without_warnings():
        return finecal.estimate_gamma(mask, held_out=(logits, labels), seen_share=0.5, **options).gamma


@examples(60)
@given(st.integers(0, 10_000), st.floats(2, 6), st.floats(1.5, 3), st.floats(0.5, 20))
def test_invariances(seed, shift, lead, scale):
    rng = np.random.default_rng(seed)
    logits, labels = doubtful_problem(rng, 60, shift, lead)
    logits = logits.astype(np.float64)
    expected = gamma_of(logits, labels)
    assert math.isfinite(expected)
    assert gamma_of(logits + rng.normal(size=(60, 1)), labels) == pytest.approx(expected, abs=1e-3)
    order = rng.permutation(7)
    assert gamma_of(logits[:, order], np.argsort(order)[labels], SEVEN[order]) == pytest.approx(expected, abs=1e-3)
    assert gamma_of(logits.astype(np.float32), labels) == pytest.approx(expected, abs=1e-3)
    # The temperature that is fitted has a weak prior.
    unit = evidence_of_held_out(scan_labelled(logits, labels, SEVEN), Bootstrap()).unit
    # The temperature is fitted to a tolerance, and the expected accuracy may have two maxima of nearly the same height.
    assert gamma_of(scale * logits, labels) / scale == pytest.approx(expected, abs=unit)


@pytest.mark.parametrize("scale", [0.3, 3.0, 10.0])
def test_gamma_has_the_unit_of_the_logits(rng, scale):
    logits, labels = doubtful_problem(rng, 2000, lead=1.5)
    expected = gamma_of(logits, labels)
    assert gamma_of(np.float32(scale) * logits, labels) == pytest.approx(scale * expected, rel=0.01)


def test_samples_in_another_order(rng):
    """So many mistakes that pairs, which are drawn by index, say no more than that there is a gap."""
    logits, labels = doubtful_problem(rng, 300, lead=1.5)
    rows = rng.permutation(300)
    given = {"unlabelled": rng.permutation(np.concatenate([logits[::2], logits[1::4] - 4 * SEVEN]))}
    assert evidence_of_held_out(scan_labelled(logits, labels, SEVEN), Bootstrap()).unfamiliarity == 1
    assert gamma_of(logits[rows], labels[rows]) == pytest.approx(gamma_of(logits, labels), abs=1e-4)
    assert gamma_of(logits[rows], labels[rows], **given) == pytest.approx(gamma_of(logits, labels, **given), abs=1e-4)


def test_every_device_and_dtype(rng, device, dtype):
    """Gamma of rounded logits is that of the same numbers in float64."""
    given = {name: value if name == "unlabelled" else value[0] for name, value in parts(rng).items()}
    labels = {
        name: torch.tensor(value[1]) for name, value in parts(np.random.default_rng(0)).items() if len(value) == 2
    }
    rounded = {name: torch.tensor(logits).to(dtype) for name, logits in given.items()}
    before = {name: torch.flip(rounded[name], [0]) for name in ("held_out", "unlabelled")}

    def estimated(kind, **place):
        moved = {name: logits.to(**place) for name, logits in rounded.items()}
        pretrained = {name: logits.to(**place) for name, logits in before.items()}
        data = {
            name: finecal.Samples(moved[name], y.to(place.get("device", "cpu")), pretrained_logits=pretrained.get(name))
            for name, y in labels.items()
        }
        stream = finecal.Samples(moved["unlabelled"], pretrained_logits=pretrained["unlabelled"])
        with without_warnings():
            data |= {} if kind == "stream" else {"seen_share": 0.5}
            data |= {} if kind == "seen" else {"unlabelled": stream}
            return finecal.estimate_gamma(torch.tensor(SEVEN, device=place.get("device")), **data, n_bootstrap=5)

    for kind in ("seen", "known", "stream"):
        estimate, expected = estimated(kind, device=device, dtype=dtype), estimated(kind, dtype=torch.float64)
        assert type(estimate.gamma) is float
        assert estimate.gamma == pytest.approx(expected.gamma, abs=1e-3)
        assert estimate.interval == pytest.approx(expected.interval, abs=5e-3)


def test_bfloat16_is_off_by_its_rounding(rng):
    logits, labels = doubtful_problem(rng, 500)
    coarse = torch.tensor(logits).bfloat16()
    assert gamma_of(coarse, torch.tensor(labels)) == pytest.approx(gamma_of(logits, labels), abs=0.05)


def test_arrays_lists_and_tensors(rng):
    logits, labels = doubtful_problem(rng, 40)
    expected = gamma_of(logits.astype(np.float64), labels)
    assert gamma_of(logits.tolist(), labels.tolist(), SEVEN.tolist()) == expected
    assert gamma_of(torch.tensor(logits.astype(np.float64)), torch.tensor(labels), torch.tensor(SEVEN)) == expected


# --- where there is no gap, a negative one, or a damaged block --------------------------------------------------------


def test_no_gap_is_no_harm(rng):
    logits, labels = doubtful_problem(rng, 200, shift=-0.5)
    for name in ("train", "held_out"):
        estimate, (first, *_) = sentences_of(SEVEN, **{name: (logits, labels)}, n_bootstrap=20)
        assert estimate.gamma == 0
        assert first.startswith("no gap is seen (mixed pairs prefer seen classes by ")
        unit = evidence_of_held_out(scan_labelled(logits, labels, SEVEN), Bootstrap()).unit
        assert estimate.interval[0] <= -unit < unit <= estimate.interval[1]  # a gap that is not seen may be there


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_seen_classes_that_lose_get_a_negative_gamma(rng, name):
    """As with a masked loss: the model prefers absent classes on all of its samples."""
    logits, labels = doubtful_problem(rng, 200, shift=-8.0, lead=3.0)
    estimate, sentences = sentences_of(SEVEN, **{name: (logits, labels)}, n_bootstrap=20)
    assert estimate.gamma < -5
    assert estimate.acc_seen_at_gamma > estimate.acc_seen_at_zero + 0.5
    assert sentences[0].startswith("the seen classes lose: absent ones are ahead by ")
    assert "gamma is negative: check it" in sentences[0]
    assert estimate.interval[0] < estimate.gamma < estimate.interval[1]


def test_a_huge_gap_is_warned_of(rng):
    logits, labels = doubtful_problem(rng, 200, shift=40.0)
    estimate, sentences = sentences_of(SEVEN, held_out=(logits, labels), seen_share=0.2)
    assert estimate.gamma > 20
    assert any("more than 12 units of log-odds: high learning rates" in sentence for sentence in sentences)


def many_classes(rng, n=300, gap=5.0):
    """Forty classes, half of them seen; the first absent one wins everywhere."""
    mask = np.arange(40) < 20
    labels = rng.integers(0, 20, n)
    logits = rng.normal(size=(n, 40)) + gap * mask
    logits[np.arange(n), labels] += 3
    winner, first = logits[:, 20:].argmax(1) + 20, logits[:, 20].copy()
    logits[:, 20] = logits[:, 20:].max(1)
    logits[np.arange(n), winner] = np.where(winner == 20, logits[:, 20], first)
    return mask, logits, labels


def spread_out(rng, mask, logits):
    """The same logits, but each row's absent ones in another order: another class wins, by as much."""
    other = logits.copy()
    other[:, ~mask] = rng.permuted(logits[:, ~mask], axis=1)
    return other


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_a_block_that_collapses_gets_less(rng, name):
    mask, logits, labels = many_classes(rng)
    sound, sentences = sentences_of(mask, **{name: (spread_out(rng, mask, logits), labels)}, seen_share=0.08)
    assert sentences == ()
    damaged, (sentence,) = sentences_of(mask, **{name: (logits, labels)}, seen_share=0.08)
    assert 0 <= damaged.gamma < sound.gamma - 0.3
    told = re.search(
        "absent classes: seen samples without their label have few winners .* instead of (.*?), and", sentence
    )
    assert float(told[1]) == pytest.approx(sound.gamma, rel=0.1)


def test_health_of_rivals_is_relative_to_the_model_before(rng):
    mask, logits, labels = many_classes(rng)

    def found(before=None):
        held_out = finecal.Samples(logits, labels, pretrained_logits=before)
        return sentences_of(mask, held_out=held_out, seen_share=0.08)

    alone, (sentence,) = found()
    assert "have damaged the absent classes" in sentence
    same, sentences = found(logits)
    assert same.gamma > alone.gamma + 0.3
    assert sentences == ()
    damaged, (sentence,) = found(spread_out(rng, mask, logits))
    assert damaged.gamma == pytest.approx(alone.gamma, abs=0.1)
    assert "fewer than before fine-tuning" in sentence


def stream_of(rng):
    mask, logits, labels = many_classes(rng)
    unlabelled = np.concatenate([many_classes(rng, 150)[1], many_classes(rng, 150, gap=1.0)[1]])
    return mask, {"held_out": (logits, labels), "unlabelled": unlabelled}


def test_health_of_a_stream_is_relative_to_the_winners_before(rng, monkeypatch):
    monkeypatch.setattr(evidence, "_AT_STAKE", -1.0)  # told even where gamma costs nothing
    mask, given = stream_of(rng)
    logits = given.pop("unlabelled")

    def found(logits, before=None):
        return sentences_of(mask, **given, unlabelled=finecal.Samples(logits, pretrained_logits=before))

    sound, sentences = found(spread_out(rng, mask, logits))
    assert sentences == ()
    alone, (sentence,) = found(logits)
    assert "damaged the absent classes: unlabelled samples have few winners" in sentence
    assert alone.gamma < sound.gamma - 0.1
    same, sentences = found(logits, logits)
    assert alone.gamma < same.gamma <= sound.gamma
    assert sentences == ()  # half of the health is agreement, which is 1
    other, (sentence,) = found(logits, spread_out(rng, mask, logits))
    assert other.gamma == pytest.approx(alone.gamma, abs=0.1)
    assert re.search(r"and \d+ % keep the one that they had before fine-tuning", sentence)


def test_the_share_is_estimated_towards_the_truth(rng):
    mask, given = stream_of(rng)
    shares = []
    for n in (30, 150):
        unlabelled = np.concatenate([given["unlabelled"][:n], given["unlabelled"][150:][: 180 - n]])
        with without_warnings():
            estimate = finecal.estimate_gamma(mask, **{**given, "unlabelled": unlabelled})
        shares.append(float(re.search(r"seen_share=([\d.]+)", estimate.method)[1]))
    assert 1 / 6 - 0.1 < shares[0] < 0.45 < 0.55 < shares[1] < 5 / 6 + 0.1


# --- folds ------------------------------------------------------------------------------------------------------------

FOLD_MASK = np.arange(14) % 7 != 3
"""Twelve of fourteen classes are seen, so that a fold has six of either group."""


def fold_samples(rng, n, trained, right=True, gap=4.0):
    labels = rng.choice(np.flatnonzero(FOLD_MASK), n)
    logits = rng.normal(size=(n, 14)) + gap * trained
    logits[np.arange(n), labels] += np.where(trained[labels] | right, 2.5, 0.0)
    return logits, labels


@pytest.fixture
def folds(rng):
    halves = finecal.estimators.pseudo_cv_splits(FOLD_MASK)
    return {
        right: [finecal.estimators.PseudoFold(fold_samples(rng, 300, half, right), half) for half in halves]
        for right in (True, False)
    }


@pytest.mark.parametrize("with_stream", [False, True])
def test_folds_tell_of_damage(rng, folds, with_stream):
    given = {"held_out": fold_samples(rng, 200, FOLD_MASK)}
    if with_stream:
        given["unlabelled"] = rng.normal(size=(200, 14)) + 4.0 * FOLD_MASK * (np.arange(200) < 120)[:, None]
    with without_warnings():
        sound = finecal.estimate_gamma(FOLD_MASK, **given, seen_share=0.5, folds=iter(folds[True]))
    damaged, sentences = sentences_of(FOLD_MASK, **given, seen_share=0.5, folds=folds[False])
    assert damaged.gamma < sound.gamma
    assert any("the absent classes: in the folds " in sentence for sentence in sentences)
    assert "have few winners" not in " ".join(sentences)
    if not with_stream:
        assert sound.data == damaged.data == "200 labelled held-out samples (seen classes), and 3 folds"
        one = finecal.estimate_gamma(FOLD_MASK, **given, folds=folds[True][:1])
        assert one.data == "200 labelled held-out samples (seen classes), and 1 fold"


def test_folds_that_are_too_small_are_said_and_not_used(rng):
    mask = np.arange(8) < 6
    labels = np.arange(120) % 6
    logits = rng.normal(size=(120, 8)) + 3 * mask + 2.5 * np.eye(8)[labels]
    given = {"held_out": (logits, labels), "folds": [finecal.estimators.PseudoFold((logits, labels), np.arange(8) < 3)]}
    with pytest.warns(finecal.FinecalWarning, match="the folds were not used: 3 pseudo-absent classes are too few"):
        estimate = finecal.estimate_gamma(mask, **given)
    assert estimate.gamma == finecal.estimate_gamma(mask, held_out=given["held_out"]).gamma
    assert "fold" not in estimate.data


def test_folds_beside_a_known_share_alone_are_said_not_to_be_used(rng, folds):
    given = {"unlabelled": rng.normal(size=(200, 14)) + 3 * FOLD_MASK, "seen_share": 0.5}
    with pytest.warns(finecal.FinecalWarning, match="the folds were not used: they need labelled samples of two seen"):
        estimate = finecal.estimate_gamma(FOLD_MASK, **given, folds=folds[True])
    assert estimate.gamma == finecal.estimators.known_share_gamma(given["unlabelled"], FOLD_MASK, 0.5).gamma


@pytest.mark.parametrize(
    ("folds", "error", "message"),
    [
        (3, TypeError, "folds is one int; pass a sequence of PseudoFold"),
        ([], ValueError, "folds are empty; pass one PseudoFold"),
        ([3], TypeError, r"folds\[0\] is a int; pass a PseudoFold"),
    ],
)
def test_wrong_folds_are_named(rng, folds, error, message):
    with pytest.raises(error, match=f"^{message}"):
        finecal.estimate_gamma(FOLD_MASK, held_out=fold_samples(rng, 100, FOLD_MASK), folds=folds)


def test_folds_alone_are_for_pseudo_cv(folds):
    with pytest.raises(ValueError, match="with folds= alone use pseudo_cv_gamma$"):
        finecal.estimate_gamma(FOLD_MASK, folds=folds[True])


# --- the logits before fine-tuning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["held_out", "unlabelled"])
def test_logits_before_fine_tuning_are_checked(data, name):
    given = {"held_out": data["held_out"], "unlabelled": data["unlabelled"]}
    logits = data["held_out"][0] if name == "held_out" else data["unlabelled"]
    labels = data["held_out"][1] if name == "held_out" else None
    for wrong, message in ((logits * np.nan, "contain NaN"), (logits + np.inf, "contain +inf")):
        samples = finecal.Samples(logits, labels, pretrained_logits=wrong)
        with pytest.raises(ValueError, match=f"^{name}: pretrained_logits {re.escape(message)}"):
            finecal.estimate_gamma(MASK, **{**given, name: samples})


# --- intervals --------------------------------------------------------------------------------------------------------

COMBINATIONS = [
    ("train",),
    ("held_out",),
    ("train", "held_out"),
    ("held_out", "unlabelled"),
    ("unlabelled", "seen_share"),
    ("train", "unlabelled", "seen_share"),
    ("train", "held_out", "unlabelled", "seen_share"),
]


@pytest.mark.parametrize("names", COMBINATIONS)
def test_intervals(data, names):
    arguments = {name: data[name] for name in names}
    with without_warnings():  # as above
        without = finecal.estimate_gamma(MASK, **arguments, seed=3)
        chosen = [finecal.estimate_gamma(MASK, **arguments, n_bootstrap=20, seed=seed) for seed in (3, 3, 4)]
    assert without.interval is None
    assert without.gamma == chosen[0].gamma
    assert chosen[0].interval == chosen[1].interval != chosen[2].interval
    for estimate in chosen:
        low, high = estimate.interval
        assert low < estimate.gamma < high
        if estimate.method.startswith("estimate_gamma"):  # the error of the method is in it
            assert high - low > 0.3 * estimate.gamma


def test_an_interval_holds_the_error_of_the_method_however_many_samples_there_are(rng):
    """A tenth of the gap in the standard deviation."""
    problem = doubtful_problem(rng, 4000)
    gap = evidence_of_held_out(scan_labelled(*problem, SEVEN), Bootstrap()).gap
    estimate = finecal.estimate_gamma(SEVEN, held_out=problem, n_bootstrap=20)
    low, high = estimate.interval
    assert 0.2 * gap <= min(estimate.gamma - low, high - estimate.gamma)
    assert max(estimate.gamma - low, high - estimate.gamma) < 0.25 * gap
    few = finecal.estimate_gamma(SEVEN, held_out=(problem[0][:40], problem[1][:40]), n_bootstrap=20).interval
    assert few[1] - few[0] > high - low


def test_an_interval_is_of_resampled_gaps_and_of_the_error_of_the_method(rng):
    """Two errors that are independent of each other: their squares add up, on either side."""
    problem = doubtful_problem(rng, 12, lead=2.5)
    found = evidence_of_held_out(scan_labelled(*problem, SEVEN), Bootstrap(60, 5))
    assert found.gap_weight == 1
    with without_warnings():
        estimate = finecal.estimate_gamma(SEVEN, held_out=problem, seen_share=0.3, n_bootstrap=60, seed=5)
    resampled = [decided(problem, found, 0.3, gap) for gap in found.replicates if math.isfinite(gap)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert low < estimate.gamma - 0.5
    assert high > estimate.gamma + 0.1
    error = 0.2 * found.gap
    expected = (
        estimate.gamma - math.hypot(estimate.gamma - low, error),
        estimate.gamma + math.hypot(high - estimate.gamma, error),
    )
    assert estimate.interval == pytest.approx(expected, abs=0.01)


def test_a_bootstrap_needs_no_more_than_the_estimate(data):
    """Margins that -inf makes infinite may be the quantile of a resample, though not of all samples."""
    unlabelled = data["unlabelled"].copy()
    unlabelled[:90, 2:] = -math.inf
    unlabelled[90:180, :2] = -math.inf
    with without_warnings():
        for share in ({"seen_share": 0.5}, {}):
            estimate = finecal.estimate_gamma(
                MASK, held_out=data["held_out"], unlabelled=unlabelled, n_bootstrap=100, **share
            )
            assert all(map(math.isfinite, estimate.interval))


def test_the_break_even_is_the_share_where_cost_and_expected_gain_are_equal(rng):
    held_out = doubtful_problem(rng, 400)
    with without_warnings():
        estimate = finecal.estimate_gamma(SEVEN, held_out=held_out)
    scan = scan_labelled(*held_out, SEVEN)
    found = evidence_of_held_out(scan, Bootstrap())
    health = retention_from_rivals(*held_out)
    of_absent = math.hypot(found.unit / 2, math.sqrt(3) / math.pi * 2 * 0.2 * found.gap)
    at_gamma, at_zero = (smoothed(*held_out, 2 * found.gap - gamma, of_absent) for gamma in (estimate.gamma, 0.0))
    cost = estimate.acc_seen_at_zero - estimate.acc_seen_at_gamma
    assert cost > 0
    share = estimate.min_absent_share
    assert share * health * (at_gamma - at_zero) == pytest.approx((1 - share) * cost)
    assert f"Pays if more than {100 * share:.1f} % of the samples are of absent classes" in str(estimate)


@pytest.mark.parametrize(("decay", "told"), [(1.0, False), (0.7, False), (0.2, True)])
def test_labels_of_few_of_the_seen_classes_are_warned_of(rng, decay, told):
    """Geometric frequencies: of four seen classes nearly one and a half carry the samples at 0.2, three at 0.7."""
    logits, labels = doubtful_problem(rng, 600)
    kept = rng.random(600) < decay ** np.searchsorted(np.unique(labels), labels)
    held_out = logits[kept], labels[kept]

    def warned(**given):
        return [
            s for s in sentences_of(SEVEN, held_out=held_out, **given)[1] if "take" in s and "equally frequent" in s
        ]

    assert len(warned()) == told
    assert warned(seen_share=0.9) == []
    if told:
        assert re.search(r"Pays if more than [\d.]+ % of .*gives seen_share=0.98. Pass seen_share=", warned()[0])
