import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
import reference
from finecal._core.groups import HELD_OUT, Bootstrap
from finecal._core.warning import without_warnings
from finecal._estimators.residuals import estimate_residual_gap
from problems import MASK, doubtful_problem, scan_labelled
from profiles import examples

INF = math.inf


def test_by_hand():
    """One sample: the weight cancels. The gap is 3 - 1, plus a rise of (3 - 2) / 3 and a fall of (1 - 0) / 2."""
    logits = [[5.0, 3.0, 2.0, 1.0, 0.0]]
    estimate = finecal.estimators.residual_gap(logits, [0], [True, True, True, False, False], seen_share=0.5)
    assert estimate.gamma == pytest.approx(3 - 1 + 1 / 3 + 1 / 2)
    assert estimate.method == "residual_gap(seen_share=0.5)"
    assert estimate.data == "1 labelled samples (seen classes)"


def test_equals_the_formula(rng, device, dtype):
    logits, labels = doubtful_problem(rng)
    tensor = torch.tensor(logits).to(device, dtype)
    rows = tensor.double().tolist()
    estimate = finecal.estimators.residual_gap(tensor, torch.tensor(labels, device=device), MASK)
    t = reference.seen_temperature(rows, labels, MASK)
    expected = reference.residual_gap(rows, labels, MASK, t) + t * math.log(3 / 4)
    assert estimate.gamma == pytest.approx(expected, abs=0.01)  # T is solved for to within a part in 500
    assert type(estimate.gamma) is float
    assert (estimate.n, estimate.interval, estimate.warnings) == (80, None, ())
    given = finecal.estimators.residual_gap(tensor, torch.tensor(labels, device=device), MASK, 0.3, temperature=1.5)
    expected = reference.residual_gap(rows, labels, MASK, 1.5) + 1.5 * math.log(7 / 3)
    assert given.gamma == pytest.approx(expected, abs=1e-7)


@examples(60)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.sampled_from([0.2, 1.0, 4.0]))
def test_invariances(seed, scale, temperature):
    rng = np.random.default_rng(seed)
    logits, labels = doubtful_problem(rng, n=30, shift=rng.uniform(-1, 6), lead=rng.uniform(0, 4))
    logits = logits.astype(np.float64)

    def gamma(logits, labels=labels, mask=MASK, temperature=temperature):
        with without_warnings():
            return finecal.estimators.residual_gap(logits, labels, mask, 0.5, temperature=temperature).gamma

    expected = gamma(logits)
    assert gamma(logits + rng.normal(size=(30, 1))) == pytest.approx(expected, abs=1e-7)
    order, rows = rng.permutation(7), rng.permutation(30)
    assert gamma(logits[:, order], np.argsort(order)[labels], MASK[order]) == pytest.approx(expected, abs=1e-7)
    assert gamma(logits[rows], labels[rows]) == pytest.approx(expected, abs=1e-7)
    assert gamma(scale * logits, temperature=scale * temperature) == pytest.approx(scale * expected, abs=1e-6)
    # What is already added to the absent logits is no longer missing.
    assert gamma(finecal.calibrate_logits(logits, MASK, 1.25)) == pytest.approx(expected - 1.25, abs=1e-7)


def test_share_moves_gamma_by_the_log_odds_in_units_of_the_temperature(rng):
    logits, labels = doubtful_problem(rng)
    half, tenth = (
        finecal.estimators.residual_gap(logits, labels, MASK, share, temperature=2.0).gamma for share in (0.5, 0.1)
    )
    assert tenth - half == pytest.approx(2 * math.log(9))
    default = finecal.estimators.residual_gap(logits, labels, MASK, temperature=2.0).gamma
    assert default - half == pytest.approx(2 * math.log(3 / 4))


def test_only_doubted_samples_count(rng):
    logits, labels = doubtful_problem(rng)
    expected = finecal.estimators.residual_gap(logits, labels, MASK, temperature=1.0).gamma
    certain, theirs = doubtful_problem(rng, lead=200.0, shift=-100.0)
    both = np.concatenate([logits, certain]), np.concatenate([labels, theirs])
    assert finecal.estimators.residual_gap(*both, MASK, temperature=1.0).gamma == pytest.approx(expected, abs=1e-6)


