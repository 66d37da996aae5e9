import os

import numpy as np
import pytest
import torch

import finecal
from finecal._core import reductions as kernels
from finecal._core import reductions as usual
from finecal._core.reductions import compile_kernels

pytestmark = pytest.mark.skipif(os.name != "posix", reason="torch.compile needs a compiler that Windows does not bring")
INF = float("inf")


@pytest.fixture(autouse=True)
def off_again():
    yield
    compile_kernels(False)


def problem(n, classes, dtype=torch.float32, rounded=True, device="cpu"):
    generator = torch.Generator().manual_seed(n)
    logits = 3 * torch.randn(n, classes, generator=generator)
    if rounded:  # full of ties
        logits = logits.round()
    logits[0], logits[1, ::2], logits[2, 1::2] = -INF, -INF, -INF
    labels = torch.randint(classes, (n,), generator=generator)
    return logits.to(device, dtype), labels.to(device), torch.arange(classes, device=device) % 2 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [2 * 2048 + 5, 2048])
def test_equal_the_usual_kernels_to_the_bit(dtype, n, device):
    logits, labels, mask = problem(n, 13, dtype, device=device)
    expected = usual.label_scalars(logits, labels, mask), usual.group_maxima(logits, mask)
    with compile_kernels():
        assert kernels.is_worthwhile(logits)
        found = usual.label_scalars(logits, labels, mask), usual.group_maxima(logits, mask)
        assert kernels.is_worthwhile(logits)  # it has not been switched off
    assert isinstance(found[0], usual.LabelScalars)
    for result, same in zip(found, expected, strict=True):
        assert all(
            torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(result, same, strict=True)
        )


def test_nan_is_still_an_error():
    logits, labels, mask = problem(3000, 13)
    logits[100, 3] = float("nan")
    with compile_kernels(), pytest.raises(ValueError, match="logits contain NaN"):
        finecal.Samples(logits, labels).margins(mask)


def test_a_function_and_a_context_manager():
    logits = problem(2048, 13)[0]
    assert not kernels.is_worthwhile(logits)
    with compile_kernels():
        with compile_kernels(False):
            assert not kernels.is_worthwhile(logits)
        assert kernels.is_worthwhile(logits)
    assert not kernels.is_worthwhile(logits)
    compile_kernels()
    assert kernels.is_worthwhile(logits)
    compile_kernels(False)
    assert not kernels.is_worthwhile(logits)


def test_others_take_the_usual_way(monkeypatch):
    logits = problem(2048, 13)[0]
    with compile_kernels():
        assert not kernels.is_worthwhile(logits[:-1])
        assert not kernels.is_worthwhile(logits.T.contiguous().T)
        assert not kernels.is_worthwhile(logits.clone().requires_grad_())
        assert not kernels.is_worthwhile(torch.empty(2048, 13, device="meta"))
        monkeypatch.setattr(kernels, "_shapes", {(classes, torch.float32, logits.device) for classes in range(2, 8)})
        assert not kernels.is_worthwhile(logits)
        monkeypatch.setattr(kernels, "_shapes", {(13, torch.float32, logits.device)})
        assert kernels.is_worthwhile(logits)


def test_without_a_compiler_all_goes_on(monkeypatch):
    def fail(*args):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(kernels, "_compile", lambda kernel: fail)
    logits, labels, mask = problem(2100, 13)
    expected = finecal.tradeoff_curve(logits, labels, mask)
    with compile_kernels():
        with pytest.warns(
            finecal.FinecalWarning, match=r"torch.compile failed, and is off now \(RuntimeError: no C\+\+"
        ):
            curve = finecal.tradeoff_curve(logits, labels, mask)
        assert not kernels.is_worthwhile(logits)
    assert torch.equal(curve.breakpoints, expected.breakpoints)
    assert (curve.ausuc, curve.best()) == (expected.ausuc, expected.best())


def test_numpy_too():
    logits, labels, mask = (np.asarray(value) for value in problem(2100, 13, rounded=False))
    expected = finecal.Samples(logits, labels).margins(mask)
    with compile_kernels():
        found = finecal.Samples(logits, labels).margins(mask)
    np.testing.assert_array_equal(found.margin, expected.margin)
    np.testing.assert_array_equal(found.hit, expected.hit)
