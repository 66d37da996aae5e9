import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
import reference
from finecal._core import kernels as tiles
from finecal._core import reductions as kernels
from profiles import examples

INF = math.inf


def random_problem(seed, n=40, c=9, dtype=torch.float32, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, c, generator=g) * 3).to(dtype).to(device)
    mask = torch.tensor([i % 3 == 0 for i in range(c)], device=device)
    return logits, mask


class TestCalibrateLogits:
    def test_adds_gamma_to_absent_columns_only(self, device, dtype):
        logits, mask = random_problem(0, dtype=dtype, device=device)
        out = finecal.calibrate_logits(logits, mask, 1.25)
        assert out.dtype == dtype
        assert out.device.type == device.type
        assert torch.equal(out[:, mask], logits[:, mask])
        wide = logits.to(torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(out[:, ~mask], (wide[:, ~mask] + 1.25).to(dtype))

    def test_input_is_not_changed(self):
        logits, mask = random_problem(1)
        before = logits.clone()
        finecal.calibrate_logits(logits, mask, 3.0)
        assert torch.equal(logits, before)

    def test_half_types_round_once(self):
        # gamma 0.1 rounded to bfloat16 first would be 0.10009765625, and 256 + 0.1 would still be 256
        logits = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
        out = finecal.calibrate_logits(logits, [True, False], 0.0039)
        assert out[0, 1] == torch.tensor(1.0 + 0.0039).bfloat16()

    def test_float64_keeps_gamma_in_float64(self):
        out = finecal.calibrate_logits(np.zeros((1, 2)), [True, False], 0.1)
        assert out[0, 1] == 0.1

    @pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 3, 5), (1, 1, 1, 5)])
    def test_any_batch_dimensions(self, shape):
        mask = torch.tensor([True, False, True, False, True])
        out = finecal.calibrate_logits(torch.zeros(shape), mask, 2.0)
        assert torch.equal(out, (~mask).float().mul(2).expand(shape))

    def test_gradients_flow_to_logits_and_to_gamma(self):
        logits, mask = random_problem(2)
        logits.requires_grad_()
        gamma = torch.tensor(0.5, requires_grad=True)
        finecal.calibrate_logits(logits, mask, gamma).sum().backward()
        assert torch.equal(logits.grad, torch.ones_like(logits))
        assert gamma.grad == logits.shape[0] * int((~mask).sum())

    def test_masked_classes_stay_masked_and_nan_passes(self):
        out = finecal.calibrate_logits(torch.tensor([[-INF, -INF, math.nan]]), [True, False, False], 2.0)
        assert out[0, 0] == -INF
        assert out[0, 1] == -INF
        assert out[0, 2].isnan()

    def test_numpy_and_lists_give_numpy(self):
        mask = np.array([True, False])
        for logits in (np.array([[1.0, 2.0]], np.float16), [[1.0, 2.0]]):
            out = finecal.calibrate_logits(logits, mask, 1)
            assert isinstance(out, np.ndarray)
            assert out.tolist() == [[1.0, 3.0]]
        assert finecal.calibrate_logits(np.zeros((1, 2), np.float16), mask, 1).dtype == np.float16

    def test_gamma_may_be_an_estimate_or_a_numpy_number(self):
        estimate = finecal.GammaEstimate(1.5, "by hand", "nothing", 0)
        for gamma in (estimate, np.float32(1.5), np.array(1.5), torch.tensor(1.5, dtype=torch.float64)):
            assert finecal.calibrate_logits([[0.0, 0.0]], [True, False], gamma).tolist() == [[0.0, 1.5]]


