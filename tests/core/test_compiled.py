import functools
import math
import os

import numpy as np
import pytest
import torch

import finecal
from finecal._core import compiled, kernels, reductions
from finecal._core.compiled import compile_kernels

INF = float("inf")
needs_compiler = pytest.mark.skipif(os.name != "posix", reason="Windows brings no compiler for torch.compile")


@pytest.fixture(autouse=True)
def off_again():
    yield
    compile_kernels(False)


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(compiled, "_has_numba", lambda: False)


@pytest.fixture(params=["numba", pytest.param("torch", marks=needs_compiler)])
def compiler(request):
    if request.param == "torch":
        request.getfixturevalue("without_numba")


def problem(n, classes, dtype=torch.float32, rounded=True, device="cpu"):
    generator = torch.Generator().manual_seed(n)
    logits = 3 * torch.randn(n, classes, generator=generator)
    if rounded:  # full of ties
        logits = logits.round()
    logits[0], logits[1, ::2], logits[2, 1::2] = -INF, -INF, -INF
    labels = torch.randint(classes, (n,), generator=generator)
    return logits.to(device, dtype), labels.to(device), torch.arange(classes, device=device) % 2 == 0


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("n", [2 * 2048 + 5, 2048])
def test_equal_the_usual_kernels_to_the_bit(dtype, n, device):
    logits, labels, mask = problem(n, 13, dtype, device=device)
    questions = [
        lambda: reductions.label_scalars(logits, labels, mask),
        lambda: reductions.group_maxima(logits, mask),
        lambda: reductions.label_hits(logits, labels, mask),
        *(functools.partial(reductions.winning_classes, logits, mask, gamma) for gamma in (-2.0, 0.0, 2.0)),
    ]
    expected = [ask() for ask in questions]
    with compile_kernels():
        assert compiled.is_worthwhile(logits)
        found = [ask() for ask in questions]
        assert compiled.is_worthwhile(logits)  # it has not been switched off
    assert isinstance(found[0], kernels.LabelScalars)
    for result, same in zip(found, expected, strict=True):
        assert all(
            torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(result, same, strict=True)
        )


@pytest.mark.parametrize("classes", [2, 3, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_numba_scans_rows_of_any_width(dtype, classes):
    """One seen class, tiny and huge numbers, both zeros; of any number of rows, also none."""
    generator = torch.Generator().manual_seed(classes)
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    values = torch.tensor([-INF, -huge, -1.5, -tiny, -0.0, 0.0, tiny, 1.5, huge], dtype=torch.float64)
    for n in (0, 1, 37):
        logits = values[torch.randint(len(values), (n, classes), generator=generator)].to(dtype)
        labels, mask = torch.randint(classes, (n,), generator=generator), torch.arange(classes) == classes - 1
        with compile_kernels():
            found = reductions.label_scalars(logits, labels, mask), reductions.winning_classes(logits, mask, 0.5)
        seen, absent = logits[:, -1].to(found[0].own), logits[:, :-1].to(found[0].own)
        assert torch.equal(found[0].seen_max, seen)
        assert torch.equal(found[0].absent_max, absent.amax(1))
        assert torch.equal(found[0].own, logits.to(seen).gather(1, labels[:, None])[:, 0])
        first = torch.from_numpy(absent.numpy().argmax(1)) if n else labels
        wins = reductions.margin_of(seen, absent.amax(1)).double() < 0.5
        assert torch.equal(found[1], torch.where(wins, first, classes - 1))


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_average_gap(dtype):
    """Also of rows in which classes are masked; float64 sums are added up in another order."""
    logits, labels, mask = problem(2100, 14, dtype)
    labels = labels // 2 * 2
    expected = finecal.estimators.average_logit_gap(logits, labels, mask)
    with compile_kernels():
        found = finecal.estimators.average_logit_gap(logits, labels, mask)
    assert found.gamma == pytest.approx(expected.gamma, rel=1e-13)
    assert found.n == expected.n


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("nan", [float("nan"), math.copysign(float("nan"), -1)])
@pytest.mark.parametrize("column", [3, 4])
def test_nan_is_still_an_error(nan, column):
    logits, labels, mask = problem(3000, 13)
    labels[100], logits[100, column] = 3, nan
    with compile_kernels(), pytest.raises(ValueError, match="logits contain NaN"):
        finecal.Samples(logits, labels).margins(mask)


def test_a_function_and_a_context_manager():
    logits = problem(2048, 13)[0]
    assert not compiled.is_worthwhile(logits)
    with compile_kernels():
        with compile_kernels(False):
            assert not compiled.is_worthwhile(logits)
        assert compiled.is_worthwhile(logits)
    assert not compiled.is_worthwhile(logits)
    compile_kernels()
    assert compiled.is_worthwhile(logits)
    compile_kernels(False)
    assert not compiled.is_worthwhile(logits)


def test_numba_leaves_other_rows_to_torch():
    logits = problem(20, 13)[0]
    with compile_kernels():
        assert compiled.is_worthwhile(logits)
        assert not compiled.is_worthwhile(logits.T.contiguous().T)
        assert not compiled.is_worthwhile(logits.clone().requires_grad_())
        assert not compiled.is_worthwhile(torch.empty(20, 13, device="meta"))


@pytest.mark.usefixtures("without_numba")
def test_torch_compiles_few_shapes_of_many_rows(monkeypatch):
    logits = problem(2048, 13)[0]
    with compile_kernels():
        assert not compiled.is_worthwhile(logits[:-1])
        assert not compiled.is_worthwhile(logits.T.contiguous().T)
        assert not compiled.is_worthwhile(logits.clone().requires_grad_())
        assert not compiled.is_worthwhile(torch.empty(2048, 13, device="meta"))
        monkeypatch.setattr(compiled, "_shapes", {(classes, torch.float32, logits.device) for classes in range(2, 8)})
        assert not compiled.is_worthwhile(logits)
        monkeypatch.setattr(compiled, "_shapes", {(13, torch.float32, logits.device)})
        assert compiled.is_worthwhile(logits)


@pytest.mark.usefixtures("compiler")
def test_without_a_compiler_all_goes_on(monkeypatch):
    def fail(*args):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(compiled, "_compile", lambda kernel: fail)
    monkeypatch.setattr(compiled, "_jit", lambda function: fail)
    logits, labels, mask = problem(2100, 13)
    expected = finecal.tradeoff_curve(logits, labels, mask)
    with compile_kernels():
        with pytest.warns(finecal.FinecalWarning, match=r"compiling failed, and is off now \(RuntimeError: no C\+\+"):
            curve = finecal.tradeoff_curve(logits, labels, mask)
        assert not compiled.is_worthwhile(logits)
    assert torch.equal(curve.breakpoints, expected.breakpoints)
    assert (curve.ausuc, curve.best()) == (expected.ausuc, expected.best())


@pytest.mark.usefixtures("compiler")
def test_numpy_too():
    logits, labels, mask = (np.asarray(value) for value in problem(2100, 13, rounded=False))
    expected = finecal.Samples(logits, labels).margins(mask)
    with compile_kernels():
        found = finecal.Samples(logits, labels).margins(mask)
    np.testing.assert_array_equal(found.margin, expected.margin)
    np.testing.assert_array_equal(found.hit, expected.hit)
