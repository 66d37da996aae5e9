import math

import numpy as np
import pytest
import torch

import finecal
import reference
from finecal._core.groups import TRAINING, Bootstrap
from finecal._estimators.mixed_pairs import _mixed_pairs, _number_of_pairs, estimate_pair_gap
from problems import MASK, scan_labelled, seen_problem


def all_pairs(logits, labels, mask):
    """Return the gap of every usable ordered pair."""
    rows = logits.astype(np.float64).tolist()
    gaps = []
    for i, y in enumerate(labels):
        for j, w in enumerate(labels):
            if y != w and (gap := reference.mixed_pair_gap(rows[i], y, rows[j], w, mask)) is not None:
                gaps.append(gap)
    return np.array(gaps)


def test_equals_the_formula_where_every_pair_is_alike():
    """Two kinds of samples: whichever pairs are drawn, they all have the same gap."""
    logits = np.tile([[9.0, 4.0, 1.0, 2.5], [3.0, 8.0, 0.0, 1.5]], (20, 1))
    labels, mask = np.tile([0, 1], 20), np.array([True, True, False, False])
    # both leads are 5: the mixture is (6, 6, 0.5, 2), its gap 4 + 1.5/2
    assert finecal.estimators.mixed_pair_gap(logits, labels, mask).gamma == pytest.approx(4.75)
    assert all_pairs(logits, labels, mask) == pytest.approx(4.75)


def test_one_absent_class_has_no_second():
    logits = np.tile([[9.0, 4.0, 1.0], [3.0, 8.0, 0.0]], (20, 1))
    # 6 - 0.5, and a prior of log(1/3 / (2/3))
    estimate = finecal.estimators.mixed_pair_gap(logits, np.tile([0, 1], 20), [True, True, False])
    assert estimate.gamma == pytest.approx(5.5 - math.log(2))
    assert estimate.method == "mixed_pair_gap(seen_share=0.6667)"


def test_seen_share_shifts_by_the_log_odds(rng):
    logits, labels = seen_problem(rng)
    middle = finecal.estimators.mixed_pair_gap(logits, labels, MASK, seen_share=0.5).gamma
    assert finecal.estimators.mixed_pair_gap(logits, labels, MASK).gamma == pytest.approx(middle + math.log(3 / 4))
    assert finecal.estimators.mixed_pair_gap(logits, labels, MASK, 0.1).gamma == pytest.approx(middle + math.log(9))


def test_approaches_the_mean_over_all_pairs(rng, device, dtype):
    logits, labels = seen_problem(rng, n=300)
    tensor = torch.tensor(logits).to(device, dtype)
    gaps = all_pairs(tensor.float().cpu().numpy(), labels, MASK)
    estimate = finecal.estimators.mixed_pair_gap(tensor, torch.tensor(labels, device=device), MASK, seen_share=0.5)
    assert estimate.gamma == pytest.approx(gaps.mean(), abs=4 * gaps.std() / math.sqrt(900))


def test_seed_decides(rng):
    logits, labels = seen_problem(rng)
    first, again, other = (finecal.estimators.mixed_pair_gap(logits, labels, MASK, seed=s).gamma for s in (0, 0, 1))
    assert first == again != other


def test_the_random_state_of_torch_is_left_alone(rng):
    before = torch.get_rng_state()
    finecal.estimators.mixed_pair_gap(*seen_problem(rng), MASK, n_bootstrap=3)
    assert torch.equal(before, torch.get_rng_state())


def test_pairs_that_the_model_gets_wrong_are_not_used(rng):
    logits, labels = seen_problem(rng)
    wrong = logits.copy()
    wrong[:30, MASK] = 0  # ties: no sample leads
    kept = finecal.estimators.mixed_pair_gap(wrong, labels, MASK, 0.5).gamma
    gaps = all_pairs(logits[30:], labels[30:], MASK)
    assert kept == pytest.approx(gaps.mean(), abs=4 * gaps.std() / math.sqrt(30))


def test_masked_logits(rng):
    logits, labels = seen_problem(rng)
    logits[0, ~MASK] = -math.inf
    logits[1:20, 1] = -math.inf
    logits[20, 0] = -math.inf
    assert math.isfinite(finecal.estimators.mixed_pair_gap(logits, labels, MASK).gamma)