def test_one_doubt_among_certain_samples_does_not_decide(rng):
    """T rises until the others count as well, and gamma goes towards the mean gap of all."""
    logits, labels = doubtful_problem(rng, lead=60.0, shift=40.0)
    logits[0] = [0, 90, 0, 0, 0, 0, 0]
    with pytest.warns(finecal.FinecalWarning, match="is unsure about only a few of the 80 samples; T was raised to"):
        estimate = finecal.estimators.residual_gap(logits, labels, MASK, 0.5)
    usual = finecal.estimators.max_logit_gap(logits[1:], labels[1:], MASK).gamma
    assert 0.5 * usual < estimate.gamma < usual
    with pytest.warns(finecal.FinecalWarning, match="seen logits have not outgrown"):
        assert finecal.estimators.residual_gap(logits, labels, MASK, 0.5, temperature=1.0).gamma < -50


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e8, 1e30, 1e200])
def test_ends_on_every_scale(rng, scale):
    logits, labels = doubtful_problem(rng)
    wide = logits.astype(np.float64) * scale
    with without_warnings():
        estimate = finecal.estimators.residual_gap(
            wide, labels, MASK, 0.5, temperature=min(max(scale, 1e-30), 1e30), n_bootstrap=20
        )
        fitted = finecal.estimators.residual_gap(wide, labels, MASK, 0.5, n_bootstrap=3)
    if 1e-31 < scale < 1e31:
        expected = finecal.estimators.residual_gap(logits.astype(np.float64), labels, MASK, 0.5, temperature=1.0).gamma
        assert estimate.gamma == pytest.approx(scale * expected, rel=1e-6)
    assert math.isfinite(fitted.gamma)
    assert np.isfinite(estimate.interval + fitted.interval).all()


def test_resamples_without_the_doubted_sample_have_a_gap(rng):
    logits = np.tile([[900.0, 0, -500, -500], [0, 900.0, -500, -500]], (10, 1))
    logits[0] = [0, 5, -500, -500]
    labels, mask = np.tile([0, 1], 10), [True, True, False, False]
    estimate = finecal.estimators.residual_gap(logits, labels, mask, temperature=1.0, n_bootstrap=20)
    assert np.isfinite(estimate.interval).all()


def test_the_order_of_many_samples_does_not_matter():
    """With labels in turn, every tenth sample would be of one class."""
    rng = np.random.default_rng(0)
    labels, mask = np.arange(20480) % 10, np.arange(20) < 10
    logits = rng.normal(size=(20480, 20))
    logits[np.arange(20480), labels] += np.where(labels == 0, 1.0, 6.0)
    order = rng.permutation(20480)
    first = finecal.estimators.residual_gap(logits, labels, mask, 0.2).gamma
    assert finecal.estimators.residual_gap(logits[order], labels[order], mask, 0.2).gamma == pytest.approx(
        first, abs=0.1
    )


def test_more_samples_of_the_same_kind_do_not_move_gamma():
    """Not even where the model makes no mistakes, so that only the prior holds T."""
    rng = np.random.default_rng(0)
    logits, labels = doubtful_problem(rng, n=20_000, lead=12.0)
    with without_warnings():
        few, many = (finecal.estimators.residual_gap(logits[:n], labels[:n], MASK, 0.5) for n in (1000, 20_000))
    assert many.gamma == pytest.approx(few.gamma, abs=0.5)


def test_no_gap_is_warned_of(rng):
    logits, labels = doubtful_problem(rng, shift=-1.0)
    with pytest.warns(finecal.FinecalWarning, match="seen logits have not outgrown"):
        assert finecal.estimators.residual_gap(logits, labels, MASK).gamma < 0


def test_the_share_is_no_gap(rng):
    logits, labels = doubtful_problem(rng, shift=1.0)
    assert finecal.estimators.residual_gap(logits, labels, MASK, 0.999).gamma < 0  # and no warning


def test_masked_classes_are_no_rivals(rng):
    logits, labels = doubtful_problem(rng)
    expected = finecal.estimators.residual_gap(logits, labels, MASK, 0.5).gamma
    wide = np.concatenate([logits, np.full((80, 3), -INF, np.float32)], axis=1)
    assert finecal.estimators.residual_gap(wide, labels, [*MASK, True, False, False], 0.5).gamma == pytest.approx(
        expected
    )


def test_samples_with_a_masked_group_or_label_are_left_out(rng):
    logits, labels = doubtful_problem(rng)
    rest = finecal.estimators.residual_gap(logits[2:], labels[2:], MASK, temperature=1.0)
    logits[0, ~MASK] = -INF
    logits[1, labels[1]] = -INF
    with pytest.warns(finecal.FinecalWarning, match="2 of 80 samples were left out"):
        estimate = finecal.estimators.residual_gap(logits, labels, MASK, temperature=1.0)
    assert (estimate.gamma, estimate.n) == (pytest.approx(rest.gamma), 78)
    logits[:, ~MASK] = -INF
    with pytest.raises(ValueError, match="residual_gap has nothing to estimate from"):
        finecal.estimators.residual_gap(logits, labels, MASK)


def test_two_seen_classes_and_one_absent_one(rng):
    mask = np.array([True, False, True])
    logits = rng.normal([3, 0, 3], size=(50, 3))
    labels = rng.choice([0, 2], 50)
    rows = logits.tolist()
    estimate = finecal.estimators.residual_gap(logits, labels, mask, 0.5, temperature=1.0)
    assert estimate.gamma == pytest.approx(reference.residual_gap(rows, labels, mask, 1.0), abs=1e-8)


