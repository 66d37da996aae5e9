"""The guide on base-to-new generalization runs, and OpenworldAUC, computed from its definition, is AUSUC."""

from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import finecal
from pages import blocks

BASE, CLASSES = 6, 12
SEEN_MASK = torch.arange(CLASSES) < BASE


def samples(rng, count=240, push=1.0):
    """Logits of a classifier of 12 classes, whose first six have been pushed down."""
    labels = torch.tensor(rng.integers(CLASSES, size=count))
    logits = torch.tensor(rng.normal(size=(count, CLASSES))) + 2 * torch.eye(CLASSES)[labels] - push * SEEN_MASK
    return logits.float(), labels


def openworld_auc(base_right, new_right, base_score, new_score, tie=Fraction(1, 2)):
    """E[ [g(x_b) = y_b] [r(x_b) > r(x_n)] [h(x_n) = y_n] ], pair by pair; a tie counts `tie`."""
    pairs = product(zip(base_right, base_score, strict=True), zip(new_right, new_score, strict=True))
    won = sum(
        (1 if own > other else tie if own == other else 0)
        for (is_right, own), (other_is_right, other) in pairs
        if is_right and other_is_right
    )
    return Fraction(won) / (len(base_right) * len(new_right))


def published(base_right, new_right, base_score, new_score):
    """The same as an area under the ROC curve, where wrong samples get scores at the losing ends."""
    least, most = min(new_score) - 1e-5, max(base_score) + 1e-5
    scores = [own if is_right else least for is_right, own in zip(base_right, base_score, strict=True)]
    scores += [own if is_right else most for is_right, own in zip(new_right, new_score, strict=True)]
    return roc_auc_score([1] * len(base_score) + [0] * len(new_score), scores)


def parts(logits, labels, score):
    """Who is right within its group, and the score of the detector: of base samples, and of new ones."""
    logits, labels, score = (np.asarray(values) for values in (logits, labels, score))
    of_base = labels < BASE
    base_right = logits[of_base][:, :BASE].argmax(1) == labels[of_base]
    new_right = logits[~of_base][:, BASE:].argmax(1) == labels[~of_base] - BASE
    return base_right.tolist(), new_right.tolist(), score[of_base].tolist(), score[~of_base].tolist()


def margin(logits):
    logits = np.asarray(logits)
    return logits[:, :BASE].max(1) - logits[:, BASE:].max(1)


def rounded(rng):
    logits, labels = samples(rng)
    return logits.mul(2).round().div(2), labels  # as half precision makes them: many ties


def with_cosines(rng):
    texts = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(CLASSES, 16))), dim=1)
    labels = torch.tensor(rng.integers(CLASSES, size=300))
    images = torch.nn.functional.normalize(texts[labels] + 0.4 * torch.tensor(rng.normal(size=(300, 16))), dim=1)
    return 100 * images @ texts.T, labels


@pytest.mark.parametrize("task", [samples, rounded, with_cosines])
def test_openworld_auc_is_ausuc(rng, task):
    logits, labels = task(rng)
    given = parts(logits, labels, margin(logits))
    curve = finecal.tradeoff_curve(logits, labels, SEEN_MASK)
    assert curve.ausuc == pytest.approx(float(openworld_auc(*given)), abs=1e-15)
    assert curve.ausuc == pytest.approx(published(*given), abs=1e-12)
    for increasing in (np.tanh, np.arctan):
        of_margin = parts(logits, labels, increasing(margin(logits).astype(np.float64) / 100))
        assert openworld_auc(*of_margin) == openworld_auc(*given)
    log_probabilities = logits.double().log_softmax(1)
    assert margin(log_probabilities) == pytest.approx(margin(logits.double()), abs=1e-12)


def test_ties_count_half_in_the_published_code_and_nothing_in_the_formula(rng):
    logits, labels = rounded(rng)
    given = parts(logits, labels, margin(logits))
    strict, half = openworld_auc(*given, tie=0), openworld_auc(*given)
    tied = openworld_auc(*given, tie=1) - strict
    assert tied > Fraction(1, 100)
    assert half - strict == tied / 2
    assert finecal.tradeoff_curve(logits, labels, SEEN_MASK).ausuc == pytest.approx(float(half), abs=1e-15)


def test_probabilities_order_samples_differently(rng):
    logits, labels = samples(rng)
    probabilities = logits.double().softmax(1).numpy()
    ausuc = finecal.tradeoff_curve(logits, labels, SEEN_MASK).ausuc
    for score in (probabilities[:, :BASE].max(1), margin(probabilities), probabilities[:, :BASE].sum(1)):
        assert abs(float(openworld_auc(*parts(logits, labels, score))) - ausuc) > 1e-4


