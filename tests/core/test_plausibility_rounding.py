"""Gamma that the dtype of the logits cannot hold, or loses."""

import numpy as np
import pytest
import torch

import finecal
from finecal._core.plausibility import rounding_warnings

MASK = np.arange(8) < 5
LOST = "neighbouring numbers of the size of these logits"


def drawn(rng, n=200, classes=8):
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, 8)) + 1.0 * MASK
    logits[np.arange(n), labels] += 4
    return torch.tensor(logits), torch.tensor(labels)


@pytest.mark.parametrize(("dtype", "offset"), [(torch.float16, 3e3), (torch.float32, 1e8), (torch.bfloat16, 1e4)])
def test_what_calibrate_logits_does_not_change_is_warned_of(rng, dtype, offset):
    logits = (drawn(rng)[0] + offset).to(dtype)
    for gamma in (0.01, -0.01):
        assert torch.equal(finecal.calibrate_logits(logits, MASK, gamma), logits)
        (sentence,) = rounding_warnings(logits, gamma)
        assert LOST in sentence
        assert f"is lost in {str(dtype).removeprefix('torch.')}: " in sentence
    assert not rounding_warnings(logits.double(), 0.01)
    assert not rounding_warnings(logits, 0.0)
    assert not rounding_warnings(logits[:0], 1.0)
    assert not rounding_warnings(torch.zeros_like(logits), 0.01)


def test_a_gamma_of_a_rounding_step_or_more_is_not_lost(rng):
    logits = torch.full((10, 8), 3000.0, dtype=torch.float16)  # its neighbours are 2 apart
    assert not rounding_warnings(logits, 2.0)
    assert rounding_warnings(logits, 1.9)


@pytest.mark.parametrize("gamma", [1e6, -7e4, 6e4])
def test_what_overflows_is_warned_of(rng, gamma):
    logits = (drawn(rng)[0] + 3e4).half()
    (sentence,) = rounding_warnings(logits, gamma)
    assert "overflows in float16, which ends at 6.55e+04: calibrate_logits would give inf" in sentence


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_estimators_and_searches_say_that_gamma_is_lost(rng):
    logits, labels = drawn(rng)
    seen, own = drawn(rng, classes=5)
    logits, seen = ((x + 3e4).half() for x in (logits, seen))
    estimates = [
        finecal.estimators.max_logit_gap(seen, own, MASK),
        finecal.search_gamma(logits, labels, MASK),
        finecal.search_gamma(logits, labels, MASK, "nll"),
        finecal.estimators.known_share_gamma(logits, MASK, 0.6),
        finecal.estimators.mixture_gamma(seen, logits, MASK),
        finecal.estimate_gamma(MASK, held_out=(seen, own), unlabelled=logits),
    ]
    for estimate in estimates:
        found = [sentence for sentence in estimate.warnings if LOST in sentence]
        assert len(found) == (0 < abs(estimate.gamma) < 16), estimate


def test_calibrate_logits_refuses_what_its_dtype_cannot_hold():
    logits = torch.zeros(3, 8, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"gamma is 1000000.0, which float16 cannot hold"):
        finecal.calibrate_logits(logits, MASK, 1e6)
    assert finecal.calibrate_logits(logits.bfloat16(), MASK, 1e6).isfinite().all()
    assert finecal.predict(logits, MASK, 1e6).tolist() == [5, 5, 5]
