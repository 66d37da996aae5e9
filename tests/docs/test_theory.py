"""The Python of the theory pages prints what it says, and what they state holds."""

import math
import re

import numpy as np
import pytest

import finecal
from pages import DOCS, blocks


@pytest.mark.parametrize("page", ["curve.md", "logits-drift.md"])
def test_pages_print_what_they_show(page, capsys):
    script = "".join(blocks(f"docs/theory/{page}", "python"))
    shown = re.findall(r"^print\(.*\)  # (.+)$", script, re.MULTILINE)
    assert len(shown) == script.count("print(") >= 3
    exec(script, {})
    assert capsys.readouterr().out.splitlines() == shown


@pytest.fixture(params=[(seed, step) for seed in range(10) for step in (2**-20, 0.5)], ids=str)
def problem(request):
    """Logits with a gap, labels and seen classes. Sums of logits in such steps are exact; steps of 0.5 make ties."""
    seed, step = request.param
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(3, 12))
    labels, seen_mask = rng.integers(num_classes, size=150), np.arange(num_classes) < num_classes // 2
    logits = rng.normal(size=(150, num_classes)) + 2 * np.eye(num_classes)[labels] + rng.normal() * seen_mask
    return np.round(logits / step) * step, labels, seen_mask


def accuracies(logits, labels, seen_mask, gamma):
    """By the definitions, on the logits: seen and absent accuracy, where a seen class wins a tie, then the first."""
    shifted = logits + gamma * ~seen_mask
    order = np.argsort(~seen_mask, kind="stable")
    correct = order[shifted[:, order].argmax(1)] == labels
    return correct[seen_mask[labels]].mean(), correct[~seen_mask[labels]].mean()


def test_correct_by_three_numbers(problem):
    logits, labels, seen_mask = problem
    samples = finecal.Samples(*problem[:2]).margins(problem[2])
    is_seen = seen_mask[labels]
    for gamma in [*samples.margin[:10], -1.25, 0.0, 0.3]:
        correct = samples.hit & ((samples.margin >= gamma) == is_seen)
        assert (correct[is_seen].mean(), correct[~is_seen].mean()) == accuracies(logits, labels, seen_mask, gamma)


def test_plateaus_are_between_breakpoints(problem):
    curve = finecal.tradeoff_curve(*problem)
    ends = [-math.inf, *curve.breakpoints, math.inf]
    assert len(curve.gamma) == len(curve.breakpoints) + 1
    for point, (gamma, low, high) in enumerate(zip(curve.gamma, ends, ends[1:], strict=False)):
        assert low < gamma <= high
        expected = (curve.acc_seen[point], curve.acc_absent[point])
        assert accuracies(*problem, gamma) == expected
        if math.isfinite(high):
            assert accuracies(*problem, high) == expected


def test_area_factors(problem):
    samples = finecal.Samples(*problem[:2]).margins(problem[2])
    curve = samples.curve()
    seen, absent = (samples.margin[samples.hit & (samples.is_seen == group)] for group in (True, False))
    larger, equal = (seen[:, None] > absent).mean(), (seen[:, None] == absent).mean()
    within = curve.acc_seen_within * curve.acc_absent_within
    assert curve.ausuc == pytest.approx(within * (larger + equal / 2), abs=1e-12)


def test_bounds_on_what_gamma_reaches(problem):
    curve = finecal.tradeoff_curve(*problem)
    for share in (0.1, 0.5, curve.n_seen / 150, 0.9):
        best = (share * curve.acc_seen + (1 - share) * curve.acc_absent).max()
        ends = share * curve.acc_seen_within, (1 - share) * curve.acc_absent_within
        assert max(ends) <= best <= sum(ends) + 1e-12
    products = curve.acc_seen * curve.acc_absent
    total = curve.acc_seen + curve.acc_absent
    harmonic = 2 * products / np.where(total > 0, total, 1)
    assert (harmonic**2 <= products + 1e-12).all()
    assert (products <= curve.ausuc + 1e-12).all()


def test_gate_is_reached_where_margins_separate():
    labels, seen_mask = np.array([0, 1, 2, 3, 3]), np.array([True, True, False, False])
    logits = np.array([[3.0, 0, 1, 0], [4.0, 3, 1, 0], [4.0, 0, 3, 0], [4.0, 0, 0, 3], [5.0, 0, 4, 3]])
    curve = finecal.tradeoff_curve(logits, labels, seen_mask)
    assert (curve.acc_seen_within, curve.acc_absent_within) == (1 / 2, 2 / 3)
    assert curve.at(curve.best()).acc_all == pytest.approx(0.4 / 2 + 0.6 * 2 / 3)
    assert curve.ausuc == pytest.approx(1 / 2 * 2 / 3)


def test_gamma_changes_neither_order_nor_area(problem):
    logits, labels, seen_mask = problem
    before = finecal.evaluate(logits, labels, seen_mask)
    after = finecal.evaluate(finecal.calibrate_logits(logits, seen_mask, 2.5), labels, seen_mask)
    for name in ("acc_seen_within", "acc_absent_within"):
        assert getattr(after, name) == getattr(before, name)
    assert after.ausuc == pytest.approx(before.ausuc, abs=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_share_moves_gamma_by_the_log_odds(share):
    """Normal margins of one variance, at +-distance: their log-ratio has slope 2 distance / variance."""
    distance, deviation = 1.5, 2.0
    gammas = np.linspace(-12, 12, 24001)
    above = np.array([math.erfc((gamma - distance) / deviation / math.sqrt(2)) / 2 for gamma in gammas])
    below = np.array([math.erfc(-(gamma + distance) / deviation / math.sqrt(2)) / 2 for gamma in gammas])
    best = gammas[(share * above + (1 - share) * below).argmax()]
    temperature = deviation**2 / (2 * distance)
    assert best == pytest.approx(temperature * math.log((1 - share) / share), abs=2e-3)


def test_balanced_is_overall_at_one_half(problem):
    curve = finecal.tradeoff_curve(*problem)
    at = curve.at(curve.best("balanced"))
    assert at.balanced == pytest.approx((curve.acc_seen / 2 + curve.acc_absent / 2).max(), abs=1e-12)


def test_plateau_is_the_widest_bounded_one():
    """Equally good on (1, 2], (3, 6] and beyond 9: the middle of the second."""
    margin = np.array([1.0, 2.0, 3.0, 6.0, 9.0])
    is_seen = np.array([False, True, False, True, False])
    curve = finecal.logits.Margins(margin, is_seen, np.ones(5, bool), None).curve()
    assert curve.acc_all.tolist() == [0.4, 0.6, 0.4, 0.6, 0.4, 0.6]
    assert curve.best() == 4.5


def test_pages_show_the_pictures_of_the_gallery():
    """Each picture is one that its example draws."""
    for page in (DOCS / "theory").glob("*.md"):
        for name, number in re.findall(r"gallery/images/sphx_glr_(\w+)_(\d{3})\.png", page.read_text(encoding="utf-8")):
            example = (DOCS.parent / "examples" / f"{name}.py").read_text(encoding="utf-8")
            assert 1 <= int(number) <= example.count("plt.subplots(")
