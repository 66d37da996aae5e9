import math
import re

import numpy as np
import pytest
import torch

import finecal
import reference
from problems import mixture

MASK = np.array([True, True, False, False])


def row_margins(logits):
    return np.array([reference.margin(row, MASK) for row in logits])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.77, 0.99])
def test_known_share_is_the_quantile(rng, share, device, dtype):
    tensor = torch.tensor(mixture(rng, 31, 50)).to(device, dtype)
    margins = row_margins(tensor.double().tolist())
    estimate = finecal.estimators.known_share_gamma(tensor, MASK, share)
    expected = np.quantile(margins.astype(np.float32 if dtype != torch.float64 else np.float64), 1 - share)
    assert estimate.gamma == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert estimate.n == 81
    assert estimate.acc_seen_at_gamma is None
    predicted = finecal.predict(tensor, MASK, estimate).cpu().numpy()
    assert abs(MASK[predicted].sum() - share * 81) <= 1


def test_known_share_of_one_sample():
    assert finecal.estimators.known_share_gamma(np.array([[3.0, 0.0, 1.0, 0.0]]), MASK, 0.3).gamma == 2.0


def test_known_share_interval(rng):
    estimate = finecal.estimators.known_share_gamma(mixture(rng, 300, 300), MASK, 0.5, n_bootstrap=300)
    low, high = estimate.interval
    assert low < estimate.gamma < high


def test_tied_margins_that_send_all_to_one_side_are_warned_of():
    with pytest.warns(
        finecal.FinecalWarning, match="sends all 10 samples to the seen classes: most of their margins are equal"
    ):
        finecal.estimators.known_share_gamma(np.ones((10, 4)), MASK, 0.5)


def test_masked_groups_may_make_the_quantile_infinite(rng):
    logits = mixture(rng, 10, 10)
    logits[:3, 2:] = -math.inf
    assert math.isfinite(finecal.estimators.known_share_gamma(logits, MASK, 0.5).gamma)
    logits[:15, 2:] = -math.inf
    with pytest.raises(ValueError, match="quantile of the margins is infinite"):
        finecal.estimators.known_share_gamma(logits, MASK, 0.5)


@pytest.mark.parametrize("n_seen", [100, 400, 900])
def test_mixture_equals_best_bin_estimation(rng, n_seen, dtype):
    held_out = torch.tensor(mixture(rng, 500, 0)).to(dtype)
    unlabelled = torch.tensor(mixture(rng, n_seen, 1000 - n_seen)).to(dtype)
    seen, both = (row_margins(z.double().tolist()) for z in (held_out, unlabelled))
    share = reference.best_bin_share(seen, both)
    estimate = finecal.estimators.mixture_gamma(held_out, unlabelled, MASK)
    # a float32 margin may fall on the other side of a quantile that float64 interpolates
    assert estimate.gamma == pytest.approx(np.quantile(both, 1 - share), abs=0.02)
    assert f"{100 * share:.0f} % of them seen" in estimate.data
    assert share == pytest.approx(n_seen / 1000, abs=0.1)
    assert estimate.n == 1500


def test_mixture_with_masked_groups(rng):
    held_out, unlabelled = mixture(rng, 100, 0), mixture(rng, 100, 100)
    held_out[:5, 2:] = unlabelled[:5, 2:] = -math.inf
    unlabelled[100:104, :2] = -math.inf
    assert 2 < finecal.estimators.mixture_gamma(held_out, unlabelled, MASK).gamma < 8


def test_mixture_interval_resamples_both(rng):
    estimate = finecal.estimators.mixture_gamma(mixture(rng, 200, 0), mixture(rng, 200, 200), MASK, n_bootstrap=200)
    low, high = estimate.interval
    assert low < estimate.gamma < high
    again = finecal.estimators.mixture_gamma(
        mixture(np.random.default_rng(0), 200, 0), mixture(rng, 200, 200), MASK, n_bootstrap=3
    )
    assert again.interval[0] <= again.interval[1]


def test_share_at_its_bound_is_warned_of(rng):
    with pytest.warns(finecal.FinecalWarning, match="at its bound, 0.02"):
        finecal.estimators.mixture_gamma(mixture(rng, 500, 0), mixture(rng, 0, 900), MASK)
    with pytest.warns(finecal.FinecalWarning, match="at its bound, 0.98"):
        finecal.estimators.mixture_gamma(mixture(rng, 0, 500), mixture(rng, 900, 0), MASK)


def test_few_samples_are_warned_of(rng):
    with pytest.warns(finecal.FinecalWarning, match="only 49 held-out seen samples"):
        finecal.estimators.mixture_gamma(mixture(rng, 49, 0), mixture(rng, 100, 100), MASK)
    with pytest.warns(finecal.FinecalWarning, match="only 40 unlabelled samples"):
        finecal.estimators.mixture_gamma(mixture(rng, 60, 0), mixture(rng, 20, 20), MASK)