def test_other_averages_and_infinite_margins_are_other_numbers(rng):
    logits, labels = samples(rng)
    exact = float(openworld_auc(*parts(logits, labels, margin(logits))))
    macro = finecal.tradeoff_curve(logits, labels, SEEN_MASK, average="macro")
    assert abs(macro.ausuc - exact) > 1e-4
    logits[labels < 2, BASE:] = -torch.inf
    exact = float(openworld_auc(*parts(logits, labels, margin(logits))))
    assert finecal.tradeoff_curve(logits, labels, SEEN_MASK).ausuc < exact - 0.01


def test_the_published_code_where_the_detector_is_upside_down(rng):
    logits, labels = samples(rng)
    base_right, new_right, *_ = parts(logits, labels, margin(logits))
    score = [0.0] * len(base_right), [1.0] * len(new_right)
    assert openworld_auc(base_right, new_right, *score) == 0
    both_wrong = (1 - np.mean(base_right)) * (1 - np.mean(new_right))
    assert published(base_right, new_right, *score) == pytest.approx(both_wrong) != 0
    closer = score[0], [1.9e-5] * len(new_right)
    assert published(base_right, new_right, *closer) == 0


def test_python_on_base_to_new_runs(rng, capsys):
    by_halves, in_coop, report, by_share, by_labels, with_detector = blocks("docs/how-to/clip.md", "python")[7:]
    logits, labels = samples(rng, 1200)
    modes = []
    trainer = SimpleNamespace(
        set_model_mode=modes.append,
        model=torch.nn.Identity(),
        test_loader=[{"img": x, "label": y} for x, y in zip(logits.split(100), labels.split(100), strict=True)],
    )
    names = {"finecal": finecal, "torch": torch, "trainer": trainer}
    exec(in_coop, names)
    assert modes == ["eval"]
    assert torch.equal(names["test"].logits, logits)
    assert torch.equal(names["test"].labels, labels)
    assert torch.equal(names["seen_mask"], SEEN_MASK)
    exec(report, names)
    curve = finecal.tradeoff_curve(logits, labels, SEEN_MASK)
    before = curve.at(0.0)
    assert f"{100 * before.acc_seen_within:.1f}" in capsys.readouterr().out

    inputs, held_out_labels = samples(rng, 1200, push=0.0)
    base = held_out_labels < BASE
    names |= {"held_out_inputs": inputs[base], "held_out_labels": held_out_labels[base]}
    names |= {"fit": lambda mask: lambda x: x - 1.0 * mask, "unlabelled_logits": samples(rng, 1200)[0]}
    with pytest.warns(finecal.FinecalWarning, match="only 3 pseudo-absent classes"):
        exec(by_halves, names)
    of_halves = names["gamma"]
    exec(by_share, names)
    for gamma in (of_halves, names["gamma"]):
        after = curve.at(gamma)
        assert gamma.gamma < 0
        assert after.harmonic_mean > before.harmonic_mean
        assert (after.acc_seen_within, after.acc_absent_within) == (before.acc_seen_within, before.acc_absent_within)
    exec(by_labels, names)
    assert float(names["oracle"]) == curve.best("harmonic")

    capsys.readouterr()
    score = torch.tensor(rng.uniform(size=1200), dtype=torch.float32) - 0.2 * (labels >= BASE)
    learned, hand_written = logits[:, :BASE] + torch.tensor(rng.normal(size=(1200, BASE))), logits[:, BASE:]
    names |= {"base_logits": learned, "new_logits": hand_written, "score": score}
    exec(with_detector, names)
    both = torch.cat([learned, hand_written], 1)
    expected = openworld_auc(*parts(both, labels, score.double()))
    assert float(capsys.readouterr().out) == pytest.approx(float(expected), abs=1e-15)
    assert torch.equal(torch.tensor(margin(names["logits"])), score.double())
    detected = finecal.predict(names["logits"], SEEN_MASK, 0.5) >= BASE
    assert torch.equal(detected, score.double() < 0.5)


def test_the_scale_of_the_logits_is_that_of_gamma(rng):
    logits, labels = samples(rng)
    gamma = finecal.search_gamma(logits.double(), labels, SEEN_MASK).gamma
    assert finecal.search_gamma(logits.double() * 50, labels, SEEN_MASK).gamma == pytest.approx(50 * gamma)
    assert finecal.search_gamma(logits.double() / 4, labels, SEEN_MASK).gamma == pytest.approx(gamma / 4)