def test_interval_covers_and_is_wider_than_pairs_alone_would_say(rng):
    logits, labels = seen_problem(rng, n=100)
    estimate = finecal.estimators.mixed_pair_gap(logits, labels, MASK, n_bootstrap=500)
    low, high = estimate.interval
    assert low < estimate.gamma < high
    gaps = all_pairs(logits, labels, MASK)
    assert (high - low) > 1.3 * 2 * 1.96 * gaps.std() / math.sqrt(300)


def test_few_pairs_are_warned_of():
    logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0], [9.0, 4.0, 1.0, 2.0]])
    with pytest.warns(finecal.FinecalWarning, match="of 9 random pairs could be mixed"):
        estimate = finecal.estimators.mixed_pair_gap(logits, [0, 1, 0], [True, True, False, False])
    assert estimate.gamma == 5.0


def test_no_pairs_are_an_error(rng):
    logits, labels = seen_problem(rng)
    with pytest.raises(ValueError, match="prefer another class for every pair"):
        finecal.estimators.mixed_pair_gap(-logits, labels, MASK)
    with pytest.raises(ValueError, match="labels are all of class 0"):
        finecal.estimators.mixed_pair_gap(logits, np.zeros(60, int), MASK)


def test_one_absent_class_equals_the_formula(rng):
    logits, labels = seen_problem(rng, n=300)
    mask = np.arange(7) != 1
    keep = mask[labels]
    logits, labels = logits[keep], labels[keep]
    gaps = all_pairs(logits, labels, mask)
    gamma = finecal.estimators.mixed_pair_gap(logits, labels, mask, 0.5).gamma
    assert gamma == pytest.approx(gaps.mean(), abs=4 * gaps.std() / math.sqrt(len(labels) * 3))


def test_one_sample_is_one_class():
    with pytest.raises(ValueError, match="labels are all of class 0; mixed_pair_gap needs samples of at least two"):
        finecal.estimators.mixed_pair_gap(np.array([[9.0, 4.0, 1.0]]), [0], [True, True, False])


def test_resamples_without_a_pair_are_skipped():
    logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]])
    with pytest.warns(finecal.FinecalWarning):
        estimate = finecal.estimators.mixed_pair_gap(logits, [0, 1], [True, True, False, False], n_bootstrap=20)
    assert estimate.interval == (5.0, 5.0)


def test_the_share_is_not_taken_for_a_missing_gap(rng):
    logits, labels = seen_problem(rng, shift=1.0)
    assert finecal.estimators.mixed_pair_gap(logits, labels, MASK, 0.999).gamma < 0
    with pytest.warns(finecal.FinecalWarning, match="the gap is -"):
        finecal.estimators.mixed_pair_gap(logits - 9 * MASK.astype(np.float32), labels, MASK, 0.001)


def test_few_is_fewer_than_thirty(rng, monkeypatch):
    logits, labels = seen_problem(rng)
    used = len(_mixed_pairs(scan_labelled(logits, labels, MASK), 0)[2])
    monkeypatch.setattr("finecal._estimators.mixed_pairs._FEW_PAIRS", used)
    finecal.estimators.mixed_pair_gap(logits, labels, MASK)
    monkeypatch.setattr("finecal._estimators.mixed_pairs._FEW_PAIRS", used + 1)
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimators.mixed_pair_gap(logits, labels, MASK, 0.5)
    assert str(record[0].message) == (
        f"mixed_pair_gap: only {used} of 180 random pairs could be mixed (both samples must prefer "
        "their own class), so gamma is rough"
    )


def test_message_where_no_pair_is_usable(rng):
    logits, labels = seen_problem(rng)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finecal.estimators.mixed_pair_gap(-logits, labels, MASK)
    assert str(error.value) == (
        "logits prefer another class for every pair of the 60 samples (or are -inf on the absent classes); "
        "mixed_pair_gap needs samples that the model recognises: check that labels belong to these logits, or use "
        "max_logit_gap"
    )