class TestPredict:
    @pytest.mark.parametrize("gamma", [-2.0, 0.0, 0.7, 5.0])
    def test_equals_the_rule(self, device, dtype, gamma):
        logits, mask = random_problem(3, dtype=dtype, device=device)
        expected = [reference.predict(row, mask, gamma) for row in logits.double().tolist()]
        out = finecal.predict(logits, mask, gamma)
        assert out.dtype == torch.int64
        assert out.device.type == device.type
        assert out.tolist() == expected

    def test_equals_argmax_of_calibrated_logits(self):
        logits, mask = random_problem(4, n=2000, dtype=torch.float64)
        assert torch.equal(finecal.predict(logits, mask, 1.3), finecal.calibrate_logits(logits, mask, 1.3).argmax(1))

    def test_ties(self):
        mask = [False, True, True, False]
        assert finecal.predict([[1.0, 1.0, 1.0, 1.0]], mask).tolist() == [1]  # a seen class wins, the first of them
        assert finecal.predict([[1.0, 1.0, 1.0, 1.0]], mask, 0.5).tolist() == [0]
        assert finecal.predict([[0.0, 2.0, 2.0, 0.0]], mask, 2.0).tolist() == [1]  # margin == gamma: seen

    def test_gamma_is_compared_in_float64(self):
        margin = np.float32(0.1)
        above = float(np.nextafter(np.float64(margin), 1))
        logits = np.array([[margin, 0.0]], np.float32)
        assert finecal.predict(logits, [True, False], float(margin)).tolist() == [0]
        assert finecal.predict(logits, [True, False], above).tolist() == [1]

    def test_masked_groups(self):
        mask = [True, True, False, False]
        logits = [[-INF, -INF, -INF, 1.0], [-INF, 1.0, -INF, -INF], [-INF] * 4]
        assert finecal.predict(logits, mask, -100.0).tolist() == [3, 1, 0]
        assert finecal.predict(logits, mask, 100.0).tolist() == [3, 1, 0]

    def test_nan_gives_a_class(self):
        out = finecal.predict([[math.nan, 1.0, 2.0]], [True, True, False])
        assert 0 <= out[0] < 3

    @pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 3, 4), (4,)])
    def test_shapes(self, shape):
        out = finecal.predict(torch.zeros(shape), [True, True, False, False], 1.0)
        assert out.shape == shape[:-1]
        assert (out == 2).all()

    def test_tiles_are_seamless(self, monkeypatch):
        logits, mask = random_problem(5, n=37)
        labels = torch.arange(37) % 9
        whole = finecal.predict(logits, mask, 0.4), kernels.label_scalars(logits, labels, mask)
        monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", 5 * 9)
        parts = finecal.predict(logits, mask, 0.4), kernels.label_scalars(logits, labels, mask)
        assert torch.equal(whole[0], parts[0])
        assert all(torch.equal(a, b) for a, b in zip(whole[1], parts[1], strict=True))

    def test_rows_wider_than_a_tile(self, monkeypatch):
        monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", 4)
        logits, mask = random_problem(6)
        assert finecal.predict(logits, mask).tolist() == [reference.predict(r, mask, 0.0) for r in logits.tolist()]

    def test_compiles_without_a_graph_break(self):
        logits, mask = random_problem(7, n=600)

        def both(z, m, gamma):
            return finecal.predict(z, m, gamma), finecal.calibrate_logits(z, m, gamma)

        compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
        for gamma in (0.0, 1.5, -2.25, torch.tensor(0.75)):
            expected, got = both(logits, mask, gamma), compiled(logits, mask, gamma)
            assert torch.equal(expected[0], got[0])
            assert torch.equal(expected[1], got[1])

    def test_nothing_of_the_size_of_the_logits_is_allocated(self):
        logits, mask = random_problem(8, n=20_000, c=400)
        labels = torch.zeros(20_000, dtype=torch.int64)
        for call in (lambda: finecal.predict(logits, mask), lambda: finecal.Samples(logits, labels).margins(mask)):
            with torch.profiler.profile(profile_memory=True) as profile:
                call()
            largest = max(event.self_cpu_memory_usage for event in profile.events())
            assert 0 < largest <= 1 << 21  # one tile; the logits have 32 MB


@examples(200)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5, width=32))
def test_predict_on_integer_problems(seed, gamma):
    logits, _, mask = reference.integer_problem(np.random.default_rng(seed))
    assert finecal.predict(logits, mask, gamma).tolist() == [reference.predict(row, mask, gamma) for row in logits]


@examples(100)
@given(st.integers(0, 2**32 - 1), st.integers(-3, 3), st.integers(-20, 20))
def test_invariances(seed, gamma, shift):
    rng = np.random.default_rng(seed)
    logits, _, mask = reference.integer_problem(rng)
    gamma += 0.5
    predicted = finecal.predict(logits, mask, gamma)
    assert np.array_equal(predicted, finecal.predict(logits + shift, mask, gamma))
    assert np.array_equal(predicted, finecal.predict(logits, ~mask, -gamma))  # no margin equals a half


def test_whole_numbers_as_gamma_stay_compiled():
    logits, mask = random_problem(9)
    compiled = torch.compile(finecal.predict, fullgraph=True, backend="aot_eager")
    for gamma in (1, 2, 3):
        assert torch.equal(compiled(logits, mask, gamma), finecal.predict(logits, mask, gamma))


# --- classes along another dimension ----------------------------------------------------------------------------------

MASK = [True, False, True, False, False]
SHAPES = [(5,), (2, 5), (300, 5), (2, 3, 5), (200, 3, 5), (2, 1, 3, 5), (2, 9, 11, 5), (2, 3, 1, 2, 5), (0, 3, 5)]
SHAPES += [(2, 0, 3, 5), (2, 3, 0, 5)]


def along(dim, shape, dtype=torch.float32):
    """Logits with ties, and the classes along `dim`; `shape` has them last."""
    rows = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return rows.movedim(-1, dim).contiguous()


