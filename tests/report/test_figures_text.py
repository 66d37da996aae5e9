"""What a page says."""

import math

import numpy as np
import pytest

import finecal
from finecal._report.data import Page
from finecal._report.figures import percent, summary
from report_pages import problem, read

INF = math.inf


def test_words_at_gamma():
    logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    labels, mask = [0, 2, 0], [True, True, False]
    text = read(finecal.html_report(logits, labels, mask, 0.75)).text
    assert "3 labelled samples: 2 of seen classes, 1 of absent classes." in text
    assert "The model knows 3 classes, 2 seen and 1 absent." in text
    assert "changes the accuracy from 66.7 % to 100.0 % (+33.3 points): on seen classes from 100.0 % to 100.0 %" in text
    assert "(the oracle), 0.75, reaches 100.0 % (+33.3 points); this one gets 100 % of that gain." in text

    def words(gamma, average="micro", **contents):
        return " ".join(summary(Page(finecal.tradeoff_curve(logits, labels, mask, average), gamma, **contents)))

    assert "At gamma = 0 the model is as fine-tuning left it. Its accuracy is 66.7 %" in words(0.0)
    assert "reaches 100.0 % (+33.3 points). No estimate of gamma can gain more." in words(0.0)
    assert "from 66.7 % to 66.7 % (+0.0 points)" in words(2.0)
    assert "this one gets 0 % of that gain" in words(2.0)
    assert "from 66.7 % to 33.3 % (\N{MINUS SIGN}33.3 points)" in words(5.0)
    assert "(+33.3 points); this one loses." in words(5.0)
    assert "It bounds what an estimate can reach; it is not a result to report." in words(0.75, gamma_was_given=False)
    assert "every class counts the same (macro)" in words(0.75, "macro")


def test_prototypes_are_measured_against_their_gamma():
    logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    weight = np.array([[0.0], [0.0], [1.0]])
    module = finecal.calibrators.Prototypes([True, True, False], 0.25, weight, [0.0])

    def page():
        pair = module, np.array([[0.0], [0.5], [0.0]])
        return read(finecal.html_report(logits, [0, 2, 0], module.seen_mask, 0.75, prototypes=pair))

    at_their_gamma = (
        "are added to gamma = 0.25. They change the accuracy from 66.7 % to 100.0 % (+33.3 points): on seen"
    )
    assert f"Prototypes of the classes {at_their_gamma} classes from 100.0 % to 100.0 %" in page().text
    module.report = finecal.calibrators.PrototypesReport(
        1234, (1.0, 1.0, 1.0), 0.9, 1.0, 0.1, 0.5, 0.2, warnings=("too <few> samples",)
    )
    root = page()
    assert "Prototypes of the classes, made from 1,234 unlabelled samples, are added to gamma = 0.25." in root.text
    assert root.one("ul", **{"class": "warnings"}).text == "Warning: too <few> samples"


def test_estimate_tells_how_it_was_found():
    estimate = finecal.GammaEstimate(
        1.0,
        "max_logit_gap",
        "9 samples",
        9,
        0.8,
        interval=(0.5, 2.0),
        warnings=("too <few> samples",),
        acc_seen_at_zero=0.9,
    )
    root = read(finecal.html_report(*problem(), estimate))
    assert "Gamma was estimated by max_logit_gap from 9 samples." in root.text
    assert "95 % sampling interval is 0.5 to 2." in root.text
    assert (
        "On those labelled samples seen accuracy falls from 90.0 % to 80.0 %; if the model was trained on them, the "
        "true cost is higher."
    ) in root.text
    assert root.one("ul", **{"class": "warnings"}).text == "Warning: too <few> samples"
    unbounded = finecal.GammaEstimate(1.0, "known_share_gamma", "9 samples", 9, interval=(-INF, 2.0))
    assert "interval is -inf to 2." in read(finecal.html_report(*problem(), unbounded)).text


def test_cost_tells_whether_the_samples_were_trained_on():
    logits, labels, mask = problem(samples=400)
    seen = mask[labels]
    for given, which, doubt in (
        ("train", "training", "; the true cost is higher, because the model was trained on them."),
        ("held_out", "held-out", "."),
    ):
        estimate = finecal.estimate_gamma(mask, **{given: (logits[seen], labels[seen])})
        text = " ".join(summary(Page(finecal.tradeoff_curve(logits, labels, mask), float(estimate), estimate=estimate)))
        falls = f"from {percent(estimate.acc_seen_at_zero)} % to {percent(estimate.acc_seen_at_gamma)} %"
        assert f"On those {which} samples seen accuracy falls {falls}{doubt}" in text
        assert ("trained on them" in text) == (given == "train")


@pytest.mark.parametrize(
    ("before", "left", "words"),
    [
        (0.9, 0.9004, "stays at 90.0 %"),
        (0.8, 0.9, "rises from 80.0 % to 90.0 %"),
        (None, 0.9, "is 90.0 %"),
    ],
)
def test_cost_that_is_none(before, left, words):
    estimate = finecal.GammaEstimate(1.0, "a method", "9 samples", 9, left, acc_seen_at_zero=before)
    page = Page(finecal.tradeoff_curve(*problem()), 1.0, estimate=estimate)
    assert f"On those labelled samples seen accuracy {words};" in " ".join(summary(page))


def test_gamma_has_four_digits_everywhere():
    logits, labels, mask = problem()
    estimate = finecal.GammaEstimate(1.2345678, "a method", "9 samples", 9, interval=(-0.123456, 2.345678))
    root = read(finecal.html_report(logits, labels, mask, estimate))
    assert "Gamma = 1.235, at which this page opens," in root.text
    assert "is -0.1235 to 2.346." in root.text
    assert root.one("input", id="number").attributes["value"] == "1.235"
    assert [element.text for element in root.all("span", data_gamma_now=True)] == ["1.235", "1.235"]
    shown = root.one("main").text
    assert "\N{GREEK SMALL LETTER GAMMA} = 1.235" in shown
    assert "\N{MINUS SIGN}0.1235 to 2.346" in shown
    assert "1.2345" not in shown
