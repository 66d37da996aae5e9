"""Rows of the head divided by powers of their norms."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import finecal


def make_linear(device="cpu", dtype=torch.float32, bias=True):
    linear = nn.Linear(7, 5, bias=bias)
    with torch.no_grad():
        for value in linear.parameters():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.ndim)))
    return linear.to(device, dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_have_unit_norm(device, dtype, bias):
    linear = make_linear(device, dtype, bias)
    before = copy.deepcopy(linear.state_dict())
    head = finecal.weights.normalize_head(linear)
    expected = F.normalize(linear.weight.double(), dim=1).to(dtype)
    assert torch.equal(head.weight, expected)
    assert head.weight.device == linear.weight.device
    if bias:
        assert torch.equal(head.bias, (linear.bias.double() / linear.weight.double().norm(dim=1)).to(dtype))
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())


@pytest.mark.parametrize("tau", [-1, 0, 0.5, 1, torch.tensor(2.0)])
def test_logits_are_divided_by_powers_of_the_norms(tau):
    linear = make_linear(dtype=torch.float64)
    x = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    norms = np.linalg.norm(linear.weight.detach().numpy(), axis=1)
    out = finecal.weights.normalize_head(linear, tau)(x).detach().numpy()
    np.testing.assert_allclose(out, linear(x).detach().numpy() / norms ** float(tau), rtol=1e-12)


def test_tau_0_gives_the_head_back(dtype):
    linear = make_linear(dtype=dtype)
    head = finecal.weights.normalize_head(linear, 0)
    assert torch.equal(head.weight, linear.weight)
    assert torch.equal(head.bias, linear.bias)
    assert head.weight.data_ptr() != linear.weight.data_ptr()


def test_cosine_logits_as_documented():
    linear, x = make_linear(), torch.randn(4, 7, generator=torch.Generator().manual_seed(3))
    logits = F.normalize(x) @ finecal.weights.normalize_head(linear).weight.T
    assert torch.allclose(logits, F.cosine_similarity(x.unsqueeze(1), linear.weight.unsqueeze(0), dim=2), atol=1e-6)


def test_keeps_kind_mode_and_requires_grad():
    class Head(nn.Linear):
        pass

    linear = Head(3, 2).eval()
    linear.weight.requires_grad_(False)
    head = finecal.weights.normalize_head(linear)
    assert type(head) is Head
    assert not head.training
    assert (head.weight.requires_grad, head.bias.requires_grad) == (False, True)
    assert head.bias.is_leaf


def test_rows_of_zeros_stay():
    linear = make_linear()
    with torch.no_grad():
        linear.weight[1:3] = 0
    with pytest.warns(finecal.FinecalWarning, match="rows of zeros, .* in 2 of 5 classes: class 1, 2; they stay"):
        head = finecal.weights.normalize_head(linear)
    assert torch.equal(head.weight[1:3], torch.zeros(2, 7))
    assert torch.equal(head.bias[1:3], linear.bias[1:3])
    assert torch.allclose(head.weight[3:], F.normalize(linear.weight[3:]))
    assert torch.equal(finecal.weights.normalize_head(linear, 0).weight, linear.weight)
    assert torch.equal(finecal.weights.normalize_head(linear, -1).weight[1:3], torch.zeros(2, 7))


def test_tiny_rows_are_not_zero():
    linear = make_linear()
    with torch.no_grad():
        linear.weight[0] *= 1e-30
    assert torch.allclose(finecal.weights.normalize_head(linear).weight.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_are_not_finite_are_an_error(name, value):
    linear = make_linear()
    with torch.no_grad():
        linear.get_parameter(name)[3] = value
    with pytest.raises(ValueError, match="tau = 1 .* 1 of 5 classes: class 3; check its weight"):
        finecal.weights.normalize_head(linear)


@pytest.mark.parametrize("tau", [500, -500])
def test_results_out_of_range_are_an_error(tau):
    with pytest.raises(ValueError, match=f"tau = {tau} .* in float16 for 5 of 5 classes: class 0, 1, 2, 3, 4;"):
        finecal.weights.normalize_head(make_linear(dtype=torch.float16), tau)


@pytest.mark.parametrize(
    ("linear", "tau", "error", "message"),
    [
        (nn.Identity(), 1, TypeError, "linear is a Identity; pass the nn.Linear"),
        (nn.Linear(3, 2).weight, 1, TypeError, "linear is a Parameter"),
        (parametrizations.weight_norm(nn.Linear(3, 2)), 1, TypeError, "linear computes its weight"),
        (nn.Linear(3, 2, dtype=torch.complex64), 1, TypeError, "linear computes its weight or bias .* quantised"),
        (nn.Linear(3, 2), math.inf, ValueError, "tau is inf; it must be finite"),
        (nn.Linear(3, 2), math.nan, ValueError, "tau is NaN"),
        (nn.Linear(3, 2), "1", TypeError, "tau is a str; pass a number"),
    ],
)
def test_wrong_head_or_tau(linear, tau, error, message):
    with pytest.raises(error, match=message):
        finecal.weights.normalize_head(linear, tau)