def test_bootstrap_is_that_of_the_samples(rng):
    logits, labels = doubtful_problem(rng, n=150)
    estimate = finecal.estimators.residual_gap(logits, labels, MASK, temperature=1.0, n_bootstrap=200)
    generator = np.random.default_rng(1)
    again = []
    for _ in range(200):
        rows = generator.integers(0, 150, 150)
        again.append(finecal.estimators.residual_gap(logits[rows], labels[rows], MASK, temperature=1.0).gamma)
    width = np.diff(np.quantile(again, [0.025, 0.975]))[0]
    assert estimate.interval == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.25 * width)
    same = finecal.estimators.residual_gap(logits, labels, MASK, temperature=1.0, n_bootstrap=200)
    other = finecal.estimators.residual_gap(logits, labels, MASK, temperature=1.0, n_bootstrap=200, seed=1)
    assert estimate.interval == same.interval != other.interval


@pytest.mark.parametrize("lead", [0.5, 2.0, 6.0])
def test_replicates_are_the_gaps_of_the_resamples(rng, lead):
    """Each is solved for anew, with as many copies of a sample as were drawn."""
    logits, labels = doubtful_problem(rng, n=150, lead=lead)
    scan = scan_labelled(logits, labels, MASK)
    found = estimate_residual_gap(scan, Bootstrap(40, 3), temperature=1.0)
    expected = []
    for times in torch.cat(list(Bootstrap(40, 3).counts(150, substream=HELD_OUT))).long():
        rows = torch.repeat_interleave(times).numpy()
        expected.append(estimate_residual_gap(scan_labelled(logits[rows], labels[rows], MASK), Bootstrap(), 1.0).gap)
    assert found.replicates == pytest.approx(expected, abs=0.03 * np.std(expected))


def test_resamples_without_a_usable_sample_have_no_gap(rng):
    logits, labels = doubtful_problem(rng, n=3)
    logits[:2, ~MASK] = -INF
    found = estimate_residual_gap(scan_labelled(logits, labels, MASK), Bootstrap(200), temperature=1.0)
    assert set(found.replicates) == {found.gap}  # one sample: the gap of each resample that has it
    logits, labels = doubtful_problem(rng, n=4)
    logits[:2, ~MASK] = -INF
    found = estimate_residual_gap(scan_labelled(logits, labels, MASK), Bootstrap(500), temperature=1.0)
    assert np.isnan(found.replicates).mean() == pytest.approx(2**-4, abs=0.05)


def test_many_rows_share_a_mean_correction(rng, monkeypatch):
    logits, labels = doubtful_problem(rng, n=2000)
    every = finecal.estimators.residual_gap(logits, labels, MASK, temperature=1.0).gamma
    monkeypatch.setattr("finecal._estimators.residuals._CORRECTED", 7 * 500)
    monkeypatch.setattr("finecal._estimators.residuals._LEAST_CORRECTED", 1)
    some = finecal.estimators.residual_gap(logits, labels, MASK, temperature=1.0).gamma
    assert some != every
    assert some == pytest.approx(every, abs=0.03)


def fitted(logits, labels):
    return estimate_residual_gap(scan_labelled(logits, labels, MASK), Bootstrap()).temperature


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_temperature_of_the_least_penalised_nll(rng, scale):
    logits, labels = doubtful_problem(rng, n=400)
    scaled = (logits * scale).astype(np.float32)
    assert fitted(scaled, labels) == pytest.approx(reference.seen_temperature(scaled.tolist(), labels, MASK), rel=2e-4)


@pytest.mark.parametrize("scale", [1e-20, 1e6, 1e14, 1e36])
def test_temperature_in_float32_is_that_in_float64(rng, scale):
    logits, labels = doubtful_problem(rng, n=400)
    logits[::5, 0] = -INF
    labels[labels == 0] = np.flatnonzero(MASK)[1]
    scaled = (logits * np.float32(scale)).astype(np.float32)
    assert fitted(scaled, labels) == pytest.approx(fitted(scaled.astype(np.float64), labels), rel=1e-4)


def test_a_part_of_many_samples_stands_for_all_in_the_temperature(rng):
    logits, labels = doubtful_problem(rng, n=9000)
    t = reference.seen_temperature(logits.tolist(), labels, MASK)
    expected = finecal.estimators.residual_gap(logits, labels, MASK, temperature=t).gamma
    assert finecal.estimators.residual_gap(logits, labels, MASK).gamma == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seen_share": 1.0}, ValueError, "seen_share is 1.0; it must lie"),
        ({"temperature": 0.0}, ValueError, "temperature is 0"),
        ({"temperature": "1"}, TypeError, "temperature is a str"),
        ({"labels": [1]}, ValueError, "labels are of absent classes in all 1 samples; residual_gap needs"),
        ({"logits": np.ones((0, 7)), "labels": np.zeros(0, int)}, ValueError, "residual_gap has nothing to estimate"),
        ({"seen_mask": np.arange(7) == 0}, ValueError, "seen_mask has one seen class; residual_gap"),
        ({"n_bootstrap": -1}, ValueError, "n_bootstrap is -1"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    given = {"logits": np.arange(7.0)[None] * 3, "labels": [0], "seen_mask": MASK, **arguments}
    with pytest.raises(error, match=message):
        finecal.estimators.residual_gap(**given)
