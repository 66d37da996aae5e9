"""Operating points by blocks, at once, and by counting."""

import math

import numpy as np
import pytest
import torch

import finecal
import reference
from finecal._core import compiled as compiled_kernels
from finecal._core import objectives as module
from finecal._core.objectives import operating_points, point_at, twice_the_area
from profiles import draws

pytestmark = pytest.mark.filterwarnings("ignore:labels are exactly")


@pytest.fixture(params=[1, 3, 1 << 17])
def block(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", request.param)


def drawn(rng, n, dtype, distinct):
    margin = torch.tensor(rng.integers(-distinct, distinct + 1, n) / 4).to(dtype)
    margin[torch.tensor(rng.random(n) < 0.1)] = math.inf
    margin[torch.tensor(rng.random(n) < 0.1)] = -math.inf
    return margin, torch.tensor(rng.random(n) < 0.5), torch.tensor(rng.random(n) < 0.7)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distinct", [0, 2, 40, 10_000])
@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_counts_are_those_of_each_gamma(rng, n, distinct, dtype):
    margin, is_seen, hit = drawn(rng, n, dtype, distinct)
    breakpoints, seen_correct, absent_correct = operating_points(margin, is_seen, hit)
    assert breakpoints.tolist() == sorted({float(m) for m in margin[hit] if math.isfinite(m)})
    assert breakpoints.dtype == torch.float64
    assert seen_correct.dtype == absent_correct.dtype == torch.int64
    # The last gamma of each interval, and one beyond all finite margins.
    for gamma, seen, absent in zip([*breakpoints.tolist(), 1e30], seen_correct, absent_correct, strict=True):
        assert seen == int((hit & is_seen & (margin.double() >= gamma)).sum())
        assert absent == int((hit & ~is_seen & (margin.double() < gamma)).sum())


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("distinct", [0, 2, 40, 10_000])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_at_once_is_by_blocks(rng, n, distinct):
    margin, is_seen, hit = drawn(rng, n, torch.float32, distinct)
    in_order = module._sort_with_group(margin, is_seen, hit & margin.isfinite())
    expected = operating_points(margin, is_seen, hit)
    found = module._points_at_once(*in_order, expected[1][:1], expected[2][:1])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("block")
def test_area_is_that_of_the_trapezoids(rng):
    _, seen, absent = operating_points(*drawn(rng, 200, torch.float32, 30))
    assert twice_the_area(seen, absent) == 2 * float(torch.trapezoid(absent.double(), -seen.double()))
    assert twice_the_area(seen[:1], absent[:1]) == 0


@pytest.mark.usefixtures("block")
def test_ties_let_go_of_memory(rng):
    points = operating_points(torch.zeros(10_000), *drawn(rng, 10_000, torch.float32, 1)[1:])
    assert [p.untyped_storage().nbytes() for p in points] == [8, 16, 16]


@pytest.mark.usefixtures("block")
def test_inputs_stay(rng):
    given = drawn(rng, 100, torch.float32, 5)
    before = [value.clone() for value in given]
    operating_points(*given)
    assert all(map(torch.equal, given, before))


def test_adjacent_float32_margins_are_told_apart():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    logits = np.array([[low, 0.0], [high, 0.0], [5.0, 0.0], [-1.0, 0.0]], np.float32)
    curve = finecal.tradeoff_curve(logits, [1, 0, 0, 1], [True, False])
    gamma = curve.best()
    assert gamma == np.float32(gamma) == high
    assert finecal.predict(logits, [True, False], gamma).tolist() == [1, 0, 0, 1]


def test_adjacent_float64_margins_are_told_apart():
    low, high = 1.0, np.nextafter(1.0, 2)
    curve = finecal.tradeoff_curve(np.array([[low, 0.0], [high, 0.0]]), [1, 0], [True, False])
    assert curve.gamma[1] == high
    assert curve.best() == high
    assert curve.at(curve.best()).acc_all == 1.0


@pytest.mark.parametrize("size", [1e8, 1e30])
def test_gamma_beyond_the_ends_at_sizes_where_one_is_nothing(size):
    logits = np.array([[size, 0.0], [-size, 0.0]])
    curve = finecal.tradeoff_curve(logits, [0, 1], [True, False])
    for index, gamma in enumerate(curve.gamma):
        assert point_at(curve.breakpoints, float(gamma)) == index
    only_absent_hit = finecal.tradeoff_curve(
        np.array([[size, 0.0], [size, 0.0], [0.0, -1.0]]), [1, 1, 0], [True, False]
    )
    assert only_absent_hit.at(only_absent_hit.best()).acc_all == 2 / 3


def test_intervals_finer_than_float32_are_told_apart():
    step = 2.0**-20  # of float32 numbers near 8
    logits = np.array([[8 + 0.1 * step, 0.0], [8 + 0.6 * step, 0.0]])
    curve = finecal.tradeoff_curve(logits, [1, 0], [True, False])
    assert curve.at(curve.best(max_seen_drop=0.0)).acc_all == 1.0


@pytest.fixture
def flushed():
    """The mode in which the processor takes denormal numbers for 0, as code built for fast mathematics switches on."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    yield
    torch.set_flush_denormal(False)


def counts_by_hand(logits, labels, mask):
    """The breakpoints, and the counts at each of them and beyond, in whole numbers."""
    rows = [(int(reference.margin(row, mask)), bool(mask[y])) for row, y in zip(logits, labels, strict=True)]
    hits = [
        entry
        for entry, row, y in zip(rows, logits, labels, strict=True)
        if reference.first_argmax(row, mask, bool(mask[y])) == y
    ]
    ends = sorted({margin for margin, _ in hits})
    gammas = [*ends, 1000]
    seen = [sum(of_seen and margin >= gamma for margin, of_seen in hits) for gamma in gammas]
    absent = [sum(not of_seen and margin < gamma for margin, of_seen in hits) for gamma in gammas]
    return ends, seen, absent


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
@pytest.mark.parametrize("compiler", [None, "numba", "torch"])
def test_ties_at_zero_count_where_the_processor_flushes_denormal_numbers(rng, flushed, compiler, monkeypatch):
    compiled = compiler is not None
    monkeypatch.setattr(compiled_kernels, "_has_numba", lambda: compiler == "numba")
    monkeypatch.setattr(compiled_kernels, "_BLOCK", 24)
    monkeypatch.setattr(compiled_kernels, "_shapes", set())  # those of other tests do not count, nor these for them
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)[: 2 if compiled else 4]  # it takes long
    with finecal.logits.compile_kernels(compiled):
        for number in range(draws(300, quick=80)):
            logits, labels, mask = reference.integer_problem(rng)
            if compiled:  # one shape, for which a graph is compiled once a dtype
                mask = rng.permutation([True, True, False, False, False])
                logits, labels = rng.integers(-4, 5, (24, 5)), rng.integers(0, 5, 24)
                assert logits.min() < 0
            rows = torch.tensor(logits).to(dtypes[number % len(dtypes)])
            assert compiled_kernels.is_worthwhile(rows) == compiled
            curve = finecal.tradeoff_curve(rows, torch.tensor(labels), torch.tensor(mask))
            found = curve.breakpoints.tolist(), curve.seen_correct.tolist(), curve.absent_correct.tolist()
            assert found == counts_by_hand(logits, labels, mask)


def test_margins_of_either_sign_zero_and_the_smallest_number_keep_their_order():
    tiny = 2.0**-149
    margin = torch.tensor([tiny, -tiny, 0.0, -0.0, 3.4e38, -3.4e38, 1.0, -1.0])
    is_seen = torch.tensor([True, False] * 4)
    breakpoints, seen, absent = operating_points(margin, is_seen, torch.ones_like(is_seen))
    assert breakpoints.tolist() == sorted({float(m) for m in margin})
    assert seen.tolist() == [4, 4, 4, 4, 3, 2, 1, 0]
    assert absent.tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
