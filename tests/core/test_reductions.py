"""Sums, maxima and winners of either group of classes."""

import math

import numpy as np
import pytest
import torch

import finecal
import reference
from finecal._core import kernels as tiles
from finecal._core import kernels as torch_kernels
from finecal._core import reductions as kernels
from finecal._core.kernels import winners
from finecal._core.reductions import largest_two

INF = math.inf


def test_masked_values_do_not_count():
    values = torch.tensor([[3.0, 1.0, 2.0], [3.0, -math.inf, -math.inf], [-math.inf] * 3])
    found = largest_two(values)
    assert found.largest.tolist() == [3.0, 3.0, -math.inf]
    assert found.spacing.tolist() == [1.0, 0.0, 0.0]
    assert found.number.tolist() == [3.0, 1.0, 0.0]


def test_one_value_has_no_next():
    found = largest_two(torch.tensor([[3.0], [-1.0]]))
    assert found.spacing.tolist() == [0.0, 0.0]


def test_spacing_says_how_far_the_maximum_moves(rng):
    """With exponential values the mean rise and fall are exactly what the docstring says."""
    values = rng.exponential(size=(200_000, 6))
    found = largest_two(torch.tensor(values[:, :5]))
    rise = np.maximum(values.max(1) - values[:, :5].max(1), 0)
    fall = values[:, :5].max(1) - values[:, :4].max(1)
    for moves, expected in ((rise, found.spacing / 6), (fall, found.spacing / 5)):
        error = 4 * moves.std() / math.sqrt(len(moves))
        assert abs(moves.mean() - float(expected.mean())) < 2 * error


def random_problem(seed, n=40, c=9, dtype=torch.float32, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, c, generator=g) * 3).to(dtype).to(device)
    mask = torch.tensor([i % 3 == 0 for i in range(c)], device=device)
    return logits, mask


class TestGroupWinners:
    @pytest.mark.parametrize("tile_elements", [1 << 18, 5 * 9, 4])
    @pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])  # so that few, many or all rows have an absent class on top
    def test_equals_the_first_argmax_of_each_group(self, device, dtype, tile_elements, shift, monkeypatch):
        monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", tile_elements)
        logits, mask = random_problem(12, dtype=dtype, device=device)
        logits = (logits + shift * mask).to(dtype).round()  # full of ties
        logits[0], logits[1, mask], logits[2, ~mask] = -INF, -INF, -INF
        found = winners(logits, mask)
        for winner, group in zip(found[:2], (True, False), strict=True):
            assert winner.dtype == torch.int64
            assert winner.tolist() == [reference.first_argmax(row, mask.tolist(), group) for row in logits.tolist()]

    def test_predict_takes_one_or_the_other(self):
        logits, mask = random_problem(13)
        seen, absent, *_ = winners(logits, mask)
        margin = torch.from_numpy(finecal.Samples(logits.numpy(), torch.arange(40) % 9).margins(mask).margin).double()
        for gamma in (-1.0, 0.0, 2.5):
            assert torch.equal(torch.where(margin < gamma, absent, seen), finecal.predict(logits, mask, gamma))

    def test_no_rows(self):
        seen, absent, *_ = winners(torch.zeros(0, 3), torch.tensor([True, True, False]))
        assert seen.shape == absent.shape == (0,)


MASKS = {
    "random": [False, True, True, False, False, True, False, False, True, True, True],
    "first": [True] * 4 + [False] * 7,
    "last": [False] * 9 + [True] * 2,
    "one seen": [False] * 5 + [True] + [False] * 5,
    "one absent": [True] * 3 + [False] + [True] * 7,
}