def test_quantile_on_a_sample_does_not_look_at_the_next():
    logits = np.array([[0.5, 0, 0.5, 0], [1.0, 0, 0, 0], [1.0, 0, -math.inf, -math.inf]])
    assert finecal.estimators.known_share_gamma(logits, MASK, 0.5).gamma == 1.0


def test_mixture_with_tied_margins(rng):
    held_out, unlabelled = mixture(rng, 60, 0).round(), mixture(rng, 100, 100).round()
    seen, both = row_margins(held_out), row_margins(unlabelled)
    share = reference.best_bin_share(seen, both)
    assert finecal.estimators.mixture_gamma(held_out, unlabelled, MASK).gamma == pytest.approx(
        np.quantile(both, 1 - share)
    )


@pytest.mark.filterwarnings("ignore:mixture_gamma. (only|the estimated share)")
@pytest.mark.parametrize("n", [2, 5, 10, 21])
def test_mixture_with_a_handful_of_held_out_samples(rng, n):
    held_out, unlabelled = mixture(rng, n, 0, np.float64), mixture(rng, 100, 100, np.float64)
    seen, both = row_margins(held_out), row_margins(unlabelled)
    share = reference.best_bin_share(seen, both)
    estimate = finecal.estimators.mixture_gamma(held_out, unlabelled, MASK)
    assert estimate.gamma == pytest.approx(np.quantile(both, 1 - share), rel=1e-6)


def test_messages_are_whole_sentences(rng):
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimators.mixture_gamma(mixture(rng, 500, 0), mixture(rng, 0, 900), MASK)
    assert str(record[0].message) == (
        "mixture_gamma: the estimated share of seen samples is at its bound, 0.02: the seen samples' margins do "
        "not resemble those of any part of the unlabelled ones; check that the seen samples are held-out and of "
        "the same model, and that the two are not swapped"
    )
    finecal.estimators.mixture_gamma(mixture(rng, 50, 0), mixture(rng, 25, 25), MASK)  # 50 are not few
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.estimators.mixture_gamma(mixture(rng, 49, 0), mixture(rng, 100, 100), MASK)
    assert str(record[0].message) == (
        "mixture_gamma: only 49 held-out seen samples: the estimated share of seen samples is uncertain"
    )
    logits = mixture(rng, 10, 10)
    logits[:15, 2:] = -math.inf
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finecal.estimators.known_share_gamma(logits, MASK, 0.4)
    assert str(error.value) == (
        "logits are -inf on a whole group for so many samples that the 0.6-quantile of the margins is infinite; "
        "drop the samples whose seen or absent classes are masked"
    )


@pytest.mark.filterwarnings("ignore:mixture_gamma. only")
def test_an_empty_bin_does_not_decide_the_share():
    """Of these 20 draws of 50 unlabelled samples, 8 have an empty bin that would send the share to its bound, 2 %."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        held_out, unlabelled = mixture(rng, 300, 0), mixture(rng, 20, 30)
        shares.append(
            int(finecal.estimators.mixture_gamma(held_out, unlabelled, MASK).data.split(", ")[1].split(" %")[0])
        )
    assert min(shares) > 10
    assert 30 <= np.median(shares) <= 50


def test_infinite_resamples_are_left_out_of_the_interval(rng):
    logits = mixture(rng, 0, 49)
    logits[:9, :2] = -math.inf
    estimate = finecal.estimators.known_share_gamma(logits, MASK, 0.75, n_bootstrap=200)
    assert math.isfinite(estimate.interval[0])


def test_arguments_are_named(rng):
    good, bad = mixture(rng, 60, 0), np.full((2, 4), np.nan)
    with pytest.raises(ValueError, match="^seen: logits contain NaN"):
        finecal.estimators.mixture_gamma(bad, good, MASK)
    with pytest.raises(ValueError, match="^unlabelled: logits contain NaN"):
        finecal.estimators.mixture_gamma(good, bad, MASK)
    for arguments in ((good[:0], good), (good, good[:0])):
        with pytest.raises(ValueError, match="mixture_gamma has nothing to estimate from"):
            finecal.estimators.mixture_gamma(*arguments, MASK)
    with pytest.raises(ValueError, match="^seen: logits has shape"):
        finecal.estimators.mixture_gamma(good[0], good, MASK)
    data = finecal.estimators.mixture_gamma(good, mixture(rng, 50, 50), MASK).data
    assert re.fullmatch(r"100 unlabelled samples, \d+ % of them seen as estimated with 60 held-out seen samples", data)
