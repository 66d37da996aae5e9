"""Features and the head that they enter."""

import math

import pytest
import torch

from before_and_after import C, D, linear_problem
from finecal._core.checks import check_head, head_warnings

INF = math.inf


@pytest.mark.parametrize("half", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("what", ["logits", "features", "head", "all", "log-probabilities"])
def test_rounding_is_no_mismatch(rng, half, what):
    features, _, _, (weight, bias) = linear_problem(rng, n=3000, shift=5.0)
    x, w, b = (torch.tensor(array) for array in (features, weight, bias))
    z = x @ w.T + b
    z = z.log_softmax(1) if what == "log-probabilities" else z
    x, w, b, z = (
        t.to(half) if what in (name, "all", "log-probabilities") else t
        for t, name in ((x, "features"), (w, "head"), (b, "head"), (z, "logits"))
    )
    z[0, 2] = -INF
    assert head_warnings(z, x, *check_head((w, b), C, z.device)) == []


def test_mixed_precision_is_no_mismatch(rng):
    features, _, _, (weight, bias) = linear_problem(rng, n=3000, shift=5.0)
    linear = torch.nn.Linear(D, C)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weight))
        linear.bias.copy_(torch.tensor(bias))
        x = torch.tensor(features, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            z = linear(x).float()
    assert head_warnings(z, x, *check_head(linear, C, z.device)) == []