def test_masked_absent_classes_are_no_rivals(rng):
    logits, labels = seen_problem(rng)
    wide = np.concatenate([logits, np.full((60, 4), -np.inf, np.float32)], axis=1)
    mask = np.concatenate([MASK, np.zeros(4, bool)])
    gamma = finecal.estimators.mixed_pair_gap(logits, labels, MASK, seen_share=0.5).gamma
    assert finecal.estimators.mixed_pair_gap(wide, labels, mask, seen_share=0.5).gamma == gamma
    by_default = finecal.estimators.mixed_pair_gap(logits, labels, MASK).gamma
    assert finecal.estimators.mixed_pair_gap(wide, labels, mask).gamma == by_default != gamma
    all_but_one = np.where(np.isin(np.arange(7), [4, 6]), -np.inf, logits)
    one = np.isin(np.arange(7), [4, 6], invert=True)
    assert finecal.estimators.mixed_pair_gap(all_but_one, labels, MASK, 0.5).gamma == pytest.approx(
        finecal.estimators.mixed_pair_gap(logits[:, one], (np.cumsum(one) - 1)[labels], MASK[one], 0.5).gamma
    )


def test_the_default_device_does_not_matter(rng):
    logits, labels = seen_problem(rng)
    tensors = torch.tensor(logits), torch.tensor(labels), torch.tensor(MASK)
    expected = finecal.estimators.mixed_pair_gap(*tensors, n_bootstrap=3)
    with torch.device("meta"):
        assert finecal.estimators.mixed_pair_gap(*tensors, n_bootstrap=3) == expected


def test_of_many_samples_evenly_spaced_ones_are_mixed(rng, monkeypatch):
    logits, labels = seen_problem(rng, n=3000)
    scan = scan_labelled(logits, labels, MASK)
    every, _, gaps = _mixed_pairs(scan, 0)
    assert np.bincount(every).max() == 3
    monkeypatch.setattr("finecal._estimators.mixed_pairs._MOST_PAIRS", 1500)
    first, second, fewer = _mixed_pairs(scan, 0)
    assert len(fewer) <= 1500
    assert set(first.tolist()) <= set(range(0, 3000, 2))
    assert np.bincount(first).max() == 1
    assert set(np.bincount(second, minlength=3000)) >= {0, 1, 2}
    error = float(gaps.std()) / math.sqrt(len(fewer))
    assert float(fewer.mean()) == pytest.approx(float(gaps.mean()), abs=4 * error)


def test_many_pairs_share_a_mean_correction(rng, monkeypatch):
    logits, labels = seen_problem(rng, n=500)
    every = finecal.estimators.mixed_pair_gap(logits, labels, MASK)
    monkeypatch.setattr("finecal._estimators.mixed_pairs._CORRECTED", 7 * 200)
    some = finecal.estimators.mixed_pair_gap(logits, labels, MASK)
    assert some != every
    assert some.gamma == pytest.approx(every.gamma, abs=0.05)
    logits[::3, ~MASK] = -np.inf  # pairs without absent logits have no correction
    finite = finecal.estimators.mixed_pair_gap(logits, labels, MASK)
    assert math.isfinite(finite.gamma)


def test_replicates_are_the_means_of_the_drawn_pairs(rng):
    scan = scan_labelled(*seen_problem(rng), MASK)
    found = estimate_pair_gap(scan, Bootstrap(150, 3))
    first, second, gaps = _mixed_pairs(scan, 3)
    expected = []
    for times in torch.cat(list(Bootstrap(150, 3).counts(60, substream=TRAINING))):
        copies = [gap for i, j, gap in zip(first, second, gaps, strict=True) for _ in range(int(times[i] * times[j]))]
        expected.append(np.mean(copies))
    assert found.replicates == pytest.approx(expected)


def test_pairs_are_fewer_where_there_are_many_classes(rng, monkeypatch):
    scan = scan_labelled(*seen_problem(rng, n=1000), MASK)
    assert _number_of_pairs(scan) == 3000
    monkeypatch.setattr("finecal._estimators.mixed_pairs._MIXED", 7 * 2500)
    assert _number_of_pairs(scan) == 2500
    monkeypatch.setattr("finecal._estimators.mixed_pairs._MIXED", 7)
    assert _number_of_pairs(scan) == 2048
    assert len(_mixed_pairs(scan, 0)[2]) <= 2048