def dims(shape):
    return range(-len(shape), len(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_classes_along_any_dimension(shape, device, dtype):
    for dim in dims(shape):
        logits = along(dim, shape, dtype).to(device)
        last = logits.movedim(dim, -1).contiguous()
        predicted = finecal.predict(logits, MASK, 1.5, dim=dim)
        assert torch.equal(predicted, finecal.predict(last, MASK, 1.5))
        assert predicted.flatten().tolist() == [reference.predict(r, MASK, 1.5) for r in last.reshape(-1, 5).tolist()]
        calibrated = finecal.calibrate_logits(logits, MASK, 1.5, dim=dim)
        assert calibrated.dtype == dtype
        assert torch.equal(calibrated.movedim(dim, -1), finecal.calibrate_logits(last, MASK, 1.5))


LAYOUTS = {
    "channels last": lambda z: z.to(memory_format=torch.channels_last),
    "transposed": lambda z: z.transpose(2, 3),
    "cropped": lambda z: z[:, :, 1:-1, 2:],
    "every other": lambda z: z[:, :, ::2, ::2],
    "batch last": lambda z: z.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "one for all": lambda z: z[:, :, :1, :1].expand(z.shape),
    "array": lambda z: z.numpy()[:, :, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_in_any_memory_format(layout):
    logits = LAYOUTS[layout](along(1, (3, 9, 11, 5)))
    expected = finecal.predict(np.ascontiguousarray(np.moveaxis(np.asarray(logits), 1, -1)), MASK, 1.5)
    predicted, calibrated = (f(logits, MASK, 1.5, dim=1) for f in (finecal.predict, finecal.calibrate_logits))
    assert type(predicted) is type(calibrated) is type(logits)
    assert np.array_equal(predicted, expected)
    if layout in ("channels last", "transposed", "batch last"):
        assert calibrated.stride() == logits.stride()


def test_nan_and_masked_groups_in_pictures():
    logits = along(1, (2, 3, 4, 5))
    logits[0, :, 0, 0] = -INF
    logits[0, ::2, 1, 1] = -INF
    logits[1, 3, 2, 2] = math.nan
    predicted = finecal.predict(logits, MASK, 1.5, dim=1)
    assert predicted[0, 0, 0] == 0
    assert predicted[0, 1, 1] in (1, 3, 4)
    assert 0 <= predicted[1, 2, 2] < 5


def test_pictures_are_looked_at_in_blocks_of_any_size(monkeypatch):
    logits = along(1, (3, 9, 11, 5))
    expected = finecal.predict(logits, MASK, 1.5, dim=1)
    for elements in (1, 5 * 2 * 7, 1 << 20):
        monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", elements)
        assert torch.equal(finecal.predict(logits, MASK, 1.5, dim=1), expected)


def test_pictures_are_not_copied():
    logits = torch.zeros(4, 40, 160, 160)
    with torch.profiler.profile(profile_memory=True) as profile:
        finecal.predict(logits, torch.arange(40) < 20, dim=1)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 1 << 20  # half a tile; the logits have 16 MB


class Both(torch.nn.Module):
    """Predictions and calibrated logits of pictures."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor(MASK))

    def forward(self, logits):
        return finecal.predict(logits, self.mask, 1.5, dim=1), finecal.calibrate_logits(logits, self.mask, 1.5, dim=1)


def test_compiles_and_exports_with_classes_along_a_dimension():
    both, first, second = Both(), along(1, (2, 4, 6, 5)), along(1, (3, 7, 4, 5))
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=True)
    sizes = {dim: torch.export.Dim(name, min=2) for dim, name in ((0, "batch"), (2, "height"), (3, "width"))}
    exported = torch.export.export(both, (first,), dynamic_shapes=(sizes,)).module()
    for logits in (first, second):
        for found, again, expected in zip(compiled(logits), exported(logits), both(logits), strict=True):
            assert torch.equal(found, expected)
            assert torch.equal(again, expected)


def test_dims_stay_compiled():
    compiled, mask = torch.compile(finecal.predict, fullgraph=True, backend="aot_eager"), torch.tensor(MASK)
    for dim in (1, -1, 2):
        logits = along(dim, (2, 3, 5))
        assert torch.equal(compiled(logits, mask, 1.5, dim=dim), finecal.predict(logits, mask, 1.5, dim=dim))


@pytest.mark.parametrize("function", [finecal.predict, finecal.calibrate_logits])
def test_wrong_dims(function):
    with pytest.raises(TypeError, match="^dim is a bool; pass the dimension of the classes: -1 for the last"):
        function(torch.zeros(2, 5), MASK, 1.5, dim=True)
    for dim in (4, -5):
        with pytest.raises(ValueError, match=rf"^dim is {dim}, but logits has shape \(2, 5, 3, 4\), of 4 dimensions; "):
            function(torch.zeros(2, 5, 3, 4), MASK, 1.5, dim=dim)
    for dim in (-1, 2):
        with pytest.raises(ValueError, match=r"dimension 1 of their shape, \(2, 5, 3, 4\), fits: .* use dim=1$"):
            function(np.zeros((2, 5, 3, 4)), MASK, 1.5, dim=dim)
    with pytest.raises(ValueError, match="5 entries for logits of 4 classes; .* of the logits \\(if the head has lost"):
        function(torch.zeros(2, 4, 3), MASK, 1.5, dim=1)
    with pytest.raises(TypeError, match="positional"):
        function(torch.zeros(2, 5), MASK, 1.5, 1)
