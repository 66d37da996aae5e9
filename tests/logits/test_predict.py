import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
import reference
from finecal.logits import reductions as kernels
from finecal.logits import tiles, torch_kernels
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


class TestUnusualArrays:
    """Arrays that torch refuses, or warns of (warnings are errors here)."""

    def check(self, array):
        mask = np.array([True, False, False])
        expected = finecal.predict(np.ascontiguousarray(array).copy(), mask, 0.5)
        before = np.array(array)
        assert finecal.predict(array, mask, 0.5).tolist() == expected.tolist()
        assert np.array_equal(array, before)

    def test_read_only(self, rng):
        array = rng.normal(size=(5, 3)).astype(np.float32)
        array.flags.writeable = False
        self.check(array)
        assert not array.flags.writeable

    def test_memory_mapped(self, rng, tmp_path):
        np.save(tmp_path / "logits.npy", rng.normal(size=(5, 3)))
        self.check(np.load(tmp_path / "logits.npy", mmap_mode="r"))

    def test_negative_strides_and_steps(self, rng):
        array = rng.normal(size=(10, 6))
        self.check(array[::-1, ::-2])
        self.check(array[::2, ::2])

    def test_foreign_byte_order(self, rng):
        self.check(rng.normal(size=(5, 3)).astype(">f4"))

    def test_broadcast(self):
        self.check(np.broadcast_to(np.array([1.0, 2.0, 3.0]), (4, 3)))

    def test_read_only_mask_and_labels(self):
        mask, labels = np.array([True, False]), np.array([0, 1])[::-1]
        mask.flags.writeable = labels.flags.writeable = False
        assert len(finecal.margins(np.zeros((2, 2)), labels, mask)) == 2

    def test_unsigned_labels(self):
        for kind in (np.uint8, np.int16, np.uint16, np.uint64):
            assert finecal.margins(np.zeros((2, 2)), np.array([0, 1], kind), [True, False]).label.tolist() == [0, 1]


def test_what_is_no_array_is_named():
    for call in (finecal.calibrate_logits, finecal.predict):
        with pytest.raises(TypeError, match="^logits is list of dtype <U1, which torch cannot hold"):
            call([["a", "b"]], [True, False], 0.0)


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
        for call in (lambda: finecal.predict(logits, mask), lambda: finecal.margins(logits, labels, mask)):
            with torch.profiler.profile(profile_memory=True) as profile:
                call()
            largest = max(event.self_cpu_memory_usage for event in profile.events())
            assert 0 < largest <= 1 << 21  # one tile; the logits have 32 MB


class TestGroupWinners:
    @pytest.mark.parametrize("tile_elements", [1 << 18, 5 * 9, 4])
    @pytest.mark.parametrize("shift", [0.0, 6.0])  # so that few or many rows have an absent class on top
    def test_equals_the_first_argmax_of_each_group(self, device, dtype, tile_elements, shift, monkeypatch):
        monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", tile_elements)
        logits, mask = random_problem(12, dtype=dtype, device=device)
        assert torch_kernels._are_mostly_seen(logits + shift * mask, mask) == (shift > 0)
        logits = (logits + shift * mask).to(dtype).round()  # full of ties
        logits[0], logits[1, mask], logits[2, ~mask] = -INF, -INF, -INF
        winners = kernels.group_winners(logits, mask)
        for winner, group in zip(winners, (True, False), strict=True):
            assert winner.dtype == torch.int64
            assert winner.tolist() == [reference.first_argmax(row, mask.tolist(), group) for row in logits.tolist()]

    def test_predict_takes_one_or_the_other(self):
        logits, mask = random_problem(13)
        seen, absent = kernels.group_winners(logits, mask)
        margin = torch.from_numpy(finecal.margins(logits.numpy(), torch.arange(40) % 9, mask).margin).double()
        for gamma in (-1.0, 0.0, 2.5):
            assert torch.equal(torch.where(margin < gamma, absent, seen), finecal.predict(logits, mask, gamma))

    def test_no_rows(self):
        seen, absent = kernels.group_winners(torch.zeros(0, 3), torch.tensor([True, True, False]))
        assert seen.shape == absent.shape == (0,)


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


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e4])
def test_group_log_sum_exps(rng, scale, device, dtype):
    """Also where one group is too far below the other for their exponentials to share a scale."""
    logits = torch.tensor(rng.normal(size=(700, 500)) * scale).to(device, dtype)
    logits[rng.random((700, 500)) < 0.3] = -torch.inf
    mask = torch.arange(500, device=device) % 3 == 0
    logits[0], logits[1, mask], logits[2, ~mask] = -torch.inf, -torch.inf, -torch.inf
    for got, group in zip(kernels.group_log_sum_exps(logits, mask), (mask, ~mask), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, logits[:, group].double().logsumexp(1), rtol=1e-13, atol=1e-13)
    assert [part.shape for part in kernels.group_log_sum_exps(logits[:0], mask)] == [(0,), (0,)]