@pytest.mark.parametrize("flags", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("wide", [2, 1000])  # classes from which on labelled logits take winners
@pytest.mark.parametrize("n", [0, 1, 2, 60])
class TestByBruteForce:
    @pytest.fixture
    def given(self, flags, wide, n, device, dtype, monkeypatch):
        """Rows full of ties and of -inf: a tile of which one group wins all rows, nearly all, or some."""
        monkeypatch.setattr(torch_kernels, "_WIDE", wide)
        monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", 10 * len(flags))
        generator = torch.Generator().manual_seed(n)
        logits = (2 * torch.randn(n, len(flags), generator=generator)).round()
        mask = torch.tensor(flags)
        logits += 5.0 * mask * torch.tensor([1, 1, -1, -1, 0, 1]).repeat_interleave(10)[:n, None]
        logits[3::20] -= 20.0 * mask * logits[3::20].sign().sum(1, keepdim=True).sign()  # one row of a tile
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = -INF
        logits[5:6], logits[6:7, mask], logits[7:8, ~mask] = -INF, -INF, -INF
        labels = torch.randint(len(flags), (n,), generator=generator)
        return logits.to(device, dtype), labels.to(device), mask.to(device)

    def test_hits_and_maxima(self, given):
        logits, labels, mask = given
        seen_max, absent_max, hit = kernels.label_hits(*given)
        flags = mask.tolist()
        for maxima, group in ((seen_max, True), (absent_max, False)):
            assert maxima.dtype == tiles.wide_dtype(logits.dtype)
            assert maxima.tolist() == [
                max(z for z, seen in zip(row, flags, strict=True) if seen == group) for row in logits.tolist()
            ]
        assert hit.tolist() == [
            reference.first_argmax(row, flags, flags[y]) == y
            for row, y in zip(logits.tolist(), labels.tolist(), strict=True)
        ]

    def test_rivals(self, given):
        logits, labels, mask = given
        found = kernels.label_scalars(*given)
        assert torch.equal(found.hit, kernels.label_hits(*given)[2])
        rows, flags = logits.tolist(), mask.tolist()
        for rivals, group in ((found.seen_rival, True), (found.absent_rival, False)):
            assert rivals.tolist() == [
                max((row[c] for c in range(len(flags)) if flags[c] == group and c != y), default=-INF)
                for row, y in zip(rows, labels.tolist(), strict=True)
            ]
        assert found.own.tolist() == [row[y] for row, y in zip(rows, labels.tolist(), strict=True)]

    def test_winners(self, given):
        logits, _, mask = given
        for found, group in zip(winners(logits, mask)[:2], (True, False), strict=True):
            assert found.tolist() == [reference.first_argmax(row, mask.tolist(), group) for row in logits.tolist()]

    def test_winners_where_the_classes_come_first_in_memory(self, given, monkeypatch):
        logits, _, mask = given
        monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", 14 * len(mask))
        found = winners(logits.T.contiguous().T, mask)
        for winner, maximum, group in ((found.seen, found.seen_max, True), (found.absent, found.absent_max, False)):
            assert (winner.dtype, maximum.dtype) == (torch.int64, tiles.wide_dtype(logits.dtype))
            first = [reference.first_argmax(row, mask.tolist(), group) for row in logits.tolist()]
            assert winner.tolist() == first
            assert maximum.tolist() == [row[c] for row, c in zip(logits.tolist(), first, strict=True)]


def test_nan_carries_where_the_classes_come_first_in_memory(monkeypatch):
    monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", 14 * 4)
    for column in range(4):
        logits = torch.arange(40.0).reshape(4, 10)
        logits[column, 3] = math.nan
        found = winners(logits.T, torch.tensor([True, False, True, False]))
        assert torch.maximum(found.seen_max, found.absent_max).isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("wide", [2, 1000])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_nan_carries(column, wide, monkeypatch, device, dtype):
    monkeypatch.setattr(torch_kernels, "_WIDE", wide)
    logits = torch.arange(60.0, device=device).reshape(20, 3).to(dtype)
    logits[4, column] = math.nan
    mask, labels = torch.tensor([True, True, False], device=device), torch.zeros(20, dtype=torch.int64, device=device)
    seen_max, absent_max, _ = kernels.label_hits(logits, labels, mask)
    assert torch.maximum(seen_max, absent_max).isnan().nonzero().tolist() == [[4]]


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e4])
def test_group_log_sum_exps(rng, scale, device, dtype):
    """Also where one group is too far below the other for their exponentials to share a scale."""
    logits = torch.tensor(rng.normal(size=(700, 500)) * scale).to(device, dtype)
    logits[rng.random((700, 500)) < 0.3] = -torch.inf
    mask = torch.arange(500, device=device) % 3 == 0
    logits[0], logits[1, mask], logits[2, ~mask] = -torch.inf, -torch.inf, -torch.inf
    for got, group in zip(torch_kernels.group_log_sum_exps(logits, mask), (mask, ~mask), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, logits[:, group].double().logsumexp(1), rtol=1e-13, atol=1e-13)
    assert [part.shape for part in torch_kernels.group_log_sum_exps(logits[:0], mask)] == [(0,), (0,)]
