import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import finecal
import reference
from profiles import examples

INF = math.inf
pytestmark = pytest.mark.usefixtures("both_ways")


def test_fields(device, dtype):
    logits = torch.tensor([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5], [0.0, 1.0, 7.0]], dtype=dtype, device=device)
    m = finecal.Samples(logits, torch.tensor([0, 2, 1], device=device)).margins(torch.tensor([True, True, False]))
    assert m.margin.tolist() == [1.0, 2.5, -6.0]
    assert m.margin.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert m.is_seen.tolist() == [True, False, True]
    assert m.hit.tolist() == [True, True, True]
    assert m.label.tolist() == [0, 2, 1]
    assert m.label.dtype == torch.int64
    assert all(field.device.type == device.type for field in (m.margin, m.is_seen, m.hit, m.label))


def test_numpy_gives_numpy():
    m = finecal.Samples(np.zeros((2, 3), np.float16), [0, 2]).margins([True, True, False])
    assert m.margin.dtype == np.float32
    assert m.hit.dtype == np.bool_
    assert len(m) == 2


def test_half_types_are_subtracted_in_float32():
    m = finecal.Samples(torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16), [0]).margins([True, False])
    assert m.margin.item() == 255.0


def test_hits_at_ties_take_the_lowest_index():
    mask = [False, True, True, False]
    m = finecal.Samples(np.ones((4, 4), np.float32), [0, 1, 2, 3]).margins(mask)
    assert m.hit.tolist() == [True, True, False, False]


def test_single_class_groups_always_hit():
    m = finecal.Samples(np.array([[1.0, 5.0], [5.0, 1.0]]), [0, 1]).margins([True, False])
    assert m.hit.tolist() == [True, True]


def test_masked_classes():
    mask = [True, True, False, False]
    logits = [[-INF, -INF, 0.0, 1.0], [0.0, 1.0, -INF, -INF], [-INF] * 4, [-INF, -INF, 0.0, 1.0]]
    m = finecal.Samples(logits, [1, 1, 0, 0]).margins(mask)
    assert m.margin.tolist() == [-INF, INF, INF, -INF]
    assert m.hit.tolist() == [False, True, True, True]


def test_empty_and_single_sample():
    assert len(finecal.Samples(np.zeros((0, 3)), []).margins([True, True, False])) == 0
    assert len(finecal.Samples(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).margins([True, True, False])) == 0
    assert len(finecal.Samples(np.zeros((1, 3)), [2]).margins([True, True, False])) == 1


def test_gradients_are_not_tracked():
    m = finecal.Samples(torch.zeros(2, 2, requires_grad=True), [0, 1]).margins([True, False])
    assert not m.margin.requires_grad


def test_inputs_are_not_changed(rng):
    logits, labels, mask = reference.integer_problem(rng)
    copies = logits.copy(), labels.copy(), mask.copy()
    finecal.Samples(logits, labels).margins(mask)
    assert all(np.array_equal(a, b) for a, b in zip(copies, (logits, labels, mask), strict=True))


@examples(200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.booleans())
@pytest.mark.filterwarnings("ignore:labels are exactly")
def test_equals_the_rule_on_tied_problems(seed, masked):
    rng = np.random.default_rng(seed)
    logits, labels, mask = reference.integer_problem(rng)
    if masked:
        logits[rng.random(logits.shape) < 0.3] = -INF
    m = finecal.Samples(logits, labels).margins(mask)
    assert m.margin.tolist() == [reference.margin(row, mask) for row in logits]
    assert m.hit.tolist() == [reference.is_hit(row, y, mask) for row, y in zip(logits, labels, strict=True)]
    assert m.is_seen.tolist() == mask[labels].tolist()


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")  # that labels look random
def test_inputs_are_not_changed_under_compilation_either():
    n = (1 << 18) // 3 + 7  # more rows than a tile has
    logits = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    labels, mask = torch.arange(n) % 3, torch.tensor([True, True, False])
    before = logits.clone()

    def margins(logits, labels, mask):
        return finecal.Samples(logits, labels).margins(mask)

    compiled = torch.compile(margins, backend="aot_eager")(logits, labels, mask)
    assert torch.equal(logits, before)
    assert torch.equal(compiled.margin, margins(logits, labels, mask).margin)


@pytest.mark.parametrize(("dtype", "bytes_per_sample"), [(np.float32, 14), (np.float64, 18)])
def test_margins_take_few_bytes(rng, dtype, bytes_per_sample):
    logits, labels = rng.normal(size=(50, 4)).astype(dtype), np.arange(50) % 4
    samples = finecal.Samples(logits, labels).margins(np.arange(4) < 2)
    parts = (samples.margin, samples.is_seen, samples.hit, samples.label)
    assert sum(part.nbytes for part in parts) == bytes_per_sample * 50
