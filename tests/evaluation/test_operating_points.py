"""Operating points by blocks, at once, and by counting."""

import math

import pytest
import torch

from finecal.evaluation import operating_points as module
from finecal.evaluation.operating_points import operating_points, twice_the_area


@pytest.fixture(params=[1, 3, 1 << 17], autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", request.param)


def drawn(rng, n, dtype, distinct):
    margin = torch.tensor(rng.integers(-distinct, distinct + 1, n) / 4).to(dtype)
    margin[torch.tensor(rng.random(n) < 0.1)] = math.inf
    margin[torch.tensor(rng.random(n) < 0.1)] = -math.inf
    return margin, torch.tensor(rng.random(n) < 0.5), torch.tensor(rng.random(n) < 0.7)


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


@pytest.mark.parametrize("distinct", [0, 2, 40, 10_000])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_at_once_is_by_blocks(rng, n, distinct):
    margin, is_seen, hit = drawn(rng, n, torch.float32, distinct)
    in_order = module._sort_with_group(margin, is_seen, hit & margin.isfinite())
    expected = operating_points(margin, is_seen, hit)
    found = module._points_at_once(*in_order, expected[1][:1], expected[2][:1])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


def test_area_is_that_of_the_trapezoids(rng):
    _, seen, absent = operating_points(*drawn(rng, 200, torch.float32, 30))
    assert twice_the_area(seen, absent) == 2 * float(torch.trapezoid(absent.double(), -seen.double()))
    assert twice_the_area(seen[:1], absent[:1]) == 0


def test_ties_let_go_of_memory(rng):
    points = operating_points(torch.zeros(10_000), *drawn(rng, 10_000, torch.float32, 1)[1:])
    assert [p.untyped_storage().nbytes() for p in points] == [8, 16, 16]


def test_inputs_stay(rng):
    given = drawn(rng, 100, torch.float32, 5)
    before = [value.clone() for value in given]
    operating_points(*given)
    assert all(map(torch.equal, given, before))
