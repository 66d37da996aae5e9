"""The fused kernels against the torch kernels and the naive rules.

On a GPU they run as they are. On the CPU Triton interprets them with NumPy, if TRITON_INTERPRET=1 is set before Triton
is imported; from then on the process has no compiler. So `test_in_the_interpreter` runs this file again in a process of
its own, and no other test sees the variable. `TRITON_INTERPRET=1 pytest tests/logits/test_triton_kernels.py` does the
same.
"""

import importlib.util
import math
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

import finecal
import reference
from conftest import DEVICES
from finecal.logits import reductions as eager
from profiles import examples

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_WHEELS = (sys.platform, platform.machine()) == ("linux", "x86_64")
INF = math.inf

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed" if HAS_WHEELS else "no Triton for this platform",
)
as_they_are = pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")


@pytest.fixture(params=[DEVICES[0] if INTERPRETED else DEVICES[1]])
def device(request):
    return torch.device(request.param)


@pytest.fixture
def fused():
    from finecal.logits import triton_kernels

    return triton_kernels


@pytest.fixture(autouse=True)
def _numpy_may_divide_by_zero():
    """The interpreter's NumPy warns where a GPU gives an infinity or NaN."""
    with np.errstate(all="ignore"):
        yield


def problem(n, c, dtype, seed=0, step=None):
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=(n, c)) * 3).to(dtype)
    if step:
        logits = (logits / step).round() * step  # full of ties
    mask = torch.tensor(rng.permutation(np.arange(c) < max(1, c // 3)))
    return logits, torch.tensor(rng.integers(0, c, n)), mask


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


def check(fused, logits, labels, mask, gamma=0.7):
    """All kernels equal those of torch on the CPU, to the bit but for log-sum-exps, and classes of rows with NaN."""
    x, y, m = logits.cpu(), labels.cpu(), mask.cpu()
    assert_same(fused.label_scalars(logits, labels, mask), eager.label_scalars(x, y, m))
    assert_same(fused.group_maxima(logits, mask), eager.group_maxima(x, m))
    whole = ~x.isnan().any(1)
    for got, expected in (
        (fused.group_winners(logits, mask), eager.group_winners(x, m)),
        ([fused.winning_classes(logits, mask, gamma)], [eager.winning_classes(x, m, gamma)]),
    ):
        assert_same([column[whole.to(column.device)] for column in got], [column[whole] for column in expected])
        assert all(bool(((column >= 0) & (column < x.shape[1])).all()) for column in got)
    for got, expected in zip(fused.group_log_sum_exps(logits, mask), eager.group_log_sum_exps(x, m), strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-13, atol=1e-13, equal_nan=True)


@as_they_are
def test_in_the_interpreter():
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    of_triton_3_0 = "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", of_triton_3_0, __file__]
    result = subprocess.run(command, env={**environment, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


TARGETS = {80: "float64", 90: "bfloat16"}
COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from finecal.logits import triton_kernels

class NoGPU:
    def __init__(self, capability): self.capability = capability
    def get_current_device(self): return self.capability  # a number of its own: each device has a cache
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", self.capability, 32)

def compile_only(self, *arguments, grid, warmup, **options):
    compiled.append(run(self, *arguments, grid=grid, warmup=True, **options))

compiled, run, triton.JITFunction.run = [], triton.JITFunction.run, compile_only
mask = torch.arange(3001) < 7
for capability, dtype in TARGETS.items():
    driver.set_active(NoGPU(capability))
    for logits in (torch.zeros(3, 3001, dtype=getattr(torch, dtype)), torch.zeros(3001, 400).T):
        triton_kernels.label_scalars(logits, torch.zeros(logits.shape[0], dtype=torch.int64), mask)
        triton_kernels.group_maxima(logits, mask)
        triton_kernels.group_log_sum_exps(logits, mask)
        triton_kernels.winning_classes(logits, mask, 0.5)
        triton_kernels.group_winners(logits, mask)
for capability in TARGETS:
    print(sum("cubin" in kernel.asm for kernel in compiled if kernel.metadata.target.arch == capability))
"""


@as_they_are
def test_compiles_for_gpus(tmp_path):
    """To machine code, which takes no GPU; the interpreter accepts more than the compiler does."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"TARGETS = {TARGETS}{COMPILE}"],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["10", "10"], result.stderr


class TestKernels:
    @pytest.mark.parametrize("shape", [(0, 5), (1, 2), (3, 2), (5, 3), (70, 33), (3, 2048), (2, 5003)])
    def test_shapes(self, fused, device, dtype, shape):
        for step in (None, 2.0):
            check(fused, *(part.to(device) for part in problem(*shape, dtype, step=step)))

    def test_many_rows_of_several_blocks(self, fused, device, monkeypatch):
        """Few rows share the multiprocessors by more warps each; many have smaller blocks."""
        logits, labels, mask = (part.to(device) for part in problem(4, 2100, torch.float32, step=1.0))
        assert fused.tile_shape(logits) == (1, 8192, 16)
        monkeypatch.setattr(fused, "_FEW_ROWS", 2)
        assert fused.tile_shape(logits) == (1, 2048, 4)
        check(fused, logits, labels, mask)

    @pytest.mark.parametrize("kind", ["seen", "absent"])
    def test_one_class_of_a_group(self, fused, device, kind):
        logits, labels, _ = problem(12, 9, torch.float32, step=1.0)
        labels[:6] = 4
        one = torch.arange(9) == 4
        check(fused, logits.to(device), labels.to(device), (one if kind == "seen" else ~one).to(device))

    @pytest.mark.parametrize("columns", [7, 2500])
    def test_masked_classes_and_groups(self, fused, device, dtype, columns):
        logits, _, mask = problem(4, columns, dtype, step=1.0)
        logits[torch.rand(4, columns, generator=torch.Generator().manual_seed(1)) < 0.4] = -INF
        logits[0], logits[1, mask], logits[2, ~mask] = -INF, -INF, -INF
        for label in (0, 1, columns - 1, int(mask.int().argmax()), int((~mask).int().argmax())):
            check(fused, logits.to(device), torch.full((4,), label, device=device), mask.to(device), gamma=-3.0)

    @pytest.mark.parametrize("columns", [6, 2500])
    def test_nan_spoils_its_row_and_no_other(self, fused, device, dtype, columns):
        logits, labels, mask = problem(8, columns, dtype)
        logits[1, labels[1]], logits[2, int(mask.int().argmax())], logits[3, int((~mask).int().argmax())] = [
            math.nan
        ] * 3
        logits[4], logits[5, columns - 1], logits[6, labels[6]] = math.nan, INF, INF
        seen_rival, absent_rival, own, _, hit = fused.label_scalars(*(x.to(device) for x in (logits, labels, mask)))
        maxima = eager.LabelScalars(seen_rival, absent_rival, own, mask.to(device)[labels.to(device)], hit)
        spoilt = (maxima.seen_max - maxima.absent_max).isnan()
        assert spoilt[1:5].all()
        assert not spoilt[[0, 7]].any()
        assert not hit[1:5].any()
        check(fused, logits.to(device), labels.to(device), mask.to(device))

    def test_strides(self, fused, device, dtype):
        logits, labels, mask = (part.to(device) for part in problem(20, 40, dtype, step=1.0))
        check(fused, logits.T.contiguous().T, labels, mask)
        check(fused, logits[::2, 1::3], labels[::2] % 13, mask[1::3])
        check(fused, logits.T.contiguous().T[3:, 2:], labels[3:] % 38, mask[2:])
        check(fused, logits[:1].expand(20, 40), labels, mask)
        check(fused, logits.unsqueeze(2).expand(20, 40, 2)[:, :, 1], labels.repeat_interleave(2)[::2], mask)

    def test_transposed_logits_of_several_blocks(self, fused, device):
        logits, labels, mask = (part.to(device) for part in problem(70, 150, torch.float32, step=1.0))
        tall = logits.T.contiguous().T
        assert fused.tile_shape(tall)[0] > 1
        check(fused, tall, labels, mask)

    def test_ties_of_several_blocks(self, fused, device):
        """Also of columns that a whole number of blocks lies between: the same lane meets both."""
        for logits in (torch.zeros(150, 40, device=device).T, torch.zeros(2, 9000, device=device)):
            rows, columns = logits.shape
            assert columns > fused.tile_shape(logits)[1]
            mask = torch.arange(columns, device=device) % 2 == 1
            for label in (0, 1, 2, columns - 1):
                check(fused, logits, torch.full((rows,), label, device=device), mask)

    def test_the_rules(self, fused, device):
        logits, labels, mask = problem(30, 11, torch.float64, step=2.0)
        rows, flags = logits.tolist(), mask.tolist()
        x, y, m = logits.to(device), labels.to(device), mask.to(device)
        hit = fused.label_scalars(x, y, m)[4].tolist()
        assert hit == [reference.is_hit(row, label, flags) for row, label in zip(rows, labels.tolist(), strict=True)]
        for maximum, winner, group in zip(
            fused.group_maxima(x, m), fused.group_winners(x, m), (True, False), strict=True
        ):
            assert maximum.tolist() == [reference.group_max(row, flags, group) for row in rows]
            assert winner.tolist() == [reference.first_argmax(row, flags, group) for row in rows]
        for gamma in (-2.0, 0.0, 2.0, 3.1):
            assert fused.winning_classes(x, m, gamma).tolist() == [reference.predict(r, flags, gamma) for r in rows]

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_log_sum_exps_of_several_blocks(self, fused, device, dtype, scale):
        logits, _, mask = problem(3, 4500, dtype)
        logits = (logits.double() * scale).to(dtype)
        for got, group in zip(fused.group_log_sum_exps(logits.to(device), mask.to(device)), (mask, ~mask), strict=True):
            expected = torch.from_numpy(logsumexp(logits[:, group].double().numpy(), axis=1))
            torch.testing.assert_close(got.cpu(), expected, rtol=1e-13, atol=1e-13)

    def test_gamma_is_compared_in_float64(self, fused, device):
        logits = torch.tensor([[np.float32(0.1), 0.0]], device=device)
        mask = torch.tensor([True, False], device=device)
        margin = float(np.float32(0.1))
        for gamma, winner in ((margin, 0), (np.nextafter(margin, 1), 1)):
            assert fused.winning_classes(logits, mask, gamma).item() == winner
            for kind in (torch.device("cpu"), device):
                shift = torch.tensor(gamma, dtype=torch.float64, device=kind, requires_grad=True)
                assert fused.winning_classes(logits, mask, shift).item() == winner

    def test_a_wrong_label_reads_nothing(self, fused, device):
        """Callers check labels; those that did not must not read memory of others, and must not pass for right."""
        logits, _, mask = (part.to(device) for part in problem(2, 5, torch.float32))
        own, _, hit = fused.label_scalars(logits, torch.tensor([-1, 5], device=device), mask)[2:]
        assert own.isnan().all()
        assert not hit.any()

    @examples(25)
    @given(seed=st.integers(0, 2**32 - 1), gamma=st.floats(-5, 5, width=32))
    def test_integer_problems(self, seed, gamma):
        if not INTERPRETED:
            pytest.skip("as the tests above")
        from finecal.logits import triton_kernels

        logits, labels, mask = map(torch.tensor, reference.integer_problem(np.random.default_rng(seed)))
        check(triton_kernels, logits, labels, mask, gamma)


def public_results(logits, labels, mask):
    samples = finecal.Samples(logits, labels).margins(mask)
    return samples.margin, samples.is_seen, samples.hit, finecal.predict(logits, mask, 0.5)


class TestDispatch:
    def test_public_functions_take_the_kernels(self, fused, device, dtype, monkeypatch):
        logits, labels, mask = problem(30, 12, dtype)
        expected = public_results(logits, labels, mask)
        if INTERPRETED:
            monkeypatch.setattr(eager, "fused_kernels", lambda logits: fused)
        else:
            assert eager.fused_kernels(logits.to(device)) is None  # not unless they are asked for
        with finecal.compile_kernels():
            assert eager.fused_kernels(logits.to(device)) is fused
            assert_same(public_results(logits.to(device), labels.to(device), mask.to(device)), expected)
            x, m = logits.to(device), mask.to(device)
            assert_same(eager.group_winners(x, m), fused.group_winners(x, m))
            assert_same(eager.group_winners_and_maxima(x, m), eager.group_winners_and_maxima(logits, mask))
            assert_same(eager.group_log_sum_exps(x, m), fused.group_log_sum_exps(x, m))
            assert_same(eager.group_maxima(x, m), fused.group_maxima(x, m))

    def test_the_cpu_does_without(self, monkeypatch):
        monkeypatch.setattr(eager, "_fused_kernels_on", None)
        with finecal.compile_kernels():
            public_results(*problem(5, 4, torch.float32))

    def test_gradients_and_subclasses_do_without(self, device, monkeypatch):
        monkeypatch.setattr(eager, "_fused_kernels_on", None)
        logits = torch.zeros(2, 3, device=device)
        with finecal.compile_kernels():
            assert eager.fused_kernels(logits.clone().requires_grad_()) is None
            assert eager.fused_kernels(torch.nn.Parameter(logits, requires_grad=False)) is None

    @as_they_are
    def test_graphs_do_without(self, device, monkeypatch):
        monkeypatch.setattr(eager, "_fused_kernels_on", None)
        logits, _, mask = (part.to(device) for part in problem(5, 4, torch.float32))
        compiled = torch.compile(finecal.predict, fullgraph=True, backend="aot_eager")
        with finecal.compile_kernels():
            found = compiled(logits, mask, 0.5)
        assert_same([found], [finecal.predict(logits.cpu(), mask.cpu(), 0.5)])

    @as_they_are
    def test_nothing_waits_for_the_gpu(self, fused, device):
        logits, labels, mask = (part.to(device) for part in problem(9, 20, torch.float32, step=1.0))
        calibrate = finecal.AdditiveBias(mask, 0.5)
        with finecal.compile_kernels():
            eager.fused_kernels(logits)
        torch.cuda.set_sync_debug_mode("error")
        try:
            fused.label_scalars(logits, labels, mask)
            fused.group_log_sum_exps(logits, mask)
            finecal.predict(logits, mask, 0.5)
            with finecal.compile_kernels():
                finecal.predict(logits, mask, 0.5)
            calibrate(logits)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_without_triton(self, monkeypatch):
        monkeypatch.delattr(finecal.logits, "triton_kernels", raising=False)
        monkeypatch.setitem(sys.modules, "finecal.logits.triton_kernels", None)
        assert eager._fused_kernels_on.__wrapped__(torch.device("cuda")) is None

    def test_without_a_compiler(self, fused, monkeypatch):
        def fail(logits, mask):
            raise RuntimeError("Failed to find C compiler")

        monkeypatch.setattr(fused, "group_maxima", fail)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        with pytest.warns(finecal.FinecalWarning, match="RuntimeError: Failed to find C compiler"):
            assert not fused.work_on(torch.device("cpu"))

    def test_old_gpus_do_without(self, fused, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert not fused.work_on(torch.device("cpu"))
