"""A bias for each class."""

import math

import pytest
import torch

import finecal


@pytest.fixture
def calibrator():
    return finecal.calibrators.ClassBias([0.1, -0.5, 1.7, 0.0])


def test_adds_in_float32_and_rounds_once(calibrator, device, dtype):
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    out = calibrator.to(device)(logits)
    assert out.dtype == dtype
    wide = logits.double() if dtype == torch.float64 else logits.float()
    assert torch.equal(out, (wide + calibrator.bias).to(dtype))


@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        ([True, False], TypeError, "bias has dtype bool"),
        (torch.zeros(2, 3), ValueError, r"bias has shape \(2, 3\)"),
        (torch.zeros(1), ValueError, r"bias has shape \(1,\)"),
        ([0.0, math.nan], ValueError, "bias is nan for class 1"),
        ([0.0, 1e300], ValueError, "bias is 1e\\+300 for class 1"),
        (None, TypeError, "bias is None"),
    ],
)
def test_bad_bias(bias, error, message):
    with pytest.raises(error, match=message):
        finecal.calibrators.ClassBias(bias)
